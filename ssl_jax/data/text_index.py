"""Where the documents of text files are: files found, scanned once, and read in parts.

A file is never held in memory: it is scanned once for where its documents begin and end, and each
is read when asked for. A byte order mark at the beginning of a file is dropped; '\\n' and '\\r\\n'
end lines.
"""

import array
import codecs
import glob
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from ssl_jax.data.documents import clean
from ssl_jax.data.retries import patiently
from ssl_jax.data.sources import DataError

# Bytes of one document; more is a file of another kind, such as one without line breaks.
LARGEST = 1 << 28
# Progress of a scan is said so often.
SLOW = 5.0  # seconds


class Index(NamedTuple):
  """Where the documents of some files are.

  paths, sizes: of the files, in bytes.
  firsts: number of each file's first document, int64 [files].
  begins, ends: position of each document in its file, int64 [N].
  invalid: how many lines hold bytes that are no UTF-8.
  sha256: of the files' contents, in their order.
  """

  paths: tuple[str, ...]
  sizes: tuple[int, ...]
  firsts: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  invalid: int
  sha256: str


# --- finding and reading --------------------------------------------------------------------------


def files_of(path: str, split: str) -> list[epath.Path]:
  """The file that `path` names, or the files that match it, in the order of their names.

  Raises:
    FileNotFoundError: there is no such file, or none that matches.
    ValueError: a folder, or a split that the path does not name.
  """
  path = str(path)
  if '{split}' not in path and split != 'train':
    raise ValueError(f"{path!r} is the 'train' split; to have a split {split!r}, write '{{split}}' "
                     "in the path, as in 'my_{split}.txt'")
  file = epath.Path(path.replace('{split}', split)).expanduser()
  if file.is_dir():
    raise ValueError(f"{file} is a folder; name the files in it, as in '{file}/*.txt'")
  if file.exists():
    return [file]
  if not glob.has_magic(str(file)):
    raise FileNotFoundError(2, 'no such file of text', str(file))
  found = _matches(str(file))
  if not found:
    raise FileNotFoundError(2, 'no file of text matches', str(file))
  return found


def _matches(pattern: str) -> list[epath.Path]:
  """In the order of their names, without folders and what is hidden."""
  if '://' not in pattern:
    names = sorted(glob.glob(pattern, recursive=True))
    return [epath.Path(name) for name in names if not os.path.isdir(name)]
  if '**' in pattern:
    raise ValueError(f"'**' in {pattern!r} would ask the storage for every folder; use '*'")
  base, _, rest = pattern[:re.search(r'[*?[]', pattern).start()].rpartition('/')
  found = [file for file in epath.Path(base).glob(rest + pattern[len(base) + 1 + len(rest):])
           if not file.name.startswith('.')]
  return sorted(found, key=str)


def read_span(path: str, size: int, begin: int, end: int) -> bytes:
  """Some bytes of a file of `size` bytes; DataError if it has another size by now.

  Opened for each document: nothing to be shared between threads and processes.
  """
  return patiently(lambda: _span(path, size, begin, end), path)


def _span(path: str, size: int, begin: int, end: int) -> bytes:
  stream = epath.Path(path).open('rb') if '://' in path else open(path, 'rb')
  with stream:
    if stream.seek(0, 2) != size:
      raise DataError(f'{path} has changed since it was scanned: it was {size:,} bytes long')
    stream.seek(begin)
    return stream.read(end - begin)


# --- scanning -------------------------------------------------------------------------------------


class Line(NamedTuple):
  """A line of a file, cleaned; `text` is '' where there is nothing in it."""

  where: tuple[str, int]  # path, number from 1
  begin: int
  end: int
  text: str


# The lines of one file -> where its documents begin and end.
Finder = Callable[[Iterable[Line]], Iterator[tuple[int, int]]]


def scan(files: list[epath.Path], find: Finder) -> Index:
  """Reads all files once.

  Raises:
    DataError: a file holds no documents, is compressed or UTF-16, or a document is over `LARGEST`.
  """
  begins, ends, firsts, sizes = array.array('q'), array.array('q'), [], []
  digest, invalid, said = hashlib.sha256(), [], time.monotonic()
  for file in files:
    firsts.append(len(begins))
    lines = Lines(file)
    for begin, end in find(lines):
      begins.append(begin)
      ends.append(end)
      if len(begins) % 65536 == 0 and time.monotonic() - said > SLOW:
        said = time.monotonic()
        print(f'{file}: {len(begins):,} documents so far ...', file=sys.stderr, flush=True)
    if len(begins) == firsts[-1]:
      raise DataError(f'{file} holds no documents: it is empty, or all of its lines are')
    digest.update(lines.digest.digest())
    sizes.append(lines.size)
    invalid.append(lines.invalid)
  if sum(invalid):
    worst = files[int(np.argmax(invalid))]
    print(f'{sum(invalid):,} lines hold bytes that are no UTF-8, which are read as U+FFFD; '
          f'{max(invalid):,} of them in {worst}', file=sys.stderr, flush=True)
  return Index(tuple(map(str, files)), tuple(sizes), np.array(firsts, np.int64),
               np.array(begins, np.int64), np.array(ends, np.int64), sum(invalid),
               digest.hexdigest())


class Lines:
  """The lines of a file, one at a time; after the last, its size, digest and what was invalid."""

  def __init__(self, file: epath.Path):
    self._file, self.size, self.invalid, self.digest = file, 0, 0, hashlib.sha256()

  def __iter__(self) -> Iterator[Line]:
    path = str(self._file)
    with patiently(lambda: self._file.open('rb'), path) as stream:
      # A limit, lest a file of another kind is read as a single line.
      for number, data in enumerate(iter(lambda: stream.readline(LARGEST + 1), b''), 1):
        check_size(len(data), f'{path}, line {number}')
        self.digest.update(data)
        begin, self.size = self.size, self.size + len(data)
        if number == 1:
          _check_kind(path, data)
          if data.startswith(codecs.BOM_UTF8):
            data, begin = data[3:], begin + 3
        yield Line((path, number), begin, self.size, self._decoded(data))

  def _decoded(self, data: bytes) -> str:
    try:
      return clean(data.decode())
    except UnicodeDecodeError:
      self.invalid += 1
      return clean(data.decode('utf-8', 'replace'))


def check_size(size: int, where: str) -> None:
  """Refuses a document of more than `LARGEST` bytes with a DataError."""
  if size > LARGEST:
    raise DataError(f'{where}: a document of more than {LARGEST:,} bytes; are there line ends '
                    "('\\n'), or empty lines for documents='blank'?")


def _check_kind(path: str, data: bytes) -> None:
  kinds = {codecs.BOM_UTF16_LE: 'UTF-16', codecs.BOM_UTF16_BE: 'UTF-16', b'\x1f\x8b': 'gzip',
           b'\xfd7zXZ': 'xz', b'BZh': 'bzip2', b'\x28\xb5\x2f\xfd': 'zstd', b'PK\x03\x04': 'zip'}
  for start, kind in kinds.items():
    if data.startswith(start):
      raise DataError(f'{path} is {kind}, expected plain text in UTF-8: convert or unpack it first')
