"""Means, spreads and intervals against scipy.stats and tables printed in textbooks."""

import numpy as np
import pytest
from scipy import stats

from ssl_jax.evals.aggregate import (
  group,
  markdown,
  paired_difference,
  separated,
  spelled,
  summarise,
)


@pytest.mark.parametrize('n', [2, 3, 5, 30])
def test_a_summary_is_that_of_scipy(n):
  x = np.random.default_rng(n).normal(0.8, 0.01, n)
  got = summarise(x)
  low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
  np.testing.assert_allclose(got, (n, x.mean(), stats.tstd(x), low, high), rtol=1e-12)


def test_the_interval_uses_the_quantiles_of_students_table():
  # t(2) = 4.303, t(4) = 2.776: any printed table. Values -1, 0, 1 have std 1.
  assert summarise([-1., 0., 1.]).high == pytest.approx(4.303 / np.sqrt(3), abs=1e-3)
  x = np.array([-2., -1., 0., 1., 2.])
  assert summarise(x).high == pytest.approx(2.776 * np.sqrt(2.5) / np.sqrt(5), abs=1e-3)
  assert summarise(x, confidence=0.99).high > summarise(x).high


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
  x = np.random.default_rng(0).normal(size=(2000, 3))
  inside = sum(s.low < 0 < s.high for s in map(summarise, x)) / len(x)
  assert abs(inside - 0.95) < 3 * np.sqrt(0.95 * 0.05 / len(x))


def test_a_single_value_has_no_spread_and_equal_values_none():
  assert summarise([0.5]) == (1, 0.5, None, None, None)
  assert summarise([0.5, 0.5, 0.5]) == (3, 0.5, 0., 0.5, 0.5)


@pytest.mark.parametrize('values, words', [
  ([], 'at least one'), ([0.1, float('nan')], 'finite'), ([[0.1], [0.2]], 'at least one number')])
def test_what_cannot_be_summarised_is_refused(values, words):
  with pytest.raises(ValueError, match=words):
    summarise(values)


def test_a_confidence_is_a_probability():
  with pytest.raises(ValueError, match='between 0 and 1'):
    summarise([1., 2.], confidence=95)


def test_groups_keep_their_order():
  assert group(['b1', 'a1', 'b2'], lambda x: x[0]) == {'b': ['b1', 'b2'], 'a': ['a1']}


def test_a_paired_difference_is_scipys_paired_test():
  rng = np.random.default_rng(1)
  seeds = rng.normal(0, 0.05, 6)  # what a seed does to both
  a, b = 0.7 + seeds + rng.normal(0, 1e-3, 6), 0.71 + seeds + rng.normal(0, 1e-3, 6)
  got = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
  test = stats.ttest_rel(b, a)
  interval = test.confidence_interval(0.95)
  np.testing.assert_allclose((got.low, got.high), (interval.low, interval.high), rtol=1e-10)
  assert separated(got) and test.pvalue < 0.05
  unpaired = stats.ttest_ind(b, a)
  assert unpaired.pvalue > 0.05  # the pairing is what shows it


def test_only_shared_seeds_are_paired():
  got = paired_difference({0: 0.1, 1: 0.2, 2: 0.3}, {2: 0.5, 1: 0.3, 7: 0.9})
  assert (got.n, got.mean) == (2, pytest.approx(0.15))
  assert not separated(got)  # two pairs are not enough to tell
  assert paired_difference({0: 0.1}, {1: 0.2}) is None


def test_a_difference_around_zero_is_not_separated():
  assert not separated(summarise([-0.01, 0.0, 0.02]))
  assert separated(summarise([-0.03, -0.031, -0.032]))


@pytest.mark.parametrize('values, text', [
  ([0.8114], '0.811'),
  ([0.8, 0.81], '0.805 ± 0.007'),
  ([0.80, 0.81, 0.82], '0.810 ± 0.010 [0.785, 0.835]')])
def test_spelling(values, text):
  assert spelled(summarise(values)) == text


def test_a_difference_is_spelled_with_its_sign():
  assert spelled(summarise([0.01, 0.03]), sign=True) == '+0.020 ± 0.014'


def test_a_table_is_aligned_and_keeps_pipes_inside_cells():
  lines = markdown(['setting', 'n'], [['a|b', '3'], ['longer than the head', '10']]).splitlines()
  assert len({len(line) for line in lines}) == 1 and len(lines) == 4
  assert lines[2].startswith('| a\\|b ')
