"""Captions of images: tables that hold them, and the rows of tokens that they become.

A row has
  tokens    int32 [L]  [CLS] tokens [SEP], filled up with padding; a longer caption is cut
  segments  int32 [L]  1 where there is a token, 0 is padding
"""

import csv
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.sources import DataError
from ssl_jax.data.token_frames import Fields, Frame, Piece
from ssl_jax.data.tokenize import CHUNK, Tokenizer

# Part of every fingerprint: raise it when rows of the same captions change.
VERSION = 1
NAMED = 10  # faults that a message lists
SUFFIXES = ('.csv', '.jsonl')


class Captions:
  """Captions as rows of tokens; in memory, 4 bytes for each token that is not cut off."""

  def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, length: int):
    """Raises ValueError for a length without space for a token."""
    self._frame, self.vocabulary = Frame(length, tokenizer.vocabulary), tokenizer.vocabulary
    tokens, sizes, self._cut = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)], 0
    for start in range(0, len(texts), CHUNK):
      for one in tokenizer.encode(texts[start:start + CHUNK]):
        tokens.append(one.tokens[:self._frame.body])
        sizes.append(np.array([len(tokens[-1])]))
        self._cut += len(one.tokens) > self._frame.body
    self._tokens, self._ends = np.concatenate(tokens), np.cumsum(np.concatenate(sizes))

  def __len__(self) -> int:
    return len(self._ends)

  def row(self, i: int) -> Fields:
    """The tokens and segments of caption i."""
    piece = self._tokens[int(self._ends[i - 1]) if i else 0:int(self._ends[i])]
    row = self._frame.row([Piece(piece, np.ones(len(piece), bool))])
    return {name: row[name] for name in ('tokens', 'segments')}

  def rows(self) -> Fields:
    """All of them, [N, L]."""
    found = [self.row(i) for i in range(len(self))]
    return {name: np.stack([row[name] for row in found]) for name in ('tokens', 'segments')}

  def fingerprint(self) -> str:
    """SHA-256 over tokens, lengths and what stands around them."""
    digest = hashlib.sha256(repr((VERSION, self._frame.length, self.vocabulary)).encode())
    for array in (self._tokens, self._ends):
      digest.update(array)
    return digest.hexdigest()

  def report(self) -> str:
    """A part of a line for the log."""
    count, unk = max(len(self._tokens), 1), self.vocabulary.unk
    unknown = 0 if unk is None else int(np.count_nonzero(self._tokens == unk))
    return (f'{len(self):,} captions of {count / max(len(self), 1):.1f} tokens in rows of '
            f'{self._frame.length}, {unknown / count:.2%} of the tokens unknown, '
            f'{self._cut / max(len(self), 1):.2%} of the captions cut')


# --- tables ---------------------------------------------------------------------------------------


class Line(NamedTuple):
  """A line of a table: where it stands, which image it names, what it says of it.

  number: of the line in the file, from 1.
  image: the path of the image within the folder.
  label: the name of the class, '' where there are none.
  """

  number: int
  image: str
  caption: str
  label: str


def read_table(path: pathlib.Path, *, image: str, caption: str, label: str | None) -> list[Line]:
  """The lines of a CSV file with a header, or of JSON Lines.

  Args:
    path: ends in .csv or .jsonl.
    image, caption, label: names of the columns; no label where None.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: no lines, a column is missing, a field is empty or no text, or an image is not within
      the folder; names the line.
  """
  if path.suffix not in SUFFIXES:
    raise DataError(f'{path}: expected a table that ends in {" or ".join(SUFFIXES)}')
  if not path.is_file():
    raise FileNotFoundError(2, 'no such table of captions', str(path))
  columns = [name for name in (image, caption, label) if name is not None]
  read = _csv if path.suffix == '.csv' else _jsonl
  try:
    lines = [_line(path, number, row, columns) for number, row in read(path, columns)]
  except (UnicodeDecodeError, csv.Error) as error:
    raise DataError(f'{path} cannot be read as UTF-8 text: {error}') from error
  if not lines:
    raise DataError(f'{path} holds no captions')
  return lines


def _csv(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
  with path.open(encoding='utf-8-sig', newline='') as stream:
    reader = csv.DictReader(stream)
    header = reader.fieldnames or ()
    if missing := [name for name in columns if name not in header]:
      raise DataError(f'{path} has no column {missing[0]!r}; its first line names '
                      f'{", ".join(map(repr, header)) or "none"}')
    for row in reader:
      yield reader.line_num, row


def _jsonl(path: pathlib.Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
  with path.open(encoding='utf-8-sig') as stream:
    for number, text in enumerate(stream, 1):
      if not text.strip():
        continue
      try:
        row = json.loads(text)
      except ValueError as error:
        raise DataError(f'{path} line {number} is no JSON: {error}') from error
      if not isinstance(row, dict):
        raise DataError(f'{path} line {number} must be a JSON object, got {type(row).__name__}')
      if missing := [name for name in columns if name not in row]:
        raise DataError(f'{path} line {number} has no {missing[0]!r}, but '
                        f'{", ".join(map(repr, row)) or "nothing"}')
      yield number, row


def _line(path: pathlib.Path, number: int, row: Mapping[str, Any], columns: Sequence[str]) -> Line:
  for name in columns:
    if not isinstance(row[name], str) or not row[name].strip():
      raise DataError(f'{path} line {number}: {name!r} must be a text that is not empty, '
                      f'got {row[name]!r}')
  image, caption, label = (*(row[name] for name in columns), '')[:3]
  place = pathlib.PurePosixPath(image)
  if place.is_absolute() or '..' in place.parts or '\0' in image:
    raise DataError(f'{path} line {number}: {image!r} is not within the folder of images; give paths '
                    'relative to it')
  return Line(number, image, caption, label)


def missing_images(path: pathlib.Path, lines: Sequence[Line], absent: set[str]) -> DataError:
  """What to say of lines whose image is not there."""
  without = [line for line in lines if line.image in absent]
  listed = [f'  line {line.number}: {line.image}' for line in without[:NAMED]]
  listed += [f'  and {len(without) - NAMED:,} more'] if len(without) > NAMED else []
  return DataError(f'{path}: the images of {len(without):,} of {len(lines):,} lines are not in the '
                   'folder:\n' + '\n'.join(listed))
