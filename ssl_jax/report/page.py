"""The page: a `Report` in, one string of HTML out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.report import style
from ssl_jax.report.charts import (
  Classes,
  Series,
  line_chart,
  scatter,
  swatch,
  with_smoothing,
)
from ssl_jax.report.html import Html, join, tag
from ssl_jax.report.images import Augmented, Neighbours, augmentation_grid, neighbour_grid
from ssl_jax.report.numbers import number
from ssl_jax.report.tables import (
  accuracy_table,
  config_table,
  health_table,
  pairs_table,
  protocol_table,
  value_text,
)
from ssl_jax.report.texts import Masked, masked_rows, neighbour_lists


class Missing(NamedTuple):
  """A part that cannot be shown: why, and the command that changes it."""

  why: str
  command: str | None = None


class Tile(NamedTuple):
  label: str
  value: str
  note: str = ''


class Curve(NamedTuple):
  """One chart of the run's history; steps and values [N]; unit: also a word of explanation."""

  title: str
  unit: str
  steps: np.ndarray
  values: np.ndarray
  log: bool = False
  noisy: bool = False  # drawn with a running mean


class Evaluation(NamedTuple):
  """What evaluation.json says; `ours` is the row of the trained encoder."""

  accuracies: Mapping[str, Mapping[str, float]]
  health: Mapping[str, Mapping[str, float]]
  protocols: Sequence[Mapping[str, Any]]
  ours: str | None
  note: str


class Panel(NamedTuple):
  """One scatter: points [N, 2]; axis labels where the axes mean something."""

  title: str
  points: np.ndarray
  x_label: str = ''
  y_label: str = ''


class Embedding(NamedTuple):
  """Scatters of the same examples, their classes (None: no labels), and the spectra by encoder.

  kind: of the examples, 'image' or 'text'.
  """

  panels: Sequence[Panel]
  classes: Classes | None
  spectra: Mapping[str, np.ndarray]
  examples: int
  others: int = 0  # classes without a colour of their own
  kind: str = 'image'


class Report(NamedTuple):
  """All that the page shows. Any part may be a `Missing`.

  config: (field, value, default or ...) each; defaults_left: those the config does not mention.
  """

  title: str
  lead: str
  tiles: Sequence[Tile]
  curves: Sequence[Curve] | Missing
  evaluation: Evaluation | Missing
  embedding: Embedding | Missing
  neighbours: Neighbours | Missing
  augmentations: Sequence[Augmented] | Sequence[Masked] | Missing
  config: Sequence[tuple[str, Any, Any]]
  defaults_left: Sequence[tuple[str, Any]]
  environment: Mapping[str, str]
  environment_note: str
  footer: str


def render(report: Report) -> str:
  """The whole page. It loads nothing: styles, script and images are inside."""
  views = 'Masked texts' if _are_texts(report.augmentations) else 'Augmentations'
  sections = [
    ('curves', 'Training', report.curves, _curves),
    ('evaluation', 'Evaluation', report.evaluation, _evaluation),
    ('embedding', 'Embedding', report.embedding, _embedding),
    ('neighbours', 'Nearest neighbours', report.neighbours, _neighbours),
    ('views', views, report.augmentations, _augmentations),
    ('health', 'Health', *_health_part(report)),
    ('config', 'Config', report.config, lambda rows: _config(rows, report.defaults_left)),
    ('environment', 'Environment', report.environment,
     lambda rows: join(pairs_table(rows), tag('p', report.environment_note, class_='note'))),
  ]
  body = join(
    tag('header', tag('h1', report.title), tag('p', report.lead, class_='lead'),
        tag('nav', [tag('a', title, href=f'#{name}') for name, title, *_ in sections])),
    tag('main', _tiles(report.tiles), [_section(*part) for part in sections]),
    tag('footer', report.footer), tag('script', style.SCRIPT))
  head = tag('head', tag('meta', charset='utf-8'),
             tag('meta', name='viewport', content='width=device-width,initial-scale=1'),
             tag('title', report.title), tag('style', style.CSS))
  return f'<!DOCTYPE html>\n{tag("html", head, tag("body", body), lang="en")}\n'


def _section(name: str, title: str, part, draw: Callable[[Any], Html]) -> Html:
  inside = _missing(part) if isinstance(part, Missing) else draw(part)
  return tag('section', tag('h2', title), inside, id=name, class_=name)


def _missing(part: Missing) -> Html:
  return tag('div', part.why, tag('pre', part.command) if part.command else None, class_='missing')


def _tiles(tiles: Sequence[Tile]) -> Html:
  """Names in one row, numbers in another."""
  words = [tile for tile in tiles if not (tile.value.lstrip('−')[:1].isdigit()
                                          or tile.value in ('nan', '∞', '−∞'))]
  return join([
    tag('dl', [tag('div', tag('dt', tile.label),
                   tag('dd', tile.value,
                       tag('span', tile.note, class_='note') if tile.note else None),
                   class_=look) for tile in group], class_='tiles')
    for look, group in (('tile word', words), ('tile', [t for t in tiles if t not in words]))
    if group])


def _curves(curves: Sequence[Curve]) -> Html:
  figures, widths = [], set()
  for curve in curves:
    series, width = with_smoothing(curve.title, curve.steps, curve.values) if curve.noisy else (
      [Series(curve.title, curve.steps, curve.values)], 0)
    widths |= {width} - {0}
    finite = curve.values[np.isfinite(curve.values)]
    lost = len(curve.values) - len(finite)
    figures.append(tag(
      'figure',
      tag('figcaption', tag('b', curve.title),
          tag('span', number(finite[-1]) if len(finite) else 'never finite', class_='last'),
          tag('span', curve.unit or '\u00a0', class_='unit')),
      line_chart(series, title=f'{curve.title} by step', x_label='step', log=curve.log),
      tag('p', f'{lost} values not finite, marked on the axis', class_='note') if lost else None))
  note = 'Top right: the last value, or the one under the pointer.'
  if widths:
    note += (' Thin: as logged. Bold: running mean, Hann window over 10 % of the points '
             f'({" or ".join(map(str, sorted(widths)))}).')
  return join(tag('p', note, class_='note'), tag('div', figures, class_='charts'))


def _evaluation(evaluation: Evaluation) -> Html:
  named = evaluation.protocols and join(tag('h3', 'Protocols by name'),
                                        protocol_table(evaluation.protocols))
  return join(
    tag('p', evaluation.note, class_='note'),
    accuracy_table(evaluation.accuracies, evaluation.ours) if evaluation.accuracies else None,
    named or None)


def _embedding(embedding: Embedding) -> Html:
  classes = embedding.classes
  if classes is None:
    legend = tag('p', 'These data have no labels, so all points have one colour.', class_='note')
  else:
    rest = [tag('li', f'{embedding.others} other classes in grey')] if embedding.others else []
    legend = tag('ul', [tag('li', swatch(c), name, class_=f'k{c}')
                        for c, name in enumerate(classes.names)], rest, class_='legend')
  figures = [
    tag('figure', tag('figcaption', tag('b', panel.title)),
        scatter(panel.points, classes, title=panel.title, x_label=panel.x_label,
                y_label=panel.y_label)) for panel in embedding.panels]
  note = (f'{embedding.examples:,} test {embedding.kind}s. t-SNE keeps neighbourhoods; the size of '
          'a group and the distance between groups mean nothing, and the untrained encoder beside '
          f'it shows how much comes from the {embedding.kind}s alone. PCA is linear and keeps large '
          'distances.')
  return join(tag('p', note, class_='note'), legend, tag('div', figures, class_='charts wide'))


def _neighbours(neighbours: Neighbours) -> Html:
  texts = isinstance(neighbours.queries[0], str)
  kind, first, marks = ('text', 'Bold', 'Lines') if texts else ('image', 'Left', 'Frames')
  note = [f'{first}: a test {kind}. Then the training {kind}s with the most similar features '
          '(cosine, features standardised).']
  if neighbours.query_names is not None:
    note += [f' {marks}: ', tag('span', class_='mark right'), ' same class, ',
             tag('span', class_='mark wrong'), ' another class.']
  return join(tag('p', note, class_='note'),
              (neighbour_lists if texts else neighbour_grid)(neighbours))


def _are_texts(part) -> bool:
  return not isinstance(part, Missing) and isinstance(part[0], Masked)


def _augmentations(examples: Sequence[Augmented] | Sequence[Masked]) -> Html:
  if _are_texts(examples):
    return join(
      tag('p', 'What the network sees in training: each paragraph one row of tokens. Marked: what '
          'it has to predict, with the answer above.', class_='note'),
      tag('figure', masked_rows(examples)))
  return join(
    tag('p', 'What the network sees in training: each row one image and its views, normalisation '
        'undone.', class_='note'),
    tag('figure', augmentation_grid(examples)))


def _health_part(report: Report) -> tuple[Any, Callable]:
  """Health needs the evaluation's numbers or the spectra; either alone is shown too."""
  evaluation, embedding = report.evaluation, report.embedding
  table = None if isinstance(evaluation, Missing) or not evaluation.health else health_table(
    evaluation.health, evaluation.ours)
  chart = None if isinstance(embedding, Missing) else _spectrum(embedding)
  if table is None and chart is None:
    return evaluation if isinstance(evaluation, Missing) else embedding, join
  explain = _missing(evaluation) if table is None and isinstance(evaluation, Missing) else None
  return join(table, explain, chart), join


def _spectrum(embedding: Embedding) -> Html:
  ours, *others = embedding.spectra.items()
  series = [_spectral(*ours, 'main'), *(_spectral(*other, 'other') for other in others)]
  keys = [tag('li', tag('svg', tag('path', d='M0 4h26', class_=f'line {s.kind}'),
                        viewBox='0 0 26 8', class_='key', aria_hidden='true'), s.name)
          for s in series]
  figure = tag(
    'figure', tag('figcaption', tag('b', 'spectrum of the features'), tag('span', class_='last'),
                  tag('span', 'share of each singular value, log scale', class_='unit')),
    line_chart(series, title='Singular values of the features', x_label='number of the singular value',
               log=True, x_from=1), tag('ul', keys, class_='legend'))
  note = ('Features whose spectrum drops like a cliff have collapsed to the dimensions before it. '
          "The effective rank is the exponential of the spectrum's entropy.")
  return tag('div', figure, tag('p', note, class_='note'), class_='charts')


def _spectral(name: str, shares: np.ndarray, kind: str) -> Series:
  """What is below 1e-9 of the whole is rounding."""
  shares = np.asarray(shares)[np.asarray(shares) > 1e-9]
  return Series(name, np.arange(1, len(shares) + 1), shares, kind)


def _config(rows: Sequence[tuple[str, Any, Any]], left: Sequence[tuple[str, Any]]) -> Html:
  same = [row for row in rows if row[2] is not ... and value_text(row[1]) == value_text(row[2])]
  changed = [row for row in rows if row not in same]
  parts = [tag('p', 'Coloured: differs from the default. A dash: there is no default.',
               class_='note'),
           tag('details', tag('summary', f'{len(changed)} fields that the config decides'),
               config_table(changed), open=True)]
  if same:
    parts.append(tag('details', tag('summary', f'{len(same)} fields at their defaults'),
                     config_table(same)))
  if left:
    parts.append(tag('details', tag('summary', f'{len(left)} defaults that it does not mention'),
                     pairs_table({name: value for name, value in left})))
  return join(parts)
