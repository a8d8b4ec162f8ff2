"""Calibration and embedding on tiny encoders, on one and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import parallel
from ssl_jax.evals.features import calibrate, embed_all, standardize

PARAMS = dict(w=np.arange(6, dtype=np.float32).reshape(3, 2))
STATE = dict(mean=np.zeros(3, np.float32), var=np.ones(3, np.float32),
             teacher=np.full(2, 0.1, np.float32), step=np.int32(5))


def take_statistics(params, state, x):
  return state | dict(mean=x.mean(0), var=x.var(0), step=state['step'] + 1)


def embed(params, state, x):
  return ((x - state['mean'][None]) @ params['w']).astype(jnp.bfloat16)


def inputs(batch):
  return batch['image'].astype(jnp.float32) / 2


def batches(rows=19, size=8, mesh=None):
  """`rows` distinct examples in batches of `size`, the last one padded with copies of row 0."""
  images = np.random.default_rng(0).integers(0, 9, (rows, 3)).astype(np.uint8)
  for start in range(0, rows, size):
    index = np.arange(start, start + size)
    real = index < rows
    index = np.where(real, index, 0)
    batch = dict(image=images[index], label=index.astype(np.int64), weight=real.astype(np.float32))
    yield batch if mesh is None else parallel.to_global(batch, parallel.batch_sharding(mesh), size)


def images(rows=19):
  return np.concatenate([b['image'] for b in batches(rows, 1)]).astype(np.float32)


def test_calibration_averages_over_full_batches_only():
  state = calibrate(take_statistics, PARAMS, STATE, batches(), inputs=inputs)
  full = (images()[:16] / 2).reshape(2, 8, 3)
  np.testing.assert_allclose(state['mean'], full.mean(1).mean(0), rtol=1e-6)
  np.testing.assert_allclose(state['var'], full.var(1).mean(0), rtol=1e-6)
  np.testing.assert_array_equal(state['teacher'], STATE['teacher'])  # to the bit
  assert state['step'] == 5 and state['step'].dtype == jnp.int32


def test_calibration_weighs_batches_by_rows():
  x = images()
  parts = [dict(image=x[:16]), dict(image=x[16:])]  # no padding, no weights: all rows count
  state = calibrate(take_statistics, PARAMS, STATE, parts, inputs=inputs)
  np.testing.assert_allclose(state['mean'], (x / 2).mean(0), rtol=1e-6)


def test_calibration_needs_a_full_batch():
  with pytest.raises(ValueError, match='at least one batch without padding'):
    calibrate(take_statistics, PARAMS, STATE, batches(rows=5), inputs=inputs)


def test_eight_devices_give_what_one_gives():
  mesh = parallel.make_mesh()
  assert mesh.size == 8
  params, state = jax.device_put((PARAMS, STATE), parallel.replicated(mesh))
  sharded = list(batches(mesh=mesh))
  with jax.transfer_guard('disallow'):
    many = calibrate(take_statistics, params, state, sharded, inputs=inputs)
    features, labels = embed_all(embed, params, many, sharded, inputs=inputs)
  one = calibrate(take_statistics, PARAMS, STATE, batches(), inputs=inputs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), many, one)
  expected, _ = embed_all(embed, PARAMS, one, batches(), inputs=inputs)
  np.testing.assert_allclose(features, expected, rtol=1e-2)  # one step of bfloat16
  np.testing.assert_array_equal(labels, np.arange(19))


@pytest.mark.parametrize('rows', [5, 16, 19])
def test_every_example_is_embedded_once_in_order(rows):
  traces = []

  def counted(*args):
    traces.append(1)
    return embed(*args)

  features, labels = embed_all(counted, PARAMS, STATE, batches(rows), inputs=inputs)
  embed_all(counted, PARAMS, STATE, batches(rows), inputs=inputs)
  assert len(traces) == 1  # evaluating again during training compiles nothing
  assert features.dtype == np.float32 and labels.dtype == np.int32
  np.testing.assert_array_equal(labels, np.arange(rows))
  np.testing.assert_allclose(features, images(rows) / 2 @ PARAMS['w'], rtol=4e-3)  # bfloat16


def test_batches_without_labels_and_weights():
  features, labels = embed_all(embed, PARAMS, STATE, [dict(image=images())], inputs=inputs)
  assert labels is None and features.shape == (19, 2)


def test_wrong_shapes_and_no_batches_are_named():
  with pytest.raises(ValueError, match=r'\[B, D\] for 8 rows, got shape \(8,\)'):
    embed_all(lambda p, s, x: x[:, 0], PARAMS, STATE, batches(), inputs=inputs)
  with pytest.raises(ValueError, match='no batches'):
    embed_all(embed, PARAMS, STATE, [], inputs=inputs)


def test_standardize_uses_training_statistics_and_leaves_constants():
  rng = np.random.default_rng(0)
  train, test = rng.normal(3, 5, (500, 4)), rng.normal(0, 1, (30, 4))
  train[:, 2], test[:, 2] = 1000.1, 1000.1
  ours, other = standardize(train, test)
  np.testing.assert_allclose(ours[:, :2].mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(ours[:, :2].std(0), 1, rtol=1e-5)
  np.testing.assert_allclose(other[:, 0], (test[:, 0] - train[:, 0].mean()) / train[:, 0].std(),
                             rtol=1e-4, atol=1e-5)
  # A constant with rounding errors of 3e-5 must not become noise of size 1.
  assert np.abs(ours[:, 2]).max() < 1e-3 and np.abs(other[:, 2]).max() < 1e-3
  assert ours.dtype == other.dtype == np.float32
