"""How a row of tokens is put together from pieces of text, with special tokens around them.

A row has
  tokens     int32 [L]  filled up with padding
  segments   int32 [L]  1, 2, ...: the number of the piece within the row; 0 is padding
  positions  int32 [L]  from 0 in each piece
  words      int32 [L]  the number of the word within the row; -1: a special token or padding
and with pairs 'types' int32 [L] (0: A, 1: B). Between the texts of a pair stands one separator, or
two where the tokenizer is RoBERTa's (`Vocabulary.separators`).
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.data.special_tokens import Vocabulary

Fields = dict[str, np.ndarray]


class Piece(NamedTuple):
  """Tokens between the special ones, and whether each begins a word."""

  tokens: np.ndarray
  starts: np.ndarray


class Frame:
  """How rows are put together from pieces."""

  def __init__(self, length: int, vocabulary: Vocabulary):
    self.length, self.vocabulary = length, vocabulary
    self.head, self.tail = (int(i is not None) for i in (vocabulary.cls, vocabulary.sep))
    self.body = length - self.head - self.tail  # what is left for the document
    self.pair_body = length - 2 - vocabulary.separators  # and for the two texts of a pair
    if self.body < 1:
      raise ValueError(f'length must be at least {1 + self.head + self.tail}, for a token between '
                       f'the special ones; got {length}')
    # Where there is no padding token any will do: segments say what is padding.
    self._pad = next(i for i in (vocabulary.pad, vocabulary.sep, 0) if i is not None)
    self._positions = np.arange(length, dtype=np.int32)

  def row(self, pieces: list[Piece]) -> Fields:
    """The fields of a row of pieces, each with special tokens around it."""
    tokens, segments, positions, words = self._empty()
    at = word = 0
    for number, piece in enumerate(pieces, 1):
      begin = at + self.head
      end = begin + len(piece.tokens)
      if self.head:
        tokens[at] = self.vocabulary.cls
      tokens[begin:end] = piece.tokens
      word = _number(words[begin:end], piece.starts, word)
      if self.tail:
        tokens[end] = self.vocabulary.sep
      segments[at:end + self.tail] = number
      positions[at:end + self.tail] = self._positions[:end + self.tail - at]
      at = end + self.tail
    return dict(tokens=tokens, segments=segments, positions=positions, words=words)

  def pair(self, a: Piece, b: Piece) -> Fields:
    """[CLS] A [SEP] B [SEP], or with two [SEP] between; one segment of two types."""
    tokens, segments, positions, words = self._empty()
    middle = 1 + len(a.tokens)
    begin = middle + self.vocabulary.separators
    end = begin + len(b.tokens)
    tokens[0], tokens[middle:begin], tokens[end] = (
      self.vocabulary.cls, self.vocabulary.sep, self.vocabulary.sep)
    tokens[1:middle], tokens[begin:end] = a.tokens, b.tokens
    _number(words[begin:end], b.starts, _number(words[1:middle], a.starts, 0))
    segments[:end + 1] = 1
    positions[:end + 1] = self._positions[:end + 1]
    types = ((self._positions >= begin) & (self._positions <= end)).astype(np.int32)
    return dict(tokens=tokens, segments=segments, positions=positions, words=words, types=types)

  def _empty(self) -> tuple[np.ndarray, ...]:
    return tuple(np.full(self.length, value, np.int32) for value in (self._pad, 0, 0, -1))


def _number(words: np.ndarray, starts: np.ndarray, first: int) -> int:
  """Writes the numbers of words, from `first`; returns the next. A cut word begins anew."""
  if not len(words):
    return first
  np.cumsum(starts, out=words)
  words += first - int(starts[0])
  return int(words[-1]) + 1
