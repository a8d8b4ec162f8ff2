"""Probes against scikit-learn, and who sees which labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssl_jax.evals import linear
from ssl_jax.evals.linear import few_labels, linear_probe


@pytest.fixture(scope='module')
def digits():
  """1,297 rows to train and 500 to test, standardised with the former."""
  x, y = load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(y))
  x, y = x[order].astype(np.float32), y[order]
  x = (x - x[:1297].mean(0)) / np.maximum(x[:1297].std(0), 1e-3)
  return x[:1297], y[:1297], x[1297:], y[1297:]


def test_agrees_with_scikit_learn_within_half_a_point(digits):
  x, y, queries, labels = digits
  result = linear_probe(*digits, classes=10)
  peer = LogisticRegression(C=1 / (result['weight_decay'] * len(x)), max_iter=5000).fit(x, y)
  assert result['accuracy'] == pytest.approx(peer.score(queries, labels), abs=0.005)
  assert result['weight_decay'] in linear.WEIGHT_DECAYS and result['gradient'] <= 1e-5
  assert result['accuracy'] > 0.95


def test_the_choice_never_sees_the_test_labels(digits):
  x, y, queries, labels = digits
  result = linear_probe(x, y, queries, labels, classes=10)
  wrong = linear_probe(x, y, queries[::-1], (labels + 1) % 10, classes=10)
  for key in ('weight_decay', 'held_out_accuracy', 'gradient'):
    assert result[key] == wrong[key]
  assert wrong['accuracy'] < 0.2


def test_noise_in_many_dimensions_asks_for_a_strong_decay():
  rng = np.random.default_rng(0)
  y = np.arange(400) % 2
  x = rng.normal(size=(400, 100)).astype(np.float32)
  x[:, 0] += 2 * (y - 0.5)
  result = linear_probe(x[:200], y[:200], x[200:], y[200:], classes=2, held_out=0.3)
  assert result['weight_decay'] >= 1e-2
  fixed = linear_probe(x[:200], y[:200], x[200:], y[200:], classes=2, weight_decays=[1e-5] * 5)
  assert fixed['weight_decay'] == 1e-5 and fixed['accuracy'] < result['accuracy']


def test_few_labels_agree_with_scikit_learn_on_the_same_draws(digits):
  x, y, queries, labels = digits
  scores = []
  for i in range(3):
    rng = np.random.default_rng((7, i))
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:10] for c in range(10)])
    scores.append(LogisticRegression(C=1., max_iter=5000).fit(x[rows], y[rows])
                  .score(queries, labels))
  result = few_labels(*digits, classes=10, per_class=10, draws=3, seed=7)
  assert result['mean'] == pytest.approx(np.mean(scores), abs=0.003)
  assert result['std'] == pytest.approx(np.std(scores, ddof=1), abs=0.003)


def test_draws_depend_on_the_seed_alone_and_all_labels_are_one_draw(digits):
  small = digits[0][:, :8], *digits[1:2], digits[2][:, :8], digits[3]
  one = few_labels(*small, classes=10, per_class=10, draws=3, seed=7)
  assert one == few_labels(*small, classes=10, per_class=10, draws=3, seed=7)
  assert one != few_labels(*small, classes=10, per_class=10, draws=3, seed=8)
  assert few_labels(*small, classes=10, fraction=1., draws=2)['std'] == 0
  assert few_labels(*small, classes=10, per_class=10, draws=1)['std'] == 0


def test_dtypes_do_not_matter(digits):
  x, y, queries, labels = digits
  half = jnp.asarray(x, jnp.bfloat16), jnp.asarray(queries, jnp.bfloat16)
  full = [np.asarray(a, np.float32) for a in half]
  few = lambda x, y, queries, labels: few_labels(x, y, queries, labels, classes=10, per_class=10,
                                                 draws=3)
  assert few(half[0], y.astype(np.uint8), half[1], labels.astype(float)) == few(
    full[0], y, full[1], labels)


def test_runs_under_the_transfer_guard(digits):
  with jax.transfer_guard('disallow'):
    few_labels(*digits, classes=10, per_class=10, draws=3)
    linear_probe(*digits, classes=10)


@pytest.mark.parametrize('wrong, message', [
  (dict(per_class=None), 'per_class or fraction'), (dict(fraction=0.1), 'per_class or fraction'),
  (dict(draws=0), 'draws >= 1'), (dict(per_class=0), 'per_class >= 1'),
  (dict(per_class=140), r'class \d has \d+ labelled rows, 140'),
])
def test_mistakes_with_few_labels_are_named(digits, wrong, message):
  with pytest.raises(ValueError, match=message):
    few_labels(*digits, **(dict(classes=10, per_class=10) | wrong))


def test_mistakes_with_the_probe_are_named(digits):
  with pytest.raises(ValueError, match='positive weight decays'):
    linear_probe(*digits, classes=10, weight_decays=[0.1, 0.])
  with pytest.raises(ValueError, match='fewer than two classes'):
    linear_probe(*digits, classes=10, held_out=1.)
