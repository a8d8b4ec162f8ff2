"""Every config's method keeps the contract of ssl_jax.testing; new configs are found by themselves."""

import importlib
import pathlib
from functools import cache, partial

import jax
import numpy as np
import pytest

from ssl_jax import build, testing
from ssl_jax.cli.options import load_config
from ssl_jax.train.step import example_keys

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))
ROWS = 16
each_config = pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)


@cache
def smoke(path):
  """(config, make, batch): the `:smoke` variant, and 16 different real examples as it prepares them."""
  config = load_config(f'{path}:smoke')
  raw = build.source(config).take(np.arange(ROWS))
  keys = example_keys(jax.random.key(0), np.zeros(ROWS, np.uint32), np.arange(ROWS, dtype=np.uint32))
  return config, partial(build.method, config), build.image_views(config).prepare(keys, raw)


@each_config
@pytest.mark.parametrize('check', testing.CHECKS)
def test_contract(path, check):
  _, make, batch = smoke(path)
  testing.CHECKS[check](make, batch)


@each_config
def test_collectives_are_those_declared(path):
  config, make, batch = smoke(path)
  declared = importlib.import_module(f'ssl_jax.methods.{config.method.name}').COLLECTIVES
  testing.check_collectives(make, batch, declared)


@each_config
def test_the_method_names_its_reference(path):
  config = load_config(f'{path}:smoke')
  testing.check_docstring_names_a_reference(
    importlib.import_module(f'ssl_jax.methods.{config.method.name}'))


@each_config
@pytest.mark.slow
def test_two_and_four_devices(path):
  _, make, batch = smoke(path)
  testing.check_same_on_any_device_count(make, batch, (2, 4))
  testing.check_curve_in_float64(make, batch, (2, 4))


def test_every_method_has_a_config():
  used = {load_config(f'{path}:smoke').method.name for path in CONFIGS}
  methods = {path.stem for path in pathlib.Path(build.methods.__path__[0]).glob('*.py')}
  assert methods - {'__init__'} <= used
