"""CLIP: its loss from both towers, the bound of its scale, what decays, chunks and devices."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import testing
from ssl_jax.methods import clip
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import chunked, from_linen, with_head
from ssl_jax.models.towers import TextTower, text_inputs, towers
from ssl_jax.models.transformer import ARCHITECTURES, Transformer
from ssl_jax.train.optimizers import excluded
from ssl_jax.types import Mode

ROWS, LENGTH, VOCABULARY = 16, 6, 32


@cache
def batch():
  r = np.random.default_rng(0)
  segments = (np.arange(LENGTH) < r.integers(1, LENGTH + 1, (ROWS, 1))).astype(np.int32)
  tokens = (r.integers(1, VOCABULARY, (ROWS, LENGTH)) * segments).astype(np.int32)
  return {'views': r.uniform(size=(ROWS, 1, 8, 8, 1)).astype(np.float32), 'tokens': tokens,
          'segments': segments}


def projection():
  return mlp(layers=1, out=5, output_norm=None)


def image_tower():
  return from_linen(with_head(convnet(channels=(4,), strides=(2,)), projection()))


def text_tower(**changes):
  a = ARCHITECTURES['gpt2']._replace(
    vocabulary=VOCABULARY, width=8, depth=1, heads=2, hidden=16, length=LENGTH, dropout=0.,
    attention_dropout=0., **changes)
  return from_linen(TextTower(Transformer(a, 'last'), projection()))


def start(method):
  return jax.jit(method.init)(jax.random.key(0), batch())


def value_and_grad(method, params, state):
  loss = lambda p: method.loss(p, state, batch(), key=jax.random.key(1), step=0)
  (value, (new, metrics)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return value, new, metrics, grads


def numpy_clip(a, b, scale):
  a, b = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
  logits = scale * a @ b.T
  lse = lambda x, axis: np.log(np.exp(x).sum(axis))
  return np.mean((lse(logits, 1) + lse(logits, 0)) / 2 - np.diag(logits))


def test_the_loss_is_that_of_the_projections_and_the_scale_begins_at_one_over_seven_hundredths():
  net, text = image_tower(), text_tower()
  method = clip.build(net, text=text)
  params, state = start(method)
  value, _, metrics, grads = value_and_grad(method, params, state)
  (_, a), _ = net.apply(params['net'], state['net'], batch()['views'][:, 0], Mode(train=True))
  (_, b), _ = text.apply(params['text'], state['text'], text_inputs(batch()), Mode(train=True))
  np.testing.assert_allclose(value, numpy_clip(a, b, 1 / 0.07), rtol=1e-5)
  np.testing.assert_allclose(metrics['scale'], 1 / 0.07, rtol=1e-6)
  assert float(grads['scale']) != 0 and params['scale'].dtype == jnp.float32


def test_the_scale_stays_below_one_hundred():
  method = clip.build(image_tower(), text=text_tower())
  after = lambda s: method.after({'scale': jnp.float32(s), 'net': 1}, {}, 0)[0]['scale']
  np.testing.assert_allclose([after(9.), after(1.)], [math.log(100), 1.], rtol=1e-6)


def test_weight_decay_leaves_the_scale_alone():
  params, _ = start(clip.build(image_tower(), text=text_tower()))
  left = excluded(params)
  assert left['scale'] and not left['text']['head']['Dense_0']['kernel']
  assert set(params['text']['head']['Dense_0']) == {'kernel'}  # a projection without a bias


def test_padding_and_what_follows_the_last_token_do_not_count():
  method = clip.build(image_tower(), text=text_tower())
  params, state = start(method)
  other = dict(batch(), tokens=np.where(batch()['segments'] > 0, batch()['tokens'], 7))
  words = jax.jit(towers(image_tower(), text_tower()).text)
  z = words(params, state, batch())
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(z, words(params, state, other), atol=1e-6)


def test_towers_are_those_of_training_and_embed_is_the_representation_of_the_image():
  net, text = image_tower(), text_tower()
  method = clip.build(net, text=text)
  params, state = start(method)
  images = batch()['views'][:, 0]
  (h, z), _ = net.apply(params['net'], state['net'], images, Mode())
  np.testing.assert_allclose(method.embed(params, state, images), h, rtol=1e-6)
  unit = z / np.linalg.norm(z, axis=1, keepdims=True)
  np.testing.assert_allclose(towers(net, text).image(params, state, images), unit, atol=1e-6)
  new = method.calibrate(params, state, images)
  assert new['text'] is state['text'] and set(new) == {'net', 'text'}


def test_chunks_of_both_towers_equal_the_whole_batch():
  plain = lambda: from_linen(with_head(  # without BatchNorm, whose statistics are a chunk's
    convnet(channels=(4,), strides=(2,), batch_norm={'group_size': 1}), projection()))
  whole = clip.build(plain(), text=text_tower())
  parts = clip.build(chunked(plain(), 4), text=chunked(text_tower(), 4))
  params, state = start(whole)
  (a, *_, da), (b, *_, db) = (value_and_grad(m, params, state) for m in (whole, parts))
  np.testing.assert_allclose(a, b, rtol=1e-5)
  norm = float(jnp.sqrt(sum(jnp.sum(g ** 2) for g in jax.tree.leaves(da))))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * norm), da, db)


@pytest.mark.parametrize('implementation', [
  pytest.param('gather', marks=pytest.mark.slow), 'ring'])
def test_every_implementation_is_equal_on_8_devices(implementation):
  make = lambda on: clip.build(image_tower(), text=text_tower(), implementation=implementation,
                               on_batch=on)
  testing.check_same_on_any_device_count(make, batch())
