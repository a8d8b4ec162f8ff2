"""SwAV: codes of the whole batch, the queue, prototypes, crops of two sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import testing
from ssl_jax.losses import clustering
from ssl_jax.methods import swav
from ssl_jax.models import heads
from ssl_jax.models.convnet import convnet
from ssl_jax.models.network import chunked, from_linen, with_head
from ssl_jax.types import Mode

ROWS, K, DIM = 8, 5, 6
RNG = np.random.default_rng(0)
BATCH = {'views': RNG.uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32),
         'local_views': RNG.uniform(size=(ROWS, 3, 4, 4, 1)).astype(np.float32)}


def parts(**batch_norm):
  return (convnet(channels=(4,), strides=(2,), batch_norm=batch_norm),
          heads.swav(hidden=6, out=DIM, batch_norm=batch_norm))


def network(**batch_norm):
  return from_linen(with_head(*parts(**batch_norm)))


NET = network()


def method(**options):
  return swav.build(NET, prototypes=K, freeze_prototypes_steps=2, **options)


def queued(from_epoch=0.):
  return method(queue=2 * ROWS, queue_from_epoch=from_epoch, steps_per_epoch=10)


def started(made):
  return jax.jit(made.init)(jax.random.key(0), BATCH)


def run(made, params, state, batch=BATCH, step=0):
  return jax.jit(made.loss)(params, state, batch, key=jax.random.key(1), step=step)


def embeddings(params, batch=BATCH):
  """z [B, V, D] as the authors have it: the backbone sees one size after the other, and the head, whose
  BatchNorm spans all crops, their features one crop after the other."""
  def run(module, name, rows):
    variables = module.init(jax.random.key(0), rows, Mode()) | {'params': params['net'][name]}
    return module.apply(variables, rows, Mode(train=True), mutable=['batch_stats'])[0]

  backbone, head = parts()
  by_size = [np.concatenate(np.moveaxis(views, 1, 0)) for views in batch.values()]
  features = np.concatenate([run(backbone, 'backbone', rows) for rows in by_size])
  z = run(head, 'head', features)
  return np.moveaxis(np.asarray(z).reshape(-1, ROWS, DIM), 0, 1)


def test_the_loss_is_that_of_all_crops_with_codes_of_the_large_ones():
  made = method()
  params, state = started(made)
  scores = embeddings(params) @ np.asarray(params['prototypes'])
  codes = np.stack([clustering.sinkhorn(scores[:, v]) for v in (0, 1)], 1)
  expected = clustering.swapped_prediction(jnp.array(scores), codes)
  np.testing.assert_allclose(run(made, params, state)[0], expected, rtol=1e-4)


def test_two_views_alone_are_the_loss_of_two_views():
  made, batch = method(), {'views': BATCH['views']}
  params, state = started(made)
  scores = embeddings(params, batch) @ np.asarray(params['prototypes'])
  np.testing.assert_allclose(run(made, params, state, batch)[0],
                             clustering.swav(scores[:, 0], scores[:, 1]), rtol=1e-4)


def test_prototypes_have_norm_1_at_the_start_and_after_each_step_and_are_frozen_first():
  made = method()
  params, state = started(made)
  norms = lambda p: np.linalg.norm(p['prototypes'], axis=0)
  assert params['prototypes'].shape == (DIM, K)
  np.testing.assert_allclose(norms(params), 1, rtol=1e-6)
  moved = {**params, 'prototypes': params['prototypes'] * 3 + 1}
  after, _ = made.after(moved, state, 0)
  np.testing.assert_allclose(norms(after), 1, rtol=1e-6)
  for step, still in ((0, True), (1, True), (2, False)):
    frozen = made.frozen(params, step)
    assert frozen.pop('prototypes') == still
    assert not any(jax.tree.leaves(frozen))


def test_prototypes_have_a_gradient():
  made = method()
  params, state = started(made)
  loss = lambda p: made.loss(p, state, BATCH, key=jax.random.key(1), step=9)[0]
  assert jnp.linalg.norm(jax.jit(jax.grad(loss))(params)['prototypes']) > 1e-3


def test_the_queue_holds_embeddings_of_each_large_view_first_in_first_out():
  made = queued()
  params, state = started(made)
  assert state['queue']['rows'].shape == (2, 2 * ROWS, DIM)
  z = np.moveaxis(embeddings(params)[:, :2], 1, 0)
  one = run(made, params, state)[1][0]['queue']
  np.testing.assert_allclose(one['rows'][:, :ROWS], z, atol=1e-5)
  np.testing.assert_array_equal(one['rows'][:, ROWS:], 0)
  two = run(made, params, {**state, 'queue': one})[1][0]['queue']
  np.testing.assert_allclose(two['rows'][:, ROWS:], z, atol=1e-5)
  assert (int(one['pointer']), int(two['pointer'])) == (ROWS, 0)
  other = {name: views[::-1] for name, views in BATCH.items()}
  three = run(made, params, {**state, 'queue': two}, other)[1][0]['queue']
  np.testing.assert_allclose(three['rows'][:, :ROWS], z[:, ::-1], atol=1e-5)
  np.testing.assert_array_equal(three['rows'][:, ROWS:], two['rows'][:, ROWS:])


def test_the_queue_counts_once_it_is_full_and_its_epoch_has_come():
  rows = RNG.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
  made = queued(from_epoch=1.5)
  params, state = started(made)
  with_rows = lambda r: {**state, 'queue': {**state['queue'], 'rows': r}}
  scores, prototypes = embeddings(params) @ np.asarray(params['prototypes']), params['prototypes']
  alone = np.stack([clustering.sinkhorn(scores[:, v]) for v in (0, 1)], 1)
  beside = np.stack([clustering.sinkhorn(np.concatenate([rows[v] @ prototypes, scores[:, v]]))[-ROWS:]
                     for v in (0, 1)], 1)
  without, with_queue = (clustering.swapped_prediction(jnp.array(scores), c) for c in (alone, beside))
  assert abs(without - with_queue) > 1e-3
  half = rows.copy()
  half[:, ROWS:] = 0
  for given, step, expected in ((rows, 15, with_queue), (rows, 14, without), (half, 99, without)):
    np.testing.assert_allclose(run(made, params, with_rows(given), step=step)[0], expected, rtol=1e-4)


@pytest.mark.parametrize('check', [
  testing.check_same_on_any_device_count,
  pytest.param(testing.check_vmap_equals_local, marks=pytest.mark.slow),
  pytest.param(testing.check_shard_map_equals_local, marks=pytest.mark.slow)])
def test_a_full_queue_is_equal_on_8_devices_and_inside_an_axis(check):
  """The contract test starts from an empty queue; here its codes count at once."""
  rows = RNG.normal(size=(2, 2 * ROWS, DIM)).astype(np.float32)

  def make(on):
    made = swav.build(NET, prototypes=K, queue=2 * ROWS, queue_from_epoch=0., steps_per_epoch=10,
                      freeze_prototypes_steps=0, on_batch=on)

    def init(key, batch):
      params, state = made.init(key, batch)
      return params, {**state, 'queue': {**state['queue'], 'rows': jnp.array(rows)}}

    return made._replace(init=init)

  check(make, {'views': BATCH['views']})


def test_chunks_have_the_codes_of_the_whole_batch():
  """Crops of both sizes, two and three per example, in chunks of eight rows."""
  grouped = network(group_size=4)
  whole, parts = (swav.build(net, prototypes=K, freeze_prototypes_steps=0)
                  for net in (grouped, chunked(grouped, 8, block=4)))
  params, state = started(whole)
  found = [jax.jit(jax.value_and_grad(lambda p, m=m: m.loss(
    p, state, BATCH, key=jax.random.key(1), step=0)[0]))(params) for m in (whole, parts)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_codes_of_each_device_alone_would_be_another_loss():
  """The negative control: codes of a quarter of the batch at a time."""
  made = method()
  params, state = started(made)
  scores = embeddings(params) @ np.asarray(params['prototypes'])
  codes = np.concatenate([np.stack([clustering.sinkhorn(part[:, v]) for v in (0, 1)], 1)
                          for part in np.split(scores, 4)])
  wrong = clustering.swapped_prediction(jnp.array(scores), codes)
  assert abs(run(made, params, state)[0] - wrong) > 1e-2


def test_embed_and_calibrate_are_those_of_the_network():
  made = queued()
  params, state = started(made)
  images = BATCH['views'][:, 0]
  new = jax.jit(made.calibrate)(params, state, images)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  h, _ = NET.apply(params['net'], new['net'], images, Mode())[0]
  np.testing.assert_allclose(made.embed(params, new, images), h, rtol=1e-5)


@pytest.mark.parametrize('options, message', [
  ({'prototypes': 1}, 'at least 2 prototypes'), ({'temperature': 0.}, 'temperature'),
  ({'epsilon': -1.}, 'epsilon'), ({'queue': -1}, 'queue'), ({'queue': 64}, 'steps_per_epoch')])
def test_numbers_out_of_their_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    swav.build(NET, **options)


def test_a_queue_that_does_not_take_whole_batches_is_refused():
  made = method(queue=ROWS + 1, steps_per_epoch=1)
  params, state = jax.eval_shape(made.init, jax.random.key(0), BATCH)
  with pytest.raises(ValueError, match='whole batches'):
    jax.eval_shape(partial(made.loss, step=0), params, state, BATCH, key=jax.random.key(0))
