"""Shards: what is written is read, whole or not at all."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.array_records import Item, array_record, write_shards
from ssl_jax.data.sources import DataError


def png(value: int) -> bytes:
  out = io.BytesIO()
  Image.new('RGB', (12, 10), (value,) * 3).save(out, 'PNG')
  return out.getvalue()


@pytest.fixture
def folder(tmp_path):
  """Five encoded images and then two of pixels, in three shards."""
  pixels = [Item(np.full((9, 9, 3), i, np.uint8), i % 2) for i in (5, 6)]
  encoded = [Item(png(i), i % 2) for i in range(5)]
  assert write_shards(tmp_path / 'packed', 'train', [encoded[:3], encoded[3:], pixels],
                      classes=('even', 'odd'), about=dict(origin='here')) == 7
  return tmp_path / 'packed'


def test_what_was_written_is_read(folder):
  source = array_record(path=str(folder), size=8)
  assert len(source) == 7 and source.classes == ('even', 'odd')
  for i in range(7):
    example = source[i]
    assert (example['image'] == i).all() and example['image'].shape == (8, 8, 3)
    assert example['label'] == i % 2 and example['label'].dtype == np.int32
  assert source.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
  assert source.name(4).endswith('train-00001-of-00003.array_record[1]')
  assert json.loads((folder / 'train.json').read_text())['origin'] == 'here'


def test_travels_to_workers(folder):
  source = array_record(path=str(folder), size=8)
  source[0]  # an open reader must not be in the way
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[6]['image'], source[6]['image'])
  assert copy.fingerprint() == source.fingerprint()


def test_crops_on_the_host(folder):
  wish = dict(size=4, area=(0.2, 1.0), aspect=(1.0, 1.0), resample='bilinear')
  source = array_record(path=str(folder), crops={'crops': (wish,)})
  for i in (0, 6):
    assert source.draw(i, seed=0, epoch=0)['crops'].shape == (1, 4, 4, 3)


def test_the_fingerprint_is_that_of_the_contents(folder, tmp_path):
  before = array_record(path=str(folder)).fingerprint()
  items = [Item(png(i), 0) for i in range(2)]
  write_shards(tmp_path / 'a', 'train', [items])
  write_shards(tmp_path / 'b', 'train', [items])
  a, b = (array_record(path=str(tmp_path / name)).fingerprint() for name in 'ab')
  assert a == b != before
  assert array_record(path=str(tmp_path / 'a'), size=9).fingerprint() != a


def test_without_labels(tmp_path):
  write_shards(tmp_path, 'train', [[Item(png(3), None)]])
  source = array_record(path=str(tmp_path), size=8)
  assert source.labels is None and sorted(source[0]) == ['image']
  with pytest.raises(ValueError, match='some examples have labels'):
    write_shards(tmp_path, 'test', [[Item(png(3), None), Item(png(3), 1)]])
  assert not list(tmp_path.glob('test*')) and not list(tmp_path.glob('.test*'))


def test_nothing_is_replaced_unasked_and_a_failure_leaves_what_was(folder):
  with pytest.raises(FileExistsError, match='--overwrite'):
    write_shards(folder, 'train', [[]])

  def failing():
    yield Item(png(1), 1)
    raise RuntimeError('interrupted')

  with pytest.raises(RuntimeError):
    write_shards(folder, 'train', [failing()], overwrite=True)
  assert len(array_record(path=str(folder))) == 7
  write_shards(folder, 'train', [[Item(png(9), 0)]], overwrite=True)
  assert len(array_record(path=str(folder))) == 1
  assert len(list(folder.glob('*.array_record'))) == 1


def damage_json(folder):
  (folder / 'train.json').write_text('{')


def damage_labels(folder):
  np.save(folder / 'train.labels.npy', np.zeros(3, np.int32))


def remove_shard(folder):
  (folder / 'train-00001-of-00003.array_record').unlink()


def cut_shard(folder):
  file = folder / 'train-00000-of-00003.array_record'
  file.write_bytes(file.read_bytes()[:-40])


def swap_shards(folder):
  first, second = (folder / f'train-0000{i}-of-00003.array_record' for i in (0, 1))
  content = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)


@pytest.mark.parametrize('damage, words', [
  (damage_json, 'train.json is damaged'), (damage_labels, r'\(3,\) labels for 7'),
  (remove_shard, 'train-00001-of-00003.* is missing or damaged'),
  (cut_shard, 'train-00000-of-00003'), (swap_shards, 'has 2 images, not 3')])
def test_damage_is_noticed_before_training(folder, damage, words):
  damage(folder)
  with pytest.raises(DataError, match=words):
    array_record(path=str(folder))


def test_mistakes(folder, tmp_path):
  with pytest.raises(ValueError, match="no split 'test', but train"):
    array_record(path=str(folder), split='test')
  with pytest.raises(FileNotFoundError, match='no such folder of shards'):
    array_record(path=str(tmp_path / 'nowhere'))
