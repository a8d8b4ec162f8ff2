"""Fine-tuning against SGD in NumPy; normalisation in training mode; padding; meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evals.finetune import finetune, finetuned_accuracy
from ssl_jax.parallel import batch_sharding, make_mesh, replicated


def encode(params, state, x, *, train):
  """A linear map and centring: by the mean of the batch in training, by the last one after it."""
  z = x @ params['w']
  mean = jnp.mean(z, axis=0) if train else state['mean']
  return z - mean[None], {'mean': mean}


def inputs(batch):
  return batch['x'] / 2


def problem(batches=6, rows=16, seed=0):
  rng = np.random.default_rng(seed)
  params = {'w': rng.normal(size=(4, 3)).astype(np.float32)}
  y = rng.integers(2, size=(batches, rows)).astype(np.int32)
  x = (rng.normal(size=(batches, rows, 4)) + 1.5 * y[..., None]).astype(np.float32)
  data = [dict(x=a, label=b) for a, b in zip(x, y)]
  return params, {'mean': np.zeros(3, np.float32)}, data


def numpy_finetune(params, data, *, batch_size):
  w, k, b = params['w'].astype(np.float64), np.zeros((3, 2)), np.zeros(2)
  momentum = [0 * w, 0 * k, 0 * b]
  for t, batch in enumerate(data):
    x, n = batch['x'].astype(np.float64) / 2, len(batch['x'])
    centred = x - x.mean(0)
    f = centred @ w
    p = np.exp(f @ k + b)
    error = (p / p.sum(1, keepdims=True) - np.eye(2)[batch['label']]) / n
    grads = [centred.T @ (error @ k.T), f.T @ error, error.sum(0)]
    momentum = [.9 * v + g for v, g in zip(momentum, grads)]
    rate = .05 * batch_size / 256 * (.5 + .5 * np.cos(np.pi * t / len(data)))
    w, k, b = (p - rate * (g + .9 * v) for p, g, v in zip((w, k, b), grads, momentum))
  return w, k, b


def test_takes_the_steps_of_nesterov_sgd_on_encoder_and_head():
  params, state, data = problem()
  tuned = finetune(encode, params, state, data, inputs=inputs, classes=2, steps=6, batch_size=4096)
  w, k, b = numpy_finetune(params, data, batch_size=4096)
  np.testing.assert_allclose(tuned.params['encoder']['w'], w, atol=1e-5)
  np.testing.assert_allclose(tuned.params['head']['kernel'], k, atol=1e-5)
  np.testing.assert_allclose(tuned.params['head']['bias'], b, atol=1e-5)
  assert np.abs(np.asarray(tuned.params['encoder']['w']) - params['w']).max() > .01


def test_the_state_is_that_of_training_and_is_what_measuring_uses():
  params, state, data = problem()
  tuned = finetune(encode, params, state, data, inputs=inputs, classes=2, steps=6, batch_size=4096)
  assert np.abs(tuned.state['mean']).min() > 0
  x = np.concatenate([batch['x'] for batch in data]) / 2
  y = np.concatenate([batch['label'] for batch in data])
  params, state = jax.device_get((tuned.params, tuned.state))
  features = x @ params['encoder']['w'] - state['mean']
  logits = features @ params['head']['kernel'] + params['head']['bias']
  accuracy = finetuned_accuracy(encode, tuned, data, inputs=inputs)
  assert accuracy == np.mean(logits.argmax(1) == y) > .65


def test_padded_rows_weigh_nothing():
  params, state, data = problem()
  plain = lambda params, state, x, *, train: (x @ params['w'], state)
  padded = [dict(x=np.pad(batch['x'], ((0, 4), (0, 0)), constant_values=9),
                 label=np.pad(batch['label'], (0, 4)),
                 weight=np.pad(np.ones(16, np.float32), (0, 4))) for batch in data]
  run = lambda data: finetune(plain, params, state, data, inputs=inputs, classes=2, steps=6,
                              batch_size=256)
  one, other = run(data), run(padded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, other.params)
  assert finetuned_accuracy(plain, one, data, inputs=inputs) == finetuned_accuracy(
    plain, other, padded, inputs=inputs)


def test_equal_on_eight_devices():
  params, state, data = problem()
  mesh = make_mesh()
  run = lambda *args: finetune(encode, *args, inputs=inputs, classes=2, steps=6, batch_size=4096)
  one = run(params, state, data)
  many = run(*jax.device_put((params, state), replicated(mesh)),
             jax.device_put(data, batch_sharding(mesh)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)


def test_a_network_that_diverged_is_never_right_and_mistakes_are_named():
  params, state, data = problem()
  tuned = finetune(encode, params, state, data, inputs=inputs, classes=2, steps=6, batch_size=256)
  params = {**tuned.params, 'head': {'kernel': np.full((3, 2), np.nan, np.float32),
                                     'bias': np.zeros(2, np.float32)}}
  assert finetuned_accuracy(encode, tuned._replace(params=params), data, inputs=inputs) == 0
  with pytest.raises(ValueError, match='7 steps needs as many batches, got 6'):
    finetune(encode, params['encoder'], state, data, inputs=inputs, classes=2, steps=7,
             batch_size=256)
  with pytest.raises(ValueError, match='no rows'):
    finetuned_accuracy(encode, tuned, [], inputs=inputs)
