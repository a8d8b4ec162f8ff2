"""ResNets against torchvision's values for the same weights, and what their options change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models.network import from_linen
from ssl_jax.models.norm import BatchNormPolicy
from ssl_jax.models.resnet import (
  ResNet,
  resnet18,
  resnet34,
  resnet50,
  resnet101,
  resnet152,
  resnet200,
)
from ssl_jax.types import Mode

# torchvision 0.29.1, torch 2.14.1, float64: resnet18 / resnet50 without fc, its weights set by
# `numbered` (kernels transposed to OIHW, names mapped), images uniform('images', (4, 64, 64, 3)).
# representation[:2, :3] and the first running variances of the last BatchNorm.
TORCHVISION = {
    'resnet18': {
        'eval': [[0., .4924613161, .054868088], [0., .2959649451, .0708319905]],
        'train': [[.7797416434, .4652202508, .7385441645], [.016067086, 1.8896778517, .9489574231]],
        'var': [.9949613312, .7126129087, 1.1605630242]},
    'resnet50': {
        'eval': [[.2156851532, .0349065216, .0485639734], [.2010820969, .0348722483, .0475217592]],
        'train': [[1.13776293, 2.0958026848, .5271716222],
                  [2.3685896475, 1.1649828668, .5764233375]],
        'var': [.8372048808, 1.2758534364, .9911646]}}


@pytest.mark.parametrize('build', [resnet18, pytest.param(resnet50, marks=pytest.mark.slow)])
def test_equals_torchvision(build, uniform, numbered):
  with jax.enable_x64(True):
    net = from_linen(build())
    images = jnp.asarray(uniform('images', (4, 64, 64, 3)))
    params, state = numbered(net, images)
    apply = jax.jit(net.apply, static_argnames='mode')
    evaluated, _ = apply(params, state, images, mode=Mode())
    trained, after = apply(params, state, images, mode=Mode(True))
  expected = TORCHVISION[build.__name__]
  block, norm = ('stage4_block2', 'norm2') if build is resnet18 else ('stage4_block3', 'norm3')
  np.testing.assert_allclose(evaluated[:2, :3], expected['eval'], rtol=1e-7, atol=1e-9)
  np.testing.assert_allclose(trained[:2, :3], expected['train'], rtol=1e-7)
  running_var = after['batch_stats'][block][norm]['var']
  np.testing.assert_allclose(running_var[:3], expected['var'], rtol=1e-7)


def shapes(module, size=32):
  net = from_linen(module)
  images = jnp.zeros((2, size, size, 3))
  params, state = jax.eval_shape(net.init, jax.random.key(0), images)
  h, _ = jax.eval_shape(lambda p, s: net.apply(p, s, images, Mode(True)), params, state)
  return params, h


def count(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def size(module):
  """Numbers in parameters and in BatchNorm's running statistics."""
  init = from_linen(module).init
  return tuple(map(count, jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))))


@pytest.mark.parametrize('build, expected', [
  (resnet18, 11_176_512), (resnet34, 21_284_672), (resnet50, 23_508_032),
  pytest.param(resnet101, 42_500_160, marks=pytest.mark.slow),
  pytest.param(resnet152, 58_143_808, marks=pytest.mark.slow),
  pytest.param(resnet200, 62_624_832, marks=pytest.mark.slow)])  # timm 1.0.31
def test_parameter_counts(build, expected):
  """torchvision 0.29.1 (ResNet-200: timm) without fc."""
  assert size(build())[0] == expected


def test_stem_of_cifar_is_smaller():
  # 3x3 instead of 7x7 taps of 3 x 64.
  assert size(resnet18(stem='cifar'))[0] == 11_176_512 - (49 - 9) * 3 * 64


# Millions of numbers, running statistics among them, without the classifier: table of SimCLR v2 in
# the README of google-research/simclr.
SIMCLR_V2 = [
  (resnet50, 1, 0., 24), (resnet50, 1, .0625, 35), (resnet50, 2, .0625, 140),
  (resnet152, 3, .0625, 795),
  *(pytest.param(*row, marks=pytest.mark.slow) for row in [
    (resnet50, 2, 0., 94), (resnet101, 1, 0., 43), (resnet101, 1, .0625, 65),
    (resnet101, 2, 0., 170), (resnet101, 2, .0625, 257), (resnet152, 1, 0., 58),
    (resnet152, 1, .0625, 89), (resnet152, 2, 0., 233), (resnet152, 2, .0625, 354)])]


@pytest.mark.parametrize('build, width, sk_ratio, millions', SIMCLR_V2)
def test_sizes_are_those_of_simclr_v2(build, width, sk_ratio, millions):
  assert round(sum(size(build(width=width, sk_ratio=sk_ratio))) / 1e6) == millions


def test_representation_is_float32_and_scales_with_width():
  assert shapes(resnet18(width=2, stem='cifar'))[1].shape == (2, 1024)
  h = shapes(resnet18(dtype='bfloat16'))[1]
  assert h.shape == (2, 512) and h.dtype == jnp.float32
  params, _ = shapes(resnet18(dtype='bfloat16'))
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def features(module, size, names):
  """Shapes of named features."""
  net = from_linen(module)
  images = jnp.zeros((2, size, size, 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  found = jax.eval_shape(lambda p, s: net.features(p, s, images, names), *variables)
  return [found[name].shape for name in names]


def test_stems():
  assert features(resnet18(stem='cifar'), 32, ['stem']) == [(2, 32, 32, 64)]
  assert features(resnet18(), 64, ['stem']) == [(2, 16, 16, 64)]
  assert features(resnet50(sk_ratio=.0625), 64, ['stem']) == [(2, 16, 16, 64)]


def test_features():
  names = ['stage1', 'stage2', 'stage3', 'stage4', 'stage4_block1']
  assert features(resnet18(), 64, names) == [
    (2, 16, 16, 64), (2, 8, 8, 128), (2, 4, 4, 256), (2, 2, 2, 512), (2, 2, 2, 512)]


def small(stages=(), stem='cifar', padding='torch', zero_init=True):
  """A network of few blocks: compiling a whole one takes many seconds."""
  return ResNet(stages, False, stem, padding, 1, zero_init, BatchNormPolicy(), None)


def first_row_seen(padding):
  """The first image row that the stem sees through the top-left tap of its kernel."""
  net = from_linen(small(stem='imagenet', padding=padding))
  images = jnp.zeros((1, 32, 32, 1))
  params, state = net.init(jax.random.key(0), images)
  kernel = jnp.zeros((7, 7, 1, 64)).at[0, 0].set(1.)
  params = {**params, 'stem_conv': {'kernel': kernel}}
  gradient = jax.grad(lambda x: net.apply(params, state, x, Mode())[0].sum())(
      jax.random.uniform(jax.random.key(1), images.shape))
  return int(jnp.argmax(jnp.abs(gradient).sum((0, 2, 3)) > 0))


def test_paddings_differ_where_the_stride_is_two():
  # The top-left tap of a 7x7 kernel at stride 2 sees rows -3, -1, 1 ... with torch's padding of 3
  # on both sides, and rows -2, 0, 2 ... with SAME's (2, 3).
  assert first_row_seen('torch') == 1
  assert first_row_seen('SAME') == 0


def test_simclr_pools_as_tensorflow():
  """A single pixel at row 0 after the convolution: windows start at row 0 (SAME) or -1 (torch)."""
  seen = {}
  for padding in ('torch', 'simclr', 'SAME'):
    net = from_linen(small(stem='imagenet', padding=padding))
    images = jnp.zeros((1, 32, 32, 1)).at[0, 2].set(1.)
    params, state = net.init(jax.random.key(0), images)
    start = 2 if padding == 'SAME' else 3  # the tap over image row 2 i of output row i
    kernel = jnp.zeros((7, 7, 1, 64)).at[start, start].set(1.)
    params = {**params, 'stem_conv': {'kernel': kernel}}
    stem = net.features(params, state, images, ['stem'])['stem']
    seen[padding] = np.flatnonzero(np.asarray(stem[0, :, 4, 0])).tolist()
  # The pixel lies in row 1 of 16: in windows 0 .. 2 of SAME, and -1 .. 1, 1 .. 3 of torch.
  assert seen == {'torch': [0, 1], 'simclr': [0], 'SAME': [0]}


def test_zero_init_starts_blocks_as_the_identity():
  images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  for zero_init in (True, False):
    net = from_linen(small(stages=(1,), zero_init=zero_init))
    params, _ = jax.jit(net.init)(jax.random.key(0), images)
    block = params['stage1_block1']
    assert (block['norm2']['scale'] == (0 if zero_init else 1)).all()
    assert (block['norm1']['scale'] == 1).all()


def test_bottlenecks():
  images = jnp.zeros((2, 8, 8, 3))
  bottleneck = jax.eval_shape(from_linen(resnet50()).init, jax.random.key(0), images)[0]
  assert set(bottleneck['stage1_block1']) == {
      'conv1', 'conv2', 'conv3', 'norm1', 'norm2', 'norm3', 'shortcut_conv', 'shortcut_norm'}


@pytest.mark.parametrize('options', [{'stem': 'mnist'}, {'padding': 'VALID'}, {'sk_ratio': -1.},
                                     {'width': .001}, {'batch_norm': {'groups': 3}}])
def test_wrong_options_are_refused(options):
  with pytest.raises(ValueError, match='must be one of|does not know|not be negative|no channels'):
    resnet50(**options)
