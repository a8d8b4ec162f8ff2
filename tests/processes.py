"""Runs in processes of their own, several of them on loopback with gloo, started as a user does."""

import os
import pathlib
import socket
import subprocess
import sys
from types import SimpleNamespace

from ssl_jax.train.metrics import read_lines

ROOT = pathlib.Path(__file__).parents[1]
DEMO = str(ROOT / 'configs' / 'simclr_fashion_mnist.py')
QUIET = ('--config.evaluate.every=None', '--config.evaluate.health_every=None',
         '--config.optimizer={"name": "sgd"}')
# Short waits, given before the command as a test cannot wait as long as a cluster.
SHORT = ('import sys; from ssl_jax.cli import agreement, hosts, main, meeting, process\n'
         'meeting.START, hosts.LAST, agreement.SHARED = 60, 5, 1\n')


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
  clean = {name: value for name, value in os.environ.items()
           if not name.startswith(('SLURM_', 'OMPI_', 'JAX_'))}
  return clean | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices),
                  'PYTHONPATH': str(ROOT)} | more


def python(code: str, *arguments: str, cwd=ROOT, **more) -> subprocess.Popen:
  return subprocess.Popen([sys.executable, '-c', code, *arguments], cwd=cwd, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**more))


def train(workdir, *arguments: str, code=SHORT, **more) -> subprocess.Popen:
  return python(code + 'process.leave(main(sys.argv[1:]))', 'train', f'--config={DEMO}:smoke',
                f'--workdir={workdir}', f'--cache_dir={ROOT}/.jax_cache', *QUIET, *arguments,
                **more)


def together(workdirs, *arguments: str, each=((), ()), devices=2, **more) -> list[subprocess.Popen]:
  """One process for each folder; `each` has more arguments of each."""
  address = f'--coordinator=127.0.0.1:{free_port()}'
  return [train(workdir, address, f'--processes={len(workdirs)}', f'--process={i}', *arguments,
                *each[i], devices=devices, **more) for i, workdir in enumerate(workdirs)]


def ends(processes: list[subprocess.Popen], timeout=120) -> list[SimpleNamespace]:
  try:
    texts = [process.communicate(timeout=timeout) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [SimpleNamespace(code=process.returncode, out=out, err=err)
          for process, (out, err) in zip(processes, texts)]


def lines(workdir) -> list[dict]:
  return read_lines(pathlib.Path(workdir) / 'metrics.jsonl')
