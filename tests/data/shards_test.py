"""Shards: written, read, counted; a new split replaces an old one."""

import pytest

from ssl_jax.data.shards import Records, check_counts, file_name, put_in_place, writer
from ssl_jax.data.sources import DataError


def shard(path, *values):
  out = writer(path)
  for value in values:
    out.write(value)
  out.close()
  return str(path)


def test_records_are_read_over_all_files(tmp_path):
  files = [shard(tmp_path / file_name('a', i, 2), *values)
           for i, values in enumerate(((b'x', b'yy'), (b'z',)))]
  assert files[0].endswith('a-00000-of-00002.array_record')
  found = Records(files, [2, 1])
  assert found.name(1) == f'{files[0]}[1]' and found.name(2) == f'{files[1]}[0]'
  assert len(found) == 3 and [found[i] for i in (2, 0, 1)] == [b'z', b'x', b'yy']
  check_counts(files, [2, 1], 'notes')


def test_shards_of_another_run_and_damage_are_noticed(tmp_path):
  file = shard(tmp_path / 'a', b'x')
  with pytest.raises(DataError, match='a has 1 notes, not 2: it is damaged, or of another run'):
    check_counts([file], [2], 'notes')
  (tmp_path / 'a').write_bytes(b'nothing of the kind')
  for path in (file, str(tmp_path / 'none')):
    with pytest.raises(DataError, match=f'the shard {path} is missing or damaged'):
      check_counts([path], [1], 'notes')


def test_a_split_replaces_the_old_one_and_no_other(tmp_path):
  part = tmp_path / 'part'
  part.mkdir()
  old = [file_name('train', 0, 1), file_name('train', 1, 2), 'train.labels.npy', 'train.json']
  for name in (*old, file_name('test', 0, 1), 'test.json'):
    (tmp_path / name).write_text('old')
  for name in (file_name('train', 0, 1), 'train.json'):
    (part / name).write_text('new')
  put_in_place(tmp_path, part, 'train')
  assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {
    file_name('train', 0, 1): 'new', 'train.json': 'new', file_name('test', 0, 1): 'old',
    'test.json': 'old'}
