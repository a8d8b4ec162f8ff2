"""Numbers as text, ticks, smoothing and thinning, against what they promise."""

import numpy as np
import pytest

from ssl_jax.report.numbers import linear_axis, log_axis, number, smoothed, thinned, tick_text


@pytest.mark.parametrize('x, text', [
  (12345, '12,345'), (0.83125, '0.8313'), (6e-05, '6.00e-05'), (float('nan'), 'nan'),
  (float('-inf'), '−∞'), (-1.25, '−1.250'), (98765.4, '98,765'), (None, '–'), (0, '0')])
def test_numbers(x, text):
  assert number(x) == text


@pytest.mark.parametrize('x, text', [
  (20000, '20k'), (1.5e6, '1.5M'), (0.25, '0.25'), (1e-4, '1e−4'), (-2e-5, '−2e−5'), (0, '0')])
def test_ticks_as_text(x, text):
  assert tick_text(x) == text


def test_linear_axis_covers_the_data_with_round_ticks():
  axis = linear_axis([0.13, 0.52, np.nan, np.inf])
  assert axis.ticks == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
  assert axis.texts() == ['0.1', '0.2', '0.3', '0.4', '0.5', '0.6']
  np.testing.assert_allclose(axis.place([0.1, 0.35, 0.6], 100, 0), [100, 50, 0], atol=1e-9)
  assert linear_axis([25, 400], tight=True)[:3] == (25, 400, (100, 200, 300, 400))
  assert linear_axis([3.0, 3.5])._replace().texts()[0] == '3.0'


@pytest.mark.parametrize('values', [[2.0, 2.0], [0.0], [], [np.nan]])
def test_an_axis_of_one_value_or_none_has_a_width(values):
  axis = linear_axis(values)
  assert axis.low < axis.high and len(axis.ticks) >= 2


def test_log_axis_has_powers_of_ten_and_leaves_zero_out():
  axis = log_axis([0.0, 0.003, 40.0])
  assert axis.ticks == (0.01, 0.1, 1.0, 10.0)
  np.testing.assert_allclose(axis.place([0.003, 40.0], 0, 1), [0, 1], atol=1e-12)
  assert log_axis([1.5, 9]).ticks == (2, 5)
  assert log_axis([3, 3]).low < 3


def test_smoothing_is_a_weighted_mean_that_skips_what_is_not_finite():
  line = 2.0 * np.arange(30)
  np.testing.assert_allclose(smoothed(line, 5)[2:-2], line[2:-2])  # a centred window has no lag
  np.testing.assert_allclose(smoothed(np.full(9, 4.0), 5), 4.0)  # nor an edge
  holes = np.array([1.0, 1.0, np.nan, np.inf, 1.0, 1.0])
  np.testing.assert_allclose(smoothed(holes, 3), 1.0)
  assert np.isnan(smoothed(np.array([1.0, *[np.nan] * 5]), 3)[3:]).all()


def test_thinning_keeps_spikes_and_ends():
  x, y = np.arange(10_000), np.zeros(10_000)
  y[1234], y[5678], y[9000] = 7, -3, np.nan
  a, b = thinned(x, y, 400)
  assert len(a) <= 402 and a[0] == 0 and a[-1] == 9999 and (np.diff(a) > 0).all()
  assert 1234 in a and 5678 in a and b.max() == 7 and b.min() == -3
  np.testing.assert_array_equal(thinned(x[:9], y[:9], 400)[0], x[:9])
