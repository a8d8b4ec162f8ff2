"""The shuffled order: a bijection for every length, and statistically a uniform permutation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from ssl_jax.data.order import permuted

LENGTHS = [*range(1, 66), 97, 127, 128, 129, 1000, 4095, 4097, 10_007]


def whole(length, seed=0, epoch=0):
  return permuted(np.arange(length), length=length, seed=seed, epoch=epoch)


@pytest.mark.parametrize('epoch', [0, 3])
def test_is_a_bijection_for_every_length(epoch):
  for length in LENGTHS:
    order = whole(length, seed=7, epoch=epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(length), err_msg=str(length))


def test_is_a_function_of_the_index_alone():
  index = np.array([[5, 999], [5, 0]])
  got = permuted(index, length=1000, seed=1, epoch=2)
  np.testing.assert_array_equal(got, whole(1000, 1, 2)[index])


def test_lengths_beyond_any_list():
  length = 3_000_000_019
  got = permuted(np.arange(0, length, length // 1000), length=length, seed=0, epoch=0)
  assert got.min() >= 0 and got.max() < length and len(np.unique(got)) == len(got)
  assert stats.kstest(got / length, 'uniform').pvalue > 1e-3


def test_seed_and_epoch_name_different_orders():
  orders = {whole(1000, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
  assert len(orders) == 25
  # Not the sum, nor the concatenated digits, of the two.
  assert whole(1000, 1, 11).tobytes() != whole(1000, 11, 1).tobytes()


def test_order_never_changes_between_versions():
  """Recorded at ORDER_VERSION 1: a change here breaks every resume and must raise the version."""
  np.testing.assert_array_equal(whole(10, seed=0, epoch=0), [5, 9, 6, 8, 2, 1, 4, 3, 0, 7])
  np.testing.assert_array_equal(whole(10_000, seed=42, epoch=7)[:5], [824, 1022, 826, 3882, 8270])


@pytest.mark.parametrize('length', [4, 5])
def test_all_permutations_are_equally_likely(length):
  count = dict.fromkeys(itertools.permutations(range(length)), 0)
  for epoch in range(3600):
    count[tuple(whole(length, epoch=epoch).tolist())] += 1
  assert stats.chisquare(list(count.values())).pvalue > 1e-3


@pytest.mark.parametrize('length', [5, 37, 100])
def test_every_example_is_equally_likely_at_every_position(length):
  table = np.zeros((length, length))
  for epoch in range(2000):
    table[np.arange(length), whole(length, seed=3, epoch=epoch)] += 1
  # Rows and columns sum to 2000, hence (length - 1)^2 degrees of freedom.
  statistic = np.sum((table - 2000 / length) ** 2) / (2000 / length)
  pvalue = stats.chi2.sf(statistic * (length - 1) / length, (length - 1) ** 2)
  assert 1e-3 < pvalue < 1 - 1e-3


def test_neighbours_are_torn_apart_and_epochs_are_independent():
  first, second = whole(10_007, epoch=0), whole(10_007, epoch=1)
  # |rank correlation| of independent permutations is below 4 / sqrt(n), all but once in 10^4.
  bound = 4 / np.sqrt(10_007)
  assert abs(stats.spearmanr(first, second).statistic) < bound
  assert abs(stats.spearmanr(first[1:], first[:-1]).statistic) < bound
  assert abs(stats.spearmanr(first, np.arange(10_007)).statistic) < bound
  # The gap between neighbours k apart is uniform modulo n, for a uniform permutation.
  for k in (1, 2, 64):
    gaps = (first[k:] - first[:-k]) % 10_007
    assert stats.kstest(gaps / 10_007, 'uniform').pvalue > 1e-3
  # A uniform permutation has one fixed point on average (Poisson).
  fixed = [np.sum(whole(1000, epoch=epoch) == np.arange(1000)) for epoch in range(300)]
  assert 0.7 < np.mean(fixed) < 1.3
