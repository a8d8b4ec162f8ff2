"""Files of records: their names, whether they are whole, how a new split is put in place.

What is in the records is said in `array_records` (images) and `token_records` (text).
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_jax.data.retries import patiently
from ssl_jax.data.sources import DataError

# A record is a chunk, so that reading one does not decompress its neighbours.
WRITER = 'group_size:1'


def file_name(split: str, shard: int, shards: int) -> str:
  """'train-00000-of-00008.array_record'."""
  return f'{split}-{shard:05d}-of-{shards:05d}.array_record'


def writer(file: pathlib.Path) -> Any:
  """An ArrayRecordWriter, to be closed."""
  from array_record.python.array_record_module import ArrayRecordWriter
  return ArrayRecordWriter(str(file), WRITER)


class Records:
  """The records of all files, by number. Make them where they are used: readers do not travel."""

  def __init__(self, files: Sequence[str], counts: Sequence[int]):
    """`counts`: how many records each file holds."""
    self._files, self._ends, self._reader = list(files), np.cumsum(counts), None

  def __len__(self) -> int:
    return int(self._ends[-1])

  def name(self, i: int) -> str:
    """'path/train-00001-of-00008.array_record[5]': the file of record i, and its place in it."""
    file = int(np.searchsorted(self._ends, i, side='right'))
    return f'{self._files[file]}[{i - (int(self._ends[file - 1]) if file else 0)}]'

  def __getitem__(self, i: int) -> bytes:
    """Raises DataError for a record that is damaged, or that cannot be read for a while."""
    return patiently(lambda: self._read(int(i)), self.name(i), (Exception,))

  def _read(self, i: int) -> bytes:
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    try:
      if self._reader is None:
        self._reader = ArrayRecordDataSource(self._files)
      return self._reader[i]
    except Exception as error:  # riegeli's status codes come as several kinds
      self._reader = None  # One that has failed may go on failing.
      refuse_damage(error, self.name(i))
      raise


def refuse_damage(error: Exception, name: str) -> None:
  """Raises a DataError if riegeli says that a record is damaged, which no second try would mend."""
  if 'Corrupted' in str(error):
    raise DataError(f'{name} is damaged: {error}') from error


def check_counts(files: Sequence[str], counts: Sequence[int], what: str) -> None:
  """Opens every shard.

  Args:
    files: paths.
    counts: how many records each must hold.
    what: they are, for the message: 'images'.

  Raises:
    DataError: one is missing, damaged, or of another run.
  """
  for file, count in zip(files, counts):
    found = _count(file)
    if found != count:
      raise DataError(f'the shard {file} has {found} {what}, not {count}: it is damaged, or of '
                      f'another run; write the split again')


def _count(file: str) -> int:
  from array_record.python.array_record_module import ArrayRecordReader
  try:
    reader = ArrayRecordReader(file)
    found = reader.num_records()
    reader.close()
  except Exception as error:  # riegeli's status codes come as several kinds
    raise DataError(f'the shard {file} is missing or damaged: {error}') from error
  return found


def put_in_place(path: pathlib.Path, part: pathlib.Path, split: str) -> None:
  """Moves a finished split from the folder `part` to `path`.

  The JSON file, without which there is no split, comes last.
  """
  index = f'{split}.json'
  (path / index).unlink(missing_ok=True)
  for old in (*path.glob(f'{split}-*-of-*.array_record'), path / f'{split}.labels.npy'):
    old.unlink(missing_ok=True)
  for file in sorted(part.iterdir(), key=lambda file: file.name == index):
    file.rename(path / file.name)
