"""MoCo: its loss, and the order of key encoder, keys and queue, step by step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax import testing
from ssl_jax.losses.contrastive import info_nce
from ssl_jax.methods import moco
from ssl_jax.models.convnet import convnet
from ssl_jax.models.heads import linear
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.parallel import inside, make_mesh, over
from ssl_jax.train.step import make_program, make_train_step
from ssl_jax.types import Mode

ROWS, QUEUE, T, M = 8, 24, 0.2, 0.9
BATCHES = [{'views': np.random.default_rng(i).uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32)}
           for i in range(4)]
unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)


def network(**batch_norm):
  backbone = convnet(channels=(4,), strides=(2,), batch_norm=batch_norm)
  return from_linen(with_head(backbone, linear(out=5)))


build = partial(moco.build, temperature=T, queue=QUEUE, momentum=M)


def start(method):
  return jax.jit(method.init)(jax.random.key(0), BATCHES[0])


def loss(method, params, state, batch=BATCHES[0]):
  return jax.jit(partial(method.loss, step=0))(params, state, batch, key=jax.random.key(1))


def projections(net, params, state, view):
  return np.asarray(net.apply(params, state, view, Mode(train=True))[0][1], np.float64)


def numpy_loss(q, k, queue):
  q, k = unit(q), unit(k)
  logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ np.asarray(queue).T], 1) / T
  return np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])


def test_the_key_encoder_starts_as_the_query_encoder():
  params, state = start(build(network()))
  jax.tree.map(np.testing.assert_array_equal, state['key'], {'params': params, 'state': state['net']})


def test_three_steps_one_by_one():
  """Key encoder (from parameters before the step), keys, loss with the queue as it was, queue."""
  net, tx = network(), optax.sgd(0.3)
  method = build(net)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(5)))
  program = make_program(method, tx, BATCHES[0], seed=0, mesh=make_mesh(devices=jax.devices()[:1]))
  ts, keys = jax.device_get(program.init()), []
  queue = np.array(ts.state['queue']['rows'])
  slow = ts.params
  for i, batch in enumerate(BATCHES):
    slow = jax.tree.map(lambda k, q: M * k + (1 - M) * q, slow, ts.params)
    q = projections(net, ts.params, ts.state['net'], batch['views'][:, 0])
    k = projections(net, slow, ts.state['key']['state'], batch['views'][:, 1])
    keys.append(unit(k))
    expected = numpy_loss(q, k, queue)
    ts, metrics = jax.device_get(step(ts, batch))
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
                 ts.state['key']['params'], slow)
    place = i * ROWS % QUEUE
    queue[place:place + ROWS] = keys[-1]
    np.testing.assert_allclose(ts.state['queue']['rows'], queue, atol=1e-5)
    assert ts.state['queue']['pointer'] == (i + 1) * ROWS % QUEUE


def test_each_encoder_follows_its_own_statistics():
  net = network()
  method = build(net)
  params, state = start(method)
  _, (new, _) = loss(method, params, state)
  for name, view, old in (('net', 0, state['net']), ('key', 1, state['key']['state'])):
    _, expected = net.apply(params, old, BATCHES[0]['views'][:, view], Mode(train=True))
    got = new['net'] if name == 'net' else new['key']['state']
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


def test_symmetric_is_the_sum_of_both_directions_and_all_keys_enter():
  net = network()
  method = build(net, symmetric=True, queue=32)
  params, state = start(method)
  value, (new, _) = loss(method, params, state)
  z = [projections(net, params, state['net'], BATCHES[0]['views'][:, v]) for v in (0, 1)]
  rows = state['queue']['rows']
  np.testing.assert_allclose(value, numpy_loss(z[0], z[1], rows) + numpy_loss(z[1], z[0], rows),
                             rtol=1e-5)
  both = np.stack([unit(z[1]), unit(z[0])], 1).reshape(-1, 5)
  np.testing.assert_allclose(new['queue']['rows'][:16], both, atol=1e-5)
  assert new['queue']['pointer'] == 16


def test_queries_and_keys_are_shuffled_into_different_groups():
  """With a queue of one direction, equal views differ in nothing but the groups of BatchNorm."""
  same = {'views': BATCHES[0]['views'][:, [0, 0]]}
  for options, equal in ((dict(group_size=2), True), (dict(group_size=2, shuffle=True), False)):
    method = build(network(**options), queue=ROWS)
    params, state = start(method)
    _, (new, _) = loss(method, params, state, same)
    queries = network(group_size=2).apply(params, state['net'], same['views'][:, 0], Mode(train=True))
    difference = np.abs(unit(np.asarray(queries[0][1])) - new['queue']['rows']).max()
    assert (difference < 1e-5) == equal


def test_nothing_but_the_query_encoder_gets_a_gradient():
  method = build(network())
  params, state = start(method)
  value = lambda p, s: method.loss(p, s, BATCHES[0], key=jax.random.key(1), step=0)[0]
  grads = jax.jit(jax.grad(value, argnums=1, allow_int=True))(params, state)
  for name in ('key', 'queue'):
    for g in jax.tree.leaves(grads[name]):
      assert g.dtype == jax.dtypes.float0 or not np.any(g)
  # Through the average, parameters would reach the keys: with momentum 0 that would be all of it.
  fast = build(network(), momentum=0.)
  slow = jax.tree.map(jnp.copy, params)
  fixed = jax.jit(jax.grad(lambda p: _with_keys_of(p, slow, state)))(params)
  got = jax.jit(jax.grad(lambda p: loss(fast, p, state)[0]))(params)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, fixed)


def _with_keys_of(params, slow, state):
  net, views = network(), BATCHES[0]['views']
  (_, q), _ = net.apply(params, state['net'], views[:, 0], Mode(train=True))
  (_, k), _ = net.apply(slow, state['net'], views[:, 1], Mode(train=True))
  q, k = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
  own = jnp.sum(q * k, 1, keepdims=True)
  logits = jnp.concatenate([own, q @ state['queue']['rows'].T], 1) / T
  return jnp.mean(jax.nn.logsumexp(logits, 1) - logits[:, 0])


MESHES = {'data': ({'data': 8}, 'data', False), 'symmetric': ({'data': 8}, 'data', True),
          'part of the batch': ({'data': 2, 'fsdp': 4}, 'data', False),
          'tensor': ({'data': 2, 'tensor': 4}, 'tensor', True)}


@pytest.mark.parametrize('shape, axis, symmetric', MESHES.values(), ids=MESHES)
def test_a_spread_queue_trains_as_a_whole_one(shape, axis, symmetric):
  size, mesh = 48, make_mesh(shape)
  steps, tx = [], optax.sgd(0.1)
  for on, over_mesh, rules, options in (
      ({}, make_mesh(devices=jax.devices()[:1]), (), {}),
      (dict(on_batch=over(mesh)), mesh, (('queue/rows', axis),), dict(queue_axis=axis))):
    method = build(network(), queue=size, symmetric=symmetric, **on, **options)
    program = make_program(method, tx, BATCHES[0], seed=0, mesh=over_mesh, rules=rules)
    ts, step = program.init(), program.step.lower(program.state, program.batch).compile()
    assert 'all-to-all' not in step.as_text() and 'collective-permute' not in step.as_text()
    for batch in BATCHES[:2 if symmetric else 3]:
      rows = NamedSharding(over_mesh, program.batch['views'].sharding.spec)
      ts, metrics = step(ts, jax.device_put(batch, rows))
    steps.append((metrics['loss'], ts.params, ts.state))
  assert steps[1][2]['queue']['rows'].sharding.spec == PartitionSpec(axis)
  assert int(steps[1][2]['queue']['pointer']) == (32 if symmetric else 24)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *jax.device_get(steps[::-1]))


def test_the_shuffled_groups_of_the_reference_are_equal_on_8_devices():
  net = network(group_size=4, shuffle=True)
  testing.check_same_on_any_device_count(lambda on: build(net, on_batch=on), BATCHES[0])


class TestEndToEnd:

  def test_it_is_infonce_with_gradient_on_both_sides(self):
    net = network()
    method = build(net, queue=None)
    params, state = start(method)
    views = BATCHES[0]['views']

    def expected(params):
      (_, q), (_, k) = (net.apply(params, state['net'], views[:, v], Mode(train=True))[0]
                        for v in (0, 1))
      return info_nce(q, k, temperature=T)

    value, grads = jax.value_and_grad(lambda p: loss(method, p, state)[0])(params)
    want, want_grads = jax.value_and_grad(expected)(params)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), grads, want_grads)
    assert set(state) == {'net'}

  def test_it_is_equal_on_8_devices(self):
    testing.check_same_on_any_device_count(
      lambda on: build(network(), queue=None, symmetric=True, on_batch=on), BATCHES[0])


@pytest.mark.parametrize('options, message', [
  (dict(temperature=0), 'temperature'), (dict(momentum=1.5), 'momentum'), (dict(queue=0), 'queue'),
  (dict(queue_axis='data', queue=None), 'there is no queue')])
def test_what_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    build(network(), **options)


@pytest.mark.parametrize('options', [
  dict(queue_axis='data'), dict(queue_axis='data', on_batch=inside('data')),
  dict(queue_axis='fsdp', on_batch=over(make_mesh()))], ids=['local', 'inside', 'another axis'])
def test_a_queue_axis_that_the_mesh_does_not_have_is_refused_in_training_alone(options):
  method = build(network(), **options)
  params, state = start(method)
  assert method.embed(params, state, BATCHES[0]['views'][:, 0]).shape == (ROWS, 4)
  with pytest.raises(ValueError, match='no axis of the mesh'):
    loss(method, params, state)


def test_a_queue_that_does_not_take_whole_batches_is_refused():
  method = build(network(), queue=20)
  with pytest.raises(ValueError, match='use 16 or 24'):
    loss(method, *start(method))
