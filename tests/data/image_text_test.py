"""Images with captions: tables and what is wrong with them, tokens, crops, TFDS, batches."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import image_text
from ssl_jax.data.batches import batches, in_order
from ssl_jax.data.image_text import fashion_mnist_captions, image_text_folder, tfds_captions
from ssl_jax.data.sources import FASHION_MNIST_CLASSES, DataError, UnreadableImage, fashion_mnist_12k
from ssl_jax.data.token_sources import WORDNET_VOCABULARY
from ssl_jax.data.tokenize import load

LINES = [('a.png', 'a dark square', 'dark'), ('b/c.png', 'something, light', 'light'),
         ('a.png', 'the night of a very long day that never ends', 'dark'),
         ('d.png', 'grey fog', 'light')]
WISH = dict(size=4, area=(0.5, 1.0), aspect=(1.0, 1.0), resample='bilinear')


def csv_of(lines, header='image,caption,class'):
  return '\n'.join([header, *(','.join(f'"{x}"' for x in line) for line in lines)]) + '\n'


@pytest.fixture
def photos(tmp_path):
  for i, name in enumerate(('a.png', 'b/c.png', 'd.png')):
    path = tmp_path / 'photos' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (12, 10), (100 * i,) * 3).save(path)
  (tmp_path / 'photos' / 'captions.csv').write_text(csv_of(LINES))
  return tmp_path / 'photos'


def read(photos, **options):
  return image_text_folder(**{'path': str(photos), 'length': 8, 'size': 6, **options})


def words(row):
  return load(WORDNET_VOCABULARY).decode(row['tokens'][row['segments'] > 0])


def test_each_line_is_an_example(photos):
  source = read(photos, label='class')
  assert len(source) == 4 and source.images.tolist() == [0, 1, 0, 2]
  assert source.classes == ('dark', 'light') and source.labels.tolist() == [0, 1, 0, 1]
  example = source[1]
  assert example['image'].shape == (6, 6, 3) and (example['image'] == 100).all()
  assert example['label'] == 1 and example['tokens'].shape == example['segments'].shape == (8,)
  assert words(example) == '[CLS] something, light [SEP]'
  assert source.name(2).endswith('photos/a.png')
  assert (example['tokens'] == source.text(1)['tokens']).all()
  assert example['segments'].sum() == 5 and example['tokens'].dtype == np.int32
  long = words(source.text(2))  # cut, with its end marked
  assert long.startswith('[CLS] the night of a') and long.endswith('[SEP]')
  assert source.text(2)['segments'].all() and '25.00% of the captions cut' in source.report()
  assert '3 images with 4 captions' in source.report()


def test_json_lines_and_other_columns(photos):
  table = photos / 'pairs.jsonl'
  table.write_text('\n'.join(json.dumps({'file': a, 'text': b}) for a, b, _ in LINES) + '\n\n')
  source = read(photos, table='pairs.jsonl', image='file', caption='text')
  whole = read(photos)
  assert source.labels is None and 'label' not in source[0]
  for i in range(4):
    np.testing.assert_equal(source[i], whole[i])


def test_splits_by_folder_and_by_table(photos, tmp_path):
  (photos / 'captions_test.csv').write_text(csv_of(LINES[:1]))
  (photos / 'captions_train.csv').write_text(csv_of(LINES))
  sizes = [len(read(photos, table='captions_{split}.csv', split=split)) for split in ('train', 'test')]
  assert sizes == [4, 1]
  with pytest.raises(ValueError, match="is the 'train' split"):
    read(photos, split='test')
  whole = tmp_path / 'whole'
  whole.mkdir()
  photos.rename(whole / 'test')
  assert len(read(whole, split='test')) == len(read(whole / '{split}', split='test')) == 4


@pytest.mark.parametrize('table, words', [
  ('image,text\na.png,x\n', "no column 'caption'; its first line names 'image', 'text'"),
  ('', "no column 'image'; its first line names none"),
  ('image,caption\n', 'holds no captions'),
  ('image,caption\na.png,x\nd.png,  \n', "line 3: 'caption' must be a text that is not empty"),
  ('image,caption\na.png\n', "line 2: 'caption' must be a text that is not empty, got None"),
  ('image,caption\na.png,x\nno.png,y\nb/no.png,z\n',
   r'(?s)images of 2 of 3 lines are not in the folder:\n  line 3: no.png\n  line 4: b/no.png'),
  ('image,caption\n../photos/a.png,x\n', r"line 2: '\.\./photos/a.png' is not within the folder"),
  ('image,caption\n/etc/passwd,x\n', "line 2: '/etc/passwd' is not within the folder"),
])
def test_what_is_wrong_with_a_table_is_said_with_its_line(photos, table, words):
  (photos / 'captions.csv').write_text(table)
  with pytest.raises(DataError, match=words):
    read(photos)


@pytest.mark.parametrize('table, words', [
  ('{"image": "a.png"}\n', "line 1 has no 'caption', but 'image'"),
  ('\n[1]\n', 'line 2 must be a JSON object, got list'),
  ('{"image": \n', 'line 1 is no JSON'),
  ('{"image": 3, "caption": "x"}\n', "line 1: 'image' must be a text"),
])
def test_what_is_wrong_with_json_lines(photos, table, words):
  (photos / 'captions.jsonl').write_text(table)
  with pytest.raises(DataError, match=words):
    read(photos, table='captions.jsonl')


def test_other_mistakes(photos):
  with pytest.raises(FileNotFoundError, match='no such table of captions'):
    read(photos, table='none.csv')
  with pytest.raises(DataError, match='ends in .csv or .jsonl'):
    read(photos, table='captions.txt')
  with pytest.raises(ValueError, match='local disk'):
    read('gs://bucket/photos')
  with pytest.raises(ValueError, match='length must be at least 3'):
    read(photos, length=2)
  with pytest.raises(ValueError, match='channels 1 or 3'):
    read(photos, channels=2)
  (photos / 'captions.csv').write_text(csv_of([LINES[0], ('a.png', 'again', 'light')]))
  with pytest.raises(DataError, match="line 3: a.png is of the class 'light', but 'dark'"):
    read(photos, label='class')


def test_crops_batches_and_damaged_images(photos):
  source = read(photos, crops={'crops': (WISH,)}, unreadable=0.5)
  one, other = (source.draw(1, seed=0, epoch=epoch) for epoch in (0, 0))
  assert one['crops'].shape == (1, 4, 4, 3) and 'image' not in one
  np.testing.assert_equal(one, other)
  (photos / 'd.png').write_bytes(b'damaged')
  source = read(photos, unreadable=0.5)
  with pytest.raises(UnreadableImage, match='d.png: no image'):
    source[3]
  batch = next(in_order(source, batch_size=4))
  assert batch['weight'].tolist() == [1, 1, 1, 0]
  # The next image comes with its own caption.
  assert words({name: x[3] for name, x in batch.items()}) == '[CLS] a dark square [SEP]'


def test_the_same_in_a_worker_and_other_data_have_other_fingerprints(photos):
  source = read(photos)
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_equal(copy[2], source[2])
  assert copy.fingerprint() == source.fingerprint() == read(photos).fingerprint()
  others = [read(photos, length=9), read(photos, size=5), read(photos, label='class')]
  (photos / 'captions.csv').write_text(csv_of([*LINES[:3], ('d.png', 'grey frog', '')]))
  others.append(read(photos))
  assert len({source.fingerprint(), *(other.fingerprint() for other in others)}) == 5


def test_captions_of_the_images_that_ship():
  source, images = fashion_mnist_captions(length=16, split='test'), fashion_mnist_12k(split='test')
  assert len(source) == 2000 and source.classes == FASHION_MNIST_CLASSES
  some = source.take(np.arange(100))
  np.testing.assert_array_equal(some['image'], images.arrays['image'][:100])
  for i in range(100):
    name = FASHION_MNIST_CLASSES[some['label'][i]]
    text = words({field: x[i] for field, x in some.items()}).replace(' / ', '/').replace(' - ', '-')
    assert name.lower() in text, text
  # The sentence says nothing of the class: each occurs with each about as often.
  pairs = np.unique([(image_text._sentence(i), y) for i, y in enumerate(images.labels.tolist())],
                    axis=0, return_counts=True)
  assert len(pairs[0]) == 50 and pairs[1].min() > 20
  assert source.fingerprint() != fashion_mnist_captions(length=15, split='test').fingerprint()
  batch = next(batches(source, batch_size=8, seed=0))
  assert batch['tokens'].shape == (8, 16) and batch['image'].dtype == np.uint8
  with pytest.raises(ValueError, match="splits 'train' and 'test'"):
    fashion_mnist_captions(length=16, split='dev')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """5 images of brightness i with one or two captions and a name; prepared by TFDS itself."""
  package = pytest.importorskip('tensorflow_datasets')

  class Scenes(package.core.GeneratorBasedBuilder):
    VERSION = package.core.Version('1.0.0')

    def _info(self):
      return package.core.DatasetInfo(builder=self, features=package.features.FeaturesDict({
        'image': package.features.Image(shape=(None, None, 3)), 'name': package.features.Text(),
        'captions': package.features.Sequence({'text': package.features.Text()})}))

    def _split_generators(self, download_manager):
      return {'train': self._generate_examples(5)}

    def _generate_examples(self, count):
      for i in range(count):
        png = io.BytesIO()
        Image.new('RGB', (10, 12), (i, i, i)).save(png, 'PNG')
        png.seek(0)
        texts = [f'number {i}', 'another'][:1 + i % 2]
        yield i, {'image': png, 'name': f'{i}', 'captions': [{'text': text} for text in texts]}

  path = tmp_path_factory.mktemp('tfds')
  Scenes(data_dir=path, file_format='array_record').download_and_prepare()
  return str(path)


def scenes(prepared, **options):
  return tfds_captions(**{'builder': 'scenes', 'data_dir': prepared, 'caption': 'captions/text',
                          'length': 8, 'size': 6, **options})


def test_tfds_has_an_example_for_each_caption(prepared):
  source = scenes(prepared)
  assert len(source) == 7 and np.bincount(source.images).tolist().count(2) == 2
  for i in range(7):
    text, shade = words(source[i]), int(source[i]['image'][0, 0, 0])
    assert text in (f'[CLS] number {shade} [SEP]', '[CLS] another [SEP]'), text
  copy = pickle.loads(pickle.dumps(source))
  np.testing.assert_equal(copy[6], source[6])
  assert len(scenes(prepared, caption='name')) == 5
  for caption, found in (('text', 'captions, image, name'), ('captions/words', 'text'),
                         ('name/text', 'no features in it')):
    with pytest.raises(ValueError, match=f"no feature '{caption}' to be the caption, but {found}"):
      scenes(prepared, caption=caption)
