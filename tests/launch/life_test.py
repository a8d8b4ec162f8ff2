"""A whole life against the fake cloud, with a model that really trains: created, set up, started,
preempted, created again, set up again, resumed, done. What comes out equals an undisturbed run."""

import json
import pathlib
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from launch import archive, record

STEPS = 160  # long enough for several looks of the babysitter, however busy the machine is
ARGUMENTS = (
  'train', '--config=configs/simclr_fashion_mnist.py:smoke', f'--config.steps={STEPS}',
  '--config.checkpoint.every=4', '--config.evaluate.every=None',
  '--config.evaluate.health_every=None')


def metrics(workdir: pathlib.Path) -> list[dict]:
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines]


def weights(*workdirs: pathlib.Path, checkout: pathlib.Path) -> list[dict[str, np.ndarray]]:
  """All arrays of the last checkpoint of each run, read in a process of its own."""
  code = '''
import sys, jax, numpy, ssl_jax
for folder in sys.argv[1:]:
  run = ssl_jax.load(folder)
  leaves = jax.tree.leaves((run.params, run.state))
  numpy.savez(folder + '.npz', *map(numpy.asarray, leaves))
'''
  subprocess.run([sys.executable, '-c', code, *map(str, workdirs)], check=True, cwd=checkout)
  return [dict(np.load(f'{workdir}.npz')) for workdir in workdirs]


def newest(workdir: pathlib.Path) -> int:
  """The newest complete checkpoint, 0 before the first."""
  found = workdir.glob('checkpoints/*/manifest.json')
  return max((int(path.parent.name) for path in found), default=0)


def free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


@pytest.mark.parametrize('accelerator, hosts', [
  ('v5litepod-8', 1), pytest.param('v4-16', 2, marks=pytest.mark.slow)])
def test_a_preempted_run_equals_one_left_alone(cloud, tmp_path, accelerator, hosts):
  """Each host has one CPU device."""
  cache = f'--cache_dir={tmp_path}/cache'
  # What a Cloud TPU slice tells JAX through the metadata server.
  port = free_port()
  places = [{'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(hosts),
             'JAX_PROCESS_ID': str(i)} if hosts > 1 else {} for i in range(hosts)]
  cloud.play(environment={'VM_PYTHON': sys.executable}, environments=places, hosts=hosts)
  made = cloud.record(accelerator=accelerator,
                      arguments=(*ARGUMENTS, cache, '--workdir=runs/demo'))
  made = made._replace(code=archive.pack(cloud.world(), made))
  record.save(made)
  checkout = tmp_path / 'alone'
  with tarfile.open(made.folder / made.code) as tar:
    tar.extractall(checkout, filter='data')
  alone = subprocess.Popen(
    [sys.executable, '-m', 'launch', 'local', f'--processes={hosts}', '--devices=1', '--',
     *ARGUMENTS, cache, '--workdir=alone'],
    cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  runs = cloud.folder / 'buckets' / 'acme-runs' / 'runs'
  preempted = []

  def preempt_after_a_checkpoint():
    if not preempted and newest(runs / 'demo'):
      cloud.preempt('demo')
      preempted.append(newest(runs / 'demo'))
  cloud.on_sleep = preempt_after_a_checkpoint
  assert cloud.babysit(made, processes=True) == 0, '\n'.join(cloud.said)
  output, _ = alone.communicate(timeout=120)
  assert alone.returncode == 0, output.decode()
  assert 0 < preempted[0] < STEPS and cloud.machines == ['demo'] and cloud.most == 1
  starts = (runs / 'demo' / 'starts.jsonl').read_text().splitlines()
  assert len(starts) == 2, 'it was not resumed'
  assert metrics(runs / 'demo') == metrics(checkout / 'alone')
  ours, theirs = weights(runs / 'demo', checkout / 'alone', checkout=checkout)
  assert ours.keys() == theirs.keys()
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name])
