"""Rows of tokens for language models: of fixed length, packed, or pairs of sentences.

Every public function of this module is a choice of `config.data.name`. A document becomes
  [CLS] tokens [SEP]        (tokens <|endoftext|> with a vocabulary like GPT-2's)
and a longer one several such pieces of at most `length` tokens. What a row holds is said in
`token_frames`; pairs also have 'next' int32, and rows of one document its labels.

Training reads `draw(i, seed, epoch)`. Evaluation has one row per document, in the order of the
corpus: its first piece (`token_rows`, `token_pairs`).
"""

import pathlib
from typing import Literal

from ssl_jax.data import corpora
from ssl_jax.data.documents import Corpus
from ssl_jax.data.token_frames import Frame
from ssl_jax.data.token_pairs import Pairs
from ssl_jax.data.token_records import read_records
from ssl_jax.data.token_rows import Documents, Packed, Pieces, Rows
from ssl_jax.data.token_store import InMemory, Store
from ssl_jax.data.tokenize import load

WORDNET_VOCABULARY = pathlib.Path(__file__).parent / 'embedded' / 'wordnet_glosses' / 'vocab.txt'

Pairing = Literal['nsp', 'sop'] | None


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
