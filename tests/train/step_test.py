"""The one train step: what it promises for every method, shown on the smallest one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.parallel import make_mesh
from ssl_jax.train.step import example_keys, init_state, make_program, make_train_step
from ssl_jax.types import Method

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
BATCH = {'x': X, 'id': np.arange(16, dtype=np.uint32), 'epoch': np.zeros(16, np.uint32)}


def regression(**fields) -> Method:
  """Fits w, b to predict a constant; counts its steps in `state`."""
  def init(key, batch):
    return {'w': jax.random.normal(key, (4, 1)), 'b': jnp.zeros((1, 1))}, {'seen': jnp.zeros(())}

  def loss(params, state, batch, *, key, step):
    error = batch['x'] @ params['w'] + params['b'] - 1
    return jnp.mean(error ** 2), ({'seen': state['seen'] + 1}, {'error': jnp.max(error)})

  return Method(init, loss, lambda params, state, x: x @ params['w'])._replace(**fields)


def program(method, tx=None, mesh=None, **options):
  tx = optax.sgd(0.1, momentum=0.9) if tx is None else tx
  return make_program(method, tx, BATCH, seed=0, mesh=mesh or make_mesh(), **options)


def run(p, steps=3, batch=None):
  ts, losses = p.init(), []
  batch = jax.device_put(BATCH if batch is None else batch, p.batch['x'].sharding)
  for _ in range(steps):
    ts, metrics = p.step(ts, batch)
    losses.append(float(metrics['loss']))
  return ts, losses, metrics


def test_it_is_gradient_descent():
  """Against the same descent in NumPy."""
  p = program(regression())
  w, b = (np.asarray(p.init().params[k], np.float64) for k in 'wb')
  v = [np.zeros_like(w), np.zeros_like(b)]
  expected = []
  for _ in range(3):
    e = X @ w + b - 1
    expected.append(np.mean(e ** 2))
    g = [2 * X.T @ e / len(X), 2 * e.mean(0, keepdims=True)]
    v = [0.9 * a + d for a, d in zip(v, g)]
    w, b = w - 0.1 * v[0], b - 0.1 * v[1]
  ts, losses, metrics = run(p)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  assert int(ts.step) == 3 and ts.state['seen'] == 3 and bool(metrics['finite'])


@pytest.mark.parametrize('where', ['loss', 'gradient'])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(where):
  def loss(params, state, batch, *, key, step):
    bad = jnp.where(step == 1, jnp.nan, 0.0)
    # sqrt(0) is finite and its gradient is not
    extra = bad if where == 'loss' else jnp.sqrt(jnp.sum(params['w'] ** 2) * jnp.float32(step - 1) ** 2)
    return jnp.sum(params['b'] ** 2 + params['b']) + extra, ({'seen': state['seen'] + 1}, {})

  p = program(regression(loss=loss), optax.adam(0.1))
  batch = jax.device_put(BATCH, p.batch['x'].sharding)
  ts, _ = p.step(p.init(), batch)
  before = jax.device_get(ts)
  ts, metrics = p.step(ts, batch)
  after = jax.device_get(ts)
  assert not metrics['finite']
  assert after.step == 2
  jax.tree.map(np.testing.assert_array_equal, after._replace(step=1), before._replace(step=1))
  ts, metrics = p.step(ts, batch)
  assert metrics['finite'] and ts.state['seen'] == 2


def test_an_update_that_overflows_is_undone():
  ts, _, metrics = run(program(regression(), optax.sgd(1e38)), 1)
  assert not metrics['finite']
  np.testing.assert_array_equal(ts.params['w'], program(regression()).init().params['w'])


def test_frozen_leaves_do_not_move_and_move_when_released():
  frozen = lambda params, step: {'w': step < 2, 'b': jnp.array(False)}
  p = program(regression(frozen=frozen), optax.adamw(0.1, weight_decay=0.1))
  start = jax.device_get(p.init().params)
  ts, _, _ = run(p, 2)
  np.testing.assert_array_equal(ts.params['w'], start['w'])
  assert (np.asarray(ts.params['b']) != start['b']).all()
  ts, _, _ = run(p, 3)
  assert (np.asarray(ts.params['w']) != start['w']).all()


def test_after_sees_the_new_parameters():
  after = lambda params, state, step: (params, {'seen': jnp.sum(params['w'])})
  ts, _, _ = run(program(regression(after=after)), 1)
  np.testing.assert_allclose(ts.state['seen'], np.sum(ts.params['w']), rtol=1e-6)


def test_an_ema_target_that_starts_as_the_parameters_can_be_donated():
  """Trap 5: under jit every output has a buffer of its own; outside, donation fails."""
  def init(key, batch):
    params = {'w': jnp.ones((4, 1)), 'b': jnp.zeros((1, 1))}
    return params, {'seen': jnp.zeros(()), 'target': params}

  def loss(params, state, batch, *, key, step):
    return jnp.sum(params['w']) + jnp.sum(params['b']), (state, {})

  method, tx = regression(init=init, loss=loss), optax.sgd(0.1)
  run(program(method, tx))
  shared = init_state(method, tx, jax.random.key(0), BATCH)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(1)), donate_argnums=0)
  with pytest.raises(Exception, match='donate the same buffer twice'):
    step(shared, BATCH)


@pytest.mark.parametrize('shape', [{'data': 8}, {'data': 4, 'fsdp': 2}, {'data': 2, 'tensor': 4}])
def test_sharded_parameters_give_the_same_curve(shape):
  rules = [('w$', 'fsdp')] if 'fsdp' in shape else [('w$', 'tensor')] if 'tensor' in shape else []
  p = program(regression(), mesh=make_mesh(shape), rules=rules)
  alone = program(regression(), mesh=make_mesh({'data': 1}, jax.devices()[:1]))
  np.testing.assert_allclose(run(p)[1], run(alone)[1], rtol=1e-5)
  momentum = run(p)[0].opt[0].trace['w']
  assert momentum.sharding.is_equivalent_to(p.state.params['w'].sharding, 2)
  assert momentum.sharding.is_fully_replicated == (not rules)


def test_views_belong_to_the_example_and_the_epoch():
  key = jax.random.key(3)
  bits = lambda epoch, ids: jax.random.key_data(example_keys(key, jnp.uint32(epoch), jnp.uint32(ids)))
  one = bits([0, 0, 0], [7, 8, 9])
  np.testing.assert_array_equal(bits([0, 0, 0], [9, 7, 8]), one[jnp.array([2, 0, 1])])
  assert (bits([1, 1, 1], [7, 8, 9]) != one).any(axis=1).all()
  assert len(np.unique(np.asarray(bits([0] * 16, np.arange(16))), axis=0)) == 16


def test_prepare_runs_inside_the_step_with_one_key_per_example():
  def prepare(keys, batch):
    noise = jax.vmap(lambda k: jax.random.normal(k, (4,)))(keys)
    return {'x': batch['x'] + noise}

  p = program(regression(), prepare=prepare)
  one = program(regression(), prepare=prepare, mesh=make_mesh({'data': 1}, jax.devices()[:1]))
  shuffled = {k: v[::-1].copy() for k, v in BATCH.items()}
  expected = run(one)[1]
  np.testing.assert_allclose(run(p)[1], expected, rtol=1e-5)
  np.testing.assert_allclose(run(one, batch=shuffled)[1], expected, rtol=1e-5)
  other_epoch = dict(BATCH, epoch=BATCH['epoch'] + 1)
  assert abs(run(one, batch=other_epoch)[1][0] - expected[0]) > 1e-3
