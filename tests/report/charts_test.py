"""Charts: what is drawn is where the numbers are."""

import html
import json
import re

import numpy as np

from ssl_jax.report.charts import (
  BOTTOM,
  HEIGHT,
  LEFT,
  RIGHT,
  TOP,
  WIDTH,
  Classes,
  Series,
  line_chart,
  scatter,
  with_smoothing,
)


def attribute(markup, name):
  return html.unescape(re.search(f'{name}="([^"]*)"', markup)[1])


def line_of(markup, kind='main'):
  return re.search(f'd="([^"]*)" class="line {kind}"', markup)[1]


def chart(y, x=None, **options):
  x = np.arange(len(y)) if x is None else x
  return line_chart([Series('loss', x, np.asarray(y, float))], title='a < b', x_label='step',
                    **options)


def test_ends_of_a_line_are_the_ends_of_the_plot():
  svg = chart([0, 10, 5])
  middle, bottom = (LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM
  assert line_of(svg) == (f'M{LEFT}.0 {bottom}.0h0L{middle:.1f} {TOP}.0'
                          f'L{WIDTH - RIGHT}.0 {(bottom + TOP) / 2:.1f}')
  assert '<title>a &lt; b</title>' in svg
  assert json.loads(attribute(svg, 'data-points'))[1] == [middle, '1', '10']


def test_what_is_not_finite_is_a_gap_and_a_mark():
  svg = chart([1, np.nan, 2, np.inf, 3])
  assert line_of(svg).count('M') == 3 and 'nan' not in line_of(svg)
  assert svg.count('class="bad"') == 2
  assert json.loads(attribute(svg, 'data-points'))[3][2] == '∞'


def test_log_scale_puts_equal_ratios_at_equal_distances():
  path = line_of(chart([1, 10, 100], log=True))
  heights = [float(y) for y in re.findall(r'[ML][\d.]+ ([\d.]+)', path)]
  np.testing.assert_allclose(np.diff(heights), -(HEIGHT - BOTTOM - TOP) / 2, atol=0.1)
  assert line_of(chart([1, 0, 10], log=True)).count('M') == 2


def test_one_row_and_none_that_is_finite():
  assert 'class="end main"' in chart([3.0])
  empty = chart([np.nan, np.nan])
  assert 'class="end' not in empty and empty.count('class="bad"') == 2


def test_smoothing_needs_points_enough():
  assert [s.kind for s in with_smoothing('x', np.arange(19), np.ones(19))[0]] == ['main']
  (raw, main), width = with_smoothing('x', np.arange(100), np.arange(100.0))
  assert (raw.kind, main.kind, width) == ('raw', 'main', 11)


def test_a_long_history_stays_small():
  assert len(chart(np.random.default_rng(0).normal(size=50_000))) < 25_000


def test_scatter_draws_every_point_in_its_class():
  rng = np.random.default_rng(0)
  index = rng.integers(-1, 12, 300)
  names = tuple(f'class <{i}>' for i in range(12))
  svg = scatter(rng.normal(size=(300, 2)), Classes(names, index), title='map')
  for c in range(-1, 12):
    groups = re.findall(rf'class="dots c\w+ k{c}">(.*?)</g>', svg)
    drawn = sum(re.search('d="([^"]*)"', g)[1].count('h0') for g in groups)
    assert drawn == (index == c).sum()
    assert all(('hole' in g) == (c >= 10) for g in groups)  # the second ten are rings
  assert svg.count('class &lt;11&gt;</text>') == 1 and '<0>' not in svg


def test_scatter_has_one_scale_for_both_axes_and_points_up():
  svg = scatter([[0, 0], [2, 0], [0, 1]], None, title='map', size=100)
  places = {tuple(map(float, p)) for p in re.findall(r'M([\d.]+) ([\d.]+)h0', svg)}
  assert places == {(18.0, 66.0), (82.0, 66.0), (18.0, 34.0)}
  assert 'nan' not in scatter(np.ones((3, 2)), None, title='map')
