"""Folders of images: what is found, which labels, when the kept index holds."""

import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import folders, retries
from ssl_jax.data.folders import image_folder
from ssl_jax.data.sources import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def animals(tmp_path):
  """cat: 2, dog: 1 (and one deeper), with a text file and a hidden image that do not count."""
  root = tmp_path / 'animals'
  for i, name in enumerate(('dog/b.PNG', 'cat/z.jpg', 'cat/a.jpeg', 'dog/more/x.webp')):
    write(root / name, 40 * i)
  (root / 'cat' / 'notes.txt').write_text('no image')
  write(root / 'cat' / '.hidden.png', 0)
  return settled(root)


def write(path: pathlib.Path, value: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (12, 10), (value,) * 3).save(path)


def settled(root: pathlib.Path) -> pathlib.Path:
  """As if nothing had changed for an hour."""
  for folder in (root, *(path for path in root.rglob('*') if path.is_dir())):
    old = os.stat(folder).st_mtime - 3600
    os.utime(folder, (old, old))
  return root


def names(source) -> list[str]:
  return [source.name(i) for i in range(len(source))]


def test_a_folder_per_class(animals):
  source = image_folder(path=str(animals), size=8)
  assert source.classes == ('cat', 'dog')
  assert [name.removeprefix(f'{animals}/') for name in names(source)] == [
    'cat/a.jpeg', 'cat/z.jpg', 'dog/b.PNG', 'dog/more/x.webp']
  assert source.labels.tolist() == [0, 0, 1, 1] and source.labels.dtype == np.int32
  example = source[2]
  assert example['image'].shape == (8, 8, 3) and example['label'] == 1
  assert (example['image'] == 0).all() and abs(int(source[1]['image'].mean()) - 40) < 4


def test_a_flat_folder_has_no_labels(tmp_path):
  write(tmp_path / 'photos' / 'one.png', 9)
  source = image_folder(path=str(tmp_path / 'photos'), size=8, channels=1)
  assert source.labels is None and source.classes == ()
  assert {name: x.shape for name, x in source[0].items()} == {'image': (8, 8, 1)}


def test_splits(tmp_path):
  for split in ('train', 'test'):
    write(tmp_path / split / 'a' / f'{split}.png', 0)
  for path in (tmp_path, tmp_path / '{split}'):
    for split in ('train', 'test'):
      source = image_folder(path=str(path), split=split)
      assert names(source) == [f'{tmp_path}/{split}/a/{split}.png']
  with pytest.raises(ValueError, match="to have a split 'dev'"):
    image_folder(path=str(tmp_path), split='dev')
  with pytest.raises(FileNotFoundError):
    image_folder(path=str(tmp_path / '{split}'), split='dev')


def test_a_class_may_be_called_train(tmp_path):
  for name in ('car', 'train'):
    write(tmp_path / 'photos' / name / '1.png', 0)
  assert image_folder(path=str(tmp_path / 'photos')).classes == ('car', 'train')


def test_other_folders_beside_splits(tmp_path):
  """Annotations do not make classes of train and test; images nobody can place are refused."""
  for split in ('train', 'test'):
    write(tmp_path / 'photos' / split / 'a' / '1.png', 0)
  (tmp_path / 'photos' / 'annotations').mkdir()
  (tmp_path / 'photos' / 'annotations' / 'all.xml').write_text('<xml/>')
  source = image_folder(path=str(tmp_path / 'photos'))
  assert source.classes == ('a',) and len(source) == 1
  (tmp_path / 'photos' / 'test').rename(tmp_path / 'away')
  assert image_folder(path=str(tmp_path / 'photos')).classes == ('a',)
  (tmp_path / 'away').rename(tmp_path / 'photos' / 'test')
  write(tmp_path / 'photos' / 'more' / '1.png', 0)
  with pytest.raises(DataError, match=r'splits \(test, train\) beside other folders.*more'):
    image_folder(path=str(tmp_path / 'photos'))


def test_a_class_without_images_keeps_its_number(tmp_path):
  (tmp_path / 'photos' / 'a').mkdir(parents=True)
  write(tmp_path / 'photos' / 'b' / '1.png', 0)
  source = image_folder(path=str(tmp_path / 'photos'))
  assert source.classes == ('a', 'b') and source.labels.tolist() == [1]


def test_wrong_folders(tmp_path, animals):
  with pytest.raises(FileNotFoundError):
    image_folder(path=str(tmp_path / 'nothing'))
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts' / 'a.txt').write_text('')
  with pytest.raises(DataError, match=r'no images: looked for \.jpg.* found \.txt'):
    image_folder(path=str(tmp_path / 'texts'))
  write(animals / 'loose.png', 0)
  with pytest.raises(DataError, match=r'loose\.png, \.\.\.\) beside folders'):
    image_folder(path=str(animals))
  with pytest.raises(ValueError, match='channels'):
    image_folder(path=str(animals), channels=4)


def test_odd_names_survive(tmp_path):
  root = tmp_path / 'photos'
  for name in ('ü b.png', 'a\nb.png'):
    write(root / 'ç' / name, 0)
  os.rename(root / 'ç' / 'a\nb.png', os.fsencode(root / 'ç') + b'/\xff.png')
  source = image_folder(path=str(root))
  assert len(source) == 2 and all(source[i]['image'].shape == (256, 256, 3) for i in (0, 1))


# --- the index ------------------------------------------------------------------------------------


def walks(monkeypatch) -> list[str]:
  done, walk = [], folders.walk
  monkeypatch.setattr(folders, 'walk', lambda root: (done.append(root), walk(root))[1])
  return done


def test_the_index_is_kept_until_a_directory_changes(animals, monkeypatch):
  done = walks(monkeypatch)
  first = image_folder(path=str(animals))
  second = image_folder(path=str(animals))
  assert len(done) == 1 and names(first) == names(second)
  assert second.labels.tolist() == first.labels.tolist() and second.classes == first.classes
  assert first.fingerprint() == second.fingerprint()
  write(animals / 'dog' / 'more' / 'new.png', 0)
  third = image_folder(path=str(animals))
  assert len(done) == 2 and len(third) == 5
  assert third.fingerprint() != first.fingerprint()


def test_what_changed_a_moment_ago_is_not_kept(animals, monkeypatch):
  done = walks(monkeypatch)
  write(animals / 'cat' / 'new.png', 0)
  for _ in range(2):
    image_folder(path=str(animals))
  assert len(done) == 2


@pytest.mark.parametrize('damage', ['index.json', 'ends.npy', 'names.npy', 'labels.npy'])
def test_a_damaged_index_is_made_again(animals, monkeypatch, damage):
  image_folder(path=str(animals))
  kept, = folders.cache_folder().iterdir()
  (kept / damage).write_bytes((kept / damage).read_bytes()[:-3])
  assert len(image_folder(path=str(animals))) == 4


def test_workers_get_the_path_of_the_index_not_millions_of_names(animals):
  source = image_folder(path=str(animals), size=8)
  assert b'a.jpeg' not in pickle.dumps(source)
  copy = pickle.loads(pickle.dumps(source))
  assert names(copy) == names(source) and copy.fingerprint() == source.fingerprint()
  np.testing.assert_array_equal(copy[1]['image'], source[1]['image'])


def test_without_a_place_for_the_index_it_travels_itself(animals, monkeypatch, capsys):
  monkeypatch.setattr(folders, 'cache_folder', lambda: pathlib.Path('/proc/nowhere'))
  source = image_folder(path=str(animals))
  assert 'cannot be kept' in capsys.readouterr().err
  assert names(pickle.loads(pickle.dumps(source))) == names(source)


def test_a_moved_folder_is_the_same_data(animals, tmp_path):
  before = image_folder(path=str(animals)).fingerprint()
  shutil.move(animals, tmp_path / 'elsewhere')
  assert image_folder(path=str(tmp_path / 'elsewhere')).fingerprint() == before
  assert image_folder(path=str(tmp_path / 'elsewhere'), size=9).fingerprint() != before


def test_a_file_that_vanished_is_an_unreadable_image(animals, monkeypatch):
  monkeypatch.setattr(retries, 'wait', lambda seconds: None)
  source = image_folder(path=str(animals))
  (animals / 'cat' / 'a.jpeg').unlink()
  with pytest.raises(DataError, match='a.jpeg.*No such file'):
    source[0]


def test_remote_folders_are_walked_through_epath(animals, monkeypatch, capsys):
  """A 'remote' path that epath maps to the disk: same images, no stat of every file."""
  real = folders.epath.Path

  def path(name):
    return real(str(name).replace('mem://', '/'))

  monkeypatch.setattr(folders.epath, 'Path', path)
  index = folders.walk(f'mem:/{animals}')
  assert index.classes == ('cat', 'dog') and len(index.ends) == 4
  assert index.sizes.tolist() == [0] * 4
  source = folders.ImageFolder(
    f'mem:/{animals}', index, None, size=8, channels=3, unreadable=0.0, crops=None)
  assert source[0]['image'].shape == (8, 8, 3)
