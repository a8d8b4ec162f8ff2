"""`python -m ssl_jax finetune`: a pretrained text encoder trained on a labelled task."""

import argparse
import json
import pathlib
import runpy
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np

from ssl_jax.cli import NUMERICS
from ssl_jax.cli.labelled_tasks import FILES, NAMES, OWN, Task, read_task
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.cli.text_encoders import Pretrained, encode_with, pretrained
from ssl_jax.data.sources import DataError
from ssl_jax.evals.text_finetune import (
  LEARNING_RATES,
  DivergedError,
  Epoch,
  Finetuned,
  Recipe,
  Trial,
  finetune,
)
from ssl_jax.evals.text_heads import Head
from ssl_jax.evals.text_metrics import TASKS
from ssl_jax.evals.text_spans import STRIDE
from ssl_jax.models.transformer import POOLS
from ssl_jax.schema import ConfigError, did_you_mean, plain

DESCRIPTION = '''Trains a text encoder with a new head on a task of GLUE, on SQuAD, on named
entities (CoNLL), on WordNet's glosses (which ship), or on data of your own, as BERT was: AdamW, a
grid of learning rates, a few epochs. Prints the metrics of the task; writes finetune.json into the
run. Every option can stand in a config, as a field of that name; the command line wins.'''
RESULT = 'finetune.json'


def run(argv: list[str]) -> int:
  args = options(argv)
  use_compilation_cache(args.cache_dir)
  began = time.monotonic()
  encoder = pretrained(args)
  try:
    task = read_task(args)
    results = _results(args, encoder, task)
  except DivergedError as error:
    print(f'error (numerics): {error}', file=sys.stderr)
    return NUMERICS
  except (ConfigError, DataError):
    raise
  except ValueError as error:
    raise DataError(f'fine-tuning on {args.task} is not possible: {error}') from error
  print(_table(results))
  seconds = round(time.monotonic() - began, 1)
  _write(args, encoder, _described(args, encoder, task, results, seconds))
  return 0


# --- options --------------------------------------------------------------------------------------


def options(argv: list[str]) -> argparse.Namespace:
  """The options of a command line and of the config that it names.

  Raises:
    ConfigError: a config that cannot be read, or with a field that is no option.
    SystemExit: an option that is wrong, or is missing.
  """
  parser = _parser()
  files = argparse.ArgumentParser(parser.prog, add_help=False, allow_abbrev=False)
  files.add_argument('--config')
  given, words = files.parse_known_args(argv)
  # '--config.epochs=5' is '--epochs=5'.
  words = [f'--{word.removeprefix("--config.")}' if word.startswith('--config.') else word
           for word in words]
  if given.config is not None:
    known = vars(parser.parse_args([]))
    words = [*_words(given.config, set(known) - {'help', 'config'}), *words]
  args, _ = parser.read(words)
  _check(parser, args)
  return args


def _words(spec: str, known: set[str]) -> list[str]:
  """['--task=mrpc', ...]: the fields of 'path.py' or 'path.py:variant'."""
  name, _, variant = spec.partition(':')
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise ConfigError(f'no config file {name}; expected one such as configs/finetune_glue.py')
  try:
    config = plain(runpy.run_path(str(path))['get_config'](variant))
  except Exception as error:  # whatever is in the user's file
    raise ConfigError(f'{spec} cannot be loaded: {type(error).__name__}: {error}') from error
  for key in config:
    if key not in known:
      raise ConfigError(f'config.{key} is no option of `finetune`{did_you_mean(key, known)}')
  return [word for key, value in config.items() for word in _word(key, value)]


def _word(key: str, value) -> list[str]:
  if value is None or value is False:
    return []
  if value is True:
    return [f'--{key}']
  text = ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
  return [f'--{key}={text}']


def _parser() -> Parser:
  parser = Parser('finetune', DESCRIPTION)
  add = parser.add_argument
  add('--config', metavar='FILE.py[:TASK]', help='options in a file, see configs/finetune_glue.py')
  add('--workdir', metavar='FOLDER', help='a run of pretraining on text; or')
  add('--weights', metavar='FOLDER', help='a model of Hugging Face: config.json, safetensors')
  add('--step', type=int, help='which checkpoint of the run; default the newest')
  add('--tokenizer', metavar='FILE', help="instead of the run's, or the one beside the weights")
  add('--task', help=f'{", ".join(NAMES)}; without, a table of your own')
  add('--data', metavar='FOLDER', help="of GLUE's TSV files, of CoNLL's or of SQuAD's; "
      "'tfds': GLUE as TFDS has prepared it")
  add('--data_dir', metavar='FOLDER', help='where TFDS prepared it, if elsewhere than usual')
  for name, text in (('train', 'your own data: a .tsv file with a header, or .jsonl; of conll and '
                      'squad: a file as theirs'),
                     ('validation', 'to choose the learning rate on'), ('test', 'to measure on')):
    add(f'--{name}', metavar='FILE', help=text)
  add('--text', metavar='COLUMN', help='of the text')
  add('--text_pair', metavar='COLUMN', help='of the second text, for pairs')
  add('--label', metavar='COLUMN', help='of the class; with --regression of a number')
  add('--regression', action='store_true', help='predict a number instead of a class')
  add('--examples', type=int, metavar='N', help='train on so many, drawn at random; default all')
  add('--learning_rates', default=','.join(map(str, LEARNING_RATES)), metavar='A,B,...',
      help='peaks to choose from; small encoders want larger ones, such as 3e-4,1e-3')
  add('--select', choices=('validation', 'held_out'), help='where the learning rate is chosen: on '
      'the validation split (the default if there is one), or on a tenth of the training set')
  add('--seeds', type=int, default=1, help='how many trainings at each learning rate')
  add('--epochs', type=int, default=3)
  add('--batch_size', type=int, default=32)
  add('--length', type=int, help='tokens of a row at most; default as in pretraining')
  add('--stride', type=int, default=STRIDE, help='of squad: tokens from the beginning of one '
      'window over a context to that of the next')
  add('--dropout', type=float, default=0.1, help='in encoder and head')
  add('--pool', choices=POOLS, default='token', help='what is classified: the first token, the '
      'mean, or the last token')
  add('--baseline', action='store_true', help='also the encoder as it was initialised')
  add('--output', metavar='FILE.json', help=f'instead of {RESULT} in the run')
  add('--cache_dir', metavar='FOLDER', help='compilation cache')
  return parser


def _check(parser: Parser, args) -> None:
  if bool(args.workdir) == bool(args.weights):
    parser.error('needs --workdir=FOLDER or --weights=FOLDER')
  _check_task(parser, args)
  if args.select == 'validation' and args.task in (None, *FILES) and not (
      args.validation or args.data):
    parser.error('--select=validation needs --validation=FILE')
  for name in ('seeds', 'epochs', 'batch_size', 'examples', 'length', 'stride'):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
  if not 0 <= args.dropout < 1:
    parser.error(f'--dropout must be in [0, 1), got {args.dropout}')
  args.learning_rates = _rates(parser, args.learning_rates)
  args.task = args.task or OWN


def _check_task(parser: Parser, args) -> None:
  own = [name for name in ('train', 'test', 'text', 'label') if getattr(args, name)]
  if args.task is None:
    if len(own) < 4:
      parser.error(f'needs --task={"|".join(NAMES)}, or for data of your own '
                   '--train=FILE, --test=FILE, --text=COLUMN and --label=COLUMN')
    return
  if args.task not in NAMES:
    parser.error(f'--task={args.task} is unknown; there are {", ".join(NAMES)}')
  if args.task in FILES:
    files = [name for name in ('train', 'validation', 'test') if getattr(args, name)]
    enough = not files if args.data else args.train and len(files) > 1
    if not enough or args.text or args.text_pair or args.label or args.regression:
      usual = ', '.join(names[0] for names in FILES[args.task].values())
      parser.error(f'--task={args.task} needs either --data=FOLDER with {usual}, or --train=FILE '
                   'and --validation=FILE or --test=FILE; it has no columns')
  elif own:
    parser.error(f'--{own[0]} is for data of your own: leave out --task')
  if args.task in TASKS and not args.data:
    parser.error(f"--task={args.task} needs --data=FOLDER with GLUE's TSV files, or --data=tfds")


def _rates(parser: Parser, text: str) -> tuple[float, ...]:
  try:
    rates = tuple(float(word) for word in text.split(',') if word.strip())
  except ValueError:
    rates = ()
  if not rates or not all(0 < rate < np.inf for rate in rates):
    parser.error(f'--learning_rates must be numbers above 0, such as 2e-5,5e-5; got {text!r}')
  return tuple(dict.fromkeys(rates))


# --- training -------------------------------------------------------------------------------------


def _results(args, encoder: Pretrained, task: Task) -> dict[str, Finetuned]:
  types = encoder.backbone.architecture.types > 1
  rows = {split: task.encode(found, encoder.tokenizer, encoder.length, types, split)
          for split, found in dict(train=task.train, **task.evaluation).items()}
  train = rows.pop('train')
  starts = {encoder.name: (encoder.params, encoder.pooler)}
  if args.baseline:
    starts['random init'] = (encoder.start(), None)
  encode, results = encode_with(encoder.backbone, encoder.mesh), {}
  for name, (params, pooler) in starts.items():
    results[name] = finetune(
      encode, params, train, rows, measure=task.measure, select=task.select,
      head=Head(task.kind, task.outputs, args.pool, args.dropout),
      learning_rates=args.learning_rates, seeds=range(args.seeds), pooler=pooler,
      recipe=Recipe(batch_size=args.batch_size, epochs=args.epochs), mesh=encoder.mesh,
      report=_reporter(f'{args.task}, {name}', args.epochs))
  return results


def _reporter(name: str, epochs: int) -> Callable[[Epoch], None]:
  began = time.monotonic()

  def report(e: Epoch) -> None:
    scores = ', '.join(f'{key} {value:.3f}' for key, value in e.scores.items()) or 'diverged'
    print(f'{name}: rate {e.learning_rate:g}, seed {e.seed}, epoch {e.epoch}/{epochs}: '
          f'loss {e.loss:.3f}, {scores} ({time.monotonic() - began:.0f} s)', file=sys.stderr,
          flush=True)

  return report


# --- results --------------------------------------------------------------------------------------


def _values(trials: tuple[Trial, ...]) -> dict[str, dict[str, np.ndarray]]:
  """{split: {metric: [a value per seed]}}"""
  return {split: {metric: np.array([trial.scores[split][metric] for trial in trials])
                  for metric in scores} for split, scores in trials[0].scores.items()}


def _table(results: Mapping[str, Finetuned]) -> str:
  """A Markdown table, aligned so that it also reads well as plain text."""
  rows = []
  for name, result in results.items():
    values = {f'{split} {metric}': of for split, scores in _values(result.trials).items()
              for metric, of in scores.items()}
    cells = [f'{of.mean():.3f}' + (f' ± {of.std():.3f}' if len(of) > 1 else '')
             for of in values.values()]
    rows += [] if rows else [['encoder', *values, 'rate', 'selected']]
    rows.append([name, *cells, f'{result.learning_rate:g}', result.selection])
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(row, widths)) + ' |'
           for row in rows]
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])


def _described(args, encoder: Pretrained, task: Task, results: Mapping[str, Finetuned],
               seconds: float) -> dict:
  """The result as JSON has it."""
  names = ('batch_size', 'epochs', 'dropout', 'pool', 'learning_rates', 'seeds')
  names += ('stride',) * (task.kind == 'spans')
  chosen = {name: getattr(args, name) for name in names} | dict(length=encoder.length)
  sizes = {split: found.count for split, found in dict(train=task.train, **task.evaluation).items()}
  return dict(
    task=args.task, examples=sizes, options=chosen,
    encoders={name: _plain(result) for name, result in results.items()}, seconds=seconds)


def _plain(result: Finetuned) -> dict:
  means = {split: {metric: float(of.mean()) for metric, of in scores.items()}
           for split, scores in _values(result.trials).items()}
  trials = [trial._asdict() | dict(score=trial.score if np.isfinite(trial.score) else None)
            for trial in (*result.trials, *result.others)]
  return dict(scores=means, learning_rate=result.learning_rate, selection=result.selection,
              trials=trials)


def _write(args, encoder: Pretrained, result: dict) -> None:
  """In a run, adds to what is known of the same step: numbers of another would not belong there."""
  if not args.output and not args.workdir:
    print('not written anywhere; --output=FILE.json keeps it', file=sys.stderr)
    return
  path = pathlib.Path(args.output or pathlib.Path(args.workdir) / RESULT).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  known = json.loads(path.read_text()) if path.is_file() and not args.output else {}
  same = known.get('about', {}).get('step') == encoder.about.get('step')
  tasks = (known['tasks'] if known and same else {}) | {result['task']: result}
  path.write_text(json.dumps(dict(about=encoder.about, tasks=tasks), indent=2) + '\n')
  print(f'\nin {path} ({result["seconds"]} s)', file=sys.stderr)
