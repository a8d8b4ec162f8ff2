"""Image datasets of TFDS (https://www.tensorflow.org/datasets) by name, read without TensorFlow.

TFDS gives random access to datasets that were prepared as ArrayRecord files. Images are taken as they
were encoded and decoded here, so that large ones can be cropped at full resolution.
"""

import contextlib
import difflib
import functools
import hashlib
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ssl_jax.data.images import EncodedImages
from ssl_jax.data.retries import patiently
from ssl_jax.data.shards import refuse_damage
from ssl_jax.data.sources import DataError

PREPARE = '''prepare it once, where there is a network:
  python -c "import {modules}; tfds.builder({name!r}, file_format='array_record', \
data_dir={where!r}).download_and_prepare()"
Many datasets (cifar10, mnist) make their images from arrays, for which TFDS needs TensorFlow: then do
it in an environment with `pip install tensorflow tensorflow-datasets array-record`; copy the folder'''
# Packages of TFDS whose datasets it registers when they are imported.
LEGACY = ('image', 'image_classification', 'question_answering', 'summarization', 'text',
          'text_simplification', 'translate', 'vision_language')


class Records:
  """TFDS's records by number; one that cannot be read is tried again, and named."""

  def __init__(self, inner: Any, full_name: str):
    self._inner, self._full_name = inner, full_name

  def __len__(self) -> int:
    return len(self._inner)

  def name(self, i: int) -> str:
    """'shades/1.2.0/train[5]'"""
    return f'{self._full_name}[{i}]'

  def __getitem__(self, i: int) -> Mapping[str, Any]:
    """Raises DataError for a record that is damaged, or that cannot be read for a while."""
    return patiently(lambda: self._read(i), self.name(i), (Exception,))

  def _read(self, i: int) -> Mapping[str, Any]:
    try:
      return self._inner[i]
    except Exception as error:  # riegeli's status codes come as several kinds
      refuse_damage(error, self.name(i))
      raise


class TfdsImages(EncodedImages):
  """One split of a prepared dataset; travels to workers as the arguments of `tfds`."""

  def __init__(self, records: Records, full_name: str, classes: tuple[str, ...], arguments: dict,
               options: dict):
    super().__init__(**options)
    self._records, self._full_name, self.classes = records, full_name, classes
    self._image, self._label = arguments['image'], arguments['label']
    self._arguments, self._options = arguments, options

  def __reduce__(self):
    return functools.partial(tfds, **self._arguments), ()

  def __len__(self) -> int:
    return len(self._records)

  def name(self, index: int) -> str:
    return self._records.name(index)

  def record(self, index: int) -> Mapping[str, Any]:
    """All features of an example, the image as it was encoded; DataError where it is damaged."""
    return self._records[index]

  def read(self, index: int) -> tuple[bytes | np.ndarray, dict[str, np.ndarray]]:
    example = self.record(index)
    image = example[self._image]
    fields = {} if self._label is None else {'label': np.int32(example[self._label])}
    return image, fields

  @functools.cached_property
  def labels(self) -> np.ndarray | None:
    """int32 [N]; one pass over the records, without decoding, when first asked for."""
    if self._label is None:
      return None
    began, found = time.monotonic(), np.empty(len(self), np.int32)
    for i in range(len(self)):
      found[i] = self.record(i)[self._label]
      if i % 100_000 == 99_999:
        print(f'{self._full_name}: {i + 1:,} of {len(self):,} labels after '
              f'{time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
    return found

  def fingerprint(self) -> str:
    """SHA-256 over name, version, split, number of examples and what is cut; not the bytes."""
    options = {name: value for name, value in self._options.items() if name != 'unreadable'}
    about = (self._full_name, len(self), self._image, self._label, self.classes, options)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def tfds(*, builder: str, split: str = 'train', data_dir: str | None = None, image: str = 'image',
         label: str | None = 'label', size: int = 256, channels: int = 3,
         crop: Literal['host', 'device'] = 'host', unreadable: float = 0.001,
         crops: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> EncodedImages:
  """An image dataset of TFDS that is prepared as ArrayRecord. Nothing is downloaded.

  Args:
    builder: 'cifar10', 'imagenet2012:5.1.0', 'name/config'.
    split: as TFDS writes them: 'train', 'train[:90%]', 'train+test'.
    data_dir: where datasets are prepared; None is TFDS's own, ~/tensorflow_datasets.
    image, label: the features that become 'image' and 'label'; None for data without labels.
    size, channels, crop, unreadable, crops: as `ssl_jax.data.folders.image_folder`.

  Raises:
    ValueError: an unknown dataset, split or feature, or an argument out of its range.
    DataError: the dataset is not prepared, or not as ArrayRecord; says how to.
  """
  arguments = dict(locals())
  options = dict(size=size, channels=channels, unreadable=unreadable,
                 crops=crops if crop == 'host' else None)
  EncodedImages(**options)  # A wrong argument is known before TFDS is imported.
  found = builder_of(builder, data_dir)
  check_prepared(found, builder, data_dir)
  features = found.info.features
  for name, what in ((image, 'image'), (label, 'label')):
    if name is not None and name not in features:
      raise ValueError(f'{builder} has no feature {name!r} to be the {what}, but '
                       f'{", ".join(sorted(features))}; set config.data.{what}')
  records = _records(found, builder, split, image)
  classes = tuple(getattr(features[label], 'names', None) or ()) if label is not None else ()
  full_name = f'{found.info.full_name}/{split}'
  return TfdsImages(Records(records, full_name), full_name, classes, arguments, options)


def builder_of(name: str, data_dir: str | None) -> Any:
  """The builder of TFDS for a dataset, which may not be prepared; see `check_prepared`.

  Raises:
    ValueError: there is no such dataset; says which are called alike.
    DataError: TFDS cannot describe this one without TensorFlow.
  """
  import tensorflow_datasets as package
  make = functools.partial(package.builder, name, data_dir=data_dir, try_gcs=False)
  try:
    with contextlib.suppress(package.core.DatasetNotFoundError):
      return make()
    _register()
    return make()
  except package.core.DatasetNotFoundError as error:
    known = package.list_builders(with_community_datasets=False)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f'; did you mean {" or ".join(map(repr, close))}?' if close else ''
    raise ValueError(f'TFDS knows no dataset {name!r}{hint}') from error
  except ImportError as error:
    raise DataError(f'TFDS cannot read the dataset {name} without another package '
                    f'({error.__cause__ or error}); where it is installed, write the examples as '
                    'JSON Lines (text) or as a folder of images, and name these') from error


def _register() -> None:
  """TFDS imports its older datasets in a row, and stops at the first that needs TensorFlow."""
  for name in LEGACY:
    with contextlib.suppress(ImportError):
      importlib.import_module(f'tensorflow_datasets.{name}')


def check_prepared(builder: Any, name: str, data_dir: str | None) -> None:
  """Refuses a dataset that is not on disk as ArrayRecord with a DataError that says how to."""
  import tensorflow_datasets as package
  if not builder.data_path.exists():
    raise DataError(f'the dataset {name} is not in {builder.data_path}; ' + PREPARE.format(
      name=name, where=str(data_dir or '~/tensorflow_datasets'), modules=_modules(builder)))
  if builder.info.file_format != package.core.file_adapters.FileFormat.ARRAY_RECORD:
    raise DataError(
      f'the dataset in {builder.data_path} is stored as {builder.info.file_format.value}, which has '
      f'no random access without TensorFlow; convert it, where TensorFlow is available:\n'
      f'  tfds convert_format --dataset_dir={builder.data_path.parent} '
      f'--out_file_format=array_record --out_path=FOLDER')


def _modules(builder) -> str:
  """What to import so that TFDS knows the dataset by name, see `_register`."""
  module = type(builder).__module__
  is_old = module.split('.')[:2] in [['tensorflow_datasets', name] for name in LEGACY]
  return 'tensorflow_datasets as tfds' + (f', {module}' if is_old else '')


def _records(builder, name: str, split: str, image: str):
  """TFDS's random access to the encoded images of a split."""
  import tensorflow_datasets as package
  encoded = isinstance(builder.info.features[image], package.features.Image)
  decoders = {image: package.decode.SkipDecoding()} if encoded else None
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except ValueError as error:
    raise ValueError(f'{name}: {error}') from error
