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
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ssl_jax.data.array_records import WRITER, _file_name, _replace
from ssl_jax.data.corpora import Corpus
from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer, Vocabulary, chunks, tokenised

VERSION = 1
SHARDS = 8


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
  def _records(self):
    # Opened where it is used: readers do not travel between processes.
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    return ArrayRecordDataSource(_files(self._folder, self._split, self._about))

  def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of document i and whether each begins a word."""
    try:
      record = self._records[int(i)]
    except Exception as error:  # riegeli's status codes come as several kinds
      raise DataError(f'document {i} of {self._folder}/{self._split} cannot be read, its shard is '
                      f'damaged: {error}') from error
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
  _check_counts(_files(folder, split, about), about['counts'])
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


def _check_counts(files: list[str], counts: list[int]) -> None:
  from array_record.python.array_record_module import ArrayRecordReader
  for file, count in zip(files, counts):
    try:
      reader = ArrayRecordReader(file)
      found = reader.num_records()
      reader.close()
    except Exception as error:  # riegeli's status codes come as several kinds
      raise DataError(f'the shard {file} is missing or damaged: {error}') from error
    if found != count:
      raise DataError(f'the shard {file} has {found} documents, not {count}: it is damaged, or of '
                      f'another run')


def _files(folder: epath.Path, split: str, about: dict) -> list[str]:
  shards = len(about['counts'])
  return [str(folder / _file_name(split, i, shards)) for i in range(shards)]


def _digest(sizes: Sizes, labels: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name, array in (*sizes._asdict().items(), *sorted(labels.items())):
    digest.update(repr((name, array.shape)).encode())
    digest.update(np.ascontiguousarray(array, '<i4'))
  return digest.hexdigest()


# --- writing --------------------------------------------------------------------------------------


class Coded(NamedTuple):
  """A chunk of documents: their records, the Sizes of it, and how many tokens are unknown."""

  records: list[bytes]
  sizes: Sizes
  unknown: int


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
    with _coder(workers, tokenizer) as code:
      written = _write(part, split, corpus, code, tokenizer, progress)
    tokenizer.save(part / 'tokenizer.json')
    written = dict(about or {}, **written)
    (part / f'{split}.json').write_text(json.dumps(written, indent=2) + '\n')
    _replace(path, part, split)
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
    for chunk in _write_shard(part / _file_name(split, i, shards), coded, digest):
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
    dtype=_dtype(tokenizer.vocabulary).str, vocabulary=tokenizer.vocabulary._asdict(),
    tokenizer=tokenizer.fingerprint(), corpus=corpus.fingerprint(), classes=list(corpus.classes),
    labels=sorted(labels), sizes=_digest(sizes, labels), sha256=digest.hexdigest())


def _watched(coded: Iterable[Coded], progress) -> Iterator[Coded]:
  for chunk in coded:
    yield chunk
    progress(len(chunk.records))


def _write_shard(file: pathlib.Path, coded: Iterable[Coded], digest) -> Iterator[Coded]:
  from array_record.python.array_record_module import ArrayRecordWriter
  writer = ArrayRecordWriter(str(file), WRITER)
  try:
    for chunk in coded:
      for record in chunk.records:
        writer.write(record)
        digest.update(record)
      yield chunk
  finally:
    writer.close()


def _dtype(vocabulary: Vocabulary) -> np.dtype:
  return np.dtype('<u2' if vocabulary.size <= 1 << 16 else '<u4')


def _coded(chunk: list[tuple[str, ...]], tokenizer: Tokenizer) -> Coded:
  found, vocabulary = tokenised(chunk, tokenizer), tokenizer.vocabulary
  sizes = Sizes(found.sentences, found.documents)
  tokens, ends = found.tokens.astype(_dtype(vocabulary)), np.cumsum(sizes.tokens()).tolist()
  return Coded([tokens[begin:end].tobytes() + np.packbits(found.starts[begin:end]).tobytes()
                for begin, end in zip([0, *ends], ends)], sizes, unknown(tokens, vocabulary))


def unknown(tokens: np.ndarray, vocabulary: Vocabulary) -> int:
  """How many of the tokens stand for what the vocabulary does not know."""
  return 0 if vocabulary.unk is None else int(np.count_nonzero(tokens == vocabulary.unk))


# --- processes ------------------------------------------------------------------------------------


class _coder:
  """`with _coder(workers, tokenizer) as code`: code(chunks) -> Coded, in their order."""

  def __init__(self, workers: int, tokenizer: Tokenizer):
    self._workers, self._tokenizer, self._pool = workers, tokenizer, None

  def __enter__(self):
    if not self._workers:
      return lambda chunks: (_coded(chunk, self._tokenizer) for chunk in chunks)
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
  return _coded(chunk, *_WORK)


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
