"""Shards of images as ArrayRecord files (https://github.com/google/array_record): few files, any order.

  path/train-00000-of-00008.array_record ...  one record per image, MessagePack: image, label, shape
  path/train.labels.npy                       int32 [N], where there are labels
  path/train.json                             counts, classes, encoding, origin; written last

`python -m ssl_jax pack` writes them.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgpack
import numpy as np
from etils import epath

from ssl_jax.data.images import EncodedImages
from ssl_jax.data.shards import Records, check_counts, file_name, put_in_place, writer
from ssl_jax.data.sources import DataError

VERSION = 1


class Item(NamedTuple):
  """What is written for one example: encoded bytes or pixels uint8 [H, W, C], and a label or None."""

  image: bytes | np.ndarray
  label: int | None


class Shards(EncodedImages):
  """The images of one split; travels to workers as the arguments of `array_record`."""

  def __init__(self, about: dict, files: Sequence[str], labels: np.ndarray | None, arguments: dict,
               options: dict):
    super().__init__(**options)
    self._about, self._files, self.labels = about, tuple(files), labels
    self._arguments, self._options = arguments, options
    self.classes = tuple(about['classes'])

  def __reduce__(self):
    return functools.partial(array_record, **self._arguments), ()

  def __len__(self) -> int:
    return sum(self._about['counts'])

  @functools.cached_property
  def _records(self) -> Records:
    return Records(self._files, self._about['counts'])

  def name(self, index: int) -> str:
    return self._records.name(index)

  def read(self, index: int) -> tuple[bytes | np.ndarray, dict[str, np.ndarray]]:
    record = msgpack.unpackb(self._records[index])
    image = record['image']
    if 'shape' in record:
      image = np.frombuffer(image, np.uint8).reshape(record['shape'])
    return image, {} if self.labels is None else {'label': self.labels[index]}

  def fingerprint(self) -> str:
    """SHA-256 of all records, as they were written, and of what is cut."""
    options = {name: value for name, value in self._options.items() if name != 'unreadable'}
    return hashlib.sha256(repr((self._about['sha256'], options)).encode()).hexdigest()


def array_record(*, path: str, split: str = 'train', size: int = 256, channels: int = 3,
                 crop: Literal['host', 'device'] = 'host', unreadable: float = 0.001,
                 crops: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> EncodedImages:
  """Shards written by `python -m ssl_jax pack` (`write_shards`).

  Args:
    path: their folder. The index may be remote (etils.epath); ArrayRecord itself opens 'gs://' paths
      only in builds that can, otherwise copy or mount them.
    split: as they were packed.
    size, channels, crop, unreadable, crops: as `ssl_jax.data.folders.image_folder`.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: a split that there is not, or an argument out of its range.
    DataError: a shard is missing or damaged.
  """
  arguments = dict(locals())
  options = dict(size=size, channels=channels, unreadable=unreadable,
                 crops=crops if crop == 'host' else None)
  EncodedImages(**options)
  folder = epath.Path(path).expanduser()
  about = _read_about(folder, split)
  files = [str(folder / file_name(split, i, len(about['counts'])))
           for i in range(len(about['counts']))]
  check_counts(files, about['counts'], 'images')
  labels = _read_labels(folder / f'{split}.labels.npy', sum(about['counts'])) if (
    about['labels']) else None
  return Shards(about, files, labels, arguments, options)


def _read_about(folder: epath.Path, split: str) -> dict:
  if not folder.is_dir():
    raise FileNotFoundError(2, 'no such folder of shards', str(folder))
  file = folder / f'{split}.json'
  if not file.exists():
    splits = sorted(path.stem for path in folder.glob('*.json'))
    raise ValueError(f'{folder} has no split {split!r}, but {", ".join(splits) or "none"}; '
                     f'`python -m ssl_jax pack --split={split}` makes it')
  try:
    about = json.loads(file.read_text())
    if about['version'] != VERSION:
      raise DataError(f'{file} is of version {about["version"]}, this code reads {VERSION}')
    return about
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise DataError(f'{file} is damaged: {error}') from error


def _read_labels(file: epath.Path, count: int) -> np.ndarray:
  try:
    with file.open('rb') as stream:
      labels = np.load(stream, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{file} is damaged or missing: {error}') from error
  if labels.shape != (count,):
    raise DataError(f'{file} has {labels.shape} labels for {count} images')
  return labels.astype(np.int32)


# --- writing --------------------------------------------------------------------------------------


def write_shards(path: str | pathlib.Path, split: str, shards: Sequence[Iterable[Item]], *,
                 classes: Sequence[str] = (), about: Mapping[str, Any] | None = None,
                 overwrite: bool = False) -> int:
  """Writes a split; all of it or nothing.

  Args:
    path: local folder, made if need be; other splits in it stay.
    split: its name.
    shards: the examples of each shard, in their order; all labelled or none.
    classes: names of the labels.
    about: what else to say of it in the split's JSON file, such as where it comes from.
    overwrite: replace a split of the same name.

  Returns:
    How many images were written.

  Raises:
    FileExistsError: there is such a split, and `overwrite` is False.
    ValueError: labels for some examples only.
  """
  path = pathlib.Path(path).expanduser()
  if (path / f'{split}.json').exists() and not overwrite:
    raise FileExistsError(17, f'there is a split {split!r} already; --overwrite replaces it',
                          str(path))
  path.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(dir=path, prefix=f'.{split}.'))
  try:
    counts, labels, digest = [], [], hashlib.sha256()
    for i, items in enumerate(shards):
      counts.append(_write_shard(part / file_name(split, i, len(shards)), items, labels, digest))
    labelled = {label is not None for label in labels}
    if len(labelled) > 1:
      raise ValueError('some examples have labels and some have not')
    if labelled == {True}:
      np.save(part / f'{split}.labels.npy', np.array(labels, np.int32))
    (part / f'{split}.json').write_text(json.dumps(dict(
      about or {}, version=VERSION, counts=counts, labels=labelled == {True},
      classes=list(classes), sha256=digest.hexdigest()), indent=2) + '\n')
    put_in_place(path, part, split)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return sum(counts)


def _write_shard(file: pathlib.Path, items: Iterable[Item], labels: list, digest) -> int:
  """Appends to `labels`; returns the number of records."""
  out, count = writer(file), 0
  try:
    for image, label in items:
      record = {'image': image} if isinstance(image, bytes) else {
        'image': image.tobytes(), 'shape': list(image.shape)}
      data = msgpack.packb(record if label is None else dict(record, label=int(label)))
      out.write(data)
      digest.update(data)
      labels.append(label)
      count += 1
  finally:
    out.close()
  return count
