"""BatchNorm against formulas and flax, and the same numbers on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.parallel import batch_sharding, make_mesh, replicated
from ssl_jax.types import Mode

ROWS, SIZE, CHANNELS = 16, 3, 5
TRAIN = Mode(True)


@pytest.fixture
def x():
  rng = np.random.default_rng(0)
  return rng.normal(2, 3, (ROWS, SIZE, SIZE, CHANNELS)).astype(np.float32)


def apply(x, mode=TRAIN, key=None, variables=None, **policy):
  """(y, running statistics) of a layer with gamma = 1.5, beta = 0.3."""
  layer = BatchNorm(BatchNormPolicy.of(policy))
  variables = variables or {
      'params': {'scale': jnp.full(CHANNELS, 1.5), 'bias': jnp.full(CHANNELS, .3)},
      'batch_stats': {'mean': jnp.full(CHANNELS, 1.), 'var': jnp.full(CHANNELS, 4.)}}
  rngs = {} if key is None else {'batch_norm': key}
  y, changed = layer.apply(variables, x, mode, rngs=rngs, mutable=['batch_stats'])
  return y, changed['batch_stats']


def objective(x, **kwargs):
  """A scalar per row that couples all channels, so that no part of the gradient cancels."""
  y, stats = apply(x, **kwargs)
  return jnp.sum(jnp.sin(y) * jnp.arange(1., CHANNELS + 1).reshape(1, 1, 1, -1)), (y, stats)


value_and_grad = partial(jax.value_and_grad, has_aux=True)


def torch_formula(x, momentum, unbiased):
  """torch.nn.BatchNorm2d in training as its documentation states it, in float64."""
  x = x.astype(np.float64)
  n = x.size // CHANNELS
  mean = x.mean((0, 1, 2))
  var = ((x - mean) ** 2).sum((0, 1, 2)) / n
  y = (x - mean) / np.sqrt(var + 1e-5) * 1.5 + .3
  running_var = var * n / (n - 1) if unbiased else var
  return y, momentum * 1. + (1 - momentum) * mean, momentum * 4. + (1 - momentum) * running_var


@pytest.mark.parametrize('unbiased', [True, False])
def test_equals_the_formula(x, unbiased):
  y, stats = apply(x, unbiased=unbiased)
  expected, mean, var = torch_formula(x, .9, unbiased)
  np.testing.assert_allclose(y, expected, atol=2e-6)
  np.testing.assert_allclose(stats['mean'], mean, rtol=1e-6)
  np.testing.assert_allclose(stats['var'], var, rtol=1e-6)


def test_equals_flax_on_the_global_batch(x):
  flax = nn.BatchNorm(use_running_average=False, momentum=.9, use_fast_variance=False)
  params = {'scale': jnp.full(CHANNELS, 1.5), 'bias': jnp.full(CHANNELS, .3)}
  stats = {'mean': jnp.full(CHANNELS, 1.), 'var': jnp.full(CHANNELS, 4.)}

  def peer(x):
    y, changed = flax.apply({'params': params, 'batch_stats': stats}, x, mutable=['batch_stats'])
    return jnp.sum(jnp.sin(y) * jnp.arange(1., CHANNELS + 1).reshape(1, 1, 1, -1)), (y, changed)

  (_, (y, changed)), gradient = value_and_grad(peer)(x)
  (_, (ours, our_stats)), our_gradient = value_and_grad(partial(objective, unbiased=False))(x)
  np.testing.assert_allclose(ours, y, atol=2e-6)
  np.testing.assert_allclose(our_gradient, gradient, atol=5e-6)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), our_stats, changed['batch_stats'])


def test_evaluation_uses_running_statistics(x):
  y, stats = apply(x, Mode(False))
  np.testing.assert_allclose(y, (x - 1.) / np.sqrt(4 + 1e-5) * 1.5 + .3, rtol=1e-5, atol=1e-6)
  assert (stats['mean'] == 1).all() and (stats['var'] == 4).all()


def test_momentum_zero_leaves_exactly_the_statistics_of_the_batch(x):
  _, stats = apply(x, Mode(True, momentum=0.), unbiased=False)
  np.testing.assert_allclose(stats['mean'], x.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(stats['var'], x.var((0, 1, 2)), rtol=1e-6)


def test_groups_equal_separate_application(x):
  y, stats = apply(x, group_size=4)
  parts = [apply(rows) for rows in np.split(x, 4)]
  np.testing.assert_allclose(y, np.concatenate([part for part, _ in parts]), atol=1e-6)
  for name in ('mean', 'var'):
    np.testing.assert_allclose(stats[name], np.mean([s[name] for _, s in parts], 0), rtol=1e-6)


def test_shuffled_groups_equal_groups_of_shuffled_rows(x):
  key = jax.random.key(3)
  y, stats = apply(x, key=key, group_size=4, shuffle=True)
  plain, _ = apply(x, group_size=4)
  assert np.abs(y - plain).max() > .01
  # Recovered from the outcome: rows are in one group exactly where y - (slope of the row) x agrees.
  slope = (y[:, 0, 0] - y[:, 1, 1]) / (x[:, 0, 0] - x[:, 1, 1])
  together = np.isclose(slope[:, None], slope[None], rtol=1e-3).all(-1)
  assert (together.sum(1) == 4).all()
  for row in range(ROWS):
    members = np.flatnonzero(together[row])
    np.testing.assert_allclose(y[members], apply(x[members])[0], atol=2e-6)


def test_all_layers_of_one_pass_share_the_permutation(x):
  class Two(nn.Module):
    @nn.compact
    def __call__(self, x, mode):
      policy = BatchNormPolicy(group_size=4, shuffle=True)
      return BatchNorm(policy, name='a')(x, mode), BatchNorm(policy, name='b')(x, mode)

  two = Two()
  variables = two.init(jax.random.key(0), x, Mode())
  (a, b), _ = two.apply(variables, x, Mode(True), rngs={'batch_norm': jax.random.key(1)},
                        mutable=['batch_stats'])
  np.testing.assert_array_equal(a, b)


POLICIES = [{}, {'group_size': 4}, {'group_size': 4, 'shuffle': True}]


@pytest.mark.parametrize('policy', POLICIES, ids=['global', 'groups', 'shuffled'])
@pytest.mark.parametrize('how', ['mesh', 'shard_map', 'unchecked', 'pmap', 'vmap', 'two axes'])
def test_equal_on_any_number_of_devices(x, policy, how):
  key = jax.random.key(5)
  run = partial(objective, key=key, **policy)
  (value, (y, stats)), gradient = value_and_grad(run)(x)
  (got_value, (got_y, got_stats)), got_gradient = _SPREAD[how](run, x)
  np.testing.assert_allclose(got_value, value, rtol=1e-5)
  np.testing.assert_allclose(got_y, y, atol=2e-6)
  np.testing.assert_allclose(got_gradient, gradient, atol=1e-5)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got_stats, stats)


def _inside(run, axis, x):
  """Value, outputs and gradient of the sum over devices, from inside a map over `axis`."""
  total = lambda x: (lambda out: (lax.psum(out[0], axis), out[1]))(run(x, mode=Mode(True, axis)))
  return value_and_grad(total)(x)


def _mesh(run, x):
  mesh = make_mesh()
  return jax.jit(value_and_grad(run))(jax.device_put(x, batch_sharding(mesh)))


def _shard_map(run, x, check_vma=True, shape=None):
  mesh = make_mesh(shape)
  axes = tuple(mesh.axis_names) if shape else 'data'
  specs = ((P(), (P(axes), P())), P(axes))
  # Without the check, the transpose of psum is psum: the gradient of the sum is n times the sum's.
  scale = 1 if check_vma else 1 / mesh.size
  inner = partial(_inside, run, axes)
  out, gradient = jax.jit(jax.shard_map(inner, mesh=mesh, in_specs=P(axes), out_specs=specs,
                                        check_vma=check_vma))(x)
  return out, gradient * scale


def _pmap(run, x):
  (value, (y, stats)), gradient = jax.pmap(partial(_inside, run, 'data'), 'data')(_rows(x))
  first = jax.tree.map(lambda leaf: leaf[0], (value, stats))
  return (first[0], (y.reshape(x.shape), first[1])), gradient.reshape(x.shape) / 8


def _vmap(run, x):
  inner = partial(_inside, run, 'data')
  (value, (y, stats)), gradient = jax.vmap(inner, axis_name='data')(_rows(x))
  first = jax.tree.map(lambda leaf: leaf[0], (value, stats))
  return (first[0], (y.reshape(x.shape), first[1])), gradient.reshape(x.shape) / 8


def _rows(x):
  return x.reshape(8, -1, *x.shape[1:])


_SPREAD = {
    'mesh': _mesh, 'shard_map': _shard_map, 'unchecked': partial(_shard_map, check_vma=False),
    'pmap': _pmap, 'vmap': _vmap, 'two axes': partial(_shard_map, shape={'data': 4, 'fsdp': 2})}


def test_shuffled_groups_move_only_group_sums(collectives):
  mesh = make_mesh()
  x = jax.ShapeDtypeStruct((64, 8, 8, 16), jnp.float32, sharding=batch_sharding(mesh))
  key = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(mesh))

  def step(x, key):
    y, stats = BatchNorm(BatchNormPolicy(group_size=8, shuffle=True), use_scale=False,
                         use_bias=False).apply(
        {'batch_stats': {'mean': jnp.zeros(16), 'var': jnp.ones(16)}}, x, Mode(True),
        rngs={'batch_norm': key}, mutable=['batch_stats'])
    return jnp.sum(jnp.sin(y)), stats

  program = jax.jit(jax.grad(step, has_aux=True),
                    out_shardings=(NamedSharding(mesh, P('data')), None))
  moved = collectives(program.lower(x, key).compile().as_text())
  assert any(name == 'all-reduce' for name, _ in moved)
  assert not [name for name, _ in moved if name in ('all-to-all', 'collective-permute')]
  # 8 groups x 16 channels; the batch has 64 x 1024 numbers, the rows' sums 64 x 16.
  assert max(size for _, size in moved) <= 8 * 16


def test_half_precision_keeps_statistics_in_float32():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(0, 1, (64, 4, 4, CHANNELS)) + 3, jnp.bfloat16)
  y, stats = apply(x, Mode(True, momentum=0.), unbiased=False)
  assert y.dtype == jnp.bfloat16 and stats['var'].dtype == jnp.float32
  np.testing.assert_allclose(stats['var'], np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-5)


def test_variance_survives_a_large_mean():
  x = np.random.default_rng(2).normal(0, 1, (64, CHANNELS)).astype(np.float32) + np.float32(4096)
  _, stats = apply(x, Mode(True, momentum=0.), unbiased=False)
  # E[x^2] - E[x]^2 in float32 has an error of about 4096^2 * 6e-8 = 1 here.
  np.testing.assert_allclose(stats['var'], x.astype(np.float64).var(0), rtol=1e-3)


def test_float64_stays():
  with jax.enable_x64(True):
    x = np.random.default_rng(3).normal(1, 2, (ROWS, CHANNELS))
    y, _ = apply(x, group_size=4)
    assert y.dtype == jnp.float64
    groups = x.reshape(4, 4, CHANNELS)
    expected = (groups - groups.mean(1, keepdims=True)) / np.sqrt(
        groups.var(1, keepdims=True) + 1e-5) * 1.5 + .3
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-7)


@pytest.mark.parametrize('options, message', [
    ({'group': 4}, 'does not know'), ({'shuffle': True}, 'needs a group_size'),
    ({'group_size': 0}, 'at least 1')])
def test_wrong_policies_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    BatchNormPolicy.of(options)


def test_wrong_batches_are_refused(x):
  with pytest.raises(ValueError, match='use 15 rows'):
    apply(x, group_size=5)
  with pytest.raises(ValueError, match='key='):
    apply(x, group_size=4, shuffle=True)
