"""Labelled texts and pairs of texts: GLUE, tables of one's own, WordNet's glosses.

Tags of words are in `text_tags`, answers to questions in `text_spans`.
"""

import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.glosses import wordnet_glosses
from ssl_jax.data.sources import DataError
from ssl_jax.data.tensorflow_datasets import builder_of, check_prepared
from ssl_jax.evals.text_metrics import METRICS, TASKS, Task
from ssl_jax.evals.text_rows import Measure


class Examples(NamedTuple):
  """Labelled texts.

  texts: one list of N texts, or two for pairs.
  labels: int32 [N] numbers of `classes`, or float32 [N]; None where there are none.
  classes: names; () where the label is a number to be predicted.
  skipped: rows that were left out because they are damaged.
  """

  texts: tuple[list[str], ...]
  labels: np.ndarray | None
  classes: tuple[str, ...]
  skipped: int = 0

  @property
  def count(self) -> int:
    return len(self.texts[0])

  def take(self, rows: np.ndarray) -> 'Examples':
    """These examples alone, in this order."""
    texts = tuple([column[i] for i in rows] for column in self.texts)
    return self._replace(texts=texts, labels=None if self.labels is None else self.labels[rows])


# --- reading --------------------------------------------------------------------------------------


def read_glue(name: str, folder: str | pathlib.Path, split: str) -> Examples:
  """A split of a GLUE task from its official TSV files, which have no quoting.

  Args:
    name: in `TASKS`.
    folder: with train.tsv, or GLUE's with CoLA/, SST-2/, ... in it.
    split: 'train', or a key of the task's `validation` or `test`; the latter has no labels.

  Raises:
    ValueError: there is no such task or split.
    FileNotFoundError: there is no such file.
    DataError: a column is missing, or no row is as it must be.
  """
  task = _task(name)
  files = {'train': 'train.tsv', **task.validation, **task.test}
  if split not in files:
    raise ValueError(f'{name} has the splits {", ".join(files)}, not {split!r}')
  folder = pathlib.Path(folder).expanduser()
  path = next((p for p in (folder / task.folder / files[split], folder / files[split])
               if p.is_file()), None)
  if path is None:
    raise FileNotFoundError(2, f'no {files[split]}, nor {task.folder}/{files[split]}, of {name} in',
                            str(folder))
  header = task.header or split in task.test
  columns = task.texts if task.header else task.features if header else task.texts
  label = None if split in task.test else task.label
  return _examples(_tsv(path, header), columns, label, _coder(task), str(path))


def read_glue_tfds(name: str, split: str, data_dir: str | None = None) -> Examples:
  """The same from TFDS's `glue/*`, prepared as ArrayRecord, without TensorFlow.

  Raises:
    ValueError: there is no such task or split.
    DataError: the data set is not prepared; says how to.
  """
  task, dataset = _task(name), f'glue/{name}'
  found = builder_of(dataset, data_dir)
  check_prepared(found, dataset, data_dir)
  try:
    records = found.as_data_source(split=split)
  except ValueError as error:
    raise ValueError(f'{dataset}: {error}') from error
  return tfds_examples(records, task, labelled=split not in task.test)


def tfds_examples(records: Sequence[Mapping[str, Any]], task: Task, labelled: bool) -> Examples:
  """Examples of the records that `tfds.data_source` gives for a task."""
  texts, labels = tuple([] for _ in task.features), []
  for i in range(len(records)):
    record = records[i]
    for column, feature in zip(texts, task.features):
      column.append(record[feature].decode('utf-8', 'replace'))
    labels.append(record['label'])
  kind = np.float32 if task.regression else np.int32
  return Examples(texts, np.array(labels, kind) if labelled else None, task.classes)


def read_table(path: str | pathlib.Path, *, text: str, text_pair: str | None = None, label: str,
               classes: Sequence[str] | None = None, regression: bool = False) -> Examples:
  """Labelled text of one's own: a .tsv file with a header, without quoting, or a .jsonl file.

  Args:
    path: of the file.
    text, text_pair: columns (or keys) of the text, or of the two texts.
    label: column of the label.
    classes: of the training data, which other data must not exceed; None: all labels there are, in
      their alphabetical order.
    regression: the label is a number to be predicted.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: a column is missing, a label is not among `classes`, or no row is as it must be.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(2, 'no such file', str(path))
  columns = (text,) if text_pair is None else (text, text_pair)
  lines = list(_jsonl(path) if path.suffix in ('.jsonl', '.json') else _tsv(path, True))
  if regression:
    return _examples(lines, columns, label, _Numbers(), str(path))
  if classes is None:
    classes = sorted({row[label] for row in lines if row is not None and label in row})
    return _examples(lines, columns, label, _Classes(classes, classes), str(path))
  return _examples(lines, columns, label, _Classes(classes, classes, strict=True), str(path))


def wordnet(split: str) -> Examples:
  """WordNet's glosses by lexicographer class, which ship: 'train', 'validation' and 'test'."""
  corpus = wordnet_glosses(split=split)
  texts = [' '.join(corpus[i].sentences) for i in range(len(corpus))]
  return Examples((texts,), corpus.labels['label'], corpus.classes)


def _task(name: str) -> Task:
  if name not in TASKS:
    raise ValueError(f'unknown task {name!r}; GLUE has {", ".join(TASKS)}')
  return TASKS[name]


class _Classes:
  """A label as the number of its class; None for one that is damaged."""

  dtype = np.int32

  def __init__(self, values: Sequence[str], classes: Sequence[str], strict: bool = False):
    self._numbers = {value: i for i, value in enumerate(values)}
    self.classes, self._strict = tuple(classes), strict

  def __call__(self, value: str) -> int | None:
    if self._strict and value not in self._numbers:
      raise DataError(f'the label {value!r} does not occur in training, which has '
                      f'{", ".join(map(repr, list(self._numbers)[:10]))}')
    return self._numbers.get(value)


class _Numbers:
  """A label as a number; None for one that is none."""

  dtype, classes = np.float32, ()

  def __call__(self, value: str) -> float | None:
    try:
      number = float(value)
    except ValueError:
      return None
    return number if np.isfinite(number) else None


def _coder(task: Task) -> _Classes | _Numbers:
  return _Numbers() if task.regression else _Classes(task.values, task.classes)


def _tsv(path: pathlib.Path, header: bool) -> Iterator[dict[Any, str] | None]:
  """Rows by the names of the header, or by number; None for one with other than as many fields."""
  # Text of the web has '\r' and U+2028 within fields: only '\n' ends a line.
  with open(path, encoding='utf-8-sig', errors='replace', newline='\n') as file:
    lines = (line.rstrip('\r\n').split('\t') for line in file)
    names = next(lines, None) if header else None
    for fields in lines:
      names = list(range(len(fields))) if names is None else names
      yield dict(zip(names, fields)) if len(fields) == len(names) else None


def _jsonl(path: pathlib.Path) -> Iterator[dict[str, str] | None]:
  with open(path, encoding='utf-8-sig', errors='replace', newline='\n') as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        found = json.loads(line)
      except ValueError as error:
        raise DataError(f'{path}, line {number}: expected a JSON object, but it is damaged: {error}'
                        ) from error
      yield _plain(found)


def _plain(found: Any) -> dict[str, str] | None:
  """The texts and numbers of a JSON object, as text; None for one that is no object."""
  if not isinstance(found, dict):
    return None
  return {key: str(value) for key, value in found.items() if isinstance(value, (str, int, float))}


def _examples(lines: Iterable[Mapping[Any, str] | None], columns: Sequence[str | int],
              label: str | int | None, code: _Classes | _Numbers, where: str) -> Examples:
  texts, labels, skipped = tuple([] for _ in columns), [], 0
  for row in lines:
    wanted = [*columns, *([] if label is None else [label])]
    for name in wanted if row is not None else ():
      if name not in row:
        raise DataError(f'{where} has no column {name!r}, but {", ".join(map(str, row))}')
    value = None if row is None else code(row[label]) if label is not None else 0
    if value is None:
      skipped += 1
      continue
    labels.append(value)
    for column, name in zip(texts, columns):
      column.append(row[name])
  if not labels:
    raise DataError(f'{where} holds no examples ({skipped} damaged rows)')
  return Examples(texts, None if label is None else np.array(labels, code.dtype), code.classes,
                  skipped)


# --- measuring ------------------------------------------------------------------------------------


def measure_labels(metrics: Sequence[str]) -> Measure:
  """Of outputs [N, C], whose largest is the prediction, or [N]; names of `METRICS`."""
  def measure(outputs, rows):
    predictions = outputs.argmax(1) if outputs.ndim == 2 else outputs
    return {name: METRICS[name](predictions, rows['label']) for name in metrics}

  return measure
