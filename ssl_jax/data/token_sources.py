"""Rows of tokens for language models: of fixed length, packed, or pairs of sentences.

Every public function of this module is a choice of `config.data.name`. A document becomes
  [CLS] tokens [SEP]        (tokens <|endoftext|> with a vocabulary like GPT-2's)
and a longer one several such pieces of at most `length` tokens. A row has
  tokens     int32 [L]  filled up with padding
  segments   int32 [L]  1, 2, ...: the number of the piece within the row; 0 is padding
  positions  int32 [L]  from 0 in each piece
  words      int32 [L]  the number of the word within the row; -1: a special token or padding
and with pairs 'types' int32 [L] (0: A, 1: B) and 'next' int32. Rows of one document have its
labels.

Training reads `draw(i, seed, epoch)`: packed rows differ from epoch to epoch, see
`ssl_jax.data.packing`. Evaluation has one row per document, in the order of the corpus: its first
piece.
"""

import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ssl_jax.data import corpora, packing
from ssl_jax.data.corpora import Corpus
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_records import Progress, Sizes, read_records, unknown
from ssl_jax.data.tokenize import Tokenizer, Vocabulary, chunks, load, tokenised

# Part of every fingerprint: raise it when rows of the same tokens change.
VERSION = 1
# Pairs that are shorter than they could be: BERT's short_seq_prob.
SHORT = 0.1
# A report on pairs looks at so many rows.
SAMPLE = 256

WORDNET_VOCABULARY = pathlib.Path(__file__).parent / 'embedded' / 'wordnet_glosses' / 'vocab.txt'

Fields = dict[str, np.ndarray]
Pairing = Literal['nsp', 'sop'] | None


# --- documents in tokens --------------------------------------------------------------------------


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


class InMemory:
  """A tokenised corpus: 3 bytes per token (5 with a vocabulary above 65,536), and its lengths."""

  def __init__(self, corpus: Corpus, tokenizer: Tokenizer):
    self.vocabulary, self.classes = tokenizer.vocabulary, tuple(corpus.classes)
    self.labels = {name: np.asarray(array, np.int32) for name, array in corpus.labels.items()}
    self._fingerprint = f'{corpus.fingerprint()} {tokenizer.fingerprint()}'
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
    return self._fingerprint


# --- rows -----------------------------------------------------------------------------------------


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
    """[CLS] A [SEP] B [SEP], one segment of two types."""
    tokens, segments, positions, words = self._empty()
    middle = 1 + len(a.tokens)
    end = middle + 1 + len(b.tokens)
    tokens[0], tokens[[middle, end]] = self.vocabulary.cls, self.vocabulary.sep
    tokens[1:middle], tokens[middle + 1:end] = a.tokens, b.tokens
    _number(words[middle + 1:end], b.starts, _number(words[1:middle], a.starts, 0))
    segments[:end + 1] = 1
    positions[:end + 1] = self._positions[:end + 1]
    types = ((self._positions > middle) & (self._positions <= end)).astype(np.int32)
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


class Rows:
  """What all kinds of rows share."""

  labels = None

  def __init__(self, store: Store, length: int):
    self.store, self.frame = store, Frame(length, store.vocabulary)
    self.vocabulary, self.classes = store.vocabulary, store.classes

  def fingerprint(self) -> str:
    about = (VERSION, type(self).__name__, self.store.fingerprint(), self.frame.length)
    return hashlib.sha256(repr(about).encode()).hexdigest()

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


# --- pairs ----------------------------------------------------------------------------------------


class Pairs(Rows):
  """[CLS] A [SEP] B [SEP] for next-sentence or sentence-order prediction.

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
    self._most = length - 3
    if self._most < 2:
      raise ValueError(f'length must be at least 5 for a pair, [CLS] A [SEP] B [SEP]; got {length}')
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


# --- the choices of config.data.name --------------------------------------------------------------


def wordnet_glosses(*, split: str = 'train', tokenizer: str | None = None, length: int = 128,
                    pack: bool = True, pairs: Pairing = None,
                    training: bool = True) -> Rows:
  """Real text that ships with the package: WordNet's glosses, labelled by lexicographer class.

  Args:
    split: 'train', 'validation' or 'test'.
    tokenizer: a tokenizer.json or vocab.txt; None is the vocabulary that ships with the text: 8,192
      pieces of uncased WordPiece, learned from its training split.
    length: of a row, in tokens.
    pack: several documents in a row (training only).
    pairs: pairs of sentences for next-sentence or sentence-order prediction, instead of packing.
    training: packed rows or pieces by `draw`; False: a row per document, in order, with labels.

  Raises:
    FileNotFoundError, ValueError, DataError: as `ssl_jax.data.corpora` and `tokenize.load`; also a
      length without space for a token, or both `pack` and `pairs`.
  """
  _check(pack, pairs)
  corpus = corpora.wordnet_glosses(split=split)
  return _rows_of(corpus, tokenizer or str(WORDNET_VOCABULARY), length, pack, pairs, training)


def text_files(*, path: str, split: str = 'train', documents: Literal['line', 'blank'] = 'line',
               tokenizer: str, length: int = 128, pack: bool = True,
               pairs: Pairing = None, training: bool = True) -> Rows:
  """Plain text; tokenised in memory when the run begins, see `token_records` for large corpora.

  Args:
    path, split, documents: as `ssl_jax.data.corpora.text_files`.
    tokenizer, length, pack, pairs, training: as `wordnet_glosses`.
  """
  _check(pack, pairs)
  corpus = corpora.text_files(path=path, split=split, documents=documents)
  return _rows_of(corpus, tokenizer, length, pack, pairs, training)


def jsonl(*, path: str, split: str = 'train', field: str = 'text', label: str | None = None,
          tokenizer: str, length: int = 128, pack: bool = True,
          pairs: Pairing = None, training: bool = True) -> Rows:
  """JSON Lines; tokenised in memory when the run begins.

  Args:
    path, split, field, label: as `ssl_jax.data.corpora.jsonl`.
    tokenizer, length, pack, pairs, training: as `wordnet_glosses`.
  """
  _check(pack, pairs)
  corpus = corpora.jsonl(path=path, split=split, field=field, label=label)
  return _rows_of(corpus, tokenizer, length, pack, pairs, training)


def tfds_text(*, dataset: str, split: str = 'train', data_dir: str | None = None,
              field: str = 'text', label: str | None = None, tokenizer: str, length: int = 128,
              pack: bool = True, pairs: Pairing = None, training: bool = True) -> Rows:
  """A text dataset of TFDS; tokenised in memory when the run begins.

  Args:
    dataset, split, data_dir, field, label: as `ssl_jax.data.corpora.tfds_text`.
    tokenizer, length, pack, pairs, training: as `wordnet_glosses`.
  """
  _check(pack, pairs)
  corpus = corpora.tfds_text(dataset=dataset, split=split, data_dir=data_dir, field=field,
                             label=label)
  return _rows_of(corpus, tokenizer, length, pack, pairs, training)


def token_records(*, path: str, split: str = 'train', length: int = 128, pack: bool = True,
                  pairs: Pairing = None, training: bool = True) -> Rows:
  """Tokens written by `python -m ssl_jax tokenizer encode`; read from disk as they are needed.

  Args:
    path, split: as they were written.
    length, pack, pairs, training: as `wordnet_glosses`.
  """
  _check(pack, pairs)
  return _rows(read_records(path, split), length, pack, pairs, training)


def _check(pack: bool, pairs: Pairing) -> None:
  if pack and pairs is not None:
    raise ValueError(f'pairs={pairs!r} fill a row each and cannot be packed: set pack=False')


def _rows_of(corpus: Corpus, tokenizer: str, length: int, pack: bool, pairs: Pairing,
             training: bool) -> Rows:
  loaded = load(tokenizer)
  Frame(length, loaded.vocabulary)  # A wrong length is known before a large corpus is tokenised.
  return _rows(InMemory(corpus, loaded), length, pack, pairs, training)


def _rows(store: Store, length: int, pack: bool, pairs: Pairing, training: bool) -> Rows:
  if pairs is not None:
    return Pairs(store, length, pairs, training)
  if not training:
    return Documents(store, length)
  return (Packed if pack else Pieces)(store, length)
