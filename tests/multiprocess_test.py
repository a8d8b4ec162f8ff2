"""Two processes x four devices with gloo on loopback equal one process x eight devices."""

import json
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.cli.options import load_config

TESTS = pathlib.Path(__file__).parent
WORKER = TESTS / 'multiprocess_worker.py'
SIMCLR = 'simclr_fashion_mnist.py:smoke'
# The one with the most states beside it: a second encoder and a queue of keys.
SHORT = ['moco_fashion_mnist.py:smoke']


def all_specs() -> list[str]:
  """A smoke config of every method."""
  paths = sorted((TESTS.parent / 'configs').glob('*_fashion_mnist.py'))
  paths += sorted((TESTS.parent / 'configs').glob('*_wordnet.py'))
  named = {load_config(f'{path}:smoke').method.name: f'{path.name}:smoke' for path in paths}
  return list(named.values())


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def train(folder, processes: int, order: str, specs: list[str], timeout=300) -> list[dict]:
  """What each process saw; `order` places the devices in the mesh."""
  port, outputs, running = free_port(), [], []
  for index in range(processes):
    outputs.append(folder / f'{processes}-{order}-{index}.json')
    running.append(subprocess.Popen(
      [sys.executable, str(WORKER), str(index), str(processes), str(port), order, str(outputs[-1]),
       *specs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
  try:
    texts = [process.communicate(timeout=timeout)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  for process, text in zip(running, texts):
    assert process.returncode == 0, text[-3000:]
  return [json.loads(path.read_text()) for path in outputs]


def assert_equal(both: list[dict], alone: dict) -> None:
  for result in both:
    for step, expected in zip(result['steps'], alone['steps']):
      assert step['ids'] == expected['ids']
    # Later float32 steps drift apart by rounding, in correct code too.
    for name in ('loss', 'grad_norm'):
      np.testing.assert_allclose(result['steps'][0][name], alone['steps'][0][name], rtol=1e-5)
    np.testing.assert_allclose(result['leaves'], alone['leaves'], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  return train(tmp_path_factory.mktemp('alone'), 1, '01234567', [SIMCLR, *SHORT])[0]


def test_two_processes_equal_one(alone, tmp_path):
  both = train(tmp_path, 2, '01234567', [SIMCLR, *SHORT])
  for spec, expected in alone.items():
    assert_equal([result[spec] for result in both], expected)
  # Evaluation: every process holds every row, in the order of the source.
  for result in both:
    assert result[SIMCLR]['labels'] == alone[SIMCLR]['labels'] and len(result[SIMCLR]['labels']) == 60
    np.testing.assert_allclose(result[SIMCLR]['features'], alone[SIMCLR]['features'], rtol=.05,
                               atol=1e-3)


@pytest.mark.slow
def test_hosts_whose_devices_interleave(alone, tmp_path):
  """On real slices a host has no contiguous block of rows."""
  both = [result[SIMCLR] for result in train(tmp_path, 2, '01452367', [SIMCLR])]
  assert both[0]['rows'] == [0, 1, 2, 3, 8, 9, 10, 11]
  assert both[1]['rows'] == [4, 5, 6, 7, 12, 13, 14, 15]
  assert_equal(both, alone[SIMCLR])


@pytest.mark.slow
def test_every_method_on_two_processes(tmp_path):
  specs = all_specs()
  alone = train(tmp_path, 1, '01234567', specs, timeout=1500)[0]
  both = train(tmp_path, 2, '01234567', specs, timeout=1500)
  for spec in specs:
    assert_equal([result[spec] for result in both], alone[spec])
