"""Images with captions, for methods that learn from both.

Every public function of this module is a choice of `config.data.name`. Each caption is an example:
its image, 'tokens' and 'segments' int32 [length] (see `ssl_jax.data.captions`) and 'label' where there
are classes. Besides what all sources have, these have
  images      int32 [N], the number of each example's image: captions of one image have the same
  text(i)     the tokens and segments of example i, without its image
  vocabulary  of the tokenizer
  prompts     texts with '{}' for the name of a class, for classification by captions
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ssl_jax.data import sources
from ssl_jax.data.captions import Captions, Line, missing_images, read_table
from ssl_jax.data.folders import folder_of_split
from ssl_jax.data.images import EncodedImages
from ssl_jax.data.retries import patiently
from ssl_jax.data.sources import FASHION_MNIST_CLASSES, ArraySource, DataError
from ssl_jax.data.tensorflow_datasets import TfdsImages, tfds
from ssl_jax.data.token_frames import Fields
from ssl_jax.data.token_sources import WORDNET_VOCABULARY
from ssl_jax.data.tokenize import Tokenizer, load

PROMPTS = ('a photo of a {}.',)
FASHION_PROMPTS = ('a photo of a {}.', 'a grey picture of a {}.', 'a {} in a shop.',
                   'this is a small {}.', 'one {}, seen from the front.')


class ImageText(EncodedImages):
  """Captions, each with its image of another source."""

  prompts = PROMPTS

  def __init__(self, inner: EncodedImages, images: np.ndarray, captions: Captions, **options):
    super().__init__(**options)
    self._inner, self._captions, self.images = inner, captions, images
    self.vocabulary, self.classes = captions.vocabulary, inner.classes
    self.labels = None if inner.labels is None else inner.labels[images]

  def __len__(self) -> int:
    return len(self.images)

  def name(self, index: int) -> str:
    return self._inner.name(int(self.images[index]))

  def text(self, index: int) -> Fields:
    return self._captions.row(index)

  def read(self, index: int) -> tuple[bytes | np.ndarray, dict[str, np.ndarray]]:
    data, fields = self._inner.read(int(self.images[index]))
    return data, {**fields, **self.text(index)}

  def fingerprint(self) -> str:
    """Of the images, of the captions, and of which belongs to which."""
    digest = hashlib.sha256(f'{self._inner.fingerprint()} {self._captions.fingerprint()}'.encode())
    digest.update(np.ascontiguousarray(self.images))
    return digest.hexdigest()

  def parts(self) -> dict[str, str]:
    """What the fingerprint is made of, see `sources.Source`."""
    return {'the images': self._inner.fingerprint(), 'the captions': self._captions.fingerprint()}

  def report(self) -> str:
    """One line for the log."""
    return f'{len(self._inner):,} images with {self._captions.report()}'


class _Files(EncodedImages):
  """The files of a folder that a table names."""

  def __init__(self, root: str, names: Sequence[str], sizes: Sequence[int],
               labels: Sequence[str], options: Mapping[str, Any]):
    """`labels`: the name of each file's class; empty without classes."""
    super().__init__(**options)
    self._root, self._names, self._sizes, self._options = root, tuple(names), tuple(sizes), options
    self.classes = tuple(sorted(set(labels)))
    number = {name: i for i, name in enumerate(self.classes)}
    self.labels = np.array([number[name] for name in labels], np.int32) if labels else None

  def __len__(self) -> int:
    return len(self._names)

  def name(self, index: int) -> str:
    return f'{self._root}/{self._names[index]}'

  def read(self, index: int) -> tuple[bytes, dict[str, np.ndarray]]:
    path = pathlib.Path(self.name(index))
    data = patiently(path.read_bytes, str(path))
    return data, {} if self.labels is None else {'label': self.labels[index]}

  def fingerprint(self) -> str:
    """SHA-256 over names, sizes and classes (not the bytes), and what is cut."""
    options = {name: value for name, value in self._options.items() if name != 'unreadable'}
    labels = None if self.labels is None else self.labels.tolist()
    about = (self._names, self._sizes, self.classes, labels, options)
    return hashlib.sha256(repr(about).encode()).hexdigest()


class _Arrays(ArraySource):
  """Images in memory, with a caption each."""

  prompts, classes = FASHION_PROMPTS, FASHION_MNIST_CLASSES

  def __init__(self, arrays: Mapping[str, np.ndarray], captions: Captions):
    super().__init__({**arrays, **captions.rows()})
    self.vocabulary, self._captions = captions.vocabulary, captions
    self.images = np.arange(len(captions), dtype=np.int32)

  def text(self, index: int) -> Fields:
    return self._captions.row(index)

  def report(self) -> str:
    """One line for the log."""
    return f'{len(self):,} images with {self._captions.report()}'


# --- the choices of config.data.name --------------------------------------------------------------


def fashion_mnist_captions(*, split: str = 'train', tokenizer: str | None = None,
                           length: int) -> ArraySource:
  """The images that ship with the package, with captions made of the names of their classes.

  Caption i is one of five sentences with the name in it; which one depends on i alone, and nothing
  in the image tells it.

  Args:
    split: 'train' (10,000) or 'test' (2,000).
    tokenizer: a tokenizer.json or vocab.txt; None is the vocabulary of WordNet's glosses, which
      ships with the package: 8,192 pieces of uncased WordPiece.
    length: of a row, in tokens.

  Raises:
    ValueError: an unknown split, or a length without space for a token.
    FileNotFoundError, DataError: as `tokenize.load`.
  """
  images = sources.fashion_mnist_12k(split=split)
  texts = [FASHION_PROMPTS[_sentence(i)].format(FASHION_MNIST_CLASSES[label])
           for i, label in enumerate(images.labels.tolist())]
  return _Arrays(images.arrays, Captions(texts, _tokenizer(tokenizer), length))


def image_text_folder(*, path: str, table: str = 'captions.csv', split: str = 'train',
                      image: str = 'image', caption: str = 'caption', label: str | None = None,
                      tokenizer: str | None = None, length: int, size: int = 256, channels: int = 3,
                      crop: Literal['host', 'device'] = 'host', unreadable: float = 0.001,
                      crops: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> ImageText:
  """Images in a folder and a table of captions; an image may have several, a line each.

  Args:
    path: the folder, on a local disk; '{split}' and path/split as in `folders.image_folder`.
    table: a .csv file with a header, or .jsonl: {"image": ..., "caption": ...} in each line. Relative
      to the folder, as the images that it names; '{split}' in it is replaced.
    split: only 'train' exists where neither `path` nor `table` tells splits apart.
    image, caption: names of the columns.
    label: name of the column with the name of the image's class, if there is one.
    tokenizer, length: as `fashion_mnist_captions`.
    size, channels, crop, unreadable, crops: as `folders.image_folder`.

  Raises:
    FileNotFoundError: there is no such folder, table or tokenizer.
    ValueError: an argument out of its range, or a split that there is not.
    DataError: what `captions.read_table` refuses, an image that is not there, or one with two
      classes; names the lines.
  """
  options = _options(size, channels, crop, unreadable, crops)
  root = _root(path, table, split)
  file = pathlib.Path(root, table.replace('{split}', split))
  lines = read_table(file, image=image, caption=caption, label=label)
  names = list(dict.fromkeys(line.image for line in lines))
  number = {name: i for i, name in enumerate(names)}
  images = np.array([number[line.image] for line in lines], np.int32)
  inner = _Files(root, names, _sizes(root, names, file, lines), _labels(file, lines), options)
  captions = Captions([line.caption for line in lines], _tokenizer(tokenizer), length)
  return ImageText(inner, images, captions, **options)


def tfds_captions(*, builder: str, split: str = 'train', data_dir: str | None = None,
                  image: str = 'image', caption: str = 'caption', label: str | None = None,
                  tokenizer: str | None = None, length: int, size: int = 256, channels: int = 3,
                  crop: Literal['host', 'device'] = 'host', unreadable: float = 0.001,
                  crops: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> ImageText:
  """A dataset of TFDS with images and texts, prepared as ArrayRecord; all records are read once for
  their captions.

  Args:
    builder, split, data_dir, image, label, size, channels, crop, unreadable, crops: as
      `tensorflow_datasets.tfds`.
    caption: the feature with the text, or with several texts of the image (an example each), such as
      'captions/text' for the texts in a sequence 'captions'.
    tokenizer, length: as `fashion_mnist_captions`.

  Raises:
    ValueError, DataError: as `tensorflow_datasets.tfds`; no such feature, one that is no text, or a
      record without a caption.
  """
  options = _options(size, channels, crop, unreadable, crops)
  inner = tfds(builder=builder, split=split, data_dir=data_dir, image=image, label=label, size=size,
               channels=channels, crop=crop, unreadable=unreadable, crops=crops)
  found = [_texts(inner, i, caption) for i in range(len(inner))]
  images = np.repeat(np.arange(len(found), dtype=np.int32), [len(texts) for texts in found])
  captions = Captions([text for texts in found for text in texts], _tokenizer(tokenizer), length)
  return ImageText(inner, images, captions, **options)


# --- pieces ---------------------------------------------------------------------------------------


def _options(size, channels, crop, unreadable, crops) -> dict[str, Any]:
  options = dict(size=size, channels=channels, unreadable=unreadable,
                 crops=crops if crop == 'host' else None)
  EncodedImages(**options)  # A wrong argument is known before anything is read.
  return options


def _tokenizer(path: str | None) -> Tokenizer:
  return load(path or WORDNET_VOCABULARY)


def _sentence(i: int) -> int:
  """Mixed: i mod 5 would go along with the classes, which take turns."""
  return (i * 2654435761 % 2**32 >> 16) % len(FASHION_PROMPTS)


def _root(path: str, table: str, split: str) -> str:
  if '://' in path:
    raise ValueError(f'{path!r} is remote; captions need a folder on a local disk')
  return folder_of_split(path, 'train' if '{split}' in table and '{split}' not in path else split)


def _sizes(root: str, names: Iterable[str], file: pathlib.Path, lines: Sequence[Line]) -> list[int]:
  """Bytes of each image; raises DataError for those that are not there."""
  sizes, absent = [], set()
  for name in names:
    path = os.path.join(root, name)
    if os.path.isfile(path):
      sizes.append(os.path.getsize(path))
    else:
      absent.add(name)
  if absent:
    raise missing_images(file, lines, absent)
  return sizes


def _labels(file: pathlib.Path, lines: Sequence[Line]) -> list[str]:
  """The class of each image, in the order in which they are named first; [] without classes."""
  found: dict[str, str] = {}
  for line in lines:
    if found.setdefault(line.image, line.label) != line.label:
      raise DataError(f'{file} line {line.number}: {line.image} is of the class {line.label!r}, but '
                      f'{found[line.image]!r} in a line before')
  return list(found.values()) if any(found.values()) else []


def _texts(inner: TfdsImages, index: int, caption: str) -> list[str]:
  """The captions of a record."""
  value = inner.record(index)
  for key in caption.split('/'):
    if not isinstance(value, Mapping) or key not in value:
      known = ', '.join(sorted(value)) if isinstance(value, Mapping) else 'no features in it'
      raise ValueError(f'{inner.name(index)} has no feature {caption!r} to be the caption, but '
                       f'{known}; set config.data.caption')
    value = value[key]
  texts = [value] if isinstance(value, (str, bytes)) else list(value)
  if not all(isinstance(text, (str, bytes)) for text in texts):
    raise ValueError(f'the feature {caption!r} of {inner.name(index)} is no text: {value!r:.60}')
  texts = [text.decode() if isinstance(text, bytes) else text for text in texts]
  if not texts or not all(text.strip() for text in texts):
    raise DataError(f'{inner.name(index)} has no caption, or an empty one, in {caption!r}')
  return texts
