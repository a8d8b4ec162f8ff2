"""Vision transformers: timm's values for the same weights, options, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.models import vit
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import fixed_parameters, from_linen, with_head
from ssl_jax.models.vit import VisionTransformer
from ssl_jax.parallel import make_mesh
from ssl_jax.types import Mode


def tiny(position='learned', pool='token', fixed=False, drop_path=0., weight_init='normal',
         dtype=None, depth=2):
  """Blocks of width 16 on patches of 4x4, positions for images of 16x16."""
  return VisionTransformer(16, depth, 2, 4, 16, position, pool, fixed, drop_path, True, weight_init,
                           dtype)


# timm 1.0.31, torch 2.14.1, float64: VisionTransformer(img_size=16, patch_size=4, embed_dim=16,
# depth=2, num_heads=2, num_classes=0, dynamic_img_size=True), global_pool='token', or 'avg' with
# class_token=False and fc_norm=False; weights set by `numbered` (kernels transposed, names mapped),
# images uniform('images', (2, *sides, 3)). representation[:, :3].
TIMM = {
  ('token', (16, 16)): [[-.6013676319, 1.4687462185, .6919983602],
                        [-.538334753, 1.6179859757, .4522575216]],
  ('token', (12, 20)): [[-.5174579358, 1.629245318, .256549525],
                        [-.9043273416, 1.3297005137, .7962927207]],
  ('mean', (16, 16)): [[-.7862452645, .2330348495, .2703357699],
                       [-.431760494, -.4399420527, .0995539776]],
  ('mean', (12, 20)): [[-.7469254131, .2195691322, .2854254166],
                       [-.63935375, -.0192144857, .2426600441]]}


@pytest.mark.parametrize('pool, sides', TIMM)
def test_equals_timm(pool, sides, uniform, numbered):
  with jax.enable_x64(True):
    net = from_linen(tiny(pool=pool))
    images = jnp.asarray(uniform('images', (2, *sides, 3)))
    params, state = numbered(net, images)
    h, _ = jax.jit(net.apply, static_argnames='mode')(params, state, images, mode=Mode())
  # timm resamples its table in float32.
  tolerance = 1e-9 if sides == (16, 16) else 1e-6
  np.testing.assert_allclose(h[:, :3], TIMM[pool, sides], rtol=0, atol=tolerance)


def shapes(module, size=224):
  net = from_linen(module)
  return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))[0]


# timm 1.0.31, vit_*_patch16_224 with 1000 classes.
COUNTS = {'vit_tiny': 5_717_416, 'vit_small': 22_050_664, 'vit_base': 86_567_656,
          'vit_large': 304_326_632}


@pytest.mark.parametrize('name, count', COUNTS.items())
def test_parameter_counts(name, count):
  params = shapes(getattr(vit, name)())
  width = params['token'].shape[-1]
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) + 1000 * (width + 1) == count


@pytest.fixture
def start(uniform, numbered):
  def make(module):
    net = from_linen(module)
    images = uniform('images', (2, 16, 16, 3)).astype(np.float32)
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float32), numbered(net, images))
    return net, *variables, images

  return make


def test_fixed_positions_are_no_parameters_and_used(start):
  net, params, state, images = start(tiny('sincos', 'mean'))
  assert 'position' not in params and 'token' not in params
  represent = jax.jit(lambda x: net.apply(params, state, x, Mode())[0])
  # Without positions, the mean over tokens would not depend on the order of patches.
  assert np.abs(represent(images) - represent(np.roll(images, 4, 1))).max() > 1e-3


def test_features(start):
  net, params, state, images = start(with_head(tiny(), mlp(out=3)))
  names = ('tokens', 'block1', 'representation')
  found = jax.jit(lambda x: net.features(params, state, x, names))(images)
  assert [found[name].shape for name in names] == [(2, 17, 16), (2, 17, 16), (2, 16)]
  np.testing.assert_allclose(found['tokens'][:, 0], found['representation'], rtol=1e-6)


def branch(rate, rows, mode=None, seed=0, axis_name=None):
  """What is left of ones, [rows, 1, 1], when a branch of a block is dropped."""
  class Dropped(vit.Block):
    def __call__(self, x, mode):
      return self._dropped(x, mode)

  net = from_linen(Dropped(1, rate, True, 'normal', None))
  key = jax.random.key(seed)
  run = lambda x: net.apply({}, {}, x, mode or Mode(True, axis_name), key=key)[0]
  if axis_name is None:
    return np.asarray(run(jnp.ones((rows, 1, 1)))).ravel()
  spread = jax.shard_map(run, mesh=make_mesh(), in_specs=P('data'), out_specs=P('data'))
  return np.asarray(spread(jnp.ones((rows, 1, 1)))).ravel()


def test_drop_path_leaves_out_whole_examples():
  kept = branch(.25, 4096)
  assert set(np.unique(kept)) == {np.float32(0), np.float32(1 / .75)}
  assert abs((kept > 0).mean() - .75) < 4 * (.25 * .75 / 4096)**.5
  assert (branch(.25, 64, seed=1) != branch(.25, 64)).any()


def test_drop_path_does_not_depend_on_devices():
  np.testing.assert_array_equal(branch(.5, 64, axis_name='data'), branch(.5, 64))


def test_drop_path_is_for_training_only(start):
  assert (branch(.5, 8, Mode()) == 1).all()
  assert (branch(.5, 8, Mode(True, momentum=0.)) == 1).all()  # calibration
  net, params, state, images = start(tiny(drop_path=.5))
  with pytest.raises(ValueError, match='key='):
    jax.eval_shape(lambda: net.apply(params, state, images, Mode(True)))


def test_drop_path_grows_with_depth(monkeypatch):
  rates = []

  class Recorded(vit.Block):
    def __call__(self, x, mode):
      rates.append(self.drop_path)
      return x

  monkeypatch.setattr(vit, 'Block', Recorded)
  jax.eval_shape(lambda: vit.vit_tiny(drop_path=.11).init(
    jax.random.key(0), jnp.zeros((1, 224, 224, 3)), Mode()))
  np.testing.assert_allclose(rates, np.arange(12) / 100, atol=1e-12)


def test_a_fixed_patch_projection_has_no_gradient_and_a_name(start):
  module = with_head(tiny(fixed=True, depth=1), mlp(layers=1, out=3, output_norm=None))
  net, params, state, images = start(module)
  loss = lambda params: jnp.sum(jnp.sin(net.apply(params, state, images, Mode())[0][1]))
  gradient = jax.jit(jax.grad(loss))(params)
  fixed = fixed_parameters(module, {'online': params})['online']
  assert jax.tree.leaves(fixed['backbone']['patch']) == [True, True]
  assert sum(jax.tree.leaves(fixed)) == 2
  assert not any(leaf.any() for leaf in jax.tree.leaves(gradient['backbone']['patch']))
  assert np.abs(gradient['backbone']['block1']['qkv']['kernel']).max() > 0
  assert not any(jax.tree.leaves(fixed_parameters(with_head(tiny(), mlp()), params)))


@pytest.mark.parametrize('weight_init', ['normal', 'xavier'])
def test_initial_values(weight_init):
  """Deviations of DeiT and DINO (0.02; torch's default for patches), limits of MoCo v3."""
  module = VisionTransformer(192, 1, 3, 16, 32, 'learned', 'token', False, 0., True, weight_init,
                             None)
  init = lambda key: from_linen(module).init(key, jnp.zeros((1, 32, 32, 3)))[0]
  params = jax.jit(init)(jax.random.key(0, impl='rbg'))  # compiles faster than threefry
  patch, block, token = params['patch']['kernel'], params['block1'], params['token']
  assert not any(block[layer]['bias'].any() for layer in ('qkv', 'proj', 'fc1', 'fc2'))
  limits = {'patch': (patch, 768**-.5)}
  if weight_init == 'normal':
    assert all(abs(block[layer]['kernel'].std() - .02) < 4e-4 for layer in ('qkv', 'fc1', 'fc2'))
    assert abs(token.std() - .02) < 4e-3
  else:
    limits = {'patch': (patch, (6 / (768 + 192))**.5),
              'qkv': (block['qkv']['kernel'], (6 / (192 + 192))**.5),
              'fc1': (block['fc1']['kernel'], (6 / (192 + 768))**.5)}
    assert token.std() < 1e-5
  for kernel, limit in limits.values():
    assert .99 * limit < np.abs(kernel).max() <= limit


def test_half_precision_represents_in_float32(start):
  net, params, state, images = start(tiny(dtype='bfloat16'))
  run = lambda: (net.apply(params, state, images, Mode())[0],
                 net.features(params, state, images, ['block1'])['block1'])
  half, tokens = jax.jit(run)()
  assert half.dtype == jnp.float32 and tokens.dtype == jnp.bfloat16
  np.testing.assert_allclose(half[:, :3], TIMM['token', (16, 16)], atol=.1)
  initial, _ = jax.eval_shape(net.init, jax.random.key(0), images)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(initial))


def test_heads_of_moco_v3():
  assert vit.vit_small(heads=12).heads == 12 and vit.vit_small().heads == 6


@pytest.mark.parametrize('options, message', [
  ({'position': 'rotary'}, 'must be one of'), ({'pool': 'max'}, 'must be one of'),
  ({'weight_init': 'zeros'}, 'must be one of'), ({'image_size': 225}, 'multiple of patch_size'),
  ({'heads': 7}, 'do not divide'), ({'heads': -1}, 'do not divide'),
  ({'drop_path': 1.}, r'\[0, 1\)')])
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    vit.vit_tiny(**options)


def test_images_that_patches_do_not_tile_are_refused():
  with pytest.raises(ValueError, match='17x16'):
    jax.eval_shape(from_linen(tiny()).init, jax.random.key(0), jnp.zeros((1, 17, 16, 3)))
