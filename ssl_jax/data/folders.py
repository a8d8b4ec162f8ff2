"""Folders of images: one folder per class, or flat and unlabelled; millions of files.

A folder is walked once. Its index (names, sizes, labels as arrays, mapped from files) is kept in the
user's cache and holds as long as no directory below has changed.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from ssl_jax.data.images import EncodedImages
from ssl_jax.data.retries import patiently
from ssl_jax.data.sources import DataError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
VERSION = 1
# Folders that are taken for splits: a class may be called 'train' too, among cars and planes.
SPLITS = ('train', 'test', 'val', 'valid', 'validation', 'dev', 'eval', 'unlabeled', 'unlabelled')
# A directory that changed so recently may change again within one tick of its clock.
SETTLED = 2.0  # seconds
SLOW = 2.0  # seconds after which a walk says how far it is


class Index(NamedTuple):
  """What a folder holds; images sorted by relative path.

  names: all relative paths, UTF-8, one after the other, uint8 [bytes].
  ends: where each ends, int64 [N].
  sizes: of the files in bytes, int64 [N]; 0 where the storage would have to be asked for each.
  labels: int32 [N], -1 without classes.
  classes: names of the labels.
  directories: (relative path, time of its last change in ns) of every directory.
  """

  names: np.ndarray
  ends: np.ndarray
  sizes: np.ndarray
  labels: np.ndarray
  classes: tuple[str, ...]
  directories: tuple[tuple[str, int], ...]

  def name(self, i: int) -> str:
    start = self.ends[i - 1] if i else 0
    return bytes(self.names[start:self.ends[i]]).decode('utf-8', 'surrogateescape')


class ImageFolder(EncodedImages):
  """The images of an `Index`; travels to workers as the path of the index where that is a file."""

  def __init__(self, root: str, index: Index, saved: pathlib.Path | None, **options):
    super().__init__(**options)
    self._root, self._index, self._saved, self._options = root, index, saved, options
    self._local = '://' not in root
    self.classes = index.classes
    self.labels = index.labels if index.classes else None

  def __reduce__(self):
    index = None if self._saved else self._index
    return _restored, (self._root, index, self._saved, self._options)

  def __len__(self) -> int:
    return len(self._index.ends)

  def name(self, index: int) -> str:
    return f'{self._root}/{self._index.name(index)}'

  def read(self, index: int) -> tuple[bytes, dict[str, np.ndarray]]:
    data = patiently(lambda: self._bytes(self.name(index)), self.name(index))
    return data, {} if self.labels is None else {'label': self.labels[index]}

  def _bytes(self, path: str) -> bytes:
    if not self._local:
      return epath.Path(path).read_bytes()
    with open(path, 'rb') as stream:
      return stream.read()

  def fingerprint(self) -> str:
    """SHA-256 over names, sizes and classes (not the bytes: millions of files), and what is cut."""
    options = {name: value for name, value in self._options.items() if name != 'unreadable'}
    digest = hashlib.sha256(repr((VERSION, self._index.classes, options)).encode())
    for array in (self._index.names, self._index.ends, self._index.sizes, self._index.labels):
      digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()

  def parts(self) -> dict[str, str]:
    """What the fingerprint is made of, see `sources.Source`."""
    index = self._index
    parts = {'the names of the files': [index.names, index.ends],
             'the sizes of the files': [index.sizes], 'the labels': [index.labels]}
    digests = {name: hashlib.sha256(b''.join(map(bytes, arrays))).hexdigest()
               for name, arrays in parts.items()}
    classes = hashlib.sha256(repr(index.classes).encode()).hexdigest()
    return {**digests, 'the classes': classes}


def image_folder(*, path: str, split: str = 'train', size: int = 256, channels: int = 3,
                 crop: Literal['host', 'device'] = 'host', unreadable: float = 0.001,
                 crops: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> EncodedImages:
  """Images in a folder: JPEG, PNG, WebP, BMP and GIF, of any size and mode, rotated as EXIF says.

  With sub-folders each is a class, and images anywhere below it get its label, int32 in the order of
  the names; without, there are no labels.

  Args:
    path: the folder, or a remote one that etils.epath reads ('gs://...'). '{split}' in it is
      replaced; else path/split is taken where it exists (path/train only among folders with the
      names of splits: it might be a class).
    split: only 'train' exists where neither is.
    size: side of the central square that evaluation sees, pixels.
    channels: 3, or 1 for grey.
    crop: 'host' decodes and crops at full resolution, for images larger than the network's input;
      'device' hands over central squares, for small images, and crops are cut on the accelerator.
    unreadable: the share of images that may be damaged; they are skipped and named.
    crops: what the views want (`Views.crops`); not a key of configs.

  Raises:
    FileNotFoundError: there is no such folder.
    ValueError: an argument out of its range, or a split that there is not.
    DataError: no images, or images beside folders of images.
  """
  root = folder_of_split(path, split)
  options = dict(size=size, channels=channels, unreadable=unreadable,
                 crops=crops if crop == 'host' else None)
  EncodedImages(**options)  # A wrong argument is known before a long walk.
  index, saved = _indexed(root)
  return ImageFolder(root, index, saved, **options)


def _restored(root: str, index: Index | None, saved: pathlib.Path | None, options) -> ImageFolder:
  return ImageFolder(root, index or _loaded(saved), saved, **options)


def folder_of_split(path: str, split: str) -> str:
  """Where the images of a split are, see `image_folder`; raises as it does."""
  folder = epath.Path(path.replace('{split}', split)).expanduser()
  if '{split}' not in path:
    if (folder / split).is_dir() and (split != 'train' or _holds_splits(folder)):
      folder = folder / split
    elif split != 'train':
      raise ValueError(f"{path!r} is the 'train' split; to have a split {split!r}, make a folder "
                       f"{split!r} in it, or write '{{split}}' in the path")
  if not folder.is_dir():
    raise FileNotFoundError(2, 'no such folder of images', str(folder))
  return str(folder if '://' in str(folder) else pathlib.Path(folder).resolve())


def _holds_splits(folder: epath.Path) -> bool:
  """Whether the folders in `folder` are splits rather than classes.

  Raises:
    DataError: some have the names of splits and others hold images: nobody can tell.
  """
  names = [path.name for path in folder.iterdir()
           if not path.name.startswith('.') and path.is_dir()]
  others = [name for name in names if name not in SPLITS]
  with_images = [name for name in others if _has_images(folder / name)]
  if len(names) - len(others) < 2:  # 'train' alone among others may be a class
    return not with_images
  if with_images:
    raise DataError(f'{folder} holds splits ({", ".join(sorted(set(names) & set(SPLITS)))}) beside '
                    f'other folders of images ({", ".join(sorted(with_images)[:5])}): move these '
                    f"away, or write '{{split}}' in the path")
  return True


def _has_images(folder: epath.Path) -> bool:
  walked = _local_walk(str(folder)) if '://' not in str(folder) else _remote_walk(str(folder))
  return any(name.lower().endswith(SUFFIXES) for _, _, files in walked for name, _ in files)


# --- the index ------------------------------------------------------------------------------------


def _indexed(root: str) -> tuple[Index, pathlib.Path | None]:
  """(index, where it is kept); walked anew if a directory changed or what is kept is damaged."""
  saved = cache_folder() / hashlib.sha256(root.encode()).hexdigest()[:24]
  try:
    index = _loaded(saved)
    if _unchanged(root, index, saved):
      return index, saved
  except (OSError, ValueError, KeyError, TypeError):
    pass  # There is none, or it is damaged.
  index = walk(root)
  newest = max(changed for _, changed in index.directories)
  if '://' not in root and time.time() - newest / 1e9 < SETTLED:
    return index, None
  return (index, saved) if _save(index, saved, root) else (index, None)


def cache_folder() -> pathlib.Path:
  """Where indices are kept; deleting it costs another walk."""
  return user_cache() / 'folders'


def user_cache() -> pathlib.Path:
  """Where this user keeps what can be made again; beside other temporary files without a home."""
  try:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  except RuntimeError:  # a container may run under a number that belongs to nobody
    base = pathlib.Path(tempfile.gettempdir()) / f'cache-{os.getuid()}'
  return pathlib.Path(base) / 'ssl_jax'


def _unchanged(root: str, index: Index, saved: pathlib.Path) -> bool:
  if '://' in root:  # Object stores have no directories that change.
    print(f'{root}: the list of files is that of an earlier walk; delete {saved} to walk again',
          file=sys.stderr)
    return True
  return all(os.stat(os.path.join(root, name)).st_mtime_ns == changed
             for name, changed in index.directories)


def _loaded(saved: pathlib.Path) -> Index:
  about = json.loads((saved / 'index.json').read_text())
  if about['version'] != VERSION:
    raise ValueError(f'index of version {about["version"]}')
  arrays = {name: np.load(saved / f'{name}.npy', mmap_mode='r', allow_pickle=False)
            for name in ('names', 'ends', 'sizes', 'labels')}
  count = len(arrays['ends'])
  if any(len(arrays[name]) != count for name in ('sizes', 'labels')) or (
      len(arrays['names']) != arrays['ends'][-1]):
    raise ValueError('the arrays of the index do not fit together')
  return Index(classes=tuple(about['classes']),
               directories=tuple((name, changed) for name, changed in about['directories']),
               **arrays)


def _save(index: Index, saved: pathlib.Path, root: str) -> bool:
  """Writes beside and renames, so that no other process sees half of it; False if it cannot."""
  try:
    saved.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(dir=saved.parent, prefix=f'{saved.name}.'))
    try:
      for name in ('names', 'ends', 'sizes', 'labels'):
        np.save(part / f'{name}.npy', getattr(index, name))
      (part / 'index.json').write_text(json.dumps(dict(
        version=VERSION, root=root, classes=index.classes, directories=index.directories)))
      if saved.exists():
        shutil.rmtree(saved)
      part.rename(saved)
    finally:
      shutil.rmtree(part, ignore_errors=True)
  except OSError as error:
    print(f'the list of files cannot be kept in {saved}: {error}', file=sys.stderr)
    return False
  return True


# --- walking --------------------------------------------------------------------------------------


def walk(root: str) -> Index:
  """Lists a folder.

  Raises:
    DataError: no images, or images beside folders of images.
  """
  progress = _Progress(root)
  local = '://' not in root
  found, directories, others = [], [], set()
  for directory, changed, files in (_local_walk(root) if local else _remote_walk(root)):
    directories.append((directory, changed))
    for name, size in files:
      if name.lower().endswith(SUFFIXES):
        found.append((f'{directory}/{name}' if directory else name, size))
      else:
        others.add(os.path.splitext(name)[1] or name)
    progress(len(found))
  progress.close(len(found))
  if not found:
    raise DataError(f'{root} holds no images: looked for {", ".join(SUFFIXES)}, found '
                    f'{", ".join(sorted(others)[:10]) or "nothing"}')
  found.sort(key=lambda item: os.fsencode(item[0]))
  top = sorted({name.split('/')[0] for name, _ in directories if name})
  loose = [name for name, _ in found if '/' not in name]
  if loose and len(loose) < len(found):
    raise DataError(f'{root} holds images ({loose[0]}, ...) beside folders of images '
                    f'({next(name for name, _ in found if "/" in name)}, ...): move them into a '
                    f'folder of their own, or all into one')
  classes = () if loose else tuple(top)
  number = {name: i for i, name in enumerate(classes)}
  encoded = [os.fsencode(name) for name, _ in found]
  return Index(
    names=np.frombuffer(b''.join(encoded), np.uint8),
    ends=np.cumsum([len(name) for name in encoded], dtype=np.int64),
    sizes=np.array([size for _, size in found], np.int64),
    labels=np.array([number.get(name.split('/')[0], -1) for name, _ in found], np.int32),
    classes=classes, directories=tuple(directories))


# (relative directory, time of its last change, (name, size) of its files)
Listing = tuple[str, int, list[tuple[str, int]]]


def _local_walk(root: str) -> Iterator[Listing]:
  """Hidden files and folders are left out; links are followed, each real folder once."""
  waiting, visited = [''], set()
  while waiting:
    directory = waiting.pop()
    path = os.path.join(root, directory)
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in visited:
      continue
    visited.add((status.st_dev, status.st_ino))
    files = []
    with os.scandir(path) as entries:
      for entry in entries:
        if entry.name.startswith('.'):
          continue
        if entry.is_dir():
          waiting.append(f'{directory}/{entry.name}' if directory else entry.name)
        elif entry.is_file():
          files.append((entry.name, entry.stat().st_size))
    yield directory, status.st_mtime_ns, files


def _remote_walk(root: str) -> Iterator[Listing]:
  waiting = ['']
  while waiting:
    directory = waiting.pop()
    files = []
    folder = epath.Path(root) / directory
    for entry in patiently(lambda: list(folder.iterdir()), str(folder)):  # noqa: B023, called at once
      name = entry.name
      if name.startswith('.'):
        continue
      # Asking an object store for every file would take hours: what has a suffix is a file.
      if os.path.splitext(name)[1] or not entry.is_dir():
        files.append((name, 0))
      else:
        waiting.append(f'{directory}/{name}' if directory else name)
    yield directory, 0, files


class _Progress:
  """A line on stderr for a walk that takes long."""

  def __init__(self, root: str):
    self._root, self._began, self._said = root, time.monotonic(), 0.0

  def __call__(self, count: int) -> None:
    now = time.monotonic() - self._began
    if now > SLOW and now - self._said > SLOW:
      self._said = now
      print(f'{self._root}: {count:,} images after {now:.0f} s ...', file=sys.stderr, flush=True)

  def close(self, count: int) -> None:
    if self._said:
      print(f'{self._root}: {count:,} images in {time.monotonic() - self._began:.0f} s',
            file=sys.stderr, flush=True)
