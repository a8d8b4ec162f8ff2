"""Arrays by number: checks in words, digests that see every change, and the images that ship."""

import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest

from ssl_jax.data import sources
from ssl_jax.data.sources import (
  ArraySource,
  DataError,
  Renumbered,
  array_files,
  fashion_mnist_12k,
)

FASHION_MNIST_NPZ = 'ssl_jax/data/embedded/fashion_mnist_12k/fashion_mnist_12k.npz'
# Of the decoded arrays, as tools/make_fashion_mnist.py prints them.
FASHION_MNIST_SHA256 = {
  ('train', 'image'): 'e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883',
  ('train', 'label'): '2c02745d4ad8b4511333d0eca662ac5664a371860abaa4588b1670e7be59fbdf',
  ('test', 'image'): '96315b1732ab731e68b8def3c284f34b605f7deb7a61e683c7d786265c827c83',
  ('test', 'label'): 'b2095bc797d1201e84da76c94012c02d0e6f07af0938df4e00120a3b42d1aa4c',
}


def images(n=6, shape=(4, 5), seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def example(n=6):
  return dict(image=images(n), label=np.arange(n))


def test_array_source_gives_examples_and_batches():
  arrays = example()
  source = ArraySource(arrays)
  assert len(source) == 6
  np.testing.assert_array_equal(source[2]['image'], arrays['image'][2][..., None])
  assert source[2]['label'] == 2 and source[2]['label'].dtype == np.int32
  batch = source.take(np.array([4, 0, 4]))
  assert batch['image'].shape == (3, 4, 5, 1) and batch['label'].tolist() == [4, 0, 4]
  with pytest.raises(IndexError):
    source[6]


@pytest.mark.parametrize('arrays, message', [
  ({}, 'no fields'),
  (dict(image=images(0)), 'no examples'),
  (dict(image=images(6), label=np.arange(5)), "'image': 6, 'label': 5"),
  (dict(image=images().astype(np.float32)), r"uint8 .* got float32 \[6, 4, 5\]"),
  (dict(image=images(shape=(5,))), r'got uint8 \[6, 5\]'),
  (dict(label=np.zeros(3)), r"'label' must be integers \[N\]; got float64 \[3\]"),
  (dict(label=np.zeros((3, 1), int)), r'got int64 \[3, 1\]'),
  (dict(x=np.array(1)), r"'x' must be an array \[N"),
  (dict(x=np.array([{}, None])), 'got object'),
  (dict(id=np.arange(3)), "'id' is a name that batches use"),
])
def test_wrong_arrays_are_refused_in_words(arrays, message):
  with pytest.raises(DataError, match=message):
    ArraySource(arrays)


def test_fingerprint_sees_every_change_and_nothing_else():
  base = example()
  same = dict(reversed(base.items()), label=base['label'].astype(np.uint8))
  assert ArraySource(same).fingerprint() == ArraySource(base).fingerprint()
  one_pixel = dict(base, image=images())
  one_pixel['image'][5, 3, 4] ^= 1
  changed = [
    one_pixel, dict(base, label=np.arange(6)[::-1]), dict(image=base['image']),
    dict(base, image=base['image'].reshape(6, 5, 4)), dict(image=base['image'], x=base['label']),
    dict(base, x=np.zeros(6, np.int32)), dict(base, x=np.zeros(6, np.float32)),
    dict(base, x=np.zeros((6, 1), np.float32)), dict(base, y=np.zeros(6, np.float32))]
  prints = [ArraySource(arrays).fingerprint() for arrays in (base, *changed)]
  assert len(set(prints)) == len(prints)


def test_fingerprint_is_read_in_pieces_and_independent_of_layout():
  array = np.arange(5_000_000, dtype=np.float64).reshape(5_000, 1_000)  # Three pieces of 16 MB.
  want = hashlib.sha256(repr(('x', '<f8', (5_000, 1_000))).encode() + array.tobytes()).hexdigest()
  assert ArraySource(dict(x=array)).fingerprint() == want
  small = array[:10]
  assert (ArraySource(dict(x=np.asfortranarray(small.astype('>f8')))).fingerprint()
          == ArraySource(dict(x=small)).fingerprint())


def test_fingerprint_is_equal_across_processes(tmp_path, root):
  np.savez(tmp_path / 'a.npz', **example())
  code = ('import sys; from ssl_jax.data.sources import array_files; '
          'print(array_files(path=sys.argv[1]).fingerprint(), "jax" in sys.modules)')
  runs = [subprocess.run([sys.executable, '-c', code, str(tmp_path / 'a.npz')], cwd=root, text=True,
                         env=dict(os.environ, PYTHONHASHSEED=hash_seed), capture_output=True,
                         timeout=60, check=True)
          for hash_seed in ('1', '2')]
  want = ArraySource(example()).fingerprint()
  assert [run.stdout.split() for run in runs] == [[want, 'False']] * 2


# --- files ----------------------------------------------------------------------------------------


def test_npz_npy_and_folder_hold_the_same(tmp_path):
  arrays = example()
  for split in ('train', 'test'):
    np.savez(tmp_path / f'my_{split}.npz', **arrays)
    (tmp_path / split).mkdir()
    for name, array in arrays.items():
      np.save(tmp_path / split / f'{name}.npy', array)
  want = ArraySource(arrays).fingerprint()
  for path in ('my_train.npz', 'my_{split}.npz', 'train', '{split}'):
    assert array_files(path=str(tmp_path / path)).fingerprint() == want
  assert array_files(path=str(tmp_path / '{split}'), split='test').fingerprint() == want
  alone = array_files(path=str(tmp_path / 'train' / 'image.npy'))
  assert alone.fingerprint() == ArraySource(dict(image=arrays['image'])).fingerprint()
  with pytest.raises(ValueError, match="'my_{split}.npz'"):
    array_files(path=str(tmp_path / 'my_train.npz'), split='test')


def test_npy_is_mapped_and_pickles_as_its_path(tmp_path):
  np.save(tmp_path / 'image.npy', images(10_000))
  source = array_files(path=str(tmp_path / 'image.npy'))
  base = source.arrays['image']
  while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
    base = base.base
  assert isinstance(base, np.memmap)
  assert type(source.take(np.arange(3))['image']) is np.ndarray
  copy = pickle.dumps(source)
  assert len(copy) < 1000 and pickle.loads(copy).fingerprint() == source.fingerprint()


def test_bad_files_are_refused_in_words(tmp_path):
  def refused(name, message, error=DataError):
    with pytest.raises(error, match=message) as caught:
      array_files(path=str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)

  refused('missing.npz', 'no such file', FileNotFoundError)
  np.savez(tmp_path / 'pickled.npz', image=np.array([{}, 1], object))
  refused('pickled.npz', 'pickled ones are refused')
  np.save(tmp_path / 'pickled.npy', np.array([{}, 1], object))
  refused('pickled.npy', 'pickled ones are refused')
  np.savez(tmp_path / 'lengths.npz', image=images(6), label=np.arange(5))
  refused('lengths.npz', 'one length')
  np.savez(tmp_path / 'float.npz', image=np.zeros((2, 3, 3)))
  refused('float.npz', 'must be uint8')
  (tmp_path / 'empty').mkdir()
  refused('empty', 'no .npy files')
  (tmp_path / 'data.h5').write_bytes(b'x')
  refused('data.h5', 'expected a .npz file')
  (tmp_path / 'text.npz').write_text('not an archive')
  refused('text.npz', 'cannot be read')
  np.save(tmp_path / 'other.npy', images(3))
  (tmp_path / 'other.npy').rename(tmp_path / 'other.npz')
  refused('other.npz', 'not a zip file')
  np.savez_compressed(tmp_path / 'cut.npz', image=images(100))
  data = (tmp_path / 'cut.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(data[:len(data) // 2])
  refused('cut.npz', 'cannot be read')
  (tmp_path / 'flip.npz').write_bytes(data[:500] + bytes([data[500] ^ 255]) + data[501:])
  refused('flip.npz', 'cannot be read')
  np.save(tmp_path / 'cut.npy', images(100))
  (tmp_path / 'cut.npy').write_bytes((tmp_path / 'cut.npy').read_bytes()[:-50])
  refused('cut.npy', 'cannot be read')
  (tmp_path / 'zero.npy').write_bytes(b'')
  refused('zero.npy', 'cannot be read')


# --- the images that ship -------------------------------------------------------------------------


def test_fashion_mnist_12k_is_what_the_tool_made():
  for split, n in (('train', 10_000), ('test', 2_000)):
    source = fashion_mnist_12k(split=split)
    image, label = source.arrays['image'], source.arrays['label']
    assert (image.shape, image.dtype) == ((n, 28, 28, 1), np.uint8)
    assert (label.shape, label.dtype) == ((n,), np.int32)
    assert np.bincount(label).tolist() == [n // 10] * 10
    assert hashlib.sha256(image).hexdigest() == FASHION_MNIST_SHA256[split, 'image']
    assert (hashlib.sha256(label.astype(np.uint8)).hexdigest()
            == FASHION_MNIST_SHA256[split, 'label'])
  assert len(sources.FASHION_MNIST_CLASSES) == 10
  with pytest.raises(ValueError, match="not 'val'"):
    fashion_mnist_12k(split='val')


def test_fashion_mnist_12k_has_no_image_twice():
  every = [image.tobytes() for split in ('train', 'test')
           for image in fashion_mnist_12k(split=split).arrays['image']]
  assert len(set(every)) == 12_000


def test_fashion_mnist_12k_is_small_and_documented(root):
  data = (root / FASHION_MNIST_NPZ).read_bytes()
  assert len(data) < 6e6
  readme = (root / FASHION_MNIST_NPZ).with_name('README.md').read_text()
  assert hashlib.sha256(data).hexdigest() in readme
  assert 'Zalando SE' in (root / FASHION_MNIST_NPZ).with_name('LICENSE').read_text()


def test_the_tool_reproduces_the_file(tmp_path, root):
  path = root / 'tools' / 'make_fashion_mnist.py'
  spec = importlib.util.spec_from_file_location('make_fashion_mnist', path)
  tool = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(tool)
  if not tool.FOLDER.exists():
    pytest.skip('needs the Debian package dataset-fashion-mnist')
  readme = (root / FASHION_MNIST_NPZ).with_name('README.md').read_text()
  assert all(f'{digest}  {name}' in readme for name, digest in tool.INPUTS.items())
  arrays = tool.select(tool.FOLDER)
  tool.write_npz(tmp_path / 'again.npz', arrays)
  with np.load(tmp_path / 'again.npz') as again, np.load(root / FASHION_MNIST_NPZ) as shipped:
    assert again.files == shipped.files
    for name in shipped.files:
      np.testing.assert_array_equal(again[name], shipped[name])
  if 'ng' not in zlib.ZLIB_RUNTIME_VERSION:
    assert (tmp_path / 'again.npz').read_bytes() == (root / FASHION_MNIST_NPZ).read_bytes()


def test_labels_are_numbered_as_those_of_another_split():
  """By the names of classes: a split that lacks one numbers the others differently."""
  test = ArraySource({'image': np.zeros((3, 4, 4, 1), np.uint8), 'label': np.array([0, 1, 1])})
  test.classes = ('bees', 'cows')
  mapped = pickle.loads(pickle.dumps(Renumbered(test, ('ants', 'bees', 'cows'))))
  np.testing.assert_array_equal(mapped.labels, [1, 2, 2])
  np.testing.assert_array_equal(mapped.take(np.array([2, 0]))['label'], [2, 1])
  assert mapped[1]['label'] == 2 and len(mapped) == 3 and not hasattr(mapped, 'draw')
  assert mapped.fingerprint() == test.fingerprint()
  test.classes = ('bees', 'crows', 'cows')  # the last without examples
  assert Renumbered(test, ('ants', 'bees', 'crows')).labels.tolist() == [1, 2, 2]
  test.classes = ('bees', 'cows')
  with pytest.raises(DataError, match='classes cows are not among those of training: ants, bees'):
    Renumbered(test, ('ants', 'bees'))
