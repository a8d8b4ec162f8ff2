"""SIGKILL at random times: the run that was restarted equals the one left alone, bit for bit."""

import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from ssl_jax.train.metrics import read_lines

ROOT = pathlib.Path(__file__).parents[2]
STEPS, KILLS = 40, 6


def command(workdir, cache):
  return [sys.executable, '-m', 'ssl_jax', 'train',
          f'--config={ROOT}/configs/simclr_fashion_mnist.py:smoke', f'--workdir={workdir}',
          f'--cache_dir={cache}', f'--config.steps={STEPS}', '--config.checkpoint.every=5',
          '--config.evaluate.every=None', '--config.evaluate.health_every=None']


def result(workdir):
  """(metrics without timing, representations of the test images)."""
  out = workdir.parent / f'{workdir.name}.npz'
  subprocess.run([sys.executable, '-m', 'ssl_jax', 'embed', f'--workdir={workdir}', f'--output={out}'],
                 check=True, capture_output=True)
  lines = [{k: v for k, v in line.items() if k != 'seconds'}
           for line in read_lines(workdir / 'metrics.jsonl')]
  return lines, np.load(out)['embedding']


@pytest.mark.slow
def test_kills_leave_no_trace(tmp_path):
  cache = tmp_path / 'cache'
  alone = tmp_path / 'alone'
  subprocess.run(command(alone, cache), check=True, capture_output=True)
  killed, times = tmp_path / 'killed', random.Random(0)
  survived = 0
  for _ in range(KILLS):
    process = subprocess.Popen(command(killed, cache), stderr=subprocess.PIPE, text=True)
    # Import takes about 2 s; after it the steps, saves and commits of a run fit into 3 s.
    time.sleep(times.uniform(2.0, 6.0))
    survived += process.poll() is None
    process.kill()
    process.communicate()
  assert survived >= 2, 'most runs were over before they were killed: nothing was tested'
  subprocess.run(command(killed, cache), check=True, capture_output=True)
  lines, features = result(killed)
  expected_lines, expected_features = result(alone)
  assert lines == expected_lines
  np.testing.assert_array_equal(features, expected_features)
