"""The solver against scikit-learn, SciPy-free formulas and limiting cases."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssl_jax.evals.logistic import fit_logistic, predict


def digits():
  """scikit-learn's 1,797 x 64 digits, standardised; three columns are constant."""
  x, y = load_digits(return_X_y=True)
  return ((x - x.mean(0)) / np.where(x.std(0) == 0, 1, x.std(0))).astype(np.float32), y


def objective(weights, x, y, decay, mask):
  """The module's equation, in float64."""
  logits = x.astype(np.float64) @ weights[:, :-1].T + weights[:, -1]
  logits -= logits.max(axis=1, keepdims=True)
  loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]
  return np.average(loss, weights=mask) + decay / 2 * np.sum(weights[:, :-1].astype(float)**2)


def sklearn_weights(x, y, decay):
  peer = LogisticRegression(C=1 / (decay * len(x)), tol=1e-6, max_iter=5000).fit(x, y)
  return np.concatenate([peer.coef_, peer.intercept_[:, None]], axis=1)


def test_reaches_scikit_learns_minimum_for_every_decay():
  x, y = digits()
  decays = np.array([1e-1, 1e-2])
  fit = fit_logistic(x, y, decays, classes=10)
  assert (np.asarray(fit.gradient) <= 1e-5).all() and (np.asarray(fit.iterations) < 200).all()
  ones = np.ones(len(y))
  for i, decay in enumerate(decays):
    weights = np.array(fit.weights[i])
    expected = sklearn_weights(x, y, decay)
    least = objective(expected, x, y, decay, ones)
    ours = objective(weights, x, y, decay, ones)
    np.testing.assert_allclose(fit.objective[i], ours, rtol=1e-5)
    assert ours == pytest.approx(least, rel=1e-4)
    # Adding a constant to all intercepts changes nothing.
    weights[:, -1] -= weights[:, -1].mean()
    expected[:, -1] -= expected[:, -1].mean()
    assert np.linalg.norm(weights - expected) < 2e-3 * np.linalg.norm(expected)


def test_features_that_are_neither_centred_nor_scaled():
  x, y = digits()
  x, y = x[:300] * np.geomspace(0.3, 3, 64, dtype=np.float32) + 1, y[:300]
  fit = fit_logistic(x, y, [1e-3], classes=10)
  least = objective(sklearn_weights(x, y, 1e-3), x, y, 1e-3, np.ones(len(y)))
  assert float(fit.objective[0]) == pytest.approx(least, rel=1e-3)


def test_masked_rows_do_not_count():
  x, y = digits()
  x, y = x[:300], y[:300]
  mask = np.ones(300)
  mask[200:] = 0
  fit = fit_logistic(x, y, [1e-2], classes=10, mask=mask)
  alone = fit_logistic(x[:200], y[:200], [1e-2], classes=10)
  np.testing.assert_allclose(fit.weights, alone.weights, atol=2e-3)
  np.testing.assert_allclose(fit.objective, alone.objective, rtol=1e-5)


def test_problems_with_rows_of_their_own_equal_single_ones():
  x, y = digits()
  rows = np.stack([np.arange(0, 60), np.arange(60, 120)])
  decays = np.array([1 / 60, 1e-3])
  both = fit_logistic(x[rows], y[rows], decays, classes=10)
  for i in range(2):
    one = fit_logistic(x[rows[i]], y[rows[i]], decays[i:i + 1], classes=10)
    np.testing.assert_allclose(both.objective[i], one.objective[0], rtol=1e-4)
    assert (predict(both.weights[i], x[120:]) == predict(one.weights[0], x[120:])).mean() > 0.99


def test_an_infinite_penalty_leaves_the_class_frequencies():
  x, y = digits()
  y = np.where(y < 7, 0, 1)
  fit = fit_logistic(x, y, [1e6], classes=2)
  shares = np.bincount(y) / len(y)
  assert float(fit.objective[0]) == pytest.approx(-np.sum(shares * np.log(shares)), abs=1e-4)


def test_separable_rows_without_a_penalty_stop_at_the_bound():
  x = np.array([[-1.], [-2.], [1.], [2.]], np.float32)
  fit = fit_logistic(x, [0, 0, 1, 1], [0.], classes=2, tolerance=0., max_iterations=50)
  assert np.isfinite(fit.weights).all() and float(fit.objective[0]) < 1e-3
  assert (predict(fit.weights[0], x) == np.array([0, 0, 1, 1])).all()
  assert int(fit.iterations[0]) <= 50


def test_the_same_problem_gives_the_same_bits():
  x, y = digits()
  one, two = (fit_logistic(x[:100], y[:100], [1e-2], classes=10).weights for _ in range(2))
  np.testing.assert_array_equal(one, two)
