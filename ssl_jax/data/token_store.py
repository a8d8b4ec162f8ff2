"""Tokenised documents by number, and how they are held in memory."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ssl_jax.data.documents import Corpus
from ssl_jax.data.sources import DataError
from ssl_jax.data.special_tokens import Vocabulary
from ssl_jax.data.token_coding import Sizes, unknown
from ssl_jax.data.token_records import Progress
from ssl_jax.data.tokenize import Tokenizer, chunks, tokenised


class Store(Protocol):
  """Tokenised documents by number, without special tokens; survives pickling."""

  vocabulary: Vocabulary
  labels: Mapping[str, np.ndarray]
  classes: tuple[str, ...]
  sizes: Sizes
  unknown: int  # tokens

  def __len__(self) -> int: ...

  def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of document i, and whether each begins a word."""
    ...

  def fingerprint(self) -> str: ...

  def parts(self) -> Mapping[str, str]:
    """See `sources.Source`."""
    ...


class InMemory:
  """A tokenised corpus: 3 bytes per token (5 with a vocabulary above 65,536), and its lengths."""

  def __init__(self, corpus: Corpus, tokenizer: Tokenizer):
    self.vocabulary, self.classes = tokenizer.vocabulary, tuple(corpus.classes)
    self.labels = {name: np.asarray(array, np.int32) for name, array in corpus.labels.items()}
    self._parts = {'the text': corpus.fingerprint(), 'the tokenizer': tokenizer.fingerprint()}
    progress, found = Progress(len(corpus), 'tokenised'), []
    for chunk in chunks(corpus[i] for i in range(len(corpus))):
      tokens, *rest = tokenised(chunk, tokenizer)
      found.append((tokens.astype(self._dtype()), *rest))
      progress(len(chunk))
    if not found:
      raise DataError('the corpus has no documents')
    self._tokens, self._starts, *sizes = map(np.concatenate, zip(*found))
    self.sizes = Sizes(*sizes)
    self._ends = np.cumsum(self.sizes.tokens())
    self.unknown = unknown(self._tokens, self.vocabulary)

  def _dtype(self):
    return np.uint16 if self.vocabulary.size <= 1 << 16 else np.uint32

  def __len__(self) -> int:
    return len(self._ends)

  def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    span = slice(self._ends[i - 1] if i else 0, self._ends[i])
    return self._tokens[span], self._starts[span]

  def fingerprint(self) -> str:
    return ' '.join(self._parts.values())

  def parts(self) -> dict[str, str]:
    return self._parts
