"""Probes against SGD written out in NumPy, step by step."""

import jax
import numpy as np
import pytest

from ssl_jax.evals import probes as module
from ssl_jax.evals.probes import batch_shape, epoch_order, probe_accuracies, train_probes


def problem(n=90, m=60, d=6, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  centres = 2 * rng.normal(size=(classes, d))
  make = lambda y: (centres[y] + rng.normal(size=(len(y), d))).astype(np.float32)
  y, labels = rng.integers(classes, size=n), rng.integers(classes, size=m)
  return make(y), y, make(labels), labels


def softmax(z):
  z = np.exp(z - z.max(1, keepdims=True))
  return z / z.sum(1, keepdims=True)


def numpy_sgd(x, y, *, classes, rate, decay, batch_size, epochs, momentum, nesterov, schedule,
              normalise, start):
  """The definition, in float64, one head; gives (weights [C, D], bias, running mean, variance)."""
  x = x.astype(np.float64)
  w, b = start.astype(np.float64), np.zeros(classes)
  v, u, mean, variance = 0 * w, 0 * b, np.zeros(x.shape[1]), np.ones(x.shape[1])
  steps, t = batch_shape(len(x), batch_size)[0], 0
  for epoch in range(epochs):
    for rows in epoch_order(len(x), batch_size, seed=3, epoch=epoch):
      rows = rows[rows >= 0]
      z, t = x[rows], t + 1
      if normalise == 'batchnorm':
        mean = .9 * mean + .1 * z.mean(0)
        variance = .9 * variance + .1 * z.var(0, ddof=1)
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-6)
      elif normalise == 'l2':
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
      error = (softmax(z @ w.T + b) - np.eye(classes)[y[rows]]) / len(rows)
      g, h = error.T @ z + decay * w, error.sum(0) + decay * b
      v, u = momentum * v + g, momentum * u + h
      g, h = (g + momentum * v, h + momentum * u) if nesterov else (v, u)
      lr = rate * (.5 + .5 * np.cos(np.pi * (t - 1) / (steps * epochs)) if schedule == 'cosine' else
                   .1 ** ((epoch >= .6 * epochs) + (epoch >= .8 * epochs)))
      w, b = w - lr * g, b - lr * h
  return w, b, mean, variance


@pytest.mark.parametrize('normalise, schedule, nesterov', [
  ('none', 'cosine', True), ('batchnorm', 'step', False), ('l2', 'cosine', False)])
def test_every_head_takes_the_steps_of_sgd_in_numpy(normalise, schedule, nesterov):
  x, y, queries, labels = problem()
  rates, decays = [.3, .05], [0., .1]
  # 90 rows by 25 are 4 batches of 23: two of them have a place left over.
  common = dict(classes=3, batch_size=25, epochs=5, momentum=.8, nesterov=nesterov,
                schedule=schedule, normalise=normalise)
  probes = train_probes(x, y, learning_rates=rates, weight_decays=decays, initial_std=.1, seed=3,
                        **common)
  start = .1 * np.random.default_rng((3, 2**31)).normal(size=(3, 6))
  for h, (rate, decay) in enumerate(zip(rates, decays)):
    w, b, mean, variance = numpy_sgd(x, y, rate=rate, decay=decay, start=start, **common)
    np.testing.assert_allclose(probes.weights[h], w, atol=2e-6)
    np.testing.assert_allclose(probes.bias[h], b, atol=2e-6)
    z = queries.astype(np.float64)
    if normalise == 'batchnorm':
      np.testing.assert_allclose(probes.mean, mean, atol=1e-6)
      np.testing.assert_allclose(probes.variance, variance, atol=1e-5)
      z = (z - mean) / np.sqrt(variance + 1e-6)
    elif normalise == 'l2':
      z = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.mean(np.argmax(z @ w.T + b, axis=1) == labels)
    assert probe_accuracies(probes, queries, labels, normalise=normalise)[h] == expected


def test_a_head_does_not_depend_on_its_neighbours_and_a_diverged_one_is_never_right():
  x, y, queries, labels = problem()
  common = dict(classes=3, batch_size=30, epochs=8, initial_std=.01)
  one = train_probes(x, y, learning_rates=[.1], **common)
  # A weight decay times rate of 3e37 overflows at the second step.
  many = train_probes(x, y, learning_rates=[1e30, .1], weight_decays=[3e7, 0.], **common)
  np.testing.assert_allclose(one.weights[0], many.weights[1], rtol=1e-5, atol=1e-6)
  accuracy = probe_accuracies(many, queries, labels)
  assert not np.isfinite(many.weights[0]).all() and accuracy[0] == 0 and accuracy[1] > .8
  assert one.loss[0] == pytest.approx(float(many.loss[1]), rel=1e-5)


def test_top_k_and_equal_logits():
  x, y, queries, labels = problem()
  untrained = train_probes(x, y, classes=3, learning_rates=[1e-30], epochs=1)
  untrained = untrained._replace(weights=0 * untrained.weights, bias=0 * untrained.bias)
  for top in (1, 2, 3):  # all classes are equally likely: the lowest numbers come first
    assert probe_accuracies(untrained, queries, labels, top=top) == np.mean(labels < top)


def test_features_of_augmented_images_change_with_the_epoch():
  x, y, _, _ = problem()
  seen = []

  def augmented(epoch):
    seen.append(epoch)
    return x * (1 + epoch), y

  common = dict(classes=3, learning_rates=[.1], batch_size=30, epochs=3)
  changing = train_probes(augmented, None, **common)
  assert seen == [0, 1, 2]
  assert np.abs(changing.weights - train_probes(x, y, **common).weights).max() > 1e-3
  with pytest.raises(ValueError, match=r'epoch 1 \(89, 6\)'):
    train_probes(lambda epoch: (x[epoch:], y[epoch:]), None, **common)


def test_an_epoch_is_a_permutation_in_batches_of_equal_size():
  assert batch_shape(1_281_167, 256) == (5005, 256)
  assert batch_shape(50_000, 4096) == (12, 4167)
  assert batch_shape(100, 4096) == (1, 100)
  orders = [epoch_order(90, 25, seed=0, epoch=epoch) for epoch in (0, 1)]
  for order in orders:
    assert order.shape == (4, 23)
    assert sorted(order[order >= 0]) == list(range(90)) and (order < 0).sum() == 2
    assert ((order < 0).sum(axis=1) <= 1).all()  # no batch lacks more than one row
  assert (orders[0] != orders[1]).any()


def test_rates_of_the_step_schedule():
  factors = module.rate_factors('step', steps=2, epochs=100)
  assert factors.shape == (100, 2)
  np.testing.assert_allclose(factors[[0, 59, 60, 79, 80, 99], 0], [1, 1, .1, .1, .01, .01])


def test_runs_under_the_transfer_guard():
  x, y, queries, labels = problem()
  with jax.transfer_guard('disallow'):
    probes = train_probes(x, y, classes=3, learning_rates=[.1], epochs=1)
    probe_accuracies(probes, queries, labels)


@pytest.mark.parametrize('wrong, message', [
  (dict(learning_rates=[]), 'positive learning rates'),
  (dict(learning_rates=[.1, 0.]), 'positive learning rates'),
  (dict(weight_decays=[0., 1.]), 'for each of the 1 heads'), (dict(weight_decays=-1.), '>= 0'),
  (dict(epochs=0), 'epochs >= 1'), (dict(schedule='linear'), "'cosine' or 'step'"),
  (dict(normalise='batch'), "'batchnorm'"),
])
def test_mistakes_are_named(wrong, message):
  x, y, _, _ = problem()
  with pytest.raises(ValueError, match=message):
    train_probes(x, y, **(dict(classes=3, learning_rates=[.1]) | wrong))
