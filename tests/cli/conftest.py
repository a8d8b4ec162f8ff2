"""Folders of runs as `train` and `evaluate` leave them, without training."""

import json
import pathlib

import pytest

from ssl_jax import runs
from ssl_jax.cli.options import load_config, override
from ssl_jax.train import manifest

DEMO = str(pathlib.Path(__file__).parents[2] / 'configs' / 'simclr_fashion_mnist.py')


def leave_run(folder, overrides=(), *, step=4, source='d8d1b556de913ff1', loss=2.5):
  """What `train` leaves after `step` steps of the smoke config."""
  folder = pathlib.Path(folder)
  config = override(load_config(f'{DEMO}:smoke'), list(overrides))
  arrays = folder / runs.CHECKPOINTS / str(step) / 'state-0'
  arrays.mkdir(parents=True)
  manifest.commit(arrays, manifest.make(step, {}, {'data': {'source': source, 'length': 10_000}}))
  (folder / runs.CONFIG).write_text(config.to_json())
  lines = [dict(step=k, loss=loss, seconds=3. + 0.5 * k) for k in range(1, step + 1)]
  (folder / runs.METRICS).write_text('\n'.join(map(json.dumps, lines)))


def leave_evaluation(folder, *, step=4, seed=0, **accuracies):
  """What `evaluate` leaves: `accuracies` of the trained encoder, 0.5 of the random one."""
  health = dict(effective_rank=40., spread=0.45, alignment=0.25, uniformity=-0.75)
  (pathlib.Path(folder) / runs.EVALUATION).write_text(json.dumps(dict(
    step=step, protocol=dict(knn='cosine, k=20', seed=seed), health={'simclr': health},
    accuracies={'raw pixels': dict.fromkeys(accuracies, 0.8),
                'random init': dict.fromkeys(accuracies, 0.5),
                'simclr': {**accuracies, 'labels10_std': 0.02, 'linear_weight_decay': 1e-4}})))


@pytest.fixture
def left():
  """(leave_run, leave_evaluation)"""
  return leave_run, leave_evaluation
