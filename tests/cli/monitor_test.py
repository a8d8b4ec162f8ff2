"""The watch for collapse looks at what the objective sees, too."""

import pathlib

import jax
import pytest

from ssl_jax import build
from ssl_jax.cli.monitor import Monitor
from ssl_jax.cli.options import load_config

CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'configs'


@pytest.fixture(scope='module')
def run():
  config = load_config(f'{CONFIGS}/byol_fashion_mnist.py:smoke')
  with config.ignore_type():
    config.evaluate.every = None
  experiment = build.experiment(config, jax.devices()[:1])
  return config, experiment, experiment.program(config).init()


def said(run, ts) -> list[str]:
  config, experiment, _ = run
  lines = []
  Monitor(config, experiment, lambda step, numbers: None, lines.append).health(7, ts)
  return lines


def test_a_healthy_start_is_not_warned_of(run):
  assert said(run, run[2]) == []


def test_a_head_that_gives_one_point_for_all_is_named(run):
  _, _, ts = run
  head = jax.tree.map(lambda x: 0 * x, ts.params['net']['head'])
  params = {**ts.params, 'net': {**ts.params['net'], 'head': head}}
  [line] = said(run, ts._replace(params=params))
  assert line.startswith('WARNING at step 7: projections: complete collapse')
