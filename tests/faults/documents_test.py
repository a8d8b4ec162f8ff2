"""Fault 63; 61 and 62 are proved by tests/colabs_test.py and tests/docs_test.py."""

import pathlib

import jax
import numpy as np
import pytest

from ssl_jax import build
from ssl_jax.cli.options import load_config
from ssl_jax.cli.train import global_batches
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.loop import Every, fit

CONFIGS = [path for path in sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))
           if not path.stem.startswith('finetune_')]
# The others run in the long suite; tests/cli trains one of images, one of text, one of both.
SHORT = ('supervised_fashion_mnist',)


@pytest.fixture(autouse=True)
def forgetful():
  """Compiled programs of 30 configs are gigabytes."""
  yield
  jax.clear_caches()


@pytest.mark.parametrize('path', [
  pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in SHORT))
  for path in CONFIGS])
def test_63_every_config_takes_two_steps_saves_and_restores(path, tmp_path):
  """What was restored after the first step takes the second to the same bits."""
  config = load_config(f'{path}:smoke')
  experiment = build.experiment(config, jax.devices()[:1])
  program = experiment.program(config)
  checkpoints, losses = Checkpoints(tmp_path, keep_last=2), []

  def go_on(ts):
    batches = global_batches(config, experiment, program, int(ts.step))
    ts = fit(program.step, ts, batches, steps=2,
             report=lambda k, metrics: losses.append(metrics['loss']),
             callbacks=[Every(1, lambda k, ts: checkpoints.save(k, ts, {}))])
    checkpoints.wait()
    return jax.device_get(ts)

  expected = go_on(program.init())
  assert checkpoints.steps() == [1, 2] and np.isfinite(losses).all()
  jax.tree.map(np.testing.assert_array_equal,
               jax.device_get(checkpoints.restore(2, program.state)), expected)
  restored = checkpoints.restore(1, program.state)
  checkpoints.roll_back(1)
  jax.tree.map(np.testing.assert_array_equal, go_on(restored), expected)
  assert len(losses) == 3 and losses[2] == losses[1]
