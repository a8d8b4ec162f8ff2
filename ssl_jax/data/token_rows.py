"""Rows of one text: packed, a piece in each, or (in evaluation) the first piece of a document.

Training reads `draw(i, seed, epoch)`: packed rows differ from epoch to epoch, see
`ssl_jax.data.packing`. Evaluation has one row per document, in the order of the corpus.
"""

import hashlib

import numpy as np

from ssl_jax.data import packing
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_frames import Fields, Frame, Piece
from ssl_jax.data.token_store import Store

# Part of every fingerprint: raise it when rows of the same tokens change.
VERSION = 1


class Rows:
  """What all kinds of rows share."""

  labels = None

  def __init__(self, store: Store, length: int):
    self.store, self.frame = store, Frame(length, store.vocabulary)
    self.vocabulary, self.classes = store.vocabulary, store.classes

  def fingerprint(self) -> str:
    about = (VERSION, type(self).__name__, self.store.fingerprint(), self.frame.length)
    return hashlib.sha256(repr(about).encode()).hexdigest()

  def parts(self) -> dict[str, str]:
    """What the fingerprint is made of, see `sources.Source`."""
    return {**self.store.parts(), 'the length of a row': str(self.frame.length),
            'the kind of rows': type(self).__name__}

  def documents(self) -> 'Documents':
    """The same text as evaluation sees it."""
    return Documents(self.store, self.frame.length)

  def _labels_of(self, document: int) -> Fields:
    return {name: array[document] for name, array in self.store.labels.items()}

  def _report(self, rest: str) -> str:
    tokens = int(self.store.sizes.sentences.sum(dtype=np.int64))
    empty = int(np.count_nonzero(self.store.sizes.tokens() == 0))
    return (f'{len(self.store):,} documents ({empty:,} empty), {tokens:,} tokens '
            f'({self.store.unknown / max(tokens, 1):.2%} unknown), {len(self):,} rows of '
            f'{self.frame.length}: {rest}')


class Documents(Rows):
  """Evaluation: row i is the first piece of document i, an empty one too."""

  def __init__(self, store: Store, length: int):
    super().__init__(store, length)
    self.labels = store.labels.get('label')

  def lengths(self) -> np.ndarray:
    """Tokens of each row that are no padding, [N]."""
    own = self.frame.head + self.frame.tail
    return np.minimum(self.store.sizes.tokens(), self.frame.body) + own

  def counts(self) -> np.ndarray:
    """How often each token of the vocabulary occurs in the rows, special ones left out, [V]."""
    total = np.zeros(self.vocabulary.size, np.int64)
    for i in range(len(self.store)):
      np.add.at(total, self.store.read(i)[0][:self.frame.body], 1)
    return total

  def __len__(self) -> int:
    return len(self.store)

  def __getitem__(self, i: int) -> Fields:
    piece = Piece(*(array[:self.frame.body] for array in self.store.read(i)))
    return self.frame.row([piece]) | self._labels_of(i)

  def report(self) -> str:
    """One line for the log."""
    lengths = self.store.sizes.tokens()
    kept, own = np.minimum(lengths, self.frame.body), self.frame.head + self.frame.tail
    filled = (kept.sum() + own * len(kept)) / (len(kept) * self.frame.length)
    cut = 1 - kept.sum() / max(lengths.sum(), 1)
    return self._report(f'{1 - filled:.2%} padding, {cut:.2%} of the tokens cut off')


class Pieces(Rows):
  """Training without packing: one piece in a row."""

  def __init__(self, store: Store, length: int):
    super().__init__(store, length)
    self._last = np.cumsum(-(-store.sizes.tokens() // self.frame.body))  # pieces up to a document
    if not self._count():
      raise DataError('all documents are empty once they are tokenised: nothing to train on')

  def _count(self) -> int:
    return int(self._last[-1])

  def __len__(self) -> int:
    return self._count()

  def __getitem__(self, i: int) -> Fields:
    document, piece = self._piece(i)
    return self.frame.row([piece]) | self._labels_of(document)

  def _piece(self, number: int) -> tuple[int, Piece]:
    """The document that it is of, and the piece."""
    document = int(np.searchsorted(self._last, number, side='right'))
    within = number - (int(self._last[document - 1]) if document else 0)
    span = slice(within * self.frame.body, (within + 1) * self.frame.body)
    return document, Piece(*(array[span] for array in self.store.read(document)))

  def _piece_lengths(self) -> np.ndarray:
    """Tokens of all pieces, with the special ones, int32."""
    lengths, body = self.store.sizes.tokens(), self.frame.body
    pieces = np.full(self._count(), body, np.int32)
    some = lengths > 0
    pieces[self._last[some] - 1] = (lengths[some] - 1) % body + 1
    return pieces + np.int32(self.frame.head + self.frame.tail)

  def report(self) -> str:
    """One line for the log."""
    lengths = self._piece_lengths()
    filled = lengths.sum(dtype=np.int64) / (len(lengths) * self.frame.length)
    return self._report(f'{1 - filled:.2%} padding')


class Packed(Pieces):
  """Training with several pieces in a row, others in each epoch."""

  def __init__(self, store: Store, length: int):
    super().__init__(store, length)
    self._lengths = self._piece_lengths()
    self._rows = packing.rows(self._lengths, length)
    self._plans = {}

  def __getstate__(self):
    return {**self.__dict__, '_plans': {}}

  def __len__(self) -> int:
    return self._rows

  def __getitem__(self, i: int) -> Fields:
    return self.draw(i, seed=0, epoch=0)

  def draw(self, i: int, *, seed: int, epoch: int) -> Fields:
    """Row i of the epoch."""
    pieces = self._plan(seed, epoch).row(i).tolist()
    return self.frame.row([self._piece(number)[1] for number in pieces])

  def _plan(self, seed: int, epoch: int) -> packing.Plan:
    if (seed, epoch) not in self._plans:
      # The last epoch's too: where batches are read ahead, two are in use for a while.
      self._plans = dict(list(self._plans.items())[-1:])
      self._plans[seed, epoch] = packing.plan(
        self._lengths, self.frame.length, seed=seed, epoch=epoch)
    return self._plans[seed, epoch]

  def report(self) -> str:
    """One line for the log."""
    plan = self._plan(0, 0)
    waste = packing.waste(plan, self._lengths, self.frame.length)
    return self._report(f'{waste:.2%} padding, {packing.left_out(plan, self._lengths):.2%} of the '
                        f'tokens left out, others in each epoch')
