"""Checks and draws."""

import numpy as np
import pytest

from ssl_jax.evals.labelled import draw, fraction_counts, labelled, labelled_pair

X = np.ones((4, 2), np.float32)


@pytest.mark.parametrize('features, labels, message', [
  (X[0], [0], r'\[N, D\]'), (X, [0, 1, 0], r'\(3,\)'), (X[:0], [], 'N, D >= 1'),
  (X, [0, 1, 2, 3], r'got \[3\]'), (X, [0, -1, 1, 1], r'got \[-1\]'),
  (X, [0, .5, 1, 1], r'got \[0.5\]'), (X * [[np.nan, 1]], [0, 1, 2, 0], '4 of 4'),
])
def test_mistakes_are_named(features, labels, message):
  with pytest.raises(ValueError, match=message):
    labelled(np.asarray(features, np.float32), labels, 3, name='test')


def test_pairs_must_agree_and_have_two_classes():
  with pytest.raises(ValueError, match='2 columns, test features 1'):
    labelled_pair(X, [0, 1, 0, 1], X[:, :1], [0, 1, 0, 1], 2)
  with pytest.raises(ValueError, match='all 4 labels are class 1'):
    labelled_pair(X, [1, 1, 1, 1], X, [0, 1, 0, 1], 2)


def test_draws_hold_the_counts_and_repeat_with_the_seed():
  labels = np.repeat([0, 1, 2], [5, 9, 30])
  counts = np.array([5, 0, 7])
  rows = draw(labels, counts, np.random.default_rng(1))
  np.testing.assert_array_equal(np.bincount(labels[rows], minlength=3), counts)
  assert len(set(rows.tolist())) == 12
  np.testing.assert_array_equal(rows, draw(labels, counts, np.random.default_rng(1)))
  assert (rows != draw(labels, counts, np.random.default_rng(2))).any()
  with pytest.raises(ValueError, match='class 1 has 9 labelled rows, 10'):
    draw(labels, np.array([1, 10, 1]), np.random.default_rng(0))


def test_every_row_is_drawn_equally_often():
  labels = np.repeat([0, 1], [20, 20])
  hits = np.zeros(40)
  for seed in range(400):
    hits[draw(labels, np.array([5, 10]), np.random.default_rng(seed))] += 1
  # Binomial: standard deviations 8.7 and 10; five of them.
  assert np.abs(hits[:20] - 100).max() < 44 and np.abs(hits[20:] - 200).max() < 50


def test_fractions_are_per_class_and_leave_no_class_out():
  labels = np.repeat([0, 1, 3], [1000, 30, 149])
  np.testing.assert_array_equal(fraction_counts(labels, 0.01, 4), [10, 1, 0, 1])
  np.testing.assert_array_equal(fraction_counts(labels, 1, 4), [1000, 30, 0, 149])
  with pytest.raises(ValueError, match='got 10'):
    fraction_counts(labels, 10, 4)
