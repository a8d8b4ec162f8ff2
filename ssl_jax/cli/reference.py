"""Reference curves on the command line: `compare --workdir=RUN [--reference=FILE]`."""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

from ssl_jax import runs
from ssl_jax.cli import NUMERICS
from ssl_jax.cli.options import fields
from ssl_jax.data.sources import DataError
from ssl_jax.evals.reference_curve import EVERY, differences, judge, make
from ssl_jax.report import environment
from ssl_jax.schema import ConfigError
from ssl_jax.train.metrics import read_lines

CURVES = pathlib.Path('configs') / 'curves'


def write(folders: Sequence[str], out: str, every: int = EVERY) -> int:
  """Writes the reference of runs that differ by their seed."""
  paths = [pathlib.Path(folder).expanduser() for folder in folders]
  configs = [_plain(runs.read_config(path)) for path in paths]
  try:
    made = [make([read_lines(path / runs.METRICS) for path in paths], config=config, every=every,
                 about=_about(paths)) for config in configs]
  except ValueError as error:
    raise ConfigError(f'--write_reference: {error}') from error
  if any(one['config'] != made[0]['config'] for one in made):
    different = [line for config in configs[1:] for line in differences(config, made[0])]
    raise ConfigError('the runs of a reference may differ in the seed only:\n  '
                      + '\n  '.join(different))
  file = pathlib.Path(out).expanduser()
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(made[0], indent=1) + '\n')
  print(f'the reference of {len(paths)} seeds is in {file}')
  return 0


def check(workdir: str, reference: str | None) -> int:
  """Prints each point beside its band. Returns the exit code: 0 if the run lies in it."""
  folder = pathlib.Path(workdir).expanduser()
  config, lines = _plain(runs.read_config(folder)), read_lines(folder / runs.METRICS)
  file = pathlib.Path(reference).expanduser() if reference else _find(config)
  curve = _read(file)
  for text in differences(config, curve):
    print(f'note: {text}', file=sys.stderr)
  points = judge(lines, curve)
  if not points:
    raise ConfigError(f'{folder} has no number at the steps of {file}; its first is at step '
                      f'{curve["every"]}')
  print(f'{"step":>8}  {"":18}{"run":>10}{"reference":>12}{"band":>10}')
  for point in points:
    word = '' if point.inside else '  outside'
    print(f'{point.step:>8}  {point.name:18}{point.value:>10.4f}{point.mean:>12.4f}'
          f'{"±" + format(point.band, ".4f"):>10}{word}')
  outside = [point for point in points if not point.inside]
  if outside:
    print(f'{folder} leaves the band of {file}: {len(outside)} of {len(points)} points, the first at '
          f'step {outside[0].step} ({outside[0].name})')
    return NUMERICS
  print(f'{folder} lies in the band of {file}: {len(points)} points up to step {points[-1].step}')
  return 0


def _plain(config) -> dict:
  return json.loads(json.dumps(dict(fields(config))))


def _about(paths: Sequence[pathlib.Path]) -> dict:
  start = (environment.read(paths[0]) or [{}])[-1]
  known = {key: start[key] for key in ('revision', 'devices', 'cores', 'python', 'jax') if key in start}
  return dict(measured=time.strftime('%Y-%m-%d'), **known)


def _read(file: pathlib.Path) -> dict:
  if not file.is_file():
    raise ConfigError(f'there is no reference {file}')
  try:
    curve = json.loads(file.read_text())
    curve['curves'], curve['every'], curve['config']
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise DataError(f'{file} is no reference curve: {error!r}') from error
  return curve


def _find(config: dict) -> pathlib.Path:
  """The reference whose config is closest to the run's, of those with the same method and data."""
  known = {file: _read(file) for file in sorted(CURVES.glob('*.json'))}
  same = {file: len(differences(config, curve)) for file, curve in known.items()
          if all(curve['config'].get(key) == config.get(key) for key in ('method.name', 'data.name'))}
  if not same:
    names = ', '.join(map(str, known)) or f'none in {CURVES}'
    raise ConfigError(f'there is no reference for {config.get("method.name")} on '
                      f'{config.get("data.name")} ({names}); give --reference=FILE')
  return min(same, key=same.get)
