"""Sentences with a tag for each word: CoNLL's files read, encoded, measured by whole entities.

Reference: Tjong Kim Sang and De Meulder 2003 (arXiv:cs/0306050); the label of a word stands on its
first piece, as in Devlin et al. 2019 (arXiv:1810.04805), section 5.3.
"""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax.data.sources import DataError
from ssl_jax.data.token_frames import Frame, Piece
from ssl_jax.data.tokenize import Tokenizer, tokenised
from ssl_jax.evals.text_metrics import METRICS, chunks, entity_f1
from ssl_jax.evals.text_rows import IGNORED, Measure, framed

OUTSIDE = 'O'
BETWEEN_DOCUMENTS = '-DOCSTART-'

_TAG = re.compile(r'O|[BI]-.+')


class Tagged(NamedTuple):
  """N sentences.

  words, tags: of each; tags are IOB2.
  classes: 'O', then 'B-' and 'I-' of each type of entity in alphabetical order.
  """

  words: list[list[str]]
  tags: list[list[str]]
  classes: tuple[str, ...]

  @property
  def count(self) -> int:
    return len(self.words)

  def take(self, rows: np.ndarray) -> 'Tagged':
    """These sentences alone, in this order."""
    return self._replace(words=[self.words[i] for i in rows], tags=[self.tags[i] for i in rows])


# --- reading --------------------------------------------------------------------------------------


def read_conll(path: str | pathlib.Path, *, classes: Sequence[str] | None = None) -> Tagged:
  """Sentences in columns: a word per line, first the word, last its tag; empty lines between.

  Columns are separated by tabs or spaces; lines of '-DOCSTART-' are left out. Tags are IOB2, or
  IOB1 as in CoNLL-2003's own files, which become IOB2 with the same entities.

  Args:
    path: of the file, UTF-8.
    classes: of the training data, which other data must not exceed; None: those there are.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: no UTF-8, other than as many columns as in the first line, a tag of another scheme or
      not among `classes`, or no sentences; named by file and line.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(2, 'no such file', str(path))
  words, tags = [], []
  for sentence in _sentences(path, classes):
    words.append([word for word, _ in sentence])
    tags.append(_iob2([tag for _, tag in sentence]))
  if not words:
    raise DataError(f'{path} holds no sentences; expected lines of a word and its tag')
  if classes is None:
    kinds = sorted({tag[2:] for own in tags for tag in own if tag != OUTSIDE})
    classes = (OUTSIDE, *(f'{mark}-{kind}' for kind in kinds for mark in 'BI'))
  return Tagged(words, tags, tuple(classes))


def _sentences(path: pathlib.Path, classes: Sequence[str] | None,
               ) -> Iterator[list[tuple[str, str]]]:
  sentence, first = [], None
  for number, line in enumerate(_lines(path), 1):
    if not line.strip() or line.startswith(BETWEEN_DOCUMENTS):
      if sentence:
        yield sentence
      sentence = []
      continue
    fields = line.split('\t') if '\t' in line else re.split(' +', line.strip(' '))
    first = first or (number, len(fields))
    _check_line(f'{path}, line {number}', fields, first, classes)
    sentence.append((fields[0], fields[-1]))
  if sentence:
    yield sentence


def _lines(path: pathlib.Path) -> Iterator[str]:
  # Only '\n' ends a line: a word may be '\u2028'.
  with open(path, encoding='utf-8-sig', newline='\n') as file:
    try:
      for line in file:
        yield line.rstrip('\r\n')
    except UnicodeDecodeError as error:
      raise DataError(f'{path} is no UTF-8: {error}; convert it first, such as with iconv'
                      ) from error


def _check_line(where: str, fields: list[str], first: tuple[int, int],
                classes: Sequence[str] | None) -> None:
  if len(fields) < 2 or not fields[0]:
    raise DataError(f'{where}: expected a word, then its tag as the last column; got '
                    f'{" ".join(fields)!r}')
  if len(fields) != first[1]:
    raise DataError(f'{where}: expected {first[1]} columns as in line {first[0]}, got '
                    f'{len(fields)}: {" ".join(fields)!r}')
  if not _TAG.fullmatch(fields[-1]):
    raise DataError(f"{where}: expected a tag such as 'B-PER', 'I-PER' or 'O' in the last column, "
                    f'got {fields[-1]!r}')
  if classes is not None and fields[-1] not in classes:
    raise DataError(f'{where}: the tag {fields[-1]!r} does not occur in training, which has '
                    f'{", ".join(classes)}')


def _iob2(tags: Sequence[str]) -> list[str]:
  found = [OUTSIDE] * len(tags)
  for kind, begin, end in chunks(tags):
    found[begin:end] = [f'B-{kind}', *[f'I-{kind}'] * (end - begin - 1)]
  return found


# --- encoding -------------------------------------------------------------------------------------


def encode_tags(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]],
                classes: Sequence[str], tokenizer: Tokenizer, *, length: int,
                ) -> tuple[dict[str, np.ndarray], int]:
  """Rows of sentences given as words, labelled on the first piece of each word.

  Args:
    words, tags: of N sentences.
    classes: the tags that there are, such as 'O', 'B-PER', 'I-PER'; labels are their numbers.
    tokenizer, length: as `encode`.

  Returns:
    (rows, how many words have no label because they are cut off or have no token). Besides, rows
    have for `measure_tags` objects [N] 'tags', all of the sentence, and 'kept', the numbers of the
    words with a label.

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
  rows = framed([(piece,) for piece in pieces], tokenizer, length, types=False)
  rows['label'] = np.full(rows['tokens'].shape, IGNORED, np.int32)
  rows['tags'], rows['kept'] = (np.empty(len(tags), object) for _ in range(2))
  frame, lost = Frame(rows['tokens'].shape[1], tokenizer.vocabulary), 0
  for i, (begins, sizes, own) in enumerate(zip(first, counts, tags)):
    at = begins - begins[0] if len(begins) else begins
    kept = np.flatnonzero((sizes > 0) & (at < frame.body))
    rows['label'][i, frame.head + at[kept]] = [number[own[j]] for j in kept]
    rows['tags'][i], rows['kept'][i] = list(own), kept
    lost += len(own) - len(kept)
  return rows, lost


# --- measuring ------------------------------------------------------------------------------------


def measure_tags(classes: Sequence[str]) -> Measure:
  """{'entity_f1', 'accuracy'} of outputs [N, L, C]; a word that was cut off counts as 'O'."""
  def measure(outputs, rows):
    predicted = []
    for scores, labels, tags, kept in zip(outputs, rows['label'], rows['tags'], rows['kept']):
      own = [OUTSIDE] * len(tags)
      for word, tag in zip(kept, scores[labels >= 0].argmax(1)):
        own[word] = classes[tag]
      predicted.append(own)
    right = list(rows['tags'])
    flat = [np.array([tag for own in side for tag in own]) for side in (predicted, right)]
    return dict(entity_f1=entity_f1(predicted, right), accuracy=METRICS['accuracy'](*flat))

  return measure
