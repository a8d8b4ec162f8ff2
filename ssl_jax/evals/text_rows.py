"""Texts and pairs of texts encoded as rows of tokens, to be fine-tuned on.

`Rows` are a mapping of arrays with a row per example: what the encoder sees,
  tokens    int32 [N, L]  [CLS] a [SEP], or [CLS] a [SEP] b [SEP]; then padding
  segments  int8 [N, L]   1, and 0 for padding
  types     int8 [N, L]   0 for a, 1 for b; only of pairs, and only if asked for
'label': int32 [N] classes, float32 [N] numbers, int32 [N, L] tags (`IGNORED`: not predicted), or
int32 [N, 2] the first and last token of an answer; and what is needed to measure, which may be
objects. Rows with the same number in 'group' int32 [N] are held out together. L is the length of
the longest row in multiples of 16, at most the length that was asked for; what is longer is cut,
the longer of two texts first.

A `Measure` turns outputs and rows into numbers by name.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssl_jax.data.token_frames import Frame, Piece
from ssl_jax.data.tokenize import Tokenizer, tokenised

STEP = 16  # lengths of rows are multiples of it
IGNORED = -1

Rows = Mapping[str, np.ndarray]
# (outputs [N, ...], rows) -> {name: value}
Measure = Callable[[np.ndarray, Rows], dict[str, float]]


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
  columns = [pieces_of(column, tokenizer) for column in texts]
  return framed(list(zip(*columns)), tokenizer, length, types)


def pieces_of(texts: Sequence[str], tokenizer: Tokenizer) -> list[Piece]:
  """The tokens of each text."""
  found = tokenised([(text,) for text in texts], tokenizer)
  ends = np.cumsum(found.sentences).tolist()
  return [Piece(found.tokens[begin:end], found.starts[begin:end])
          for begin, end in zip([0, *ends], ends)]


def framed(examples: Sequence[tuple[Piece, ...]], tokenizer: Tokenizer, length: int,
           types: bool) -> dict[str, np.ndarray]:
  """Rows of the tokens of one text, or of two; arguments and errors as `encode`."""
  if not examples:
    raise ValueError('there is no text to encode')
  pair, vocabulary = len(examples[0]) == 2, tokenizer.vocabulary
  if pair and None in (vocabulary.cls, vocabulary.sep):
    raise ValueError('pairs of texts need a tokenizer with [CLS] and [SEP]')
  own = own_tokens(tokenizer, pair)
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


def own_tokens(tokenizer: Tokenizer, pair: bool) -> int:
  """How many special tokens a row has."""
  vocabulary = tokenizer.vocabulary
  if pair:
    return 2 + vocabulary.separators
  return sum(i is not None for i in (vocabulary.cls, vocabulary.sep))


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
