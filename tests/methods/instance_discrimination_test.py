"""Instance discrimination: its two objectives, its constant, and what happens to the bank."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ssl_jax import testing
from ssl_jax.methods import instance_discrimination
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.parallel import inside, make_mesh, over
from ssl_jax.train.step import init_state, make_program, make_train_step
from ssl_jax.types import Mode

ROWS, N, K, T, DIM = 8, 24, 5, 0.5, 6
r = np.random.default_rng(0)
BATCHES = [{'views': r.uniform(size=(ROWS, 1, 8, 8, 1)).astype(np.float32),
            'id': ids.astype(np.uint32)} for ids in r.permutation(N).reshape(3, ROWS)]
BATCHES.append(dict(BATCHES[0], id=np.uint32([3, 7, 3, 9, 7, 0, 3, 2])))
unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)


def network():
  return from_linen(with_head(convnet(channels=(4,), strides=(2,)), mlp(hidden=8, out=DIM)))


build = partial(instance_discrimination.build, network(), examples=N, negatives=K, temperature=T)
WAYS = {'nce': {}, 'softmax': dict(objective='softmax'),
        'whole bank': dict(objective='softmax', negatives=None)}


def start(method):
  return jax.jit(method.init)(jax.random.key(0), BATCHES[0])


def drawn(key):
  """The rows that are drawn for each row of the global batch in a step with this key."""
  key = jax.random.split(key)[1]
  return np.stack([jax.random.randint(jax.random.fold_in(key, i), (K,), 0, N) for i in range(ROWS)])


def vectors(params, state, batch):
  z = network().apply(params, state['net'], batch['views'][:, 0], Mode(train=True))[0][1]
  return unit(np.asarray(z, np.float64))


def numpy_loss(way, v, bank, ids, noise, z):
  """(loss, Z), with Z found if it is 0."""
  own = np.exp((v * bank[ids]).sum(1) / T)
  others = np.exp(np.einsum('bkd,bd->bk', bank[noise], v) / T)
  if way == 'whole bank':
    return np.mean(np.log(np.exp(v @ bank.T / T).sum(1)) - np.log(own)), z
  if way == 'softmax':
    return np.mean(np.log(own + others.sum(1)) - np.log(own)), z
  z = z or N * np.mean(np.concatenate([own[:, None], others], 1))
  p, noise_p, c = own / z, others / z, K / N
  return np.mean(-np.log(p / (p + c)) - np.log(c / (noise_p + c)).sum(1)), z


@pytest.mark.parametrize('way', WAYS)
def test_steps_one_by_one(way):
  """Loss with the bank as it was, then its rows; Z is that of the first batch; of equal ids the
  last."""
  method, tx, key = build(**WAYS[way]), optax.sgd(0.1), jax.random.key(5)
  step = jax.jit(make_train_step(method, tx, key=key))
  ts = jax.device_get(jax.jit(lambda: init_state(method, tx, jax.random.key(0), BATCHES[0]))())
  bank, z = np.asarray(ts.state['bank'], np.float64), 0
  for i, batch in enumerate(BATCHES):
    v = vectors(ts.params, ts.state, batch)
    noise = drawn(jax.random.fold_in(jax.random.split(key)[1], i))
    expected, z = numpy_loss(way, v, bank, batch['id'], noise, z)
    ts, metrics = jax.device_get(step(ts, batch))
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
    old = bank.copy()
    for j, row in zip(batch['id'], v):
      bank[j] = unit((old[j] + row) / 2)
    np.testing.assert_allclose(ts.state['bank'], bank, atol=1e-5)
    if way == 'nce':
      np.testing.assert_allclose(ts.state['z'], z, rtol=1e-5)
  assert ('z' in ts.state) == (way == 'nce')


def test_the_proximal_term_is_the_distance_to_ones_own_row():
  plain, more = build(), build(proximal=3.)
  params, state = start(plain)
  run = lambda m: m.loss(params, state, BATCHES[0], key=jax.random.key(1), step=0)[0]
  own = np.asarray(state['bank'])[BATCHES[0]['id']]
  distance = ((vectors(params, state, BATCHES[0]) - own) ** 2).sum(1).mean()
  np.testing.assert_allclose(run(more) - run(plain), 3 * distance, rtol=1e-4)


def test_the_bank_and_the_constant_get_no_gradient():
  for options in WAYS.values():
    method = build(**options)
    params, state = start(method)
    value = lambda s: method.loss(params, s, BATCHES[0], key=jax.random.key(1), step=0)[0]  # noqa: B023
    assert not np.any(jax.jit(jax.grad(value))(state)['bank'])
  # In the first step Z comes from this batch; a Z that is given instead changes no gradient.
  method = build()
  params, state = start(method)
  run = lambda p, z: method.loss(p, {**state, 'z': z}, BATCHES[0], key=jax.random.key(1), step=0)
  grad = jax.jit(jax.grad(run, has_aux=True))
  first, (new, _) = grad(params, 0.)
  again, _ = grad(params, new['z'])
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), first, again)


@pytest.mark.parametrize('way', WAYS)
def test_a_spread_bank_trains_as_a_whole_one(way):
  tx, found = optax.sgd(0.1), []
  for mesh, rules, options in ((make_mesh(devices=jax.devices()[:1]), (), {}),
                               (make_mesh({'data': 8}), (('bank', 'data'),), dict(bank_axis='data'))):
    method = build(**WAYS[way], on_batch=over(mesh), **options)
    program = make_program(method, tx, BATCHES[0], seed=0, mesh=mesh, rules=rules)
    ts = program.init()
    for batch in BATCHES:
      ts, metrics = program.step(ts, jax.device_put(batch, program.batch['id'].sharding))
    found.append((metrics['loss'], ts.params, ts.state))
  assert found[1][2]['bank'].sharding.spec == PartitionSpec('data')
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), *jax.device_get(found))


@pytest.mark.parametrize('way', ['softmax', 'whole bank'])
def test_softmax_is_equal_on_8_devices_and_inside_an_axis(way):
  make = lambda on: build(**WAYS[way], on_batch=on)
  testing.check_same_on_any_device_count(make, BATCHES[0])
  testing.check_shard_map_equals_local(make, BATCHES[0])


def test_ones_own_row_counts_once_in_the_softmax_over_the_bank():
  """A bank of one row leaves nothing to tell apart."""
  method = build(examples=1, negatives=None, objective='softmax')
  params, state = start(method)
  batch = dict(BATCHES[0], id=np.zeros(ROWS, np.uint32))
  np.testing.assert_allclose(method.loss(params, state, batch, key=jax.random.key(1), step=0)[0], 0,
                             atol=1e-6)


def test_it_learns_to_tell_the_examples_apart():
  """Every image finds its own row of the bank."""
  batch = {'views': r.uniform(size=(N, 1, 8, 8, 1)).astype(np.float32),
           'id': np.arange(N, dtype=np.uint32)}
  method, tx = build(negatives=N, temperature=0.2), optax.adam(0.02)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(3)))
  ts = jax.jit(lambda: init_state(method, tx, jax.random.key(0), batch))()
  for _ in range(60):
    ts, metrics = step(ts, batch)
  nearest = np.argmax(vectors(ts.params, ts.state, batch) @ np.asarray(ts.state['bank']).T, axis=1)
  assert np.mean(nearest == batch['id']) > 0.9


@pytest.mark.parametrize('options, message', [
  (dict(objective='NCE'), 'objective'), (dict(negatives=None), 'needs a number of negatives'),
  (dict(negatives=0), 'at least 1'), (dict(examples=0), 'at least 1'),
  (dict(temperature=0), 'temperature'),
  (dict(momentum=2), 'momentum'), (dict(proximal=-1), 'proximal')])
def test_what_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)


@pytest.mark.parametrize('options, message', [
  (dict(bank_axis='data'), 'no batch is spread'),
  (dict(bank_axis='data', on_batch=inside('data')), 'no batch is spread'),
  (dict(bank_axis='tensor', on_batch=over(make_mesh({'data': 2, 'tensor': 4}))), 'no batch is spread'),
  (dict(bank_axis='data', examples=20, on_batch=over(make_mesh())), 'use bank_axis=None')])
def test_a_bank_that_cannot_be_spread_is_refused_in_training_alone(options, message):
  method = build(**options)
  params, state = start(method)
  assert method.embed(params, state, BATCHES[0]['views'][:, 0]).shape == (ROWS, 4)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(partial(method.loss, step=0), params, state, BATCHES[0], key=jax.random.key(1))
