"""Every method keeps the contract of ssl_jax.testing; a new one is found through its config."""

import importlib
import pathlib
from functools import cache, partial

import jax
import numpy as np
import pytest

from ssl_jax import build, testing
from ssl_jax.cli.options import load_config
from ssl_jax.data.batches import batches
from ssl_jax.data.sources import RESERVED
from ssl_jax.train.step import example_keys

ROWS = 16


@cache
def smoke(method):
  """(config, make, batch): the smoke variant, and 16 different real examples as it prepares them."""
  config = load_config(f'{CONFIGS[method]}:smoke')
  raw = _raw(build.source(config, training=True))
  ids = np.arange(ROWS, dtype=np.uint32)
  keys = example_keys(jax.random.key(0), np.zeros(ROWS, np.uint32), ids)
  batch = build.image_views(config).prepare(keys, raw)
  return config, partial(build.method, config), {**batch, 'id': ids}


def _raw(source):
  if hasattr(source, 'take'):
    return source.take(np.arange(ROWS))
  batch = next(batches(source, batch_size=ROWS, seed=0))
  return {name: x for name, x in batch.items() if name not in RESERVED}


def configs() -> dict[str, pathlib.Path]:
  """One config of each method, on data that ship if it has one: their smoke variants are small."""
  paths = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'),
                 key=lambda path: (path.stem.endswith(('fashion_mnist', 'wordnet')), path.stem))
  return {load_config(f'{path}:smoke').method.name: path for path in paths
          if not path.stem.startswith('finetune_')}


CONFIGS = configs()
each_method = pytest.mark.parametrize('method', sorted(CONFIGS))


# In the short suite one method goes through all checks, the others through this one, which needs the
# fewest compilations; `make test-all` runs all.
REPRESENTATIVE = ('simclr',)
SHORT = ('same_on_any_device_count',)
CASES = [pytest.param(method, check, id=f'{check}-{method}', marks=[pytest.mark.slow] * (
           check not in SHORT and method not in REPRESENTATIVE))
         for check in testing.CHECKS for method in sorted(CONFIGS)]


@pytest.mark.parametrize('method, check', CASES)
def test_contract(method, check):
  _, make, batch = smoke(method)
  try:
    testing.CHECKS[check](make, batch)
  except ValueError as error:
    if 'Primitive polynomial requires varying manual axes' not in str(error):
      raise
    pytest.xfail('erf in shard_map with check_vma=True does not work in jax 0.12.0')


@each_method
def test_collectives_are_those_declared(method):
  _, make, batch = smoke(method)
  declared = importlib.import_module(f'ssl_jax.methods.{method}').COLLECTIVES
  testing.check_collectives(make, batch, declared)


@each_method
def test_the_method_names_its_reference(method):
  testing.check_docstring_names_a_reference(importlib.import_module(f'ssl_jax.methods.{method}'))


@each_method
@pytest.mark.slow
def test_two_and_four_devices(method):
  _, make, batch = smoke(method)
  testing.check_same_on_any_device_count(make, batch, (2, 4))
  testing.check_curve_in_float64(make, batch, (2, 4))


def test_every_method_has_a_config():
  methods = {path.stem for path in pathlib.Path(build.methods.__path__[0]).glob('*.py')}
  assert methods - {'__init__'} <= set(CONFIGS)
