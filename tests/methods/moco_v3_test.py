"""MoCo v3: its loss from both directions, and when the slow encoder moves."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from ssl_jax.methods import moco_v3
from ssl_jax.models.convnet import convnet
from ssl_jax.models.heads import moco_v3 as head
from ssl_jax.models.network import fixed_parameters, from_linen, with_head
from ssl_jax.models.vit import VisionTransformer
from ssl_jax.train.step import init_state, make_train_step
from ssl_jax.types import Mode

ROWS, T, M = 8, 0.5, 0.9
BATCHES = [{'views': np.random.default_rng(i).uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32)}
           for i in range(3)]
TRAIN = Mode(train=True)


def network():
  return from_linen(with_head(convnet(channels=(4,), strides=(2,)), head(layers=2, hidden=6, out=5)))


def predictor():
  return from_linen(head(layers=2, hidden=6, out=5))


build = partial(moco_v3.build, network(), predictor=predictor(), temperature=T, momentum=M)


def numpy_infonce(q, k):
  q, k = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
  logits = q @ k.T / T
  return np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))


def expected_loss(params, state, slow, views):
  """The loss, and the states of the three networks after it."""
  net, q_net = network(), predictor()
  views = [views[:, v] for v in (0, 1)]
  net_state, q_state, key_state = state['net'], state['predictor'], state['key']['state']
  queries, keys = [], []
  for view in views:
    (_, z), net_state = net.apply(params['net'], net_state, view, TRAIN)
    q, q_state = q_net.apply(params['predictor'], q_state, z, TRAIN)
    (_, k), key_state = net.apply(slow, key_state, view, TRAIN)
    queries.append(q)
    keys.append(k)
  value = 2 * T * (numpy_infonce(queries[0], keys[1]) + numpy_infonce(queries[1], keys[0]))
  return value, dict(net=net_state, predictor=q_state, key=key_state)


def test_steps_one_by_one():
  """The slow encoder moves first, with parameters from before the step; the momentum is a cosine to
  1."""
  method, tx = build(steps=4), optax.sgd(0.2)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(3)))
  ts = jax.jit(lambda: init_state(method, tx, jax.random.key(0), BATCHES[0]))()
  slow = ts.params['net']
  start = {'params': slow, 'state': ts.state['net']}
  jax.tree.map(np.testing.assert_array_equal, ts.state['key'], start)
  for i, batch in enumerate(BATCHES):
    m = 1 - (1 - M) * (1 + np.cos(np.pi * i / 4)) / 2
    slow = jax.tree.map(lambda k, q, m=m: m * k + (1 - m) * q, slow, ts.params['net'])
    value, states = expected_loss(ts.params, ts.state, slow, batch['views'])
    ts, metrics = step(ts, batch)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, ts.state['key']['params'], slow)
    jax.tree.map(close, {**ts.state, 'key': ts.state['key']['state']}, states)


def test_no_gradient_reaches_the_keys():
  method = build(steps=4)
  params, state = jax.jit(method.init)(jax.random.key(0), BATCHES[0])
  value = lambda p, s: method.loss(p, s, BATCHES[0], key=jax.random.key(1), step=0)[0]
  of_keys = jax.jit(jax.grad(value, argnums=1))(params, state)['key']
  assert not any(np.any(g) for g in jax.tree.leaves(of_keys))


def test_the_fixed_patch_projection_is_frozen_and_stays_in_step_with_the_keys():
  vit = with_head(VisionTransformer(
    width=8, depth=1, heads=2, patch_size=4, image_size=8, position='sincos', pool='token',
    drop_path=0., fixed_patch_projection=True, qkv_bias=True, weight_init='xavier', dtype=None),
    head(layers=2, hidden=6, out=5))
  method = moco_v3.build(from_linen(vit), predictor=predictor(), steps=4)
  method = method._replace(frozen=lambda params, step: fixed_parameters(vit, params))
  tx = optax.adamw(1e-2, weight_decay=0.5)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(3)))
  before = jax.jit(lambda: init_state(method, tx, jax.random.key(0), BATCHES[0]))()
  after, _ = step(before, BATCHES[0])
  after, _ = step(after, BATCHES[1])
  patch = lambda tree: tree['backbone']['patch']['kernel']
  np.testing.assert_array_equal(patch(after.params['net']), patch(before.params['net']))
  slow = after.state['key']['params']
  np.testing.assert_allclose(patch(slow), patch(before.params['net']), rtol=1e-6)
  inner = lambda tree: tree['backbone']['block1']['fc1']['kernel']
  assert np.abs(inner(after.params['net']) - inner(before.params['net'])).max() > 1e-3


@pytest.mark.parametrize('options, message', [
  (dict(steps=4, temperature=0), 'temperature'), (dict(steps=4, momentum=-1), 'momentum'),
  (dict(steps=None), 'number of steps'), (dict(steps=4, momentum_schedule='cos'), 'unknown schedule')])
def test_what_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)
