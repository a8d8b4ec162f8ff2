"""Texts into a trained encoder: representations of them, and words for the gaps in them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.token_frames import Frame, Piece
from ssl_jax.data.tokenize import Encoded, Tokenizer
from ssl_jax.types import Mode, Network, PyTree

ROWS = 64  # texts at a time
STEP = 16  # rows are as long as the longest text of a batch, in multiples of this
MASK = '[MASK]'  # a gap in a text, whatever the tokenizer calls it


def embedder(embed: Callable, params: PyTree, state: PyTree, tokenizer: Tokenizer,
             length: int) -> Callable[[Sequence[str]], np.ndarray]:
  """Texts -> representations float32 [N, D] by `Method.embed`; `length` tokens of each are read."""
  run = jax.jit(lambda inputs: embed(params, state, inputs))

  def embed_texts(texts: Sequence[str]) -> np.ndarray:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
      raise ValueError('expected a list of texts')
    pieces = [_piece(one) for one in tokenizer.encode(texts)]
    order = np.argsort([len(piece.tokens) for piece in pieces], kind='stable')
    found = [None] * len(texts)
    for start in range(0, len(texts), ROWS):
      rows = order[start:start + ROWS]
      inputs = _rows([pieces[i] for i in rows], tokenizer, length, fill=ROWS)
      for i, z in zip(rows, np.asarray(run(inputs), np.float32)):
        found[i] = z
    if not found:
      raise ValueError('there are no texts to embed')
    return np.stack(found)

  return embed_texts


class Guess(NamedTuple):
  """A token for a gap, and its probability."""

  token: str
  probability: float


def fill_masks(network: Network, params: PyTree, state: PyTree, tokenizer: Tokenizer,
               text: str, *, length: int, count: int = 5) -> list[list[Guess]]:
  """The most probable tokens for each '[MASK]' in a text, the best first.

  Args:
    network: a language model, see `types.Network.readout`.
    params, state: of the network.
    tokenizer: with a mask token.
    text: with '[MASK]' where tokens are missing.
    length: tokens that the network reads at most.
    count: guesses for each gap.

  Raises:
    ValueError: no gap, no mask token, or a gap beyond `length`.
  """
  mask = tokenizer.vocabulary.mask
  if mask is None:
    raise ValueError('the tokenizer has no mask token')
  if MASK not in text:
    raise ValueError(f'the text has no {MASK}: {text!r}')
  parts = [_piece(one) for one in tokenizer.encode(text.split(MASK))]
  gap = Piece(np.array([mask], np.uint32), np.array([True]))
  pieces = [piece for part in parts for piece in (part, gap)][:-1]
  whole = Piece(*map(np.concatenate, zip(*pieces)))
  inputs = _rows([whole], tokenizer, length)
  slots = np.flatnonzero(np.asarray(inputs['tokens'])[0] == mask)
  if len(slots) != len(parts) - 1:
    raise ValueError(f'the text is longer than {length} tokens, with a gap behind them')
  inputs['slots'] = jnp.asarray(slots[None], jnp.int32)
  (_, hidden), _ = network.apply(params, state, inputs, Mode())
  matrix, bias = network.readout(params)
  logits = hidden[0].astype(jnp.float32) @ matrix.T.astype(jnp.float32)
  if bias is not None:
    logits = logits + bias[None]
  best, which = jax.lax.top_k(jax.nn.softmax(logits), count)
  return [[Guess(tokenizer.decode([t]), float(p)) for t, p in zip(tokens, probabilities)]
          for tokens, probabilities in zip(np.asarray(which), np.asarray(best))]


def _piece(encoded: Encoded) -> Piece:
  return Piece(encoded.tokens, np.diff(encoded.words, prepend=-1) != 0)


def _rows(pieces: Sequence[Piece], tokenizer: Tokenizer, length: int, fill: int = 1) -> dict:
  """The inputs of a network: a row per piece, cut at `length`; empty rows up to `fill`."""
  longest = max(len(piece.tokens) for piece in pieces) + 2  # [CLS] and [SEP]
  frame = Frame(min(length, -(-longest // STEP) * STEP), tokenizer.vocabulary)
  pieces = [Piece(*(array[:frame.body] for array in piece)) for piece in pieces]
  empty = Piece(np.zeros(0, np.uint32), np.zeros(0, bool))
  rows = [frame.row([piece]) for piece in [*pieces, *[empty] * (fill - len(pieces))]]
  return {name: jnp.asarray(np.stack([row[name] for row in rows]))
          for name in ('tokens', 'segments', 'positions')}
