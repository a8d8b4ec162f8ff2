"""Where documents of text come from: the functions that a config may name as its corpus.

They take keyword arguments and return a `Corpus` (`ssl_jax.data.documents`). Tokenising and
batching are not done here. The glosses that ship (`glosses`) and the datasets of TFDS
(`tfds_texts`) have modules of their own and are collected here; text files and JSON Lines are
below, on top of the scan of files in `text_index`.
"""

import array
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from ssl_jax.data.documents import VERSION, Corpus, Document, clean, in_range, sentences_of
from ssl_jax.data.glosses import PARTS_OF_SPEECH, WORDNET_CLASSES, Glosses, wordnet_glosses
from ssl_jax.data.sources import DataError
from ssl_jax.data.text_index import Index, Line, check_size, files_of, read_span, scan
from ssl_jax.data.tfds_texts import TfdsTexts, tfds_text

__all__ = [
  'PARTS_OF_SPEECH', 'WORDNET_CLASSES', 'Corpus', 'Document', 'FileCorpus', 'Glosses', 'TfdsTexts',
  'jsonl', 'text_files', 'tfds_text', 'wordnet_glosses']


class FileCorpus:
  """Documents read from their place in files; the index travels to workers, 16 bytes a document."""

  def __init__(self, index: Index, parse: Callable[[str], tuple[str, ...]], about: tuple,
               labels: Mapping[str, np.ndarray], classes: tuple[str, ...]):
    """`parse` makes sentences of a document's text; `about` says how, for the fingerprint."""
    self._index, self._parse, self._about = index, parse, about
    self.labels, self.classes = labels, classes

  @property
  def invalid(self) -> int:
    """How many lines hold bytes that are no UTF-8, which are read as U+FFFD."""
    return self._index.invalid

  def __len__(self) -> int:
    return len(self._index.begins)

  def __getitem__(self, i: int) -> Document:
    index = self._index
    begin, end = index.begins[in_range(i, len(self))], index.ends[i]
    file = int(np.searchsorted(index.firsts, i, side='right')) - 1
    data = read_span(index.paths[file], index.sizes[file], int(begin), int(end))
    return Document(self._parse(data.decode('utf-8', 'replace')))

  def fingerprint(self) -> str:
    """SHA-256 of the files' contents, in the order of their names, and of how they are read."""
    about = (VERSION, self._about, self._index.sha256, self.classes)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def text_files(*, path: str, split: str = 'train',
               documents: Literal['line', 'blank'] = 'line') -> FileCorpus:
  """Plain text, UTF-8.

  Lines of white space (or NUL) alone are empty. What becomes of bytes that are no UTF-8 and of NUL
  is said in `documents`, of line ends and byte order marks in `text_index`; `invalid` counts the
  lines with the first. A last line without a line end counts as a line.

  Args:
    path: a file, or a pattern: 'books/*.txt', '**' for folders below; in the order of their names,
      hidden ones left out. '{split}' in it is replaced. Remote ones ('gs://...') are read by
      etils.epath, and their patterns know no '**'.
    split: only 'train' exists where `path` has no '{split}'.
    documents: 'line', each line that is not empty is a document of one sentence; 'blank', BERT's
      input format, a line is a sentence and empty lines stand between documents. A document does
      not go on in the next file.

  Raises:
    FileNotFoundError: there is no such file, or none that matches.
    ValueError: a folder, a split that the path does not name, or another kind of documents.
    DataError: a file holds no documents, is compressed or UTF-16, or a document is over 256 MiB.
  """
  if documents not in ('line', 'blank'):
    raise ValueError("documents must be 'line' (a document per line) or 'blank' (a sentence per "
                     f'line, empty lines between documents), not {documents!r}')
  find, parse = (_each_line, _whole) if documents == 'line' else (_between_blanks, _each_sentence)
  return FileCorpus(scan(files_of(path, split), find), parse, ('text', documents), {}, ())


def jsonl(*, path: str, split: str = 'train', field: str = 'text',
          label: str | None = None) -> FileCorpus:
  """JSON Lines: an object per line, its `field` the document: a string, or a list of sentences.

  Every line is parsed when the corpus is made, so that a damaged one is known at the beginning.
  Empty lines, and objects whose text is empty, are no documents.

  Args:
    path, split: as `text_files`.
    field: the key of the text.
    label: the key of a label: integers, which become int32 as they are, or strings, which are
      numbered in their alphabetical order (`classes`). The numbers of two splits agree only if all
      classes occur in both: compare `classes`.

  Raises:
    FileNotFoundError: there is no such file, or none that matches.
    ValueError: a folder, or a split that the path does not name.
    DataError: a line is no JSON object or lacks a field, named by file and line; else as
      `text_files`.
  """
  labels = _Labels()
  find = functools.partial(_each_object, field=field, label=label, labels=labels)
  index = scan(files_of(path, split), find)
  found, classes = labels.result() if label is not None else ({}, ())
  return FileCorpus(index, functools.partial(_text_of, field=field, where=path),
                    ('jsonl', field, label), found, classes)


# --- kinds of documents ---------------------------------------------------------------------------


def _each_line(lines: Iterable[Line]) -> Iterator[tuple[int, int]]:
  return ((line.begin, line.end) for line in lines if line.text)


def _whole(text: str) -> tuple[str, ...]:
  return (clean(text),)


def _between_blanks(lines: Iterable[Line]) -> Iterator[tuple[int, int]]:
  begin = end = None
  for line in lines:
    if line.text:
      begin, end = line.begin if begin is None else begin, line.end
      check_size(end - begin, f'{line.where[0]}, line {line.where[1]}')
    elif begin is not None:
      yield begin, end
      begin = None
  if begin is not None:
    yield begin, end


def _each_sentence(text: str) -> tuple[str, ...]:
  return tuple(filter(None, map(clean, text.split('\n'))))


def _each_object(lines: Iterable[Line], *, field: str, label: str | None,
                 labels: '_Labels') -> Iterator[tuple[int, int]]:
  for line in lines:
    if not line.text:
      continue
    where = f'{line.where[0]}, line {line.where[1]}'
    found = _object(line.text, where)
    if not sentences_of(_member(found, field, where), f'{where}: {field!r}'):
      continue
    if label is not None:
      labels.add(_member(found, label, where), where)
    yield line.begin, line.end


def _text_of(text: str, *, field: str, where: str) -> tuple[str, ...]:
  """The sentences of a line of JSON."""
  return sentences_of(_member(_object(clean(text), where), field, where), f'{where}: {field!r}')


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{where}: expected a JSON object, but it is damaged: {error}') from error
  if not isinstance(found, dict):
    raise DataError(f'{where}: expected a JSON object, got {type(found).__name__}')
  return found


def _member(found: dict[str, Any], field: str, where: str) -> Any:
  if field not in found:
    raise DataError(f'{where}: there is no field {field!r}, but {", ".join(found) or "nothing"}')
  return found[field]


class _Labels:
  """Labels as they are met, held as numbers."""

  def __init__(self):
    self._values, self._codes, self._kind = {}, array.array('i'), None

  def add(self, value: Any, where: str) -> None:
    kind = type(value)
    if kind not in (int, str) or self._kind not in (None, kind) or (
        kind is int and not -2**31 <= value < 2**31):
      raise DataError(f'{where}: labels must be all integers (of 32 bits) or all strings; got '
                      f'{value!r}')
    self._kind = kind
    self._codes.append(self._values.setdefault(value, len(self._values)))

  def result(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(labels, classes)."""
    values, classes = list(self._values), ()
    if self._kind is str:
      classes = tuple(sorted(values))
      values = [classes.index(value) for value in values]
    numbers = np.array(values, np.int32)
    return {'label': numbers[np.array(self._codes, np.int64)]}, classes
