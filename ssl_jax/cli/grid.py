"""The runs of a sweep: settings x seeds, each with a name that is readable and never changes."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ssl_jax.cli.options import override
from ssl_jax.schema import ConfigError


class Job(NamedTuple):
  """One run of a sweep.

  Attributes:
    setting: 'learning_rate=0.3, temperature=0.1'; '' without a grid.
    values: {field: value} of the grid.
    seed: config.seed.
    folder: inside the sweep's, 'learning_rate=0.3/temperature=0.1/seed=0'.
    overrides: what makes its config of the sweep's, as arguments of train.
    steps: of the whole run; 0 until it is known.
  """

  setting: str
  values: Mapping[str, Any]
  seed: int
  folder: str
  overrides: Sequence[str]
  steps: int = 0

  @property
  def name(self) -> str:
    return ' '.join(filter(None, (self.setting, f'seed={self.seed}')))


def plan(base, grid: Mapping[str, str], seeds: int) -> list[Job]:
  """All runs: every setting with the first seed, then every setting with the next.

  So a sweep that is interrupted has seen all settings about equally often.

  Args:
    base: the config (ConfigDict) before the grid.
    grid: {field: 'value,value'}.
    seeds: how many, from config.seed on.

  Raises:
    ConfigError: an unknown field, a value of the wrong type, or values that look the same.
  """
  if 'seed' in grid:
    raise ConfigError('--grid.seed: use --seeds=N, the seeds are config.seed, config.seed + 1, ...')
  if type(base.seed) is not int or base.seed < 0:
    raise ConfigError(f'config.seed must be a whole number of at least 0, got {base.seed!r}')
  axes = [_axis(base, field, name, grid[field]) for field, name in axis_names(list(grid)).items()]
  jobs = []
  for seed in range(base.seed, base.seed + seeds):
    for point in itertools.product(*axes):
      labels = [label for label, _, _, _ in point]
      jobs.append(Job(
        setting=', '.join(labels), values={field: value for _, field, value, _ in point}, seed=seed,
        folder='/'.join([*labels, f'seed={seed}']),
        overrides=[*(argument for _, _, _, argument in point), f'--config.seed={seed}']))
  return jobs


def _axis(base, field: str, name: str, text: str) -> list[tuple[str, str, Any, str]]:
  """(label, field, value, argument of train) of each value of one field."""
  found = []
  for piece in split(text):
    if not piece:
      raise ConfigError(f'--grid.{field} has an empty value; write --grid.{field}=VALUE,VALUE')
    argument = f'--config.{field}={piece}'
    value = override(base, [argument])
    for part in field.split('.'):
      value = value[part]
    found.append((f'{name}={value_name(value)}', field, value, argument))
  labels = [label for label, _, _, _ in found]
  # Not told apart by file systems that ignore case either.
  if len({label.casefold() for label in labels}) < len(labels):
    raise ConfigError(f'--grid.{field}: two values have the same name: {", ".join(labels)}')
  return found


def split(text: str) -> list[str]:
  """'0.1,0.3' or '(0.2,1.0),(0.5,1.0)' at the commas outside of brackets and quotes."""
  pieces, depth, quote = [''], 0, ''
  for letter in text:
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth and not quote:
      pieces.append('')
    else:
      pieces[-1] += letter
  return [piece.strip() for piece in pieces]


def axis_names(fields: Sequence[str]) -> dict[str, str]:
  """{field: its shortest ending that no other field has}, for names of folders.

  'schedule.learning_rate' is learning_rate, 'network.name' is network.
  """
  paths = {field: '.' + field.removesuffix('.name') for field in fields}
  names = {}
  for field, path in paths.items():
    others = [other for one, other in paths.items() if one != field]
    starts = [i for i, letter in enumerate(path) if letter == '.']
    names[field] = next((path[i + 1:] for i in reversed(starts) if path[i:] != '.seed' and not any(
      other.endswith(path[i:]) for other in others)), field)
  return names


def value_name(value: Any) -> str:
  """A value as part of a folder's name: letters, digits and . , _ + - ~ only."""
  if isinstance(value, (tuple, list)):
    return ','.join(map(value_name, value))
  text = value if isinstance(value, str) else repr(value)
  safe = re.sub(r'[^\w.+-]+', '-', text, flags=re.ASCII).strip('-.')[:60]
  if safe == text or isinstance(value, (int, float)):
    return text
  exact = json.dumps(value, default=lambda section: section.to_dict(), sort_keys=True)
  return f'{safe}~{hashlib.sha256(exact.encode()).hexdigest()[:6]}'
