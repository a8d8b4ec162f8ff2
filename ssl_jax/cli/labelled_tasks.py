"""What `finetune` can train on: tasks by name, read and described for the head and the measure."""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ssl_jax.data.order import permuted
from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.evals import text_tasks
from ssl_jax.evals.text_metrics import TASKS
from ssl_jax.evals.text_rows import Measure, Rows, encode
from ssl_jax.evals.text_spans import Questions, encode_spans, measure_spans, read_squad
from ssl_jax.evals.text_tags import Tagged, encode_tags, measure_tags, read_conll
from ssl_jax.evals.text_tasks import Examples

OWN = 'own'  # the name of the task with a table of one's own
METRICS = ('accuracy', 'macro_f1')  # of classes that GLUE has not
# {task: {split: what its file may be called in --data}}
FILES: Mapping[str, Mapping[str, tuple[str, ...]]] = dict(
  conll=dict(train=('train.txt', 'eng.train'), validation=('valid.txt', 'dev.txt', 'eng.testa'),
             test=('test.txt', 'eng.testb')),
  squad=dict(train=('train-v1.1.json',), validation=('dev-v1.1.json',)),
  squad2=dict(train=('train-v2.0.json',), validation=('dev-v2.0.json',)))
NAMES = (*TASKS, 'wordnet', *FILES)

Labelled = Examples | Tagged | Questions


class Task(NamedTuple):
  """What is trained and measured on.

  train, evaluation: as they were read, the latter by split.
  kind, outputs: of the head, see `evals.text_heads.Head`.
  encode: (examples, tokenizer, length, types, name of the split) -> rows.
  measure: of outputs and rows.
  select: the split that a rate is chosen on, or 'held_out'.
  """

  train: Labelled
  evaluation: Mapping[str, Labelled]
  kind: str
  outputs: int
  encode: Callable[[Labelled, Tokenizer, int, bool, str], Rows]
  measure: Measure
  select: str = 'held_out'


def read_task(args: argparse.Namespace) -> Task:
  """The task that the options of `finetune` name.

  Raises:
    DataError, FileNotFoundError: as the readers of `evals.text_tasks`, `text_tags`, `text_spans`;
      also training examples of one class.
  """
  print(f'reading {args.task} ...', file=sys.stderr, flush=True)
  task = dict(conll=_tags, squad=_spans, squad2=_spans).get(args.task, _texts)(args)
  if args.examples and args.examples < task.train.count:
    chosen = permuted(np.arange(args.examples), length=task.train.count, seed=0, epoch=0)
    task = task._replace(train=task.train.take(chosen))
  if task.kind == 'classes' and len(np.unique(task.train.labels)) < 2:
    raise DataError(f'the {task.train.count:,} training examples have only one class')
  validation = next((split for split in task.evaluation if split.startswith('validation')),
                    'held_out')
  return task._replace(select='held_out' if args.select == 'held_out' else validation)


# --- texts and pairs ------------------------------------------------------------------------------


def _texts(args) -> Task:
  read, splits, metrics = _reader(args)
  train = read('train')
  evaluation = {split: read(split) for split in splits}
  for name, found in dict(train=train, **evaluation).items():
    if found.skipped:
      print(f'{name}: {found.skipped:,} damaged rows left out', file=sys.stderr)
  return Task(train, evaluation, 'classes' if train.classes else 'number',
              len(train.classes) or 1, _encode_texts, text_tasks.measure_labels(metrics))


def _encode_texts(found: Examples, tokenizer: Tokenizer, length: int, types: bool,
                  split: str) -> Rows:
  return encode(found.texts, tokenizer, length=length, types=types) | dict(label=found.labels)


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


# --- tags and spans -------------------------------------------------------------------------------


def _tags(args) -> Task:
  paths = _paths(args)
  train = read_conll(paths.pop('train'))
  evaluation = {split: read_conll(path, classes=train.classes) for split, path in paths.items()}
  return Task(train, evaluation, 'tags', len(train.classes), _encode_tags,
              measure_tags(train.classes))


def _encode_tags(found: Tagged, tokenizer: Tokenizer, length: int, types: bool,
                 split: str) -> Rows:
  rows, lost = encode_tags(found.words, found.tags, found.classes, tokenizer, length=length)
  if lost:
    print(f"{split}: {lost:,} words are cut off (or have no token) and count as 'O'; a larger "
          '--length keeps more', file=sys.stderr)
  return rows


def _spans(args) -> Task:
  unanswerable = args.task == 'squad2'
  found = {split: read_squad(path, unanswerable=unanswerable)
           for split, path in _paths(args).items()}

  def encoded(questions, tokenizer, length, types, split):
    rows, lost = encode_spans(questions.questions, tokenizer, length=length, types=types,
                              stride=args.stride)
    print(f'{split}: {questions.count:,} questions in {len(rows["label"]):,} windows'
          + (f'; {lost:,} answers are in none as a whole' if lost else ''), file=sys.stderr)
    return rows

  return Task(found.pop('train'), found, 'spans', 2, encoded, measure_spans(unanswerable))


def _paths(args) -> dict[str, pathlib.Path]:
  """{split: file}: those that are named, or that are in --data under their usual names."""
  if not args.data:
    return {split: pathlib.Path(getattr(args, split)) for split in ('train', 'validation', 'test')
            if getattr(args, split)}
  folder, names = pathlib.Path(args.data).expanduser(), FILES[args.task]
  found = {split: next((folder / name for name in names[split] if (folder / name).is_file()), None)
           for split in names}
  for split in ('train', 'validation'):
    if found[split] is None:
      raise FileNotFoundError(2, f'no {" or ".join(names[split])} of {args.task} in', str(folder))
  return {split: path for split, path in found.items() if path is not None}
