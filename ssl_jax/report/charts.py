"""Line charts and scatters as SVG: arrays in, markup out; colours are classes of the style sheet."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax.report.html import Html, join, tag
from ssl_jax.report.numbers import Axis, linear_axis, log_axis, number, smoothed, thinned

WIDTH, HEIGHT = 360, 196
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 32
POINTS = 400  # of one line: one per pixel
SMOOTH_FROM = 20  # points; below it a running mean hides more than it shows
ROUNDS = 8  # of a scatter, so that the class drawn last does not cover the others


class Series(NamedTuple):
  """One line: x, y [N]; kind is its look: 'main', 'raw' (faint) or 'other' (dashed, to compare)."""

  name: str
  x: np.ndarray
  y: np.ndarray
  kind: str = 'main'


def with_smoothing(name: str, x, y) -> tuple[list[Series], int]:
  """([raw, smoothed], points of the window); ([main], 0) where there are fewer than 20 points."""
  if len(x) < SMOOTH_FROM:
    return [Series(name, x, y)], 0
  width = max(5, len(x) // 10) | 1
  return [Series(name, x, y, 'raw'), Series(name, x, smoothed(y, width))], width


def line_chart(series: Sequence[Series], *, title: str, x_label: str,
               log: bool = False, x_from: float = 0) -> Html:
  """A chart with axes, ticks and the lines of `series`; the first one answers to the pointer.

  A line has a gap where a value is not finite, and a mark on the axis below. With `log`, values that
  are not positive are gaps too. The horizontal axis begins at `x_from`, if not before, so that charts
  of one run can be compared by eye.
  """
  xs = np.concatenate([[x_from], *(np.asarray(s.x, np.float64) for s in series)])
  ys = np.concatenate([np.asarray(s.y, np.float64) for s in series])
  x_axis = linear_axis(xs, count=5, tight=True)
  y_axis = log_axis(ys) if log else linear_axis(ys)
  bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  lines, ends = [], []
  for s in series:
    x, y = thinned(s.x, s.y, POINTS)
    left_to_right = x_axis.place(x, LEFT, right)
    seen = np.isfinite(y) & ((y > 0) | (not log))
    up = np.full(len(y), np.nan)
    up[seen] = y_axis.place(y[seen], bottom, TOP)
    lines.append(tag('path', d=_line(left_to_right, up), class_=f'line {s.kind}'))
    lines += [tag('path', d=f'M{a:.1f} {bottom}v-7', class_='bad')
              for a in left_to_right[~np.isfinite(y)][:50]]
    if seen.any() and s.kind != 'raw':
      last = np.flatnonzero(seen)[-1]
      ends.append(tag('circle', cx=f'{left_to_right[last]:.1f}', cy=f'{up[last]:.1f}', r=3.2,
                      class_=f'end {s.kind}'))
  return tag(
    'svg', tag('title', title), _axes(x_axis, y_axis, x_label), lines, ends,
    viewBox=f'0 0 {WIDTH} {HEIGHT}', role='img', class_='chart', data_bottom=bottom,
    data_points=_readout(series[0], x_axis))


def _line(x, y) -> str:
  """Path data; a nan interrupts the line, a point alone becomes a dot (round caps)."""
  words, pen_down = [], False
  for a, b in zip(x, y):
    if np.isnan(b):
      pen_down = False
      continue
    words.append(f'{"L" if pen_down else "M"}{a:.1f} {b:.1f}' + ('' if pen_down else 'h0'))
    pen_down = True
  return ''.join(words) or 'M0 0'


def _axes(x_axis: Axis, y_axis: Axis, x_label: str) -> Html:
  bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  parts = []
  for text, y in zip(y_axis.texts(), y_axis.place(y_axis.ticks, bottom, TOP)):
    parts += [tag('path', d=f'M{LEFT} {y:.1f}H{right}', class_='grid'),
              tag('text', text, x=LEFT - 7, y=f'{y + 3.5:.1f}', text_anchor='end')]
  for text, x in zip(x_axis.texts(), x_axis.place(x_axis.ticks, LEFT, right)):
    parts += [tag('path', d=f'M{x:.1f} {bottom}v4', class_='axis'),
              tag('text', text, x=f'{x:.1f}', y=bottom + 16, text_anchor='middle')]
  parts += [tag('path', d=f'M{LEFT} {bottom}H{right}', class_='axis'),
            tag('text', x_label, x=right, y=HEIGHT - 2, text_anchor='end', class_='label')]
  return tag('g', parts)


def _readout(series: Series, x_axis: Axis) -> str:
  """What the pointer shows: [[pixel, step, value as text], ...]."""
  x, y = thinned(series.x, series.y, POINTS // 2)
  pixels = x_axis.place(x, LEFT, WIDTH - RIGHT)
  return json.dumps([[round(float(p), 1), number(a), number(b)] for p, a, b in zip(pixels, x, y)],
                    separators=(',', ':'), ensure_ascii=False)


# --- scatter --------------------------------------------------------------------------------------


class Classes(NamedTuple):
  """Colours of the rows of a scatter.

  names: of the classes that have a colour of their own, at most 20.
  index: int [N] into `names`; -1 is drawn in grey.
  """

  names: tuple[str, ...]
  index: np.ndarray


def scatter(points, classes: Classes | None, *, title: str, x_label: str = '', y_label: str = '',
            size: int = 420) -> Html:
  """Points [N, 2] in a square, equal scales on both axes, each class named at its median."""
  places = _into_square(np.asarray(points, np.float64), size)
  index = np.full(len(places), -1) if classes is None else np.asarray(classes.index)
  order = np.random.default_rng(0).permutation(len(places))
  dots = []
  for rows in np.array_split(order, min(ROUNDS, max(1, len(order) // 100))):
    for c in np.unique(index[rows]):
      mine = places[rows[index[rows] == c]]
      path = ''.join(f'M{x:.1f} {y:.1f}h0' for x, y in mine)
      name = classes.names[c] if c >= 0 else None
      dots.append(tag('g', tag('title', name) if name else None, _dots(path, c >= 10),
                      class_=f'dots c{c % 10 if c >= 0 else "none"} k{c}'))
  labels = [] if classes is None else _class_labels(places, classes, size)
  axes = [tag('text', x_label, x=size - 6, y=size - 6, text_anchor='end', class_='label'),
          tag('text', y_label, x=-6, y=14, text_anchor='end', class_='label',
              transform='rotate(-90)')] if x_label else []
  return tag('svg', tag('title', title),
             tag('rect', x=0.5, y=0.5, width=size - 1, height=size - 1, class_='frame'),
             dots, axes, labels, viewBox=f'0 0 {size} {size}', role='img', class_='scatter')


def swatch(c: int) -> Html:
  """The dot of class `c` for a legend."""
  return tag('svg', tag('g', _dots('M6 6h0', c >= 10), class_=f'dots c{c % 10} big'),
             viewBox='0 0 12 12', class_='swatch', aria_hidden='true')


def _dots(path: str, ring: bool) -> Html:
  """Classes beyond the tenth reuse the colours as rings."""
  return join(tag('path', d=path), tag('path', d=path, class_='hole') if ring else None)


def _into_square(points: np.ndarray, size: int, margin: int = 18) -> np.ndarray:
  low, high = points.min(axis=0), points.max(axis=0)
  scale = (size - 2 * margin) / max(float((high - low).max()), 1e-12)
  centred = (points - (low + high) / 2) * scale
  return centred * [1, -1] + size / 2


def _class_labels(places: np.ndarray, classes: Classes, size: int) -> list[Html]:
  """Names at the medians, moved apart vertically where they would overlap."""
  names = [(c, name) for c, name in enumerate(classes.names) if (classes.index == c).any()]
  spots = np.array([np.median(places[classes.index == c], axis=0) for c, _ in names])
  widths = np.array([6.6 * len(name) + 8 for _, name in names])
  for _ in range(60):
    for i in range(len(spots)):
      for j in range(i):
        gap = 14 - abs(spots[i, 1] - spots[j, 1])
        if gap > 0 and abs(spots[i, 0] - spots[j, 0]) < (widths[i] + widths[j]) / 2:
          way = 1 if spots[i, 1] >= spots[j, 1] else -1
          spots[i, 1] += way * gap / 2
          spots[j, 1] -= way * gap / 2
  found = []
  for (c, name), (x, y), width in zip(names, spots, widths):
    x = min(max(x, width / 2), size - width / 2)
    found.append(tag('text', name, x=f'{x:.1f}', y=f'{y + 4:.1f}', text_anchor='middle',
                     class_=f'name k{c}'))
  return found
