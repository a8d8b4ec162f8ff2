"""Labelled text for fine-tuning: reading it, encoding it as rows of tokens, measuring predictions.

`rows` are a mapping of arrays with a row per example: what the encoder sees,
  tokens    int32 [N, L]  [CLS] a [SEP], or [CLS] a [SEP] b [SEP]; then padding
  segments  int8 [N, L]   1, and 0 for padding
  types     int8 [N, L]   0 for a, 1 for b; only of pairs, and only if asked for
and 'label': int32 [N] classes, float32 [N] numbers, int32 [N, L] tags (-1: not predicted), or int32
[N, 2] the first and last token of an answer (-1: not within the row). L is the length of the
longest row in multiples of 16, at most the length that was asked for; what is longer is cut, the
longer of two texts first. A context that is cut has no second window: an answer behind the cut is
lost.

A `Measure` turns outputs and rows into numbers by name.
"""

import importlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data import corpora
from ssl_jax.data.sources import DataError
from ssl_jax.data.tensorflow_datasets import _builder, _check_prepared
from ssl_jax.data.token_sources import Frame, Piece
from ssl_jax.data.tokenize import Tokenizer, tokenised
from ssl_jax.evals.text_metrics import METRICS, TASKS, Task, entity_f1, exact_match, span_f1

STEP = 16  # lengths of rows are multiples of it
QUESTION = 64  # tokens of a question at most, as in google-research/bert run_squad.py
ANSWER = 30  # tokens of an answer at most, as there
IGNORED = -1

Rows = Mapping[str, np.ndarray]
# (outputs [N, ...], rows) -> {name: value}
Measure = Callable[[np.ndarray, Rows], dict[str, float]]


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
  importlib.import_module('tensorflow_datasets.text.glue')  # Which only then is known to TFDS.
  found = _builder(dataset, data_dir)
  _check_prepared(found, dataset, data_dir)
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
  corpus = corpora.wordnet_glosses(split=split)
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


# --- encoding -------------------------------------------------------------------------------------


def encode(texts: Sequence[Sequence[str]], tokenizer: Tokenizer, *, length: int,
           types: bool = False) -> dict[str, np.ndarray]:
  """Rows of texts (one list) or pairs of texts (two).

  Args:
    texts: `Examples.texts`.
    tokenizer: with [CLS] and [SEP] for pairs.
    length: of a row at most, in tokens.
    types: whether pairs have the field 'types'.

  Raises:
    ValueError: no text, a length without space for tokens, or pairs without special tokens.
  """
  columns = [_pieces(column, tokenizer) for column in texts]
  return _framed(list(zip(*columns)), tokenizer, length, types)


def _pieces(texts: Sequence[str], tokenizer: Tokenizer) -> list[Piece]:
  found = tokenised([(text,) for text in texts], tokenizer)
  ends = np.cumsum(found.sentences).tolist()
  return [Piece(found.tokens[begin:end], found.starts[begin:end])
          for begin, end in zip([0, *ends], ends)]


def _framed(examples: Sequence[tuple[Piece, ...]], tokenizer: Tokenizer, length: int,
            types: bool) -> dict[str, np.ndarray]:
  if not examples:
    raise ValueError('there is no text to encode')
  pair, vocabulary = len(examples[0]) == 2, tokenizer.vocabulary
  if pair and None in (vocabulary.cls, vocabulary.sep):
    raise ValueError('pairs of texts need a tokenizer with [CLS] and [SEP]')
  own = 3 if pair else sum(i is not None for i in (vocabulary.cls, vocabulary.sep))
  longest = own + max(sum(len(piece.tokens) for piece in pieces) for pieces in examples)
  frame = Frame(min(length, -(-longest // STEP) * STEP), vocabulary)
  if frame.length - own < 2:
    raise ValueError(f'rows of {length} tokens have no space for text')
  make = frame.pair if pair else lambda piece: frame.row([piece])
  fields = dict(tokens=np.int32, segments=np.int8) | (dict(types=np.int8) if pair and types else {})
  rows = {name: np.zeros((len(examples), frame.length), dtype) for name, dtype in fields.items()}
  for i, pieces in enumerate(examples):
    row = make(*_cut(pieces, frame.length - own))
    for name in fields:
      rows[name][i] = row[name]
  return rows


def _cut(pieces: tuple[Piece, ...], most: int) -> list[Piece]:
  """At most `most` tokens: the end of the longer one goes first, of equal ones that of the second.

  In closed form what google-research/bert's run_classifier.py does token by token.
  """
  lengths = [len(piece.tokens) for piece in pieces]
  if len(pieces) == 1:
    keep = [most]
  elif min(lengths) <= most // 2:
    keep = [min(n, most - min(lengths)) for n in lengths]
  else:
    keep = [most - most // 2, most // 2]
  if sum(lengths) <= most:
    keep = lengths
  return [Piece(*(array[:n] for array in piece)) for piece, n in zip(pieces, keep)]


# --- tags -----------------------------------------------------------------------------------------


def encode_tags(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]],
                classes: Sequence[str], tokenizer: Tokenizer, *, length: int,
                ) -> tuple[dict[str, np.ndarray], int]:
  """Rows of sentences given as words, labelled on the first piece of each word.

  Args:
    words, tags: of N sentences.
    classes: the tags that there are, such as 'O', 'B-PER', 'I-PER'; labels are their numbers.
    tokenizer, length: as `encode`.

  Returns:
    (rows, how many words have no label because they are cut off or have no token).

  Raises:
    ValueError: as `encode`; other than one tag per word, or a tag that is not in `classes`.
  """
  number = {tag: i for i, tag in enumerate(classes)}
  for i, (sentence, own) in enumerate(zip(words, tags, strict=True)):
    if len(sentence) != len(own) or not set(own) <= set(number):
      raise ValueError(f'sentence {i}: expected one tag of {", ".join(classes)} for each of its '
                       f'{len(sentence)} words, got {list(own)}')
  found = tokenised([tuple(sentence) for sentence in words], tokenizer)
  ends = np.cumsum(found.sentences)
  first = np.split(ends - found.sentences, np.cumsum(found.documents)[:-1])
  counts = np.split(found.sentences, np.cumsum(found.documents)[:-1])
  pieces = [Piece(*(array[begins[0]:begins[-1] + sizes[-1]] if len(sizes) else array[:0]
                    for array in (found.tokens, found.starts)))
            for begins, sizes in zip(first, counts)]
  rows = _framed([(piece,) for piece in pieces], tokenizer, length, types=False)
  rows['label'] = np.full(rows['tokens'].shape, IGNORED, np.int32)
  frame, lost = Frame(rows['tokens'].shape[1], tokenizer.vocabulary), 0
  for i, (begins, sizes, own) in enumerate(zip(first, counts, tags)):
    at = begins - begins[0] if len(begins) else begins
    kept = np.flatnonzero((sizes > 0) & (at < frame.body))
    rows['label'][i, frame.head + at[kept]] = [number[own[j]] for j in kept]
    lost += len(own) - len(kept)
  return rows, lost


# --- spans ----------------------------------------------------------------------------------------


def encode_spans(contexts: Sequence[str], questions: Sequence[str],
                 answers: Sequence[Sequence[tuple[str, int]]], tokenizer: Tokenizer, *, length: int,
                 types: bool = False) -> tuple[dict[str, np.ndarray], int]:
  """Rows [CLS] question [SEP] context [SEP], as SQuAD's; the label is of the first answer.

  Args:
    contexts, questions: N texts each; questions are cut at 64 tokens, contexts at the row's end.
    answers: of each, (text, number of its first character in the context), at least one.
    tokenizer, length, types: as `encode`.

  Returns:
    (rows, how many first answers are lost because the context is cut before them). Besides, rows
    have for `measure_spans` 'offsets' int32 [N, L, 2], the characters of each token of the context
    (-1 elsewhere), and objects [N] 'context' and 'answers'.

  Raises:
    ValueError: as `encode`; an answer that does not stand where it is said to.
  """
  for context, own in zip(contexts, answers, strict=True):
    for text, begin in own or [(None, 0)]:
      if text is None or context[begin:begin + len(text)] != text or not text:
        raise ValueError(f'the answer {text!r} does not stand at character {begin} of the context '
                         f'{context[:60]!r} ...')
  asked = [Piece(*(array[:QUESTION] for array in piece)) for piece in _pieces(questions, tokenizer)]
  told, offsets = _with_offsets(contexts, tokenizer)
  most = length - 3
  told = [Piece(*(array[:max(most - len(question.tokens), 0)] for array in context))
          for question, context in zip(asked, told)]
  rows = _framed(list(zip(asked, told)), tokenizer, length, types)
  size = rows['tokens'].shape[1]
  rows['offsets'] = np.full((len(told), size, 2), IGNORED, np.int32)
  rows['label'] = np.full((len(told), 2), IGNORED, np.int32)
  for i, (question, context) in enumerate(zip(asked, told)):
    begin = 2 + len(question.tokens)
    own = offsets[i][:len(context.tokens)]
    rows['offsets'][i, begin:begin + len(own)] = own
    rows['label'][i] = _span(own, *answers[i][0], begin)
  rows['context'] = np.array([*contexts, None], object)[:-1]
  rows['answers'] = np.array([*([text for text, _ in own] for own in answers), None], object)[:-1]
  return rows, int(np.sum(rows['label'][:, 0] == IGNORED))


def _with_offsets(texts: Sequence[str], tokenizer: Tokenizer,
                  ) -> tuple[list[Piece], list[np.ndarray]]:
  """Tokens of each text, and the characters [n, 2] of each token."""
  pieces, offsets = [], []
  for begin in range(0, len(texts), 256):
    some = list(texts[begin:begin + 256])
    for one in tokenizer._inner.encode_batch(some, add_special_tokens=False):
      pieces.append(Piece(np.array(one.ids, np.uint32), np.ones(len(one.ids), bool)))
      offsets.append(np.array(one.offsets, np.int32).reshape(-1, 2))
  return pieces, offsets


def _span(offsets: np.ndarray, text: str, first: int, begin: int) -> tuple[int, int]:
  """The first and last token with characters of the answer; (-1, -1) where its end is cut off."""
  last = first + len(text)
  inside = np.flatnonzero((offsets[:, 1] > first) & (offsets[:, 0] < last))
  if not len(inside) or offsets[inside[-1], 1] < last:
    return IGNORED, IGNORED
  return begin + int(inside[0]), begin + int(inside[-1])


# --- measuring ------------------------------------------------------------------------------------


def measure_labels(metrics: Sequence[str]) -> Measure:
  """Of outputs [N, C], whose largest is the prediction, or [N]; names of `METRICS`."""
  def measure(outputs, rows):
    predictions = outputs.argmax(1) if outputs.ndim == 2 else outputs
    return {name: METRICS[name](predictions, rows['label']) for name in metrics}

  return measure


def measure_tags(classes: Sequence[str]) -> Measure:
  """{'entity_f1', 'accuracy'} of outputs [N, L, C]; words without a label do not count."""
  def measure(outputs, rows):
    labels, predicted = rows['label'], outputs.argmax(2)
    named = [[[classes[i] for i in row[own >= 0]] for row, own in zip(side, labels)]
             for side in (predicted, labels)]
    return dict(entity_f1=entity_f1(*named),
                accuracy=METRICS['accuracy'](predicted[labels >= 0], labels[labels >= 0]))

  return measure


def measure_spans(outputs: np.ndarray, rows: Rows) -> dict[str, float]:
  """{'exact_match', 'span_f1'} of outputs [N, L, 2]; an answer that was cut off is a wrong one."""
  found = answers_of(outputs, rows)
  answers = rows['answers']
  return dict(span_f1=span_f1(found, answers), exact_match=exact_match(found, answers))


def answers_of(outputs: np.ndarray, rows: Rows) -> list[str]:
  """The text of the best span of each row: begin before end, at most 30 tokens, in the context."""
  found = []
  for scores, offsets, context in zip(outputs, rows['offsets'], rows['context']):
    own = np.flatnonzero(offsets[:, 1] >= 0)
    if not len(own):
      found.append('')
      continue
    total = scores[own, None, 0] + scores[None, own, 1]
    distance = np.arange(len(own))[None] - np.arange(len(own))[:, None]
    total = np.where((distance >= 0) & (distance < ANSWER), total, -np.inf)
    first, last = np.unravel_index(np.argmax(total), total.shape)
    found.append(context[offsets[own[first], 0]:offsets[own[last], 1]].strip())
  return found
