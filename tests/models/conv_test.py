"""The CPU weight gradient against XLA's own, under every transformation, and absent elsewhere."""

import collections
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export, lax
from jax.sharding import PartitionSpec as P

from ssl_jax.models import conv
from ssl_jax.models.conv import Conv, conv_general_dilated
from ssl_jax.parallel import batch_sharding, make_mesh


@pytest.fixture(autouse=True)
def several_bands(monkeypatch):
  """Small enough that the tests' images take several bands."""
  monkeypatch.setattr(conv, 'BAND_BYTES', 2048)


def operands(size=9, channels=3, kernel=3, features=5, batch=8, dtype=np.float32):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, size, size, channels)).astype(dtype)
  return jnp.asarray(x), jnp.asarray(rng.normal(size=(kernel, kernel, channels, features)), dtype)


def loss(convolve, x, kernel, strides=(1, 1), padding='SAME', **options):
  numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, conv.DIMENSIONS)
  return jnp.sum(jnp.sin(convolve(x, kernel, strides, padding, dimension_numbers=numbers,
                                  **options)))


def check(got, expected, tolerance=1e-5):
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


CASES = {
    'same': {}, 'stride 2': {'strides': (2, 2)}, 'unequal strides': {'strides': (2, 3)},
    'valid': {'padding': 'VALID'}, 'torch': {'strides': (2, 2), 'padding': [(1, 1), (1, 1)]},
    'one-sided': {'padding': [(0, 2), (3, 1)]}, 'cropped': {'padding': [(-1, 0), (0, -1)]},
    'kernel dilation': {'rhs_dilation': (2, 2)},
    'input dilation': {'lhs_dilation': (2, 2), 'padding': [(1, 1), (1, 1)]}}


@pytest.mark.parametrize('options', CASES.values(), ids=CASES.keys())
def test_gradients_equal_the_plain_ones(options):
  x, kernel = operands()
  grad = lambda f: jax.jit(jax.grad(partial(loss, f, **options), (0, 1)))(x, kernel)
  check(grad(conv_general_dilated), grad(lax.conv_general_dilated))


@pytest.mark.parametrize('shape', [
    {'channels': 1, 'features': 32}, {'kernel': 1}, {'kernel': 7, 'size': 16}, {'size': 1},
    {'batch': 1}])
def test_shapes(shape):
  x, kernel = operands(**shape)
  grad = lambda f: jax.jit(jax.grad(partial(loss, f, strides=(2, 2)), (0, 1)))(x, kernel)
  check(grad(conv_general_dilated), grad(lax.conv_general_dilated))


def test_feature_groups_are_left_alone():
  x, kernel = operands(channels=4, features=6)
  grad = lambda f: jax.grad(partial(loss, f, feature_group_count=2), (0, 1))(x, kernel[:, :, :2])
  check(grad(conv_general_dilated), grad(lax.conv_general_dilated))


def test_float64_stays():
  with jax.enable_x64(True):
    x, kernel = operands(dtype=np.float64)
    grad = lambda f: jax.grad(partial(loss, f), (0, 1))(x, kernel)
    check(grad(conv_general_dilated), grad(lax.conv_general_dilated), 1e-13)


def test_half_precision_sums_in_float32():
  x, kernel = map(jnp.bfloat16, operands(size=16, batch=32))
  numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, conv.DIMENSIONS)
  linear = lambda kernel: jnp.sum(conv_general_dilated(
      x, kernel, (1, 1), 'VALID', dimension_numbers=numbers), dtype=jnp.float32)
  got = jax.grad(linear)(kernel)
  # dW of sum(y) at tap (i, j) is the sum of the image that the tap sees.
  wide = np.asarray(x, np.float64)
  exact = np.array([[wide[:, i:i + 14, j:j + 14].sum((0, 1, 2)) for j in range(3)]
                    for i in range(3)])
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(got.astype(jnp.float32), exact[..., None].repeat(5, -1), rtol=2**-8)


def test_vmap_over_kernels():
  x, kernel = operands()
  kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])
  grad = lambda f: jax.vmap(jax.grad(partial(loss, f), 1), (None, 0))(x, kernels)
  check(grad(conv_general_dilated), grad(lax.conv_general_dilated))


@pytest.mark.parametrize('check_vma', [True, False])
def test_shard_map(check_vma):
  x, kernel = operands()

  def step(x, kernel):
    total = lambda kernel: lax.psum(loss(conv_general_dilated, x, kernel), 'data')
    gradient = jax.grad(total)(kernel)
    # Unchecked, each device has the gradient of its own rows, once per device.
    return gradient if check_vma else lax.pmean(gradient, 'data')

  spread = jax.shard_map(step, mesh=make_mesh(), in_specs=(P('data'), P()), out_specs=P(),
                         check_vma=check_vma)
  check(jax.jit(spread)(x, kernel), jax.grad(partial(loss, lax.conv_general_dilated), 1)(x, kernel))


def test_images_spread_over_devices_stay_there(collectives):
  x, kernel = operands()
  step = jax.jit(jax.grad(partial(loss, conv_general_dilated), 1))
  spread = jax.device_put(x, batch_sharding(make_mesh()))
  check(step(spread, kernel), step(x, kernel))
  moved = collectives(step.lower(spread, kernel).compile().as_text())
  assert moved and max(size for _, size in moved) == kernel.size
  assert {kind for kind, _ in moved} == {'all-reduce'}


def operations(convolve, platform):
  program = export.export(jax.jit(jax.grad(partial(loss, convolve), (0, 1))), platforms=[platform])
  text = program(*operands()).mlir_module()
  return collections.Counter(re.findall(r'stablehlo\.\w+', text))


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_other_platforms_are_untouched(platform):
  ours, plain = (operations(f, platform) for f in (conv_general_dilated, lax.conv_general_dilated))
  # A branch on a constant is all that is left, and the compiler removes it.
  assert set(ours - plain) <= {'stablehlo.case', 'stablehlo.return', 'stablehlo.constant'}
  assert not plain - ours
  assert 'stablehlo.while' in operations(conv_general_dilated, 'cpu')


def test_the_layer_equals_flax():
  x, _ = operands()
  ours, flax = Conv(6, (3, 3), 2, padding=1), nn.Conv(6, (3, 3), 2, padding=1, use_bias=False)
  variables = ours.init(jax.random.key(0), x)
  check(variables, flax.init(jax.random.key(0), x))
  check(ours.apply(variables, x), flax.apply(variables, x))
