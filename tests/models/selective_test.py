"""Selective kernels and the ResNet-D shortcut against NumPy formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.conv import Conv
from ssl_jax.models.network import from_linen
from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.selective import SelectiveKernel, pool_shortcut
from ssl_jax.types import Mode

CHANNELS, STRIDE = 6, 2


def normed(x, params, stats):
  x = (x - stats['mean']) / np.sqrt(stats['var'] + 1e-5)
  return np.maximum(x * params['scale'] + params['bias'], 0)


def convolved(x, kernel, stride):
  """A 3x3 convolution with one zero on each side, tap by tap."""
  size = (x.shape[1] - 1) // stride + 1
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  end = (size - 1) * stride + 1
  return sum(x[:, i:i + end:stride, j:j + end:stride] @ kernel[i, j]
             for i in range(3) for j in range(3))


def test_equals_the_formula(uniform, numbered):
  with jax.enable_x64(True):
    net = from_linen(SelectiveKernel(CHANNELS, STRIDE, .0625, Conv, BatchNorm, [(1, 1), (1, 1)]))
    x = uniform('images', (2, 5, 5, 3))
    params, state = numbered(net, x)
    got, _ = net.apply(params, state, x, Mode())
  stats = state['batch_stats']
  both = normed(convolved(x, params['conv']['kernel'], STRIDE), params['norm'], stats['norm'])
  branches = both[..., :CHANNELS], both[..., CHANNELS:]
  s = sum(branches).mean((1, 2)) @ params['squeeze_conv']['kernel'][0, 0]
  s = normed(s, params['squeeze_norm'], stats['squeeze_norm'])
  logits = s @ params['mixing_conv']['kernel'][0, 0]
  odds = np.exp(logits[:, :CHANNELS] - logits[:, CHANNELS:])
  share = (odds / (1 + odds))[:, None, None]
  np.testing.assert_allclose(got, share * branches[0] + (1 - share) * branches[1], rtol=1e-12)


@pytest.mark.parametrize('channels, squeezed', [(6, 32), (512, 32), (1024, 64)])
def test_squeezed_width(channels, squeezed):
  net = from_linen(SelectiveKernel(channels, 1, .0625, Conv, BatchNorm, [(1, 1), (1, 1)]))
  params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
  assert params['squeeze_conv']['kernel'].shape == (1, 1, channels, squeezed)


def test_shortcut_pools():
  x = np.arange(9.).reshape(1, 3, 3, 1)
  # Means of the pixels there are: [[0, 1], [3, 4]], ..., [[2], [5]], [[8]].
  np.testing.assert_allclose(pool_shortcut(x, 1)[0, ..., 0],
                             [[2, 3, 3.5], [5, 6, 6.5], [6.5, 7.5, 8]])
  # Windows of four, zeros beyond the edge: 2 + 5, 6 + 7 and 8 of four.
  np.testing.assert_allclose(pool_shortcut(x, 2)[0, ..., 0], [[2, 7 / 4], [13 / 4, 2]])


def test_in_a_network():
  """Stem and shortcuts are those of ResNet-D; basic blocks of the reference have no kernels."""
  net = from_linen(ResNet((1, 1), True, 'imagenet', 'simclr', 1 / 8, False, BatchNormPolicy(), None,
                          .0625))
  x = jnp.zeros((4, 16, 16, 3))
  params, state = jax.eval_shape(net.init, jax.random.key(1), x)
  kernels = {name: params[name]['kernel'].shape for name in params if name.startswith('stem_conv')}
  assert kernels == {'stem_conv1': (3, 3, 3, 4), 'stem_conv2': (3, 3, 4, 4),
                     'stem_conv3': (3, 3, 4, 8)}
  assert set(params['stage2_block1']) == {
    'conv1', 'norm1', 'selective2', 'conv3', 'norm3', 'shortcut_conv', 'shortcut_norm'}
  h, _ = jax.eval_shape(partial(net.apply, mode=Mode()), params, state, x)
  assert h.shape == (4, 64)
