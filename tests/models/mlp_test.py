"""Projection heads against a NumPy formula, and the shape of their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.mlp import UnitNorm, mlp
from ssl_jax.models.network import from_linen
from ssl_jax.types import Mode


def standardize(x):
  return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


@pytest.mark.parametrize('output_norm', [None, 'scale', 'plain'])
def test_equals_the_formula(output_norm):
  x = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float32)
  net = from_linen(mlp(layers=3, out=4, output_norm=output_norm))
  params, state = net.init(jax.random.key(0), x)
  z, _ = net.apply(params, state, x, Mode(True))
  y, params = x.astype(np.float64), jax.tree.map(np.asarray, params)
  for i in range(2):
    y = np.maximum(standardize(y @ params[f'Dense_{i}']['kernel']), 0)
  y = y @ params['Dense_2']['kernel']
  np.testing.assert_allclose(z, standardize(y) if output_norm else y, rtol=1e-4, atol=1e-5)


def shapes(**options):
  net = from_linen(mlp(**options))
  params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.ones((2, 16)))
  return jax.tree.map(lambda leaf: leaf.shape, params)


def test_parameters_are_those_of_simclr():
  """google-research/simclr, tf2/model.py: no dense bias; the last BatchNorm scales, no bias."""
  assert shapes() == {
      'Dense_0': {'kernel': (16, 16)}, 'BatchNorm_0': {'scale': (16,), 'bias': (16,)},
      'Dense_1': {'kernel': (16, 128)}, 'BatchNorm_1': {'scale': (128,)}}


def test_unit_norm():
  x = np.array([[3., 4.], [0., 0.]], np.float32)
  np.testing.assert_allclose(UnitNorm().apply({}, x), [[.6, .8], [0, 0]], rtol=1e-6)
  np.testing.assert_allclose(UnitNorm(axis=0).apply({}, x), [[1, 1], [0, 0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: UnitNorm().apply({}, x).sum())(x)).all()
  assert UnitNorm().apply({}, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_options():
  assert shapes(layers=1, out=5, output_norm=None) == {'Dense_0': {'kernel': (16, 5)}}
  assert 'BatchNorm_1' not in shapes(output_norm='plain')
  assert shapes(hidden=32)['Dense_1']['kernel'] == (32, 128)


def test_half_precision_projects_to_float32():
  net = from_linen(mlp(dtype='bfloat16'))
  params, state = net.init(jax.random.key(0), jnp.ones((4, 6)))
  assert net.apply(params, state, jnp.ones((4, 6)), Mode())[0].dtype == jnp.float32
  assert params['Dense_0']['kernel'].dtype == jnp.float32


@pytest.mark.parametrize('options, message', [
    ({'layers': 0}, 'at least one'), ({'output_norm': 'batch'}, 'must be one of'),
    ({'batch_norm': {'eps': 1}}, 'does not know')])
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    mlp(**options)
