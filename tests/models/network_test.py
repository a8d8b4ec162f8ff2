"""Linen modules as pure functions; views together and apart; chunks equal to the whole batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import apply_views, chunked, from_linen, with_head
from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.parallel import batch_sharding, make_mesh, replicated
from ssl_jax.types import Mode

ROWS = 16


class Tiny(nn.Module):
  """One dense layer, optionally BatchNorm and dropout; counts its training passes."""

  group_size: int | None = None
  norm: bool = True
  rate: float = 0.

  @nn.compact
  def __call__(self, x, mode):
    x = nn.Dense(6)(x)
    if self.norm:
      x = BatchNorm(BatchNormPolicy(group_size=self.group_size))(x, mode)
    passes = self.variable('counters', 'passes', jnp.zeros, (), jnp.int32)
    if mode.train:
      passes.value += 1
    return nn.Dropout(self.rate, deterministic=not mode.train)(jnp.tanh(x))


@pytest.fixture
def x():
  return jax.random.normal(jax.random.key(0), (ROWS, 4))


def start(net, x):
  return jax.jit(net.init)(jax.random.key(1), x)


def coupled(z):
  """A loss that couples all rows of the batch, as contrastive losses do."""
  return jax.nn.logsumexp(z @ z.T)


def run(net, params, state, x, key=None):
  """((loss, (outputs, state)), gradient) of one training pass."""
  def loss(params):
    z, new = net.apply(params, state, x, Mode(True), key=key)
    return coupled(z), (z, new)

  return jax.value_and_grad(loss, has_aux=True)(params)


def test_state_is_everything_but_params(x):
  net = from_linen(Tiny())
  params, state = start(net, x)
  assert set(params) == {'Dense_0', 'BatchNorm_0'}
  assert set(state) == {'batch_stats', 'counters'}
  _, trained = net.apply(params, state, x, Mode(True))
  assert jax.tree.structure(trained) == jax.tree.structure(state)
  assert trained['counters']['passes'] == 1
  _, evaluated = net.apply(params, trained, x, Mode())
  assert evaluated is trained


def test_key_feeds_dropout(x):
  net = from_linen(Tiny(rate=.5))
  params, state = start(net, x)
  draw = lambda seed: net.apply(params, state, x, Mode(True), key=jax.random.key(seed))[0]
  np.testing.assert_array_equal(draw(1), draw(1))
  assert (draw(1) != draw(2)).any()


def test_head_sees_the_representation():
  images = jnp.ones((4, 8, 8, 1))
  backbone, head = convnet(channels=(4, 6), strides=(2, 2)), mlp(out=3)
  net = from_linen(with_head(backbone, head))
  params, state = start(net, images)
  (h, z), _ = net.apply(params, state, images, Mode())
  assert h.shape == (4, 6) and z.shape == (4, 3)
  collection = lambda name: {'params': params[name], 'batch_stats': state['batch_stats'][name]}
  alone = head.apply(collection('head'), h, Mode())
  np.testing.assert_allclose(z, alone, rtol=1e-6)


def test_features_are_named_by_path_and_keep_the_backbones_names():
  images = jnp.ones((4, 8, 8, 1))
  net = from_linen(with_head(convnet(channels=(4, 6), strides=(2, 2)), mlp(out=3)))
  params, state = start(net, images)
  names = ('layer1', 'layer2', 'Conv_0', 'head/layer1', 'head/Dense_0', 'representation',
           'projection')
  found = jax.jit(partial(net.features, names=names))(params, state, images)
  assert {name: array.shape for name, array in found.items()} == {
    'layer1': (4, 4, 4, 4), 'layer2': (4, 2, 2, 6), 'Conv_0': (4, 4, 4, 4), 'head/layer1': (4, 6),
    'head/Dense_0': (4, 6), 'representation': (4, 6), 'projection': (4, 3)}
  (h, z), _ = net.apply(params, state, images, Mode())
  np.testing.assert_allclose(found['representation'], h, rtol=1e-6)
  np.testing.assert_allclose(found['projection'], z, rtol=1e-6)
  np.testing.assert_allclose(found['layer2'].mean((1, 2)), h, rtol=1e-6)
  assert chunked(net, 2).features is net.features


def test_features_of_any_module(x):
  net = from_linen(Tiny())
  params, state = start(net, x)
  found = net.features(params, state, x, ['Dense_0'])
  dense = jax.tree.map(np.asarray, params['Dense_0'])
  expected = np.asarray(x) @ dense['kernel'] + dense['bias']
  np.testing.assert_allclose(found['Dense_0'], expected, atol=1e-6)
  assert net.features(params, state, x, []) == {}


def test_unknown_features_are_refused_with_those_there_are(x):
  net = from_linen(with_head(Tiny(), mlp(out=3)))
  params, state = jax.eval_shape(net.init, jax.random.key(1), x)
  with pytest.raises(ValueError, match=r"\['Dense_1'\]; did you mean 'Dense_0'.*representation"):
    jax.eval_shape(lambda p, s: net.features(p, s, x, ['Dense_0', 'Dense_1']), params, state)


def test_views_together_share_statistics_and_apart_do_not(x):
  net = from_linen(Tiny())
  params, state = start(net, x)
  views = jnp.stack([x, 3 * x + 1], 1)
  (a, b), _ = apply_views(net, params, state, views, Mode(True))
  both, _ = net.apply(params, state, jnp.concatenate([x, 3 * x + 1]), Mode(True))
  np.testing.assert_allclose(jnp.concatenate([a, b]), both, atol=1e-6)

  (a, b), end = apply_views(net, params, state, views, Mode(True), separate=True)
  first, middle = net.apply(params, state, x, Mode(True))
  second, expected = net.apply(params, middle, 3 * x + 1, Mode(True))
  np.testing.assert_array_equal(a, first)
  np.testing.assert_array_equal(b, second)
  jax.tree.map(np.testing.assert_array_equal, end, expected)


def test_views_of_several_outputs_come_apart_per_view(x):
  class Pair(nn.Module):
    @nn.compact
    def __call__(self, x, mode):
      return x, 2 * x

  views = jnp.stack([x, -x, 5 * x], 1)
  for separate in (False, True):
    outputs, _ = apply_views(from_linen(Pair()), {}, {}, views, Mode(True), separate=separate)
    for (h, z), factor in zip(outputs, (1, -1, 5), strict=True):
      np.testing.assert_array_equal(h, factor * x)
      np.testing.assert_array_equal(z, 2 * factor * x)


def test_separate_views_draw_different_dropout(x):
  net = from_linen(Tiny(rate=.5))
  params, state = start(net, x)
  (a, b), _ = apply_views(net, params, state, jnp.stack([x, x], 1), Mode(True),
                          key=jax.random.key(0), separate=True)
  assert (a != b).any()


@pytest.mark.parametrize('rows', [4, 8])
@pytest.mark.parametrize('kwargs', [{'norm': False}, {'group_size': 4}], ids=['no norm', 'groups'])
def test_chunks_equal_the_whole_batch(x, kwargs, rows):
  net = from_linen(Tiny(**kwargs))
  params, state = start(net, x)
  block = kwargs.get('group_size', 1)
  (value, (z, new)), gradient = run(net, params, state, x)
  (got_value, (got_z, got_new)), got = run(chunked(net, rows, block=block), params, state, x)
  np.testing.assert_allclose(got_value, value, rtol=1e-6)
  np.testing.assert_allclose(got_z, z, atol=1e-6)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, gradient)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got_new, new)


def test_chunks_draw_different_dropout(x):
  net = chunked(from_linen(Tiny(norm=False, rate=.5)), 4)
  same = jnp.broadcast_to(x[:1], x.shape)
  params, state = start(net, same)
  z, _ = net.apply(params, state, same, Mode(True), key=jax.random.key(0))
  # Strided: rows 0 .. 3 are the first rows of the four chunks.
  assert len(np.unique(np.asarray(z[:4]) == 0, axis=0)) > 1


def test_evaluation_is_not_chunked(x):
  net = from_linen(Tiny())
  params, state = start(net, x)
  odd = x[:5]
  np.testing.assert_array_equal(chunked(net, 4).apply(params, state, odd, Mode())[0],
                                net.apply(params, state, odd, Mode())[0])


@pytest.mark.parametrize('rows, block, message', [
    (5, 1, 'chunks of 4 or 8 rows, or a batch of 15 or 20 rows'),
    (32, 1, 'chunks of 16 rows, or a batch of 32 or 64 rows')])
def test_wrong_batches_name_the_nearest_right_ones(x, rows, block, message):
  net = from_linen(Tiny())
  params, state = start(net, x)
  with pytest.raises(ValueError, match=message):
    chunked(net, rows, block=block).apply(params, state, x, Mode(True))


def test_chunks_hold_whole_blocks():
  with pytest.raises(ValueError, match='use 4 or 8 rows'):
    chunked(from_linen(Tiny()), 6, block=4)


def encoder():
  norm = {'group_size': 8}
  return from_linen(convnet(channels=(16, 32), strides=(1, 2), batch_norm=norm))


def compile_step(net, mesh=None):
  """The compiled gradient of a coupled loss of 128 images of 16x16x3."""
  images = jax.ShapeDtypeStruct((128, 16, 16, 3), jnp.float32,
                                sharding=mesh and batch_sharding(mesh))
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)
  place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=mesh and replicated(mesh))
  params, state = jax.tree.map(place, shapes)

  def loss(params, state, x):
    z, state = net.apply(params, state, x, Mode(True))
    return coupled(z), state

  return jax.jit(jax.grad(loss, has_aux=True)).lower(params, state, images).compile()


def test_chunks_leave_images_on_their_device(collectives):
  mesh = make_mesh()
  moved = collectives(compile_step(chunked(encoder(), 64, block=8), mesh).as_text())
  representations, images = 128 * 32, 128 * 16 * 16 * 3
  assert moved and max(size for _, size in moved) <= 3 * 3 * 16 * 32
  assert 3 * 3 * 16 * 32 < images / 8 / 2 and representations < images / 8 / 2
  assert not [kind for kind, _ in moved if kind in ('all-to-all', 'collective-permute')]


def test_chunks_take_less_memory():
  whole = compile_step(encoder()).memory_analysis().temp_size_in_bytes
  chunks = compile_step(chunked(encoder(), 16, block=8)).memory_analysis().temp_size_in_bytes
  assert chunks < whole / 3


def test_chunks_inside_shard_map_equal_the_whole_batch(x):
  net = from_linen(Tiny(group_size=2))
  params, state = start(net, x)
  inner = chunked(net, 2, block=2)
  mesh = make_mesh({'data': 4}, jax.devices()[:4])
  mode = Mode(True, 'data')
  spread = jax.shard_map(lambda x: inner.apply(params, state, x, mode), mesh=mesh,
                         in_specs=P('data'), out_specs=(P('data'), P()))
  z, new = net.apply(params, state, x, Mode(True))
  got_z, got_new = jax.jit(spread)(x)
  np.testing.assert_allclose(got_z, z, atol=1e-6)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got_new, new)


class Fields(nn.Module):
  """Inputs of several fields, outputs of several shapes."""

  @nn.compact
  def __call__(self, x, mode):
    h = nn.Dense(6)(x['a']) * x['b'][:, None]
    return h.sum(1), (h, x['b'] * 1)


def test_chunks_of_a_mapping_equal_the_whole_batch(x):
  net, batch = from_linen(Fields()), {'a': x, 'b': jnp.arange(ROWS, dtype=jnp.int32)}
  params, state = start(net, batch)
  apply = lambda net: jax.jit(lambda p: net.apply(p, state, batch, Mode(True))[0])(params)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
               apply(chunked(net, 4)), apply(net))
  loss = lambda net: jax.jit(jax.grad(lambda p: coupled(
    net.apply(p, state, batch, Mode(True))[0][1][0] / ROWS)))(params)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), loss(chunked(net, 4)),
               loss(net))
  with pytest.raises(ValueError, match='a batch of 16 rows does not split into chunks of 5'):
    chunked(net, 5).apply(params, state, batch, Mode(True))
