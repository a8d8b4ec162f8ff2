"""`python -m ssl_jax sweep`: several seeds of several settings, one command that resumes.

  FOLDER/sweep.json                      what was asked for
  FOLDER/learning_rate=0.3/seed=1/...    one ordinary run, see ssl_jax.runs
  FOLDER/sweep.md, sweep.jsonl           mean and spread per setting

Every run is trained and evaluated by the ordinary commands in processes of their own. This process
never touches a device: a TPU serves one process at a time, and JAX reserves the memory of a GPU.
"""

import argparse
import json
import multiprocessing
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from ssl_jax import build, runs
from ssl_jax.cli import AGAIN, CONFIGURATION, NUMERICS
from ssl_jax.cli.child import Child
from ssl_jax.cli.compare import SWEEP
from ssl_jax.cli.grid import Job, plan
from ssl_jax.cli.options import Parser, fields, load_config, override
from ssl_jax.cli.standings import finish, plain, read_json, state, write
from ssl_jax.cli.starting import FREE
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import duration

DESCRIPTION = '''Trains and evaluates every setting of a grid with several seeds, each in a folder of
its own, and prints mean and spread. The same command again goes on where it stopped; seeds and
values may be added. --grid.FIELD=VALUE,VALUE varies config.FIELD, as in
--grid.schedule.learning_rate=0.1,0.3; several fields are combined. --evaluate.OPTION[=VALUE] is
passed on to evaluate, as in --evaluate.fractions.'''

PROGRAM = [sys.executable, '-m', 'ssl_jax']
# `train` may be resumed with other splits for evaluation; in one table they must not differ.
SPLITS = ('evaluate.train_split', 'evaluate.test_split')


def run(argv: list[str], *, execute: Callable[[list[str]], int] | None = None,
        examine: Callable | None = None) -> int:
  """The command. `execute(command)` and `examine`, see `steps_of`, run in processes of their own
  unless others are given."""
  grid, rest = take(argv, '--grid.')
  evaluation, rest = take(rest, '--evaluate.')
  parser = _parser()
  args, base = parser.read(rest)
  if base is None or not args.workdir:
    parser.error('needs --config=FILE.py and --workdir=FOLDER')
  if args.seeds < 1:
    parser.error(f'--seeds must be at least 1, got {args.seeds}')
  folder = pathlib.Path(args.workdir).expanduser()
  shared = [f'--config.{word}' for word in take(rest, '--config.')[0]]
  jobs = plan(base, _by_field(grid), args.seeds)
  jobs = [job._replace(overrides=[*shared, *job.overrides]) for job in jobs]
  options = evaluate_options(evaluation) if args.evaluate else None
  wanted = merged(read_json(folder / SWEEP), definition(base, jobs, options, args.init_from), folder)
  print('checking every setting ...', file=sys.stderr, flush=True)
  steps = (examine or _elsewhere(steps_of))(
    args.config, {job.setting: job.overrides for job in jobs}, args.evaluate)
  jobs = [job._replace(steps=steps[job.setting]) for job in jobs]
  if args.dry_run:
    print('\n'.join(f'{state(folder, job):9}  {folder / job.folder}' for job in jobs))
    return 0
  with Child(folder) as child:
    wanted['runs'] = [dict(folder=job.folder, setting=job.setting, seed=job.seed) for job in jobs]
    write(folder / SWEEP, json.dumps(wanted, indent=2))
    spell = lambda job, what: command(args, folder, job, what, options)
    code = run_all(folder, jobs, execute or child, spell)
  if code in (0, AGAIN):
    code = finish(folder, jobs) or code
  if code == AGAIN:
    print('stopped; this goes on:\n  ' + shlex.join(['python', '-m', 'ssl_jax', 'sweep', *argv]),
          file=sys.stderr)
  return code


def _parser() -> Parser:
  parser = Parser('sweep', DESCRIPTION, with_config=True)
  parser.add_argument('--workdir', metavar='FOLDER', help='where the runs go, one folder each')
  parser.add_argument('--seeds', type=int, default=3, metavar='N', help='runs of each setting, with '
                      'the seeds config.seed, config.seed + 1, ...; default 3')
  parser.add_argument('--evaluate', action=argparse.BooleanOptionalAction, default=True,
                      help='evaluate what is trained; the default')
  parser.add_argument('--dry_run', action='store_true', help='check everything, print the runs and '
                      'how far each is, do nothing')
  parser.add_argument('--init_from', metavar='RUN[:SUBTREE]', help='as in train, for every run')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  return parser


def take(argv: Sequence[str], prefix: str) -> tuple[list[str], list[str]]:
  """(arguments with this prefix, taken off, as 'key=value' or 'key'; all other arguments)."""
  taken, rest, words = [], [], list(argv)
  while words:
    word = words.pop(0)
    if not word.startswith(prefix):
      rest.append(word)
      continue
    if '=' not in word and words and not words[0].startswith('--'):
      word = f'{word}={words.pop(0)}'
    taken.append(word.removeprefix(prefix))
  return taken, rest


def _by_field(arguments: Sequence[str]) -> dict[str, str]:
  grid: dict[str, str] = {}
  for argument in arguments:
    field, _, text = argument.partition('=')
    if field in grid:
      raise ConfigError(f'--grid.{field} is given twice; write --grid.{field}=VALUE,VALUE')
    grid[field] = text
  return grid


# --- checks before anything is run ----------------------------------------------------------------


def steps_of(spec: str, settings: Mapping[str, Sequence[str]], evaluated: bool) -> dict[str, int]:
  """{setting: steps of the whole run}; builds everything, on the devices of this machine.

  Args:
    spec: the config's file.
    settings: {setting: overrides}.
    evaluated: whether the data must have labels.

  Raises:
    ConfigError: a setting cannot be trained or evaluated, found before any has cost anything.
    DataError: its data cannot be read.
  """
  steps, labelled = {}, set()
  for setting, overrides in settings.items():
    config = override(load_config(spec), list(overrides))
    try:
      if config.checkpoint.every is None:
        raise ConfigError('config.checkpoint.every is none: nothing would be left of a run; 0 keeps '
                          'its last step')
      experiment = build.experiment(config)
      experiment.program(config)
      where = json.dumps([config.data.to_dict(), config.evaluate.to_dict()], default=str)
      if evaluated and where not in labelled:
        names = config.evaluate.train_split, config.evaluate.test_split
        for source, name in zip(runs.splits(config), names, strict=True):
          runs.labels(source, name)
        labelled.add(where)
    except ConfigError as error:
      raise ConfigError(f'{setting}: {error}' if setting else str(error)) from error
    steps[setting] = experiment.steps
  return steps


def _elsewhere(function: Callable) -> Callable:
  """`function` in a process that is gone afterwards, and its hold on the devices with it."""
  def call(*args):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
      return pool.submit(function, *args).result()
  return call


def evaluate_options(words: Sequence[str]) -> list[str]:
  """Arguments for evaluate, which is asked whether it knows them.

  Raises:
    ConfigError: it does not, or the sweep sets them.
  """
  options = [f'--{word}' for word in words]
  for option in options:
    if option.partition('=')[0] in ('--workdir', '--step', '--help', '--cache_dir'):
      raise ConfigError(f'--evaluate.{option[2:]}: the sweep itself sets this')
  if options:
    asked = subprocess.run([*PROGRAM, 'evaluate', *options, '--help'], capture_output=True, text=True)
    if asked.returncode == CONFIGURATION:
      raise ConfigError(f'--evaluate: {asked.stderr.strip().splitlines()[-1]}')
    asked.check_returncode()
  return options


# --- what the folder is for -----------------------------------------------------------------------


def definition(base, jobs: Sequence[Job], options: Sequence[str] | None,
               init_from: str | None) -> dict[str, Any]:
  """All that makes two sweeps the same one, as JSON holds it."""
  grid = {field: list({json.dumps(job.values[field], default=plain): 0 for job in jobs})
          for field in jobs[0].values}
  config = {key: value for key, value in fields(base) if key != 'seed'
            and (key.split('.')[0] not in FREE or key in SPLITS)
            and not any(f'{key}.'.startswith(f'{field}.') for field in grid)}
  return json.loads(json.dumps(dict(
    config=config, grid={field: list(map(json.loads, texts)) for field, texts in grid.items()},
    seeds=list(dict.fromkeys(job.seed for job in jobs)), evaluate=options, init_from=init_from),
    default=plain))


def merged(old: Mapping[str, Any], new: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """`new`, which may add seeds and values to `old`, and an evaluation where there was none.

  Raises:
    ConfigError: it changes or leaves out something.
  """
  if not old:
    return dict(new)
  before, now = old['config'], new['config']
  changes = [f'config.{key} was {before.get(key)!r}, is {now.get(key)!r}'
             for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
  for field in dict.fromkeys([*old['grid'], *new['grid']]):
    if field not in new['grid'] or field not in old['grid']:
      changes.append(f'--grid.{field} is {"new" if field in new["grid"] else "missing"}')
    else:
      lost = [value for value in old['grid'][field] if value not in new['grid'][field]]
      changes += [f'--grid.{field} had the value {value!r} too' for value in lost]
  changes += [f'there was the seed {seed} too' for seed in old['seeds'] if seed not in new['seeds']]
  changes += [f'--{key} was {old[key]!r}, is {new[key]!r}' for key in ('evaluate', 'init_from')
              if old[key] != new[key] and not (key == 'evaluate' and None in (old[key], new[key]))]
  if changes:
    raise ConfigError(f'this is not the sweep in {folder}:\n  ' + '\n  '.join(changes)
                      + '\nseeds and values may be added; for anything else use another --workdir')
  return dict(new, evaluate=old['evaluate'] if new['evaluate'] is None else new['evaluate'])


# --- running --------------------------------------------------------------------------------------


def command(args, folder: pathlib.Path, job: Job, what: str, options: Sequence[str] | None,
            ) -> list[str] | None:
  """The command line that trains or evaluates a run; None if it should not be evaluated."""
  cache = [f'--cache_dir={args.cache_dir}'] if args.cache_dir else []
  where = [f'--workdir={folder / job.folder}', *cache]
  if what == 'evaluate':
    return None if options is None else [*PROGRAM, 'evaluate', *where, *options]
  # Weights of another run are for a fresh start; with checkpoints of its own a run is resumed.
  is_fresh = not Checkpoints(folder / job.folder / runs.CHECKPOINTS).steps()
  start = [f'--init_from={args.init_from}'] if args.init_from and is_fresh else []
  return [*PROGRAM, 'train', f'--config={args.config}', *job.overrides, *where, *start]


def run_all(folder: pathlib.Path, jobs: Sequence[Job], execute: Callable[[list[str]], int],
            spell: Callable[[Job, str], list[str] | None]) -> int:
  """Runs what is not done yet, one after another; returns an exit code.

  Args:
    folder: of the sweep.
    jobs: all of it.
    execute: runs a command, returns its exit code.
    spell: (job, 'train' or 'evaluate') -> the command, or None if that is not wanted.
  """
  wanted = ['train', 'evaluate'] if spell(jobs[0], 'evaluate') else ['train']
  took = []
  for number, job in enumerate(jobs, 1):
    where, now = f'[{number}/{len(jobs)}] {job.name}', state(folder, job)
    if now == 'failed':
      _say(f'{where}: failed before (numerics); to try again, delete {folder / job.folder}')
    todo = {'failed': [], 'evaluated': [], 'trained': wanted[1:]}.get(now, wanted)
    if not todo:
      continue
    ahead = (len(jobs) - number + 1) * sum(took) / max(len(took), 1)
    _say(f'{where} (about {duration(ahead)} left) ...' if took else f'{where} ...')
    began = time.monotonic()
    for what in todo:
      code = execute(spell(job, what))
      if what == 'train' and code == NUMERICS:
        _say(f'{where}: failed (numerics); the sweep goes on')
        break
      if code:
        _say(f'{where}: {what} {_ended(code)}')
        return code if 0 < code < 128 else 1
    else:
      took += [time.monotonic() - began] if len(todo) == len(wanted) else []
  return 0


def _ended(code: int) -> str:
  if code < 0:
    hint = ' (out of memory?)' if code == -signal.SIGKILL else ''
    return f'was ended by {signal.Signals(-code).name}{hint}'
  return 'was interrupted' if code == AGAIN else f'ended with exit code {code}, see above'


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
