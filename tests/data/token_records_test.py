"""Shards of tokens: what is written is read, the same bytes for any workers, damage is noticed."""

import hashlib
import json
import pickle
from itertools import islice

import numpy as np
import pytest

from ssl_jax.data.batches import batches
from ssl_jax.data.documents import Document
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_records import read_records, write_records
from ssl_jax.data.token_rows import Packed
from ssl_jax.data.token_sources import token_records
from ssl_jax.data.token_store import InMemory
from ssl_jax.data.tokenize import load, train

TEXT = [' '.join(f'w{i}' for i in range(300))] * 3


class Fake:
  """A corpus in a list; `fails` raises when it is read."""

  def __init__(self, count=50, fails=None):
    self.count, self.fails, self.classes = count, fails, ('even', 'odd')
    self.labels = {'label': np.arange(count) % 2}

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    if i == self.fails:
      raise RuntimeError('interrupted')
    return Document(tuple(f'w{i} ' * (n + 1) for n in range(i % 4)))

  def fingerprint(self):
    return f'fake {self.count}'


@pytest.fixture(scope='module')
def tokenizer():
  return train(TEXT, size=400)


@pytest.fixture
def folder(tmp_path, tokenizer):
  write_records(tmp_path / 'tokens', 'train', Fake(), tokenizer, about=dict(origin='here'))
  return tmp_path / 'tokens'


def digests(folder) -> dict[str, str]:
  return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_what_was_written_is_read(folder, tokenizer):
  records, memory = read_records(str(folder), 'train'), InMemory(Fake(), tokenizer)
  assert len(records) == 50 and records.vocabulary == tokenizer.vocabulary
  assert records.classes == ('even', 'odd') and records.unknown == memory.unknown
  for name in ('sentences', 'documents'):
    np.testing.assert_array_equal(getattr(records.sizes, name), getattr(memory.sizes, name))
  for i in range(50):
    for got, want in zip(records.read(i), memory.read(i)):
      np.testing.assert_array_equal(got, want)
  about = json.loads((folder / 'train.json').read_text())
  assert about['origin'] == 'here' and about['dtype'] == '<u2' and about['documents'] == 50
  assert load(folder / 'tokenizer.json').fingerprint() == about['tokenizer']


def test_rows_are_those_of_the_corpus_in_memory(folder, tokenizer):
  source = token_records(path=str(folder), length=16)
  memory = Packed(InMemory(Fake(), tokenizer), 16)
  assert len(source) == len(memory)
  for i in range(len(source)):
    got, want = (one.draw(i, seed=1, epoch=1) for one in (source, memory))
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])
  evaluation = token_records(path=str(folder), length=16, training=False)
  assert evaluation.labels.tolist() == [i % 2 for i in range(50)]
  assert evaluation[7]['label'] == 1
  pairs = token_records(path=str(folder), length=16, pack=False, pairs='nsp')
  assert {'types', 'next'} <= set(pairs[0])


def test_travels_to_workers(folder):
  source = token_records(path=str(folder), length=16)
  source[0]  # an open reader must not be in the way
  take = lambda workers: list(islice(batches(source, batch_size=4, seed=0, workers=workers), 3))
  for a, b in zip(take(2), take(0)):
    np.testing.assert_array_equal(a['tokens'], b['tokens'])
  assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_the_same_bytes_again_and_with_workers(folder, tmp_path, tokenizer):
  for name, workers in (('again', 0), ('workers', 2)):
    write_records(tmp_path / name, 'train', Fake(), tokenizer, workers=workers,
                  about=dict(origin='here'))
    assert digests(tmp_path / name) == digests(folder)


def test_fingerprints_change_with_text_and_tokenizer(folder, tmp_path, tokenizer):
  other = train(TEXT + ['other'], size=300)
  write_records(tmp_path / 'a', 'train', Fake(), other)
  write_records(tmp_path / 'b', 'train', Fake(49), tokenizer)
  prints = {read_records(str(path), 'train').fingerprint()
            for path in (folder, tmp_path / 'a', tmp_path / 'b')}
  assert len(prints) == 3


def test_splits_share_a_folder_and_its_tokenizer(folder, tokenizer):
  write_records(folder, 'test', Fake(5), tokenizer)
  assert len(read_records(str(folder), 'train')) == 50
  assert len(read_records(str(folder), 'test')) == 5
  with pytest.raises(DataError, match='of another tokenizer; use its tokenizer.json'):
    write_records(folder, 'more', Fake(5), train(TEXT, size=300))


def test_all_or_nothing(folder, tokenizer):
  before = digests(folder)
  with pytest.raises(FileExistsError, match='--overwrite'):
    write_records(folder, 'train', Fake(), tokenizer)
  with pytest.raises(RuntimeError, match='interrupted'):
    write_records(folder, 'train', Fake(fails=40), tokenizer, overwrite=True)
  with pytest.raises(DataError, match='there are no documents'):
    write_records(folder, 'empty', Fake(0), tokenizer)
  assert digests(folder) == before
  write_records(folder, 'train', Fake(3), tokenizer, overwrite=True)
  assert len(read_records(str(folder), 'train')) == 3
  assert len(list(folder.glob('*.array_record'))) == 3


def damage_json(folder):
  (folder / 'train.json').write_text('{')


def damage_sizes(folder):
  file = folder / 'train.sentences.npy'
  sizes = np.load(file)
  sizes[3] += 1
  np.save(file, sizes)


def cut_sizes(folder):
  file = folder / 'train.documents.npy'
  file.write_bytes(file.read_bytes()[:-7])


def remove_labels(folder):
  (folder / 'train.labels.label.npy').unlink()


def remove_shard(folder):
  (folder / 'train-00001-of-00008.array_record').unlink()


def cut_shard(folder):
  file = folder / 'train-00000-of-00008.array_record'
  file.write_bytes(file.read_bytes()[:-40])


def swap_shards(folder):
  first, second = (folder / f'train-0000{i}-of-00008.array_record' for i in (0, 3))
  content = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)


def other_kind(folder):
  (folder / 'train.json').write_text('{"version": 1, "counts": [3]}')


@pytest.mark.parametrize('damage, words', [
  (damage_json, 'train.json is damaged'), (damage_sizes, 'are not those that train.json'),
  (cut_sizes, 'documents.npy is damaged or missing'),
  (remove_labels, 'labels.label.npy is damaged or missing'),
  (remove_shard, 'train-00001-of-00008.* is missing or damaged'),
  (cut_shard, 'train-00000-of-00008.* is missing or damaged'),
  (swap_shards, 'has 7 documents, not 6'), (other_kind, 'does not describe tokens')])
def test_damage_is_noticed_before_training(folder, damage, words):
  damage(folder)
  with pytest.raises(DataError, match=words):
    token_records(path=str(folder), length=16)


def test_a_flipped_bit_is_noticed_when_it_is_read(folder):
  file = folder / 'train-00004-of-00008.array_record'
  data = bytearray(file.read_bytes())
  at = len(data) // 2
  middle = next(i for i in range(at, len(data)) if data[i])
  data[middle - 30:middle + 30] = bytes(60)
  file.write_bytes(bytes(data))
  records = None
  with pytest.raises(DataError, match='damaged'):
    records = read_records(str(folder), 'train')
    for i in range(50):
      records.read(i)


def test_mistakes(folder, tmp_path):
  with pytest.raises(ValueError, match="no split 'test', but train"):
    token_records(path=str(folder), split='test')
  with pytest.raises(FileNotFoundError, match='no such folder of tokens'):
    token_records(path=str(tmp_path / 'nowhere'))
