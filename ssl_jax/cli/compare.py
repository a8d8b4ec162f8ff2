"""`python -m ssl_jax compare`: runs and sweeps beside each other, and what differs between them."""

import json
import math
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax import build, runs
from ssl_jax.cli import reference
from ssl_jax.cli.options import Parser, fields
from ssl_jax.data.sources import DataError
from ssl_jax.evals.aggregate import (
  ENOUGH,
  group,
  markdown,
  paired_difference,
  separated,
  spelled,
  summarise,
)
from ssl_jax.evals.protocol import COLUMNS
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import duration, read_lines

DESCRIPTION = '''Prints, for runs and folders of `sweep`: accuracies (mean ± standard deviation over
seeds, from three seeds on the 95 % t-interval), training, health, differences paired by seed, and
the fields in which the configs differ. Says in words what is not comparable. With --workdir: whether
one run trains as its reference does.'''

SWEEP = 'sweep.json'  # see ssl_jax.cli.sweep
GAIN = 'labels10_gain'
TITLES = {**COLUMNS, GAIN: '10 labels, gain over random init'}
HEALTH = {'effective_rank': 'effective rank', 'spread': 'spread', 'alignment': 'alignment',
          'uniformity': 'uniformity'}
# What is no accuracy among the numbers of evaluation.json.
BESIDE = ('_std', '_weight_decay')
LONGEST = 40  # characters of a value in a table
NAMED = 3  # runs named in one warning
SPAN = 10  # steps between two times that are close enough to tell a speed


class Outcome(NamedTuple):
  """What the files of one run say; nothing is computed, and no device is touched.

  Attributes:
    folder: of the run.
    config: {field: value}, the defaults of what it names included.
    step: of the newest checkpoint; None without one.
    data: the fingerprint of the training data; {} without a checkpoint.
    evaluation: evaluation.json; {} without one.
    training: those of loss, seconds and images_per_second that metrics.jsonl can tell.
  """

  folder: pathlib.Path
  config: Mapping[str, Any]
  step: int | None
  data: Mapping[str, Any]
  evaluation: Mapping[str, Any]
  training: Mapping[str, float]

  @property
  def accuracies(self) -> dict[str, float]:
    """{column: accuracy in [0, 1]} of what was trained, and its gain over the random encoder."""
    rows = self.evaluation.get('accuracies', {})
    trained, start = rows.get(self.config['method.name'], {}), rows.get('random init', {})
    found = {name: float(value) for name, value in trained.items() if not name.endswith(BESIDE)}
    if 'labels10' in trained and 'labels10' in start:
      found[GAIN] = trained['labels10'] - start['labels10']
    for one in self.evaluation.get('protocols', ()):
      found.setdefault(one['protocol'], float(one['accuracy']))
    return found

  @property
  def health(self) -> dict[str, float]:
    return self.evaluation.get('health', {}).get(self.config['method.name'], {})


class Group(NamedTuple):
  """Runs that differ by their seed only, {seed: run}; `setting` is that of a sweep, or ''."""

  name: str
  runs: Mapping[int, Outcome]
  setting: str = ''


def run(argv: list[str]) -> int:
  parser = Parser('compare', DESCRIPTION)
  parser.add_argument('runs', nargs='*', metavar='RUN', help='folders of runs or of sweeps')
  parser.add_argument('--out', metavar='FILE.md', help='write it to a file too')
  parser.add_argument('--workdir', metavar='RUN', help='does the curve of this run lie in the band '
                      'of its reference? Exit code 4 if not')
  parser.add_argument('--reference', metavar='FILE.json', help='the reference curve; default the one '
                      'in configs/curves that fits the config of the run')
  parser.add_argument('--write_reference', metavar='FILE.json', help='make a reference curve of RUN '
                      '..., which differ in their seed')
  args, _ = parser.read(argv)
  if args.workdir:
    return reference.check(args.workdir, args.reference)
  if not args.runs:
    parser.error('needs the folders of runs or of sweeps, or --workdir=RUN')
  if args.write_reference:
    return reference.write(args.runs, args.write_reference)
  text = page(gather([pathlib.Path(name).expanduser() for name in args.runs]))
  print(text)
  if args.out:
    out = pathlib.Path(args.out).expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text + '\n', encoding='utf-8')
    print(f'\nin {out}', file=sys.stderr)
  return 0


# --- reading --------------------------------------------------------------------------------------


def gather(folders: Sequence[pathlib.Path]) -> list[Group]:
  """The groups of all folders, named as shortly as tells them apart."""
  if len(folders) == 1:
    return groups(folders[0], folders[0].resolve().name, alone=True)
  parents = {folder.resolve().parent for folder in folders}
  return [one for folder in folders for one in groups(
    folder, folder.resolve().name if len(parents) == 1 else str(folder))]


def groups(folder: pathlib.Path, name: str, *, alone: bool = False) -> list[Group]:
  """The settings of a sweep's folder that have been started, or the one run in a run's folder.

  Args:
    folder: of a sweep or a run.
    name: of the folder in tables.
    alone: settings need not be told from those of another folder.

  Raises:
    ConfigError: it is neither.
    DataError: a file in it is damaged.
  """
  if not (folder / SWEEP).is_file():
    outcome = read(folder)
    return [Group(name, {outcome.config['seed']: outcome})]
  planned = _json(folder / SWEEP).get('runs', ())
  started = [one for one in planned if (folder / one['folder'] / runs.CONFIG).is_file()]
  if not started:
    raise ConfigError(f'no run of the sweep in {folder} has been started yet')
  return [Group(setting if alone and setting else ': '.join(filter(None, (name, setting))),
                {one['seed']: read(folder / one['folder']) for one in members}, setting)
          for setting, members in group(started, lambda one: one['setting']).items()]


def read(folder: pathlib.Path) -> Outcome:
  """What is known of a run.

  Raises:
    ConfigError: the folder is not a run's.
    DataError, CheckpointError: a file in it is damaged.
  """
  config = runs.read_config(folder)
  checkpoints = Checkpoints(folder / runs.CHECKPOINTS)
  steps = checkpoints.steps()
  path = folder / runs.EVALUATION
  return Outcome(
    folder=folder, config=dict(build.defaults(config)) | dict(fields(config)),
    step=steps[-1] if steps else None,
    data=checkpoints.metadata(steps[-1]).get('data', {}) if steps else {},
    evaluation=_json(path) if path.is_file() else {},
    training=training(read_lines(folder / runs.METRICS), config.batch_size))


def training(lines: Sequence[Mapping[str, Any]], batch_size: int) -> dict[str, float]:
  """The last loss, the seconds since the first step began to be prepared, and images per second."""
  found = {}
  losses = [line['loss'] for line in lines if 'loss' in line]
  if losses:
    found['loss'] = float(losses[-1])  # 'nan' is a string in JSON
  times = [(line['step'], line['seconds']) for line in lines if 'seconds' in line]
  if times:
    found['seconds'] = times[-1][1]
  rate = steps_per_second(times)
  return found if rate is None else dict(found, images_per_second=batch_size * rate)


def steps_per_second(times: Sequence[tuple[int, float]]) -> float | None:
  """Of training alone, by the (step, seconds) of lines of metrics; None where they cannot tell.

  A step's line is written while the next step runs, or after it, but at once where training ends or
  pauses: two lines are up to one step nearer or farther than their steps. Only spans of `SPAN` steps
  and more are taken therefore; two neighbouring lines may be microseconds apart.
  """
  # A step may have several lines, the last of them written after an evaluation: training goes from
  # there to the first line of the next step.
  first, last = dict(reversed(times)), dict(times)
  logged, rates, steps, seconds = sorted(first), [], 0, 0.
  for a, b in zip(logged, logged[1:], strict=False):
    steps, seconds = steps + b - a, seconds + first[b] - last[a]
    if steps >= SPAN and seconds > 0:
      rates.append(steps / seconds)
      steps, seconds = 0, 0.
  # The median leaves out spans that waited for a save.
  return float(np.median(rates)) if rates else None


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise DataError(f'{path} is damaged ({error}); write it again') from error
  if not isinstance(found, dict):
    raise DataError(f'{path} is damaged: it holds no JSON object; write it again')
  return found


# --- tables ---------------------------------------------------------------------------------------


def page(found: Sequence[Group]) -> str:
  """The whole comparison as Markdown."""
  all_runs = [(_run_name(one, seed), outcome) for one in found for seed, outcome in one.runs.items()]
  parts = []
  if any(len(one.runs) > 1 for one in found):
    parts += ['## Accuracy per setting', accuracy_table(found)]
    differences = difference_table(found)
    if differences:
      parts += [f'## Difference from {found[0].name}, paired by seed', differences]
  parts += ['## Accuracy per run', accuracy_table([
    Group(name, {outcome.config['seed']: outcome}) for name, outcome in all_runs])]
  parts += ['## Training and health', training_table(all_runs)]
  parts += ['## Configs', config_table(found)]
  remarks = warnings(all_runs)
  if remarks:
    parts += ['## Mind', '\n'.join(f'* {text}' for text in remarks)]
  return '\n\n'.join(parts)


def accuracy_table(found: Sequence[Group]) -> str:
  """One row per group: how many of its runs are evaluated, and a summary of each accuracy.

  Below it, where the protocols of the literature have chosen their hyper-parameters.
  """
  names, rows = accuracy_names(found), []
  choices = [choice for one in found for outcome in one.runs.values()
             for choice in outcome.evaluation.get('protocols', ())]
  many = len({choice.get('seed') for choice in choices}) > 1
  notes = dict.fromkeys(
    f'* {choice["protocol"]}: selection {choice["selection"]}'
    + f' (seed {choice.get("seed", "not recorded")})' * many for choice in choices)
  for one in found:
    tables = [outcome.accuracies for outcome in one.runs.values()]
    n = sum(bool(table) for table in tables)
    rows.append([one.name, f'{n}' if n == len(tables) else f'{n} of {len(tables)}',
                 *(_cell(list(column(one, name).values()), sign=name == GAIN) for name in names)])
  table = markdown(['', 'n', *(TITLES.get(name, name) for name in names)], rows)
  return '\n'.join([table, *([''] if notes else []), *notes])


def accuracy_names(found: Iterable[Group]) -> list[str]:
  """All columns that a run of `found` has: those of the fixed protocol first, in its order."""
  tables = [outcome.accuracies for one in found for outcome in one.runs.values()]
  names = dict.fromkeys(name for table in tables for name in table)
  known = [name for name in TITLES if name in names]
  return known + [name for name in names if name not in TITLES]


def difference_table(found: Sequence[Group]) -> str | None:
  """Each group minus the first, seed by seed; None where no other has two seeds of the first."""
  names, rows = accuracy_names(found[:1]), []
  for one in found[1:]:
    pairs = {name: paired_difference(*(column(side, name) for side in (found[0], one)))
             for name in names}
    if any(pair is not None and pair.n > 1 for pair in pairs.values()):
      rows.append([one.name, str(max(pair.n for pair in pairs.values() if pair)),
                   *('-' if pair is None else spelled(pair, sign=True) + ' *' * separated(pair)
                     for pair in pairs.values())])
  if not rows:
    return None
  table = markdown(['', 'pairs', *(TITLES.get(name, name) for name in names)], rows)
  return f'{table}\n\n\\* the 95 % t-interval over at least {ENOUGH} seeds leaves zero out.'


def column(one: Group, name: str) -> dict[int, float]:
  """{seed: number} of one column."""
  return {seed: outcome.accuracies[name] for seed, outcome in one.runs.items()
          if name in outcome.accuracies}


def training_table(named: Sequence[tuple[str, Outcome]]) -> str:
  """One row per run."""
  forms = {'loss': lambda x: f'{x:.4g}', 'seconds': duration,
           'images_per_second': lambda x: f'{x:.0f}'}
  rows = []
  for name, one in named:
    step = one.evaluation.get('step', one.step)
    rows.append([
      name, '-' if one.step is None else str(one.step),
      *(form(one.training[key]) if key in one.training else '-' for key, form in forms.items()),
      *(f'{one.health[key]:.3f}' if key in one.health and step == one.step else '-'
        for key in HEALTH)])
  return markdown(['', 'steps', 'final loss', 'time', 'examples/s', *HEALTH.values()], rows)


def config_table(found: Sequence[Group]) -> str:
  """The fields in which groups differ, each value once per group ('seed' has several)."""
  def values(one: Group, key: str) -> str:
    texts = (_spelled(outcome.config.get(key)) for outcome in one.runs.values())
    return ', '.join(dict.fromkeys(texts))

  keys = sorted({key for one in found for outcome in one.runs.values() for key in outcome.config})
  rows = [[key, *(values(one, key) for one in found)] for key in keys]
  rows = [row for row in rows if len(set(row[1:])) > 1]
  return markdown(['field', *(one.name for one in found)], rows) if rows else 'No field differs.'


def _cell(values: Sequence[float], sign: bool) -> str:
  return spelled(summarise(values), sign=sign) if values else '-'


def _spelled(value) -> str:
  text = 'none' if value is None else str(tuple(value) if isinstance(value, list) else value)
  return text if len(text) <= LONGEST else f'{text[:LONGEST // 2]}...{text[-LONGEST // 2 + 3:]}'


def _run_name(one: Group, seed: int) -> str:
  return one.name if len(one.runs) == 1 else f'{one.name}, seed {seed}'


# --- what to mind ---------------------------------------------------------------------------------


def warnings(named: Sequence[tuple[str, Outcome]]) -> list[str]:
  """Why numbers must not be compared, and what is missing, each with what to do."""
  found = []
  for what, fact in (
      ('the training data', lambda one: [one.data.get(key) for key in ('source', 'length')]),
      ('the split whose labels train the probes', lambda one: one.config['evaluate.train_split']),
      ('the split that is measured', lambda one: one.config['evaluate.test_split']),
      *((f'the seed of {key}', lambda one, key=key: _seeds(one).get(key))
        for key in dict.fromkeys(key for _, one in named for key in _seeds(one))),
      *((f'the protocol ({key})', lambda one, key=key: one.evaluation['protocol'].get(key))
        for key in dict.fromkeys(key for _, one in named for key in one.evaluation.get('protocol', ()))
        )):
    evaluated = 'protocol' if what.startswith('the protocol') else 'step'
    known = [(name, one) for name, one in named if evaluated in one.evaluation and one.data
             and not (what.startswith('the seed of') and fact(one) is None)]
    parts = group(known, lambda pair, fact=fact: json.dumps(fact(pair[1])))
    if len(parts) > 1:
      sides = '; '.join(f'{_short_json(value)}: {_names([name for name, _ in members])}'
                        for value, members in parts.items())
      found.append(f'accuracies are not comparable: {what} differs ({sides})')
  for name, one in named:
    found += [f'{name}: {text}' for text in _gaps(one)]
  return found


def _seeds(one: Outcome) -> dict[str, int | str]:
  """{named protocol: the seed it was evaluated with}"""
  return {row['protocol']: row.get('seed', 'not recorded')
          for row in one.evaluation.get('protocols', ())}


def _gaps(one: Outcome) -> list[str]:
  """What a run lacks."""
  evaluate = f'python -m ssl_jax evaluate --workdir={one.folder}'
  gaps = []
  if one.step is None:
    return ['has no checkpoint yet; the command that started it goes on']
  planned = one.config.get('steps')
  if planned and one.step < planned:
    gaps.append(f'stopped at step {one.step} of {planned}; the command that started it goes on')
  if not one.evaluation:
    gaps.append(f'is not evaluated: {evaluate}')
  elif one.evaluation.get('pending'):
    gaps.append(f'its evaluation was interrupted, {", ".join(one.evaluation["pending"])} is missing')
  elif one.evaluation.get('step') != one.step:
    gaps.append(f'was evaluated at step {one.evaluation.get("step")}, the newest is {one.step}: '
                f'{evaluate}')
  if not math.isfinite(one.training.get('loss', 0.)):
    gaps.append('its last loss is not finite')
  return gaps


def _names(names: Sequence[str]) -> str:
  more = f' and {len(names) - NAMED} more' if len(names) > NAMED else ''
  return ', '.join(names[:NAMED]) + more


def _short_json(text: str) -> str:
  value = json.loads(text)
  if isinstance(value, list):  # a fingerprint and a length
    return f'{str(value[0])[:12]}..., {value[1]} examples'
  return repr(value)
