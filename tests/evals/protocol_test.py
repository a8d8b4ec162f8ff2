"""The fixed protocol end to end on scikit-learn's digits, and its table."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from ssl_jax.evals.protocol import (
  Representation,
  describe,
  evaluate_features,
  fixed_protocol,
  format_table,
)


@pytest.fixture(scope='module')
def digits():
  x, y = load_digits(return_X_y=True)
  return x[:1000].astype(np.float32), y[:1000], x[1000:].astype(np.float32), y[1000:]


@pytest.fixture(scope='module')
def rows(digits):
  x, y, queries, labels = digits
  noise = np.random.default_rng(0).normal(size=(len(x) + len(queries), 64)).astype(np.float32)
  sets = (('pixels', x, queries), ('scaled', 8 * x, 8 * queries),
          ('noise', noise[:len(x)], noise[len(x):]))
  return fixed_protocol(
    (Representation(name, a, y, b, labels) for name, a, b in sets), classes=10)


def test_equals_scikit_learn_step_by_step(digits, rows):
  x, y, queries, labels = digits
  scaler = StandardScaler().fit(x)
  x, queries = scaler.transform(x), scaler.transform(queries)
  result = dict(rows)['pixels']
  near = KNeighborsClassifier(20, metric='cosine').fit(x, y).score(queries, labels)
  assert result['knn20'] == pytest.approx(near, abs=0.002)
  scores = []
  for i in range(5):
    rng = np.random.default_rng((0, i))
    index = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:10] for c in range(10)])
    scores.append(LogisticRegression(max_iter=5000).fit(x[index], y[index]).score(queries, labels))
  assert result['labels10'] == pytest.approx(np.mean(scores), abs=0.003)
  assert result['labels10_std'] == pytest.approx(np.std(scores, ddof=1), abs=0.003)
  c = 1 / (result['linear_weight_decay'] * len(x))
  linear = LogisticRegression(C=c, max_iter=5000).fit(x, y).score(queries, labels)
  assert result['linear'] == pytest.approx(linear, abs=0.005)


def test_scale_does_not_matter_and_noise_knows_nothing(rows):
  results = dict(rows)
  assert results['scaled'] == results['pixels']  # 8 is a power of two; and the draws are the same
  assert all(results['noise'][key] < 0.2 for key in ('knn20', 'labels10', 'linear'))


def test_results_and_their_description_can_be_stored(rows):
  assert json.loads(json.dumps(dict(rows))) == dict(rows)
  assert describe(3)['selection'] == 'weight decay: held-out 10% of train, seed 3'
  assert json.loads(json.dumps(describe())) == describe()


def test_fractions_are_added_on_request(digits):
  x, y, queries, labels = (a[:400] for a in digits)
  result = evaluate_features(x, y, queries, labels, classes=10, fractions=True)
  assert 0.2 < result['percent1'] < result['percent10'] < result['linear']
  assert {'percent1_std', 'percent10_std'} <= set(result)


def test_the_table_is_aligned_markdown():
  rows = [('raw pixels', dict(knn20=.8055, labels10=.71, labels10_std=.01, linear=.8541)),
          ('random', dict(knn20=.7, labels10=.6, labels10_std=.0123))]
  assert format_table(rows) == '\n'.join([
    '| features   | kNN-20 | 10 labels per class | linear |',
    '|------------|--------|---------------------|--------|',
    '| raw pixels | 0.805  | 0.710 ± 0.010       | 0.854  |',
    '| random     | 0.700  | 0.600 ± 0.012       | -      |'])


def test_features_that_are_not_finite_are_named(digits):
  x, y, queries, labels = digits
  with pytest.raises(ValueError, match='test: 797 of 797 feature rows are not finite'):
    evaluate_features(x, y, queries * np.nan, labels, classes=10)
