"""Rows of two texts, for next-sentence and sentence-order prediction."""

import hashlib
from collections.abc import Iterator

import numpy as np

from ssl_jax.data.sources import DataError
from ssl_jax.data.token_coding import Sizes
from ssl_jax.data.token_frames import Fields, Piece
from ssl_jax.data.token_rows import Rows
from ssl_jax.data.token_store import Store

# Pairs that are shorter than they could be: BERT's short_seq_prob.
SHORT = 0.1
# A report on pairs looks at so many rows.
SAMPLE = 256


class Pairs(Rows):
  """[CLS] A [SEP] B [SEP] (see `token_frames`) for next-sentence or sentence-order prediction.

  A document is cut, between sentences, into chunks that fill a row; a chunk is an example. Drawn
  anew in each epoch, from (seed, epoch, i): where A ends, and
    'nsp'  half of the time B is from a random place of another document (next = 1), otherwise
           what follows A (0); a chunk of one sentence always has the former, so that more than half
           of the labels may be 1 (google-research/bert create_pretraining_data.py:225-340);
    'sop'  half of the time A and B are swapped (next = 1); a chunk of one sentence has a random B
           as above (google-research/albert create_pretraining_data.py:313-348).
  One example in ten is shorter, down to two tokens; what is too long is cut at a random end of the
  longer one. Unlike in BERT's files, what a random B replaces is not seen until another epoch draws
  otherwise: there, the number of examples depends on the draw.
  """

  def __init__(self, store: Store, length: int, kind: str, training: bool):
    super().__init__(store, length)
    if not (self.frame.head and self.frame.tail):
      raise ValueError('pairs need a tokenizer with [CLS] and [SEP]')
    self._most = self.frame.pair_body
    if self._most < 2:
      raise ValueError(f'length must be at least {length - self._most + 2} for a pair, '
                       f'[CLS] A [SEP] B [SEP]; got {length}')
    if kind not in ('nsp', 'sop'):
      raise ValueError(f"pairs must be 'nsp', 'sop' or None, got {kind!r}")
    self._kind, self._training = kind, training
    if not training:
      self.labels = store.labels.get('label')
    self._ends = np.append(0, np.cumsum(store.sizes.sentences, dtype=np.int64))
    self._sentences = store.sizes.sentence_ends()
    self._texts = np.flatnonzero(store.sizes.tokens())
    if len(self._texts) < 2:
      raise DataError('pairs need at least two documents that are not empty, to have a random B')
    found = _chunks(store.sizes, self._most)
    self._chunks = np.array(list(found) if training else _firsts(found, store.sizes), np.int64)

  def __len__(self) -> int:
    return len(self._chunks)

  def __getitem__(self, i: int) -> Fields:
    return self.draw(i, seed=0, epoch=0)

  def draw(self, i: int, *, seed: int, epoch: int) -> Fields:
    """Example i of the epoch."""
    rng = np.random.Generator(np.random.Philox(key=(seed, epoch), counter=(0, 0, i, 0)))
    document, first, last = self._chunks[i].tolist()
    a, b, label = self._halves(rng, document, self._filled(first, last))
    fields = self.frame.pair(*_cut(rng, a, b, self._most))
    return fields | {'next': np.int32(label)} | self._labels_of(document)

  def _halves(self, rng, document: int, sentences: np.ndarray) -> tuple[Piece, Piece, int]:
    target = self._most
    if rng.random() < SHORT:
      target = int(rng.integers(2, self._most + 1))
    sentences = self._up_to(sentences, target)
    end = int(rng.integers(1, len(sentences))) if len(sentences) > 1 else len(sentences)
    a, rest = self._text(document, sentences[:end]), sentences[end:]
    odd = rng.random() < 0.5
    if not len(rest) or (odd and self._kind == 'nsp'):
      return a, self._random(rng, document, target - len(a.tokens)), 1
    b = self._text(document, rest)
    return (b, a, 1) if odd else (a, b, 0)

  def _random(self, rng, document: int, target: int) -> Piece:
    """Sentences of another document, from a random one on."""
    own = np.searchsorted(self._texts, document)
    is_text = int(own < len(self._texts) and self._texts[own] == document)
    pick = int(rng.integers(len(self._texts) - is_text))
    other = int(self._texts[pick + (is_text and pick >= own)])
    last = int(self._sentences[other])
    sentences = self._filled(last - int(self.store.sizes.documents[other]), last)
    begin = int(rng.integers(len(sentences)))
    return self._text(other, self._up_to(sentences[begin:], target))

  def _filled(self, first: int, last: int) -> np.ndarray:
    """The numbers of the sentences that have tokens."""
    return first + np.flatnonzero(self.store.sizes.sentences[first:last])

  def _up_to(self, sentences: np.ndarray, target: int) -> np.ndarray:
    """As many as `target` tokens take, at least one."""
    tokens = np.cumsum(self.store.sizes.sentences[sentences])
    return sentences[:int(np.searchsorted(tokens, max(target, 1))) + 1]

  def _text(self, document: int, sentences: np.ndarray) -> Piece:
    if not len(sentences):
      return Piece(np.zeros(0, np.int32), np.zeros(0, bool))
    first = self._sentences[document] - self.store.sizes.documents[document]
    begin = self._ends[first]
    span = slice(self._ends[sentences[0]] - begin, self._ends[sentences[-1] + 1] - begin)
    return Piece(*(array[span] for array in self.store.read(document)))

  def fingerprint(self) -> str:
    about = (super().fingerprint(), self._kind, self._training, SHORT)
    if self.vocabulary.separators != 1:
      about += (self.vocabulary.separators,)
    return hashlib.sha256(repr(about).encode()).hexdigest()

  def report(self) -> str:
    """One line for the log."""
    sample = [self[int(i)] for i in np.unique(np.linspace(0, len(self) - 1, SAMPLE).astype(int))]
    padding = np.mean([np.mean(row['segments'] == 0) for row in sample])
    return self._report(f'about {padding:.0%} padding, labels are 1 in '
                        f'{np.mean([row["next"] for row in sample]):.0%}')


def _chunks(sizes: Sizes, most: int) -> Iterator[tuple[int, int, int]]:
  """(document, first sentence, last + 1): sentences until `most` tokens are reached."""
  sentences, end = sizes.sentences.tolist(), 0
  for document, count in enumerate(sizes.documents.tolist()):
    begin, end, tokens = end, end + count, 0
    for i in range(begin, end):
      tokens += sentences[i]
      if tokens >= most or (i == end - 1 and tokens):
        yield document, begin, i + 1
        begin, tokens = i + 1, 0


def _firsts(found: Iterator[tuple[int, int, int]], sizes: Sizes) -> list[tuple[int, int, int]]:
  """The first chunk of every document, an empty one where there is none."""
  first = {}
  for chunk in found:
    first.setdefault(chunk[0], chunk)
  return [first.get(document, (document, 0, 0)) for document in range(len(sizes.documents))]


def _cut(rng, a: Piece, b: Piece, most: int) -> tuple[Piece, Piece]:
  """At most `most` tokens: the longer one loses, each token at the front or the back.

  In closed form what google-research/bert's truncate_seq_pair does token by token.
  """
  lengths = len(a.tokens), len(b.tokens)
  if sum(lengths) <= most:
    return a, b
  if min(lengths) <= most // 2:
    keep = [min(n, most - min(lengths)) for n in lengths]
  else:
    keep = [most - most // 2, most // 2]
  return tuple(_shortened(rng, one, n) for one, n in zip((a, b), keep))


def _shortened(rng, piece: Piece, length: int) -> Piece:
  front = int(rng.binomial(len(piece.tokens) - length, 0.5))
  return Piece(*(array[front:front + length] for array in piece))
