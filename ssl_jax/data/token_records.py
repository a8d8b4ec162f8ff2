"""Tokens of text as ArrayRecord shards: tokenised once, read in any order, from few files.

  path/train-00000-of-00008.array_record ...  one record per document: its tokens as uint16 or
                                              uint32 (little-endian), a bit per token: begins
                                              a word?
  path/train.sentences.npy                    int32 [S], the tokens of each sentence
  path/train.documents.npy                    int32 [N], the sentences of each document
  path/train.labels.NAME.npy                  int32 [N], where the corpus has labels
  path/tokenizer.json                         and special_tokens_map.json: what made them
  path/train.json                             counts, vocabulary, digests, origin; written last

`python -m ssl_jax tokenizer encode` writes them. Packing needs the two small arrays only.
"""

import functools
import hashlib
import itertools
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from ssl_jax.data.documents import Corpus
from ssl_jax.data.shards import Records as Shards
from ssl_jax.data.shards import check_counts, file_name, put_in_place, writer
from ssl_jax.data.sources import DataError
from ssl_jax.data.special_tokens import Vocabulary
from ssl_jax.data.token_coding import Coded, Coder, Sizes, dtype_of
from ssl_jax.data.tokenize import Tokenizer, chunks

VERSION = 1
SHARDS = 8


class Records:
  """The documents of one split, in tokens; travels to workers as its path."""

  def __init__(self, folder: epath.Path, split: str, about: dict, sizes: Sizes,
               labels: dict[str, np.ndarray]):
    self._folder, self._split, self._about = folder, split, about
    self.sizes, self.labels = sizes, labels
    self.vocabulary = Vocabulary(**{
      name: tuple(value) if isinstance(value, list) else value
      for name, value in about['vocabulary'].items()})
    self.classes = tuple(about['classes'])
    self.unknown = about['unknown']
    self._lengths = sizes.tokens()

  def __reduce__(self):
    return read_records, (str(self._folder), self._split)

  def __len__(self) -> int:
    return len(self.sizes.documents)

  @functools.cached_property
  def _records(self) -> Shards:
    return Shards(_files(self._folder, self._split, self._about), self._about['counts'])

  def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of document i and whether each begins a word."""
    record = self._records[int(i)]
    kind, length = np.dtype(self._about['dtype']), int(self._lengths[i])
    if len(record) != length * kind.itemsize + -(-length // 8):
      raise DataError(f'document {i} of {self._folder}/{self._split} has another length than '
                      f'{self._split}.sentences.npy says: shards of another run?')
    tokens = np.frombuffer(record, kind, length)
    starts = np.unpackbits(np.frombuffer(record, np.uint8, offset=tokens.nbytes), count=length)
    return tokens, starts.astype(bool)

  def fingerprint(self) -> str:
    """A digest of all records, as they were written, and of the tokenizer."""
    about = [self._about[name] for name in ('sha256', 'sizes', 'tokenizer')]
    return hashlib.sha256(repr((VERSION, about)).encode()).hexdigest()

  def parts(self) -> dict[str, str]:
    """What changes with what, see `sources.Source`; the same text has other records with another
    tokenizer."""
    return {'the text': self._about['corpus'], 'the tokenizer': self._about['tokenizer'],
            'the records': self._about['sha256']}


# --- reading --------------------------------------------------------------------------------------


def read_records(path: str, split: str) -> Records:
  """Opens a split.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a split that there is not.
    DataError: something is missing or damaged.
  """
  folder = epath.Path(path).expanduser()
  about = _read_about(folder, split)
  sizes = Sizes(*(_load(folder / f'{split}.{name}.npy') for name in Sizes._fields))
  labels = {name: _load(folder / f'{split}.labels.{name}.npy') for name in about['labels']}
  if _digest(sizes, labels) != about['sizes']:
    raise DataError(f'the arrays {folder}/{split}.*.npy are not those that {split}.json was '
                    f'written with: damaged, or of another run')
  check_counts(_files(folder, split, about), about['counts'], 'documents')
  return Records(folder, split, about, sizes, labels)


def _read_about(folder: epath.Path, split: str) -> dict:
  if not folder.is_dir():
    raise FileNotFoundError(2, 'no such folder of tokens', str(folder))
  file = folder / f'{split}.json'
  if not file.exists():
    others = sorted({path.name.split('-')[0] for path in folder.glob('*.array_record')})
    raise ValueError(f'{folder} has no split {split!r}, but {", ".join(others) or "none"}; '
                     f'`python -m ssl_jax tokenizer encode --split={split}` makes it')
  try:
    about = json.loads(file.read_text())
    if about.get('kind') != 'tokens':
      raise DataError(f'{file} does not describe tokens; is it of `ssl_jax pack`, images?')
    if about['version'] != VERSION:
      raise DataError(f'{file} is of version {about["version"]}, this code reads {VERSION}')
    return about
  except (ValueError, KeyError, AttributeError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f'{file} is damaged: {error}') from error


def _load(file: epath.Path) -> np.ndarray:
  try:
    with file.open('rb') as stream:
      return np.load(stream, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{file} is damaged or missing: {error}') from error


def _files(folder: epath.Path, split: str, about: dict) -> list[str]:
  shards = len(about['counts'])
  return [str(folder / file_name(split, i, shards)) for i in range(shards)]


def _digest(sizes: Sizes, labels: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name, array in (*sizes._asdict().items(), *sorted(labels.items())):
    digest.update(repr((name, array.shape)).encode())
    digest.update(np.ascontiguousarray(array, '<i4'))
  return digest.hexdigest()


# --- writing --------------------------------------------------------------------------------------


def write_records(path: str | pathlib.Path, split: str, corpus: Corpus, tokenizer: Tokenizer, *,
                  workers: int = 0, overwrite: bool = False, about: Mapping[str, Any] | None = None,
                  progress: Callable[[int], None] = lambda count: None) -> dict[str, Any]:
  """Tokenises a corpus and writes it; all of it or nothing. Memory is that of a few chunks.

  Args:
    path: local folder, made if need be; other splits in it stay.
    split: its name.
    corpus: the documents.
    tokenizer: what makes tokens of them; one folder has one tokenizer.
    workers: processes that tokenise; the same bytes for any number.
    overwrite: replace a split of the same name.
    about: what else to say in the split's JSON file.
    progress: is told how many more documents are written.

  Returns:
    The contents of the JSON file.

  Raises:
    FileExistsError: there is such a split, and `overwrite` is False.
    DataError: no documents, or the folder's tokens are of another tokenizer.
  """
  path = pathlib.Path(path).expanduser()
  if (path / f'{split}.json').exists() and not overwrite:
    raise FileExistsError(17, f'there is a split {split!r} already; --overwrite replaces it',
                          str(path))
  if not len(corpus):
    raise DataError('there are no documents to tokenise')
  _check_tokenizer(path, split, tokenizer)
  path.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(dir=path, prefix=f'.{split}.'))
  try:
    with Coder(workers, tokenizer) as code:
      written = _write(part, split, corpus, code, tokenizer, progress)
    tokenizer.save(part / 'tokenizer.json')
    written = dict(about or {}, **written)
    (part / f'{split}.json').write_text(json.dumps(written, indent=2) + '\n')
    put_in_place(path, part, split)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return written


def _check_tokenizer(path: pathlib.Path, split: str, tokenizer: Tokenizer) -> None:
  for file in path.glob('*.documents.npy'):
    other = file.name.removesuffix('.documents.npy')
    if other == split or not (path / f'{other}.json').exists():
      continue
    if _read_about(epath.Path(path), other)['tokenizer'] != tokenizer.fingerprint():
      raise DataError(f'{path} holds the split {other!r} of another tokenizer; use its '
                      f'tokenizer.json, or another folder')


def _write(part: pathlib.Path, split: str, corpus: Corpus, code, tokenizer: Tokenizer,
           progress) -> dict[str, Any]:
  """Shards and arrays; returns what the JSON file says of them."""
  shards = min(SHARDS, len(corpus))
  bounds = np.linspace(0, len(corpus), shards + 1).astype(int)
  digest, sizes, unknown = hashlib.sha256(), [], 0
  for i, (first, last) in enumerate(itertools.pairwise(bounds.tolist())):
    coded = _watched(code(chunks(corpus[k] for k in range(first, last))), progress)
    for chunk in _write_shard(part / file_name(split, i, shards), coded, digest):
      sizes.append(chunk.sizes)
      unknown += chunk.unknown
  sizes = Sizes(*map(np.concatenate, zip(*sizes)))
  labels = {name: np.asarray(array, np.int32) for name, array in corpus.labels.items()}
  for name, array in (*sizes._asdict().items(),
                      *((f'labels.{name}', array) for name, array in labels.items())):
    np.save(part / f'{split}.{name}.npy', array)
  return dict(
    kind='tokens', version=VERSION, counts=np.diff(bounds).tolist(), documents=len(corpus),
    tokens=int(sizes.sentences.sum(dtype=np.int64)), unknown=unknown,
    dtype=dtype_of(tokenizer.vocabulary).str, vocabulary=tokenizer.vocabulary._asdict(),
    tokenizer=tokenizer.fingerprint(), corpus=corpus.fingerprint(), classes=list(corpus.classes),
    labels=sorted(labels), sizes=_digest(sizes, labels), sha256=digest.hexdigest())


def _watched(coded: Iterable[Coded], progress) -> Iterator[Coded]:
  for chunk in coded:
    yield chunk
    progress(len(chunk.records))


def _write_shard(file: pathlib.Path, coded: Iterable[Coded], digest) -> Iterator[Coded]:
  out = writer(file)
  try:
    for chunk in coded:
      for record in chunk.records:
        out.write(record)
        digest.update(record)
      yield chunk
  finally:
    out.close()


class Progress:
  """A line on stderr every few seconds."""

  def __init__(self, total: int, doing: str, every: float = 5.0):
    self._total, self._doing, self._every, self._done = total, doing, every, 0
    self._began = self._said = time.monotonic()

  def __call__(self, count: int) -> None:
    self._done += count
    now = time.monotonic()
    if now - self._said > self._every:
      self._said = now
      left = (self._total - self._done) * (now - self._began) / self._done
      print(f'{self._done:,} of {self._total:,} documents {self._doing}  {left:.0f} s left',
            file=sys.stderr, flush=True)
