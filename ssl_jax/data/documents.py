"""What a corpus is: documents by number, sentences out; and what becomes of odd text.

Everywhere: bytes that are no UTF-8 become U+FFFD, as do unpaired surrogates of JSON; NUL becomes a
space; white space around a sentence is dropped, within it is kept.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from ssl_jax.data.sources import DataError

# Part of every fingerprint: raise it when documents of the same files change.
VERSION = 1

_SURROGATE = re.compile('[\ud800-\udfff]')


class Document(NamedTuple):
  """Its sentences; one where the source does not split."""

  sentences: tuple[str, ...]


class Corpus(Protocol):
  """Documents by number; must survive pickling, because workers receive a copy.

  labels: {} or {'label': int32 [N], ...}.
  classes: the names of 'label'; () where it has none.
  """

  labels: Mapping[str, np.ndarray]
  classes: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Document: ...

  def fingerprint(self) -> str:
    """A digest of everything that shapes the documents, equal in every process and machine."""
    ...


def clean(text: str) -> str:
  """Without NUL, and without white space at both ends."""
  return text.replace('\0', ' ').strip()


def sentences_of(value: Any, what: str) -> tuple[str, ...]:
  """The sentences of a string or a list of strings, which TFDS gives as bytes.

  Raises:
    DataError: it is neither; `what` names it.
  """
  parts = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
  if not all(isinstance(part, (str, bytes)) for part in parts):
    raise DataError(f'{what} must be text, or a list of texts; got {type(value).__name__}')
  parts = (part.decode('utf-8', 'replace') if isinstance(part, bytes) else part for part in parts)
  return tuple(filter(None, (clean(_SURROGATE.sub('\ufffd', part)) for part in parts)))


def in_range(i: int, length: int) -> int:
  """`i`, if there is such a document; else IndexError."""
  if not 0 <= i < length:
    raise IndexError(f'document {i} of {length}')
  return i
