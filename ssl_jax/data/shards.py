"""Files of records: their names, whether they are whole, how a new split is put in place.

What is in the records is said in `array_records` (images) and `token_records` (text).
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

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


def records(files: Iterable[str]) -> Any:
  """The records of all files, by number. Open them where they are used: readers do not travel."""
  from array_record.python.array_record_data_source import ArrayRecordDataSource
  return ArrayRecordDataSource(list(files))


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
