"""Ridge regression against scikit-learn, with fewer and with more rows than features."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssl_jax.evals.ridge import ridge_scores


@pytest.mark.parametrize('rows', [12, 80])
def test_equals_scikit_learn_for_every_penalty(rows):
  rng = np.random.default_rng(0)
  x, queries = 3 + 2 * rng.normal(size=(rows, 20)), rng.normal(size=(30, 20))
  y = rng.integers(4, size=rows)
  penalties = [2.0 ** -4, 1., 2.0 ** 10]
  got = ridge_scores(x, y, queries, classes=4, l2=penalties)
  white = lambda a: (a - x.mean(0)) / (x.std(0) + 1e-5)
  extended = lambda a: np.hstack([white(a), np.full((len(a), 1), 100.)])
  for scores, alpha in zip(got, penalties):
    peer = Ridge(alpha=alpha, fit_intercept=False, solver='svd')
    expected = peer.fit(extended(x), 2. * np.eye(4)[y] - 1).predict(extended(queries))
    np.testing.assert_allclose(scores, expected, atol=1e-8)
  assert np.abs(got[0] - got[2]).max() > .1


def test_a_feature_that_never_varies_does_no_harm():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 5)).astype(np.float32)
  x[:, 2] = 7
  y = (x[:, 0] > 0).astype(int)
  scores = ridge_scores(x, y, x, classes=2, l2=[1.])[0]
  assert np.isfinite(scores).all() and np.mean(scores.argmax(1) == y) > .85


@pytest.mark.parametrize('l2', [[], [1., 0.], 3.])
def test_penalties_are_positive(l2):
  with pytest.raises(ValueError, match='positive penalties'):
    ridge_scores(np.eye(3), [0, 1, 1], np.eye(3), classes=2, l2=l2)
