"""Documents as records of tokens, coded in this process or in several."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ssl_jax.data.special_tokens import Vocabulary
from ssl_jax.data.tokenize import Tokenizer, tokenised


class Sizes(NamedTuple):
  """Tokens of each sentence, int32 [S], and sentences of each document, int32 [N]."""

  sentences: np.ndarray
  documents: np.ndarray

  def sentence_ends(self) -> np.ndarray:
    """int64 [N]: where the sentences of each document end among all sentences."""
    return np.cumsum(self.documents, dtype=np.int64)

  def tokens(self) -> np.ndarray:
    """int64 [N]: the tokens of each document."""
    ends = np.append(0, np.cumsum(self.sentences, dtype=np.int64))[self.sentence_ends()]
    return np.diff(ends, prepend=0)


class Coded(NamedTuple):
  """A chunk of documents: their records, the Sizes of it, and how many tokens are unknown."""

  records: list[bytes]
  sizes: Sizes
  unknown: int


def dtype_of(vocabulary: Vocabulary) -> np.dtype:
  """Of a token on disk."""
  return np.dtype('<u2' if vocabulary.size <= 1 << 16 else '<u4')


def coded(chunk: list[tuple[str, ...]], tokenizer: Tokenizer) -> Coded:
  """Documents, given as sentences, as the records of `token_records`."""
  found, vocabulary = tokenised(chunk, tokenizer), tokenizer.vocabulary
  sizes = Sizes(found.sentences, found.documents)
  tokens, ends = found.tokens.astype(dtype_of(vocabulary)), np.cumsum(sizes.tokens()).tolist()
  return Coded([tokens[begin:end].tobytes() + np.packbits(found.starts[begin:end]).tobytes()
                for begin, end in zip([0, *ends], ends)], sizes, unknown(tokens, vocabulary))


def unknown(tokens: np.ndarray, vocabulary: Vocabulary) -> int:
  """How many of the tokens stand for what the vocabulary does not know."""
  return 0 if vocabulary.unk is None else int(np.count_nonzero(tokens == vocabulary.unk))


# --- processes ------------------------------------------------------------------------------------


class Coder:
  """`with Coder(workers, tokenizer) as code`: code(chunks) -> Coded, in their order."""

  def __init__(self, workers: int, tokenizer: Tokenizer):
    self._workers, self._tokenizer, self._pool = workers, tokenizer, None

  def __enter__(self):
    if not self._workers:
      return lambda chunks: (coded(chunk, self._tokenizer) for chunk in chunks)
    # Spawned: forking after the tokenizers library started threads may hang.
    self._pool = multiprocessing.get_context('spawn').Pool(
      self._workers, _start, (self._tokenizer,))
    return self._in_workers

  def __exit__(self, *exception) -> None:
    if self._pool is not None:
      self._pool.terminate()
      self._pool.join()

  def _in_workers(self, chunks: Iterable) -> Iterator[Coded]:
    """Pool.imap would read the whole corpus ahead; this reads a few chunks per worker."""
    waiting = deque()
    for chunk in chunks:
      waiting.append(self._pool.apply_async(_in_worker, (chunk,)))
      if len(waiting) > 2 * self._workers:
        yield waiting.popleft().get()
    while waiting:
      yield waiting.popleft().get()


_WORK = []  # the tokenizer of this worker process


def _start(tokenizer: Tokenizer) -> None:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # One core per process.
  _WORK[:] = [tokenizer]


def _in_worker(chunk: list[tuple[str, ...]]) -> Coded:
  return coded(chunk, *_WORK)
