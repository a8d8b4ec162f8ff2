"""TFDS datasets without TensorFlow: a builder made here, prepared as ArrayRecord, read by name."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.batches import batches
from ssl_jax.data.sources import DataError
from ssl_jax.data.tensorflow_datasets import tfds


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """24 training and 6 test PNGs, image i of brightness i, labels i % 3; prepared by TFDS itself."""
  package = pytest.importorskip('tensorflow_datasets')

  class Shades(package.core.GeneratorBasedBuilder):
    VERSION = package.core.Version('1.2.0')

    def _info(self):
      return package.core.DatasetInfo(builder=self, features=package.features.FeaturesDict({
        'image': package.features.Image(shape=(None, None, 3)), 'name': package.features.Text(),
        'kind': package.features.ClassLabel(names=['dark', 'dim', 'light'])}))

    def _split_generators(self, download_manager):
      return {'train': self._generate_examples(24), 'test': self._generate_examples(6)}

    def _generate_examples(self, count):
      for i in range(count):
        png = io.BytesIO()
        Image.new('RGB', (10 + i, 12), (i, i, i)).save(png, 'PNG')
        png.seek(0)
        yield i, {'image': png, 'kind': i % 3, 'name': str(i)}

  path = tmp_path_factory.mktemp('tfds')
  Shades(data_dir=path, file_format='array_record').download_and_prepare()
  return str(path)


def shades(folder, **options):
  return tfds(**{'builder': 'shades', 'data_dir': folder, 'label': 'kind', 'size': 8, **options})


def test_every_example_is_read_and_tensorflow_is_not(folder):
  source = shades(folder)
  assert len(source) == 24 and source.classes == ('dark', 'dim', 'light')
  shade = [int(source[i]['image'][0, 0, 0]) for i in range(24)]
  assert sorted(shade) == list(range(24))  # TFDS shuffles when it prepares
  for i in (0, 5):
    example = source[i]
    assert example['image'].shape == (8, 8, 3) and (example['image'] == shade[i]).all()
    assert example['label'] == shade[i] % 3 and example['label'].dtype == np.int32
  assert source.labels.tolist() == [value % 3 for value in shade]
  assert 'tensorflow' not in sys.modules


def test_splits_and_slices(folder):
  assert len(shades(folder, split='test')) == 6
  assert len(shades(folder, split='train[:25%]')) == 6
  assert len(shades(folder, split='train+test')) == 30
  with pytest.raises(ValueError, match=r"Unknown split 'dev'.*train"):
    shades(folder, split='dev')


def test_without_labels_and_in_grey(folder):
  source = shades(folder, label=None, channels=1)
  assert source.labels is None and source.classes == ()
  assert {name: x.shape for name, x in source[0].items()} == {'image': (8, 8, 1)}


def test_large_images_are_cropped_on_the_host(folder):
  wish = dict(size=4, area=(0.2, 1.0), aspect=(1.0, 1.0), resample='bilinear')
  source = shades(folder, crops={'crops': (wish, wish)})
  assert source.draw(0, seed=0, epoch=0)['crops'].shape == (2, 4, 4, 3)
  device = shades(folder, crops={'crops': (wish, wish)}, crop='device')
  assert device.draw(0, seed=0, epoch=0)['image'].shape == (8, 8, 3)


def test_travels_to_workers_and_feeds_batches(folder):
  source = shades(folder)
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_array_equal(copy[3]['image'], source[3]['image'])
  assert copy.fingerprint() == source.fingerprint() != shades(folder, split='test').fingerprint()
  batch = next(batches(copy, batch_size=6, seed=0))
  assert batch['image'].shape == (6, 8, 8, 3)


@pytest.mark.parametrize('change, error, words', [
  (dict(builder='cifra10'), ValueError, "no dataset 'cifra10'; did you mean .*'cifar10'"),
  (dict(builder='beans'), DataError, r"(?s)not in .*tfds.builder\('beans', file_format='array_rec"),
  (dict(label='label'), ValueError, "no feature 'label' to be the label, but image, kind, name"),
  (dict(image='picture'), ValueError, "no feature 'picture'.*config.data.image"),
  (dict(channels=2), ValueError, 'channels 1 or 3'),
])
def test_mistakes_are_answered(folder, change, error, words):
  with pytest.raises(error, match=words):
    shades(folder, **change)


def test_records_without_random_access_are_refused_with_the_way_out(folder, monkeypatch):
  package = pytest.importorskip('tensorflow_datasets')
  monkeypatch.setattr(package.core.DatasetInfo, 'file_format',
                      property(lambda self: package.core.file_adapters.FileFormat.TFRECORD))
  with pytest.raises(DataError, match='(?s)stored as tfrecord.*convert_format'):
    shades(folder)


def test_what_tfds_cannot_describe_without_tensorflow_is_said(tmp_path, monkeypatch):
  package = pytest.importorskip('tensorflow_datasets')

  def needs_more(*args, **options):
    raise ImportError('cannot be built') from ModuleNotFoundError("No module named 'tensorflow'")

  monkeypatch.setattr(package, 'builder', needs_more)
  with pytest.raises(DataError, match="beans without another package .No module named 'tensorflow'"):
    shades(str(tmp_path), builder='beans')
