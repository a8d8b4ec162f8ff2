"""Where examples come from: random access by number, NumPy arrays out.

Every public function of this module is a choice of `config.data.name`; it takes keyword arguments
and returns a `Source`. Another kind of storage is another function; a source that decodes
implements `__getitem__` alone and is read by workers, see `batches`.
"""

import functools
import hashlib
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

# The fields that `batches` and `in_order` add to those of the source.
RESERVED = ('id', 'epoch', 'weight', 'unreadable')

FASHION_MNIST_CLASSES = (
  'T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat', 'Sandal', 'Shirt', 'Sneaker', 'Bag',
  'Ankle boot')

_EMBEDDED = pathlib.Path(__file__).parent / 'embedded'


class DataError(ValueError):
  """Data cannot be read, or are not what they should be."""


class UnreadableImage(DataError):
  """One image cannot be decoded; a share of such images is skipped, see `ssl_jax.data.unreadable`."""

  def __init__(self, name: str, reason: str):
    super().__init__(name, reason)
    self.name, self.reason = name, reason

  def __str__(self) -> str:
    return f'{self.name}: {self.reason}' if self.name else self.reason


class Source(Protocol):
  """Examples by number; must survive pickling, because workers receive a copy.

  What a source may also offer:
    take(indices) -> {field: [B, ...]}, the same as stacking `self[i]` over `indices`;
    draw(i, seed=..., epoch=...) -> fields, what training reads instead of `self[i]`: random crops;
    labels, int32 [N] or None: all labels without reading an image;
    classes, the names of the labels;
    parts() -> {what: a digest of it or its value}, all strings: of what the fingerprint is made, for
      telling what changed.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    """The fields of one example; shapes and dtypes are the same for every example."""
    ...

  def fingerprint(self) -> str:
    """A digest of everything that shapes the examples, equal in every process and machine."""
    ...


class ArraySource:
  """Fields held as arrays [N, ...] in memory, or mapped from files."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    """Checks the arrays without copying them.

    Args:
      arrays: {field: [N, ...]}. 'image' must be uint8 [N, H, W, C], or [N, H, W], which gets a
        channel axis; 'label' must be integers [N] and becomes int32.

    Raises:
      DataError: no fields, no examples, unequal lengths, or a wrong dtype or rank.
    """
    self.arrays = {name: _checked(name, np.asarray(array)) for name, array in arrays.items()}
    lengths = {name: len(array) for name, array in self.arrays.items()}
    if len(set(lengths.values())) != 1:
      raise DataError(f'fields must have one length; got {lengths or "no fields"}')
    self._length = next(iter(lengths.values()))
    if self._length == 0:
      raise DataError(f'there are no examples in the fields {", ".join(self.arrays)}')

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in self.arrays.items()}

  def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[indices] for name, array in self.arrays.items()}

  @property
  def labels(self) -> np.ndarray | None:
    """The field 'label', int32 [N], if there is one."""
    return self.arrays.get('label')

  def fingerprint(self) -> str:
    """SHA-256 over names, dtypes, shapes and bytes; read once, at about 1.5 GB/s."""
    return self._fingerprint

  @functools.cached_property
  def _fingerprint(self) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(self.arrays.items()):
      kind = array.dtype.newbyteorder('<')
      digest.update(repr((name, kind.str, array.shape)).encode())
      # In pieces of some 16 MB, so that a mapped file larger than the memory can be read.
      rows = max(1, (1 << 24) // max(1, array[:1].nbytes))
      for start in range(0, len(array), rows):
        digest.update(np.ascontiguousarray(array[start:start + rows], kind))
    return digest.hexdigest()


class _FileArrays(ArraySource):
  """Arrays that travel to workers as a path instead of as bytes."""

  def __init__(self, path: str, split: str):
    self._origin = path, split
    file = _file_of_split(path, split)
    try:
      super().__init__(_read_arrays(file))
    except DataError as error:
      raise DataError(f'{file}: {error}') from error.__cause__

  def __reduce__(self):
    return type(self), self._origin


class Renumbered:
  """A source whose labels count the classes as another source does: each split numbers its own."""

  def __init__(self, source: Source, classes: tuple[str, ...]):
    """Raises DataError for a class of `source` that has examples and is not among `classes`."""
    labels = getattr(source, 'labels', None)
    used = set(range(len(source.classes)) if labels is None else np.unique(labels).tolist())
    if unknown := [name for i, name in enumerate(source.classes)
                   if i in used and name not in classes]:
      raise DataError(f'the classes {", ".join(unknown[:10])} are not among those of training: '
                      f'{", ".join(classes[:10])}{" ..." if len(classes) > 10 else ""}')
    self._source, self.classes = source, tuple(classes)
    # The last place is that of -1, which stays: no label.
    self._numbers = np.array([*(classes.index(name) if name in classes else -1
                                for name in source.classes), -1], np.int32)

  def __getattr__(self, name: str):
    if name.startswith('_'):  # Before unpickling has set anything.
      raise AttributeError(name)
    value = getattr(self._source, name)
    if name == 'labels':
      return None if value is None else self._numbers[value]
    if name in ('take', 'draw'):
      return lambda *args, **options: self._fields(value(*args, **options))
    if name == 'documents':
      return lambda: Renumbered(value(), self.classes)
    return value

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._fields(self._source[index])

  def _fields(self, fields):
    return fields if 'label' not in fields else {**fields, 'label': self._numbers[fields['label']]}


# --- the choices of config.data.name --------------------------------------------------------------


def fashion_mnist_12k(*, split: str = 'train') -> Source:
  """Real images that ship with the package: 10 classes of clothing, balanced.

  10,000 'train' and 2,000 'test' examples of Fashion-MNIST (Xiao, Rasul and Vollgraf 2017,
  arXiv:1708.07747; MIT licence): image uint8 [28, 28, 1], label int32 into FASHION_MNIST_CLASSES.
  """
  if split not in ('train', 'test'):
    raise ValueError(f"fashion_mnist_12k has the splits 'train' and 'test', not {split!r}")
  path = _EMBEDDED / 'fashion_mnist_12k' / 'fashion_mnist_12k.npz'
  with np.load(path, allow_pickle=False) as archive:
    return ArraySource({field: archive[f'{split}_{field}'] for field in ('image', 'label')})


def array_files(*, path: str, split: str = 'train') -> Source:
  """Arrays of your own.

  Args:
    path: one of
      'my.npz': an archive with the members image, label, ... (read into memory);
      'my.npy': images alone (memory-mapped);
      'folder': one memory-mapped file per field: folder/image.npy, folder/label.npy, ...
      '{split}' in it is replaced: 'my_{split}.npz', 'folder/{split}'.
    split: only 'train' exists where `path` has no '{split}'.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a split that the path does not name.
    DataError: pickled or damaged arrays, unequal lengths, or a wrong dtype or rank.
  """
  return _FileArrays(str(path), split)


# --- reading and checking -------------------------------------------------------------------------


def _file_of_split(path: str, split: str) -> pathlib.Path:
  if '{split}' not in path and split != 'train':
    raise ValueError(f"{path!r} is the 'train' split; to have a split {split!r}, write '{{split}}' "
                     "in the path, as in 'my_{split}.npz'")
  file = pathlib.Path(path.replace('{split}', split)).expanduser()
  if not file.exists():
    raise FileNotFoundError(2, 'no such file or folder of arrays', str(file))
  return file


def _read_arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
  if file.is_dir():
    fields = {member.stem: member for member in sorted(file.glob('*.npy'))}
    if not fields:
      raise DataError('the folder has no .npy files; expected image.npy, label.npy, ...')
    return {name: _load(member) for name, member in fields.items()}
  if file.suffix == '.npy':
    return {'image': _load(file)}
  if file.suffix != '.npz':
    raise DataError('expected a .npz file, a .npy file or a folder of .npy files')
  return _load(file)


def _load(file: pathlib.Path):
  """An array mapped from `.npy`, or the members of `.npz` as a dict."""
  try:
    if file.suffix == '.npy':
      return np.load(file, mmap_mode='r', allow_pickle=False)
    # np.load would leave a damaged archive open, and accept other kinds of files.
    with file.open('rb') as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
      return dict(archive)
  except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise DataError(f'{file.name} cannot be read as plain NumPy arrays (pickled ones are refused: '
                    f'reading them runs code): {error}') from error


def _checked(name: str, array: np.ndarray) -> np.ndarray:
  if name in RESERVED:
    raise DataError(f'{name!r} is a name that batches use themselves ({", ".join(RESERVED)})')
  if array.ndim == 0 or array.dtype.hasobject:
    raise DataError(f'{name!r} must be an array [N, ...] of numbers; got {_kind(array)}')
  if name == 'image':
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
      raise DataError("'image' must be uint8 [N, H, W, C] or uint8 [N, H, W]; "
                      f'got {_kind(array)}')
    return array if array.ndim == 4 else array[..., None]
  if name == 'label':
    if array.dtype.kind not in 'iu' or array.ndim != 1:
      raise DataError(f"'label' must be integers [N]; got {_kind(array)}")
    return array.astype(np.int32)
  return array


def _kind(array: np.ndarray) -> str:
  return f'{array.dtype} {list(array.shape)}'
