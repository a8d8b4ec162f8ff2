"""`python -m ssl_jax finetune`: a pretrained text encoder trained on a labelled task."""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from ssl_jax import build, runs
from ssl_jax.cli import NUMERICS
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.data.order import permuted
from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer, load
from ssl_jax.evals import text_tasks
from ssl_jax.evals.text_finetune import (
  LEARNING_RATES,
  DivergedError,
  Encode,
  Epoch,
  Finetuned,
  Head,
  Recipe,
  Trial,
  finetune,
)
from ssl_jax.evals.text_metrics import TASKS
from ssl_jax.evals.text_tasks import Examples, Rows
from ssl_jax.models.transformer import POOLS, Transformer
from ssl_jax.parallel import make_mesh
from ssl_jax.schema import ConfigError, call
from ssl_jax.types import Mode, PyTree

DESCRIPTION = '''Trains a text encoder with a new head on a task of GLUE, on WordNet's glosses
(which ship), or on data of your own, as BERT was: AdamW, a grid of learning rates, a few epochs.
Prints the metrics of the task; writes finetune.json into the run.'''
RESULT = 'finetune.json'
LENGTH = 128  # tokens, of weights from elsewhere
OWN = 'own'  # the name of the task with data of one's own
METRICS = ('accuracy', 'macro_f1')  # of classes that GLUE has not


def run(argv: list[str]) -> int:
  parser = _parser()
  args, _ = parser.read(argv)
  _check(parser, args)
  use_compilation_cache(args.cache_dir)
  began = time.monotonic()
  pretrained = _pretrained(args)
  try:
    task = _task(args)
    rows = _encoded(task, pretrained)
    results = _results(args, pretrained, task, rows)
  except DivergedError as error:
    print(f'error (numerics): {error}', file=sys.stderr)
    return NUMERICS
  except (ConfigError, DataError):
    raise
  except ValueError as error:
    raise DataError(f'fine-tuning on {args.task} is not possible: {error}') from error
  print(_table(results))
  seconds = round(time.monotonic() - began, 1)
  _write(args, pretrained, _described(args, pretrained, task, results, seconds))
  return 0


# --- options --------------------------------------------------------------------------------------


def _parser() -> Parser:
  parser = Parser('finetune', DESCRIPTION)
  add = parser.add_argument
  add('--workdir', metavar='FOLDER', help='a run of pretraining on text; or')
  add('--weights', metavar='FOLDER', help='a model of Hugging Face: config.json, safetensors')
  add('--step', type=int, help='which checkpoint of the run; default the newest')
  add('--tokenizer', metavar='FILE', help="instead of the run's, or the one beside the weights")
  add('--task', help=f'{", ".join((*TASKS, "wordnet"))}; without, data of your own')
  add('--data', metavar='FOLDER', help="of GLUE's TSV files; 'tfds': what TFDS has prepared")
  add('--data_dir', metavar='FOLDER', help='where TFDS prepared it, if elsewhere than usual')
  for name, text in (('train', 'your own data: a .tsv file with a header, or .jsonl'),
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
  own = [name for name in ('train', 'test', 'text', 'label') if getattr(args, name)]
  if args.task is None and len(own) < 4:
    parser.error(f'needs --task={"|".join((*TASKS, "wordnet"))}, or for data of your own '
                 '--train=FILE, --test=FILE, --text=COLUMN and --label=COLUMN')
  if args.task is not None and args.task not in (*TASKS, 'wordnet'):
    parser.error(f'--task={args.task} is unknown; there are {", ".join((*TASKS, "wordnet"))}')
  if args.task is not None and own:
    parser.error(f'--{own[0]} is for data of your own: leave out --task')
  if args.task in TASKS and not args.data:
    parser.error(f"--task={args.task} needs --data=FOLDER with GLUE's TSV files, or --data=tfds")
  if args.select == 'validation' and args.task is None and not args.validation:
    parser.error('--select=validation needs --validation=FILE')
  for name in ('seeds', 'epochs', 'batch_size', 'examples', 'length'):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      parser.error(f'--{name} must be at least 1, got {getattr(args, name)}')
  if not 0 <= args.dropout < 1:
    parser.error(f'--dropout must be in [0, 1), got {args.dropout}')
  args.learning_rates = _rates(parser, args.learning_rates)
  args.task = args.task or OWN


def _rates(parser: Parser, text: str) -> tuple[float, ...]:
  try:
    rates = tuple(float(word) for word in text.split(',') if word.strip())
  except ValueError:
    rates = ()
  if not rates or not all(0 < rate < np.inf for rate in rates):
    parser.error(f'--learning_rates must be numbers above 0, such as 2e-5,5e-5; got {text!r}')
  return tuple(dict.fromkeys(rates))


# --- the encoder ----------------------------------------------------------------------------------


class Pretrained(NamedTuple):
  """An encoder to start from.

  name: for the table.
  backbone: the module; `params` are its own, `pooler` those of a tanh layer on the first token.
  start: () -> params as they were initialised.
  tokenizer, length: of rows.
  about: for the result: the run and its step, or the folder of weights.
  """

  name: str
  backbone: Transformer
  params: PyTree
  pooler: PyTree | None
  start: Callable[[], PyTree]
  tokenizer: Tokenizer
  length: int
  mesh: Mesh | None
  about: dict[str, Any]


def _pretrained(args) -> Pretrained:
  found = _of_run(args) if args.workdir else _of_weights(args)
  a = found.backbone.architecture
  most = a.length - a.first_position if a.position == 'learned' else None
  if most is not None and (args.length or 0) > most:
    raise ConfigError(f'--length={args.length} is longer than the {most} positions of the encoder')
  if args.length and args.length > found.length:
    print(f'rows of {args.length} tokens, longer than the {found.length} of pretraining',
          file=sys.stderr)
  size = found.tokenizer.vocabulary.size
  if size > a.vocabulary:
    raise ConfigError(f'the tokenizer has {size:,} tokens, the encoder knows {a.vocabulary:,}; '
                      'give the one of pretraining with --tokenizer=FILE')
  a = a._replace(dropout=args.dropout, attention_dropout=args.dropout)
  mesh = found.mesh if found.mesh.size > 1 else None
  return found._replace(backbone=found.backbone.clone(architecture=a), mesh=mesh,
                        length=args.length or min(found.length, most or found.length),
                        pooler=found.pooler if args.pool == 'token' else None)


def _of_run(args) -> Pretrained:
  config = runs.read_config(args.workdir)
  backbone = call('network', config.network, build.NETWORKS)
  if not isinstance(backbone, Transformer):
    raise ConfigError(f'{args.workdir} is no run on text; `python -m ssl_jax evaluate '
                      '--protocols=finetune` is for images')
  run = runs.load(args.workdir, step=args.step)
  tokenizer = load(args.tokenizer) if args.tokenizer else run.tokenizer or build.tokenizer(config)
  if tokenizer is None:
    raise ConfigError(f'{config.data.name} has no tokenizer; give --tokenizer=FILE')
  params, _ = run.method.encoder(run.params, run.state)

  def start():
    first = runs.initial_state(run)
    return run.method.encoder(first.params, first.state)[0]['backbone']

  return Pretrained(
    config.method.name, backbone, params['backbone'], params.get('head', {}).get('pooler'), start,
    tokenizer, config.data.get('length', LENGTH), run.experiment.mesh,
    dict(workdir=str(args.workdir), step=run.step))


def _of_weights(args) -> Pretrained:
  try:
    from ssl_jax.weights import WeightsError, from_huggingface
  except ImportError as error:
    raise ConfigError(f'--weights: this version of ssl_jax reads no weights ({error})') from error
  try:
    module, variables = from_huggingface(args.weights)
  except WeightsError as error:
    raise DataError(str(error)) from error
  params, backbone = variables['params'], module.backbone

  def start():
    tokens = dict(tokens=np.zeros((1, text_tasks.STEP), np.int32))
    return backbone.init(jax.random.key(0), tokens, Mode())['params']

  return Pretrained(
    pathlib.Path(args.weights).resolve().name, backbone, params['backbone'],
    params.get('head', {}).get('pooler'), start, load(args.tokenizer or args.weights), LENGTH,
    make_mesh(), dict(weights=str(args.weights)))


def _encode(backbone: nn.Module, mesh: Mesh | None) -> Encode:
  def encode(params, inputs, *, key):
    mode = Mode(train=key is not None, mesh=mesh)
    rngs = {} if key is None else dict(dropout=key)
    return backbone.apply({'params': params}, inputs, mode, rngs=rngs)

  return encode


# --- the task -------------------------------------------------------------------------------------


class Labelled(NamedTuple):
  """A task. select: the split that a rate is chosen on, or 'held_out'."""

  train: Examples
  evaluation: Mapping[str, Examples]
  metrics: tuple[str, ...]
  select: str


def _task(args) -> Labelled:
  print(f'reading {args.task} ...', file=sys.stderr, flush=True)
  read, splits, metrics = _reader(args)
  train = read('train')
  evaluation = {split: read(split) for split in splits}
  for name, found in dict(train=train, **evaluation).items():
    if found.skipped:
      print(f'{name}: {found.skipped:,} damaged rows left out', file=sys.stderr)
  if args.examples and args.examples < train.count:
    chosen = permuted(np.arange(args.examples), length=train.count, seed=0, epoch=0)
    train = train.take(chosen)
  if train.classes and len(np.unique(train.labels)) < 2:
    raise DataError(f'the {train.count:,} training examples have only one class')
  validation = next((split for split in splits if split.startswith('validation')), 'held_out')
  select = 'held_out' if args.select == 'held_out' else validation
  return Labelled(train, evaluation, metrics, select)


def _reader(args) -> tuple[Callable[[str], Examples], tuple[str, ...], tuple[str, ...]]:
  """(split -> examples, the splits to measure on, the metrics)."""
  if args.task == 'wordnet':
    return text_tasks.wordnet, ('validation', 'test'), METRICS
  if args.task == OWN:
    splits = tuple(split for split in ('validation', 'test') if getattr(args, split))
    return _own(args), splits, ('pearson', 'spearman') if args.regression else METRICS
  task = TASKS[args.task]
  if args.data == 'tfds':
    read = lambda split: text_tasks.read_glue_tfds(args.task, split, args.data_dir)
  else:
    read = lambda split: text_tasks.read_glue(args.task, args.data, split)
  return read, tuple(task.validation), task.metrics


def _own(args) -> Callable[[str], Examples]:
  classes = {}

  def read(split):
    found = text_tasks.read_table(
      getattr(args, split), text=args.text, text_pair=args.text_pair, label=args.label,
      classes=classes.get('train'), regression=args.regression)
    classes.setdefault('train', found.classes)
    return found

  return read


def _encoded(task: Labelled, pretrained: Pretrained) -> tuple[Rows, dict[str, Rows]]:
  types = pretrained.backbone.architecture.types > 1

  def encoded(examples):
    rows = text_tasks.encode(examples.texts, pretrained.tokenizer, length=pretrained.length,
                             types=types)
    return rows | dict(label=examples.labels)

  return encoded(task.train), {split: encoded(one) for split, one in task.evaluation.items()}


def _results(args, pretrained: Pretrained, task: Labelled, rows) -> dict[str, Finetuned]:
  classes = len(task.train.classes)
  head = Head('classes' if classes else 'number', classes or 1, args.pool, args.dropout)
  encode = _encode(pretrained.backbone, pretrained.mesh)
  starts = {pretrained.name: (pretrained.params, pretrained.pooler)}
  if args.baseline:
    starts['random init'] = (pretrained.start(), None)
  results = {}
  for name, (params, pooler) in starts.items():
    results[name] = finetune(
      encode, params, *rows, head=head, measure=text_tasks.measure_labels(task.metrics),
      learning_rates=args.learning_rates, seeds=range(args.seeds), select=task.select,
      pooler=pooler, recipe=Recipe(batch_size=args.batch_size, epochs=args.epochs),
      mesh=pretrained.mesh, report=_reporter(f'{args.task}, {name}', args.epochs))
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


def _described(args, pretrained: Pretrained, task: Labelled, results: Mapping[str, Finetuned],
               seconds: float) -> dict:
  """The result as JSON has it."""
  names = ('batch_size', 'epochs', 'dropout', 'pool', 'learning_rates', 'seeds')
  options = {name: getattr(args, name) for name in names} | dict(length=pretrained.length)
  sizes = {split: found.count for split, found in dict(train=task.train, **task.evaluation).items()}
  return dict(
    task=args.task, examples=sizes, options=options,
    encoders={name: _plain(result) for name, result in results.items()}, seconds=seconds)


def _plain(result: Finetuned) -> dict:
  means = {split: {metric: float(of.mean()) for metric, of in scores.items()}
           for split, scores in _values(result.trials).items()}
  trials = [trial._asdict() | dict(score=trial.score if np.isfinite(trial.score) else None)
            for trial in (*result.trials, *result.others)]
  return dict(scores=means, learning_rate=result.learning_rate, selection=result.selection,
              trials=trials)


def _write(args, pretrained: Pretrained, result: dict) -> None:
  """In a run, adds to what is known of the same step: numbers of another would not belong there."""
  if not args.output and not args.workdir:
    print('not written anywhere; --output=FILE.json keeps it', file=sys.stderr)
    return
  path = pathlib.Path(args.output or pathlib.Path(args.workdir) / RESULT).expanduser()
  path.parent.mkdir(parents=True, exist_ok=True)
  known = json.loads(path.read_text()) if path.is_file() and not args.output else {}
  same = known.get('about', {}).get('step') == pretrained.about.get('step')
  tasks = (known['tasks'] if known and same else {}) | {result['task']: result}
  path.write_text(json.dumps(dict(about=pretrained.about, tasks=tasks), indent=2) + '\n')
  print(f'\nin {path} ({result["seconds"]} s)', file=sys.stderr)
