"""Tables of the page: accuracies with bars, health, config with its defaults, plain pairs."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.report.html import Html, join, tag
from ssl_jax.report.numbers import number

# Columns of the fixed protocol in their order; others follow under their own names.
ACCURACIES = {'knn20': 'kNN-20', 'labels10': '10 labels per class', 'percent1': '1 % of labels',
              'percent10': '10 % of labels', 'linear': 'linear probe, all labels'}
NOT_ACCURACIES = ('linear_weight_decay',)

HEALTH = {
  'effective_rank': ('effective rank', 'how many dimensions the features fill, of as many as they '
                     'have; a fall towards 1 is a dimensional collapse (RankMe)'),
  'spread': ('spread', '1 where directions are isotropic, 0 where every example gets the same one: '
             'complete collapse'),
  'alignment': ('alignment', 'mean squared distance of two views of one example, 0 to 4; lower is '
                'more invariant, and 0 is also what a collapsed encoder has'),
  'uniformity': ('uniformity', 'how evenly features cover the sphere, 0 to −4; lower is more even'),
}


def accuracy_columns(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
  keys = dict.fromkeys(key for row in rows.values() for key in row
                       if not key.endswith('_std') and key not in NOT_ACCURACIES)
  return [key for key in ACCURACIES if key in keys] + [k for k in keys if k not in ACCURACIES]


def accuracy_table(rows: Mapping[str, Mapping[str, float]], ours: str | None) -> Html:
  """Rows are representations; the best of a column is marked, bars begin at 0 and end at 1."""
  keys = accuracy_columns(rows)
  best = {key: max(row[key] for row in rows.values() if key in row) for key in keys}
  head = tag('tr', tag('th', 'features'), [tag('th', ACCURACIES.get(key, key)) for key in keys])

  def cell(row, key):
    if key not in row:
      return tag('td', '–')
    std = row.get(f'{key}_std')
    share = max(0, min(1, row[key]))
    return tag('td', f'{row[key]:.3f}', None if std is None else tag('small', f' ± {std:.3f}'),
               tag('span', tag('i', style=f'width:{100 * share:.1f}%'), class_='bar'),
               class_='best' if row[key] == best[key] else None)

  body = [tag('tr', tag('td', name), [cell(row, key) for key in keys],
              class_='ours' if name == ours else None) for name, row in rows.items()]
  return _card(head, body)


def protocol_table(protocols: Sequence[Mapping[str, Any]]) -> Html:
  """Named protocols: what was measured, and where the choice was made."""
  body = []
  for entry in protocols:
    details = entry.get('details') or ''
    if isinstance(details, Mapping):
      details = ', '.join(f'{key} {value_text(value)}' for key, value in details.items())
    accuracy = entry.get('accuracy')
    body.append(tag('tr', tag('td', entry.get('protocol', '?')),
                    tag('td', '–' if accuracy is None else f'{accuracy:.4f}'),
                    tag('td', entry.get('selection', '–'), class_='text'),
                    tag('td', details, class_='text')))
  return _card(tag('tr', tag('th', 'protocol'), tag('th', 'accuracy'),
                   tag('th', 'selected on', class_='text'), tag('th', 'details', class_='text')),
               body)


def health_table(rows: Mapping[str, Mapping[str, float]], ours: str | None) -> Html:
  """One row per measure with what it says, one column per encoder."""
  keys = [key for key in HEALTH if any(key in row for row in rows.values())]
  head = tag('tr', tag('th', 'measure'), [tag('th', name) for name in rows])
  body = [tag('tr', tag('td', HEALTH[key][0], tag('br'), tag('small', HEALTH[key][1]), class_='text'),
              [tag('td', tag('b', number(row.get(key), 3)) if name == ours else
                   number(row.get(key), 3)) for name, row in rows.items()]) for key in keys]
  return _card(head, body)


def config_table(rows: Sequence[tuple[str, Any, Any]]) -> Html:
  """(field, value, default) each, default `...` where there is none; changes are marked."""
  body = []
  for field, value, default in rows:
    changed = default is not ... and value_text(value) != value_text(default)
    body.append(tag('tr', tag('td', tag('code', field)), tag('td', value_text(value), class_='text'),
                    tag('td', '–' if default is ... else value_text(default), class_='text'),
                    class_='changed' if changed else None))
  return _card(tag('tr', tag('th', 'field'), tag('th', 'value', class_='text'),
                   tag('th', 'default', class_='text')), body)


def pairs_table(rows: Mapping[str, Any]) -> Html:
  body = [tag('tr', tag('td', name), tag('td', tag('code', value), class_='text'))
          for name, value in rows.items()]
  return _card(None, body)


def value_text(value: Any) -> str:
  """A config's value; tuples and what JSON makes of them, lists, read the same."""
  if isinstance(value, (tuple, list)):
    return '(' + ', '.join(value_text(x) for x in value) + ')'
  if isinstance(value, float):
    return f'{value:g}'
  return str(value)


def _card(head: Html | None, body: list[Html]) -> Html:
  return tag('div', tag('table', join(None if head is None else tag('thead', head),
                                      tag('tbody', body)), class_='data'), class_='card')
