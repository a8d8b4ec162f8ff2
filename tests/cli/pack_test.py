"""Packing a folder: every encoding, the same bytes for any number of workers, damage."""

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from ssl_jax.cli import main
from ssl_jax.data.array_records import array_record


@pytest.fixture
def photos(tmp_path, monkeypatch):
  """Six pictures of two classes."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  rng = np.random.default_rng(0)
  for i in range(6):
    file = tmp_path / 'photos' / 'ab'[i % 2] / f'{i}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    small.resize((80, 60), Image.Resampling.BICUBIC).save(file)
  return tmp_path / 'photos'


def pack(photos, out, *options) -> int:
  return main(['pack', f'--folder={photos}', f'--out={out}', '--shards=2', *options])


def digests(folder) -> list[str]:
  return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())]


@pytest.mark.parametrize('encoding, error', [
  ('jpeg', 4), ('webp', 4), ('png', 0.5), ('raw', 0.5), ('keep', 0.5)])
def test_every_encoding(photos, tmp_path, encoding, error, capsys):
  assert pack(photos, tmp_path / 'out', f'--encoding={encoding}', '--size=30') == 0
  out, err = capsys.readouterr()
  assert "config.data = dict(name='array_record'" in out and '6 images in' in err
  source = array_record(path=str(tmp_path / 'out'), size=30)
  assert len(source) == 6 and source.classes == ('a', 'b')
  assert source.labels.tolist() == [0, 0, 0, 1, 1, 1]
  original = Image.open(photos / 'a' / '2.png').crop((10, 0, 70, 60)).resize((30, 30), 3)
  assert np.abs(source[1]['image'].astype(int) - np.asarray(original)).mean() <= error


def test_images_are_never_enlarged(photos, tmp_path):
  assert pack(photos, tmp_path / 'out', '--encoding=png', '--size=500') == 0
  data, _ = array_record(path=str(tmp_path / 'out')).read(0)
  assert Image.open(io.BytesIO(data)).size == (80, 60)


def test_the_same_bytes_again(photos, tmp_path):
  for name in ('one', 'two'):
    assert pack(photos, tmp_path / name) == 0
  assert digests(tmp_path / 'one') == digests(tmp_path / 'two')


@pytest.mark.slow
def test_the_same_bytes_with_workers(photos, tmp_path):
  assert pack(photos, tmp_path / 'one') == pack(photos, tmp_path / 'two', '--workers=2') == 0
  assert digests(tmp_path / 'one') == digests(tmp_path / 'two')


def test_damaged_images_are_left_out_up_to_a_share(photos, tmp_path, capsys):
  (photos / 'a' / '0.png').write_bytes(b'damaged')
  assert pack(photos, tmp_path / 'out') == 3
  assert 'photos/a/0.png: no image' in capsys.readouterr().err
  assert list((tmp_path / 'out').iterdir()) == []  # nothing half-written
  assert pack(photos, tmp_path / 'out', '--unreadable=0.2') == 0
  source = array_record(path=str(tmp_path / 'out'))
  assert len(source) == 5 and source.labels.tolist() == [0, 0, 1, 1, 1]


def test_a_split_is_replaced_only_on_request(photos, tmp_path, capsys):
  assert pack(photos, tmp_path / 'out') == 0
  with pytest.raises(SystemExit) as stop:
    pack(photos, tmp_path / 'out')
  assert stop.value.code == 2 and '--overwrite replaces it' in capsys.readouterr().err
  assert pack(photos, tmp_path / 'out', '--overwrite') == 0


def test_a_full_disk_is_known_before(photos, tmp_path, monkeypatch, capsys):
  from ssl_jax.cli import pack as module
  monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: type('', (), {'free': 10})())
  assert pack(photos, tmp_path / 'out') == 3
  assert 'GB left' in capsys.readouterr().err


@pytest.mark.parametrize('words, message', [
  (['--out=x'], 'one of --folder'), (['--folder=a', '--tfds=b', '--out=x'], 'one of --folder'),
  (['--folder=a', '--out=x', '--quality=500'], 'between 1 and 100'),
  (['--folder=a', '--out=x', '--shards=0'], 'at least 1')])
def test_wrong_options(words, message, capsys):
  with pytest.raises(SystemExit) as stop:
    main(['pack', *words])
  assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize('words, message', [
  (['--split=val'], "to have a split 'val'"), (['--unreadable=2'], 'unreadable'),
  (['--channels=2'], 'channels'), (['--tfds=nowhere'], 'nowhere')])
def test_what_the_data_refuse_is_answered_in_words(words, message, tmp_path, capsys):
  Image.new('RGB', (8, 8)).save(tmp_path / 'one.png')
  folder = [] if words[0].startswith('--tfds') else [f'--folder={tmp_path}']
  assert main(['pack', *folder, f'--out={tmp_path}/out', *words]) in (2, 3)
  assert message in capsys.readouterr().err
  (tmp_path / 'file').write_text('')
  assert main(['pack', f'--folder={tmp_path}', f'--out={tmp_path}/file']) == 2
