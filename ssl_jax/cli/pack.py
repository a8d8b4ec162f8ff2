"""`python -m ssl_jax pack`: a folder of images or a TFDS dataset as a few ArrayRecord shards."""

import io
import multiprocessing
import pathlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from PIL import Image

from ssl_jax.cli.options import Parser
from ssl_jax.data.array_records import Item, write_shards
from ssl_jax.data.folders import image_folder
from ssl_jax.data.images import EncodedImages, centre, decode
from ssl_jax.data.sources import DataError, UnreadableImage
from ssl_jax.data.tensorflow_datasets import tfds
from ssl_jax.data.unreadable import Fault, Unreadable
from ssl_jax.schema import ConfigError

DESCRIPTION = '''Writes images as shards that are read fast, in any order, from few files. Images are
made smaller (shorter side) but never larger; damaged ones are left out and named. All or nothing: an
interrupted pack leaves what was there before.'''
ENCODINGS = ('jpeg', 'png', 'webp', 'raw', 'keep')
CHUNK = 16  # images that a worker does at a time


def run(argv: list[str]) -> int:
  args = _arguments(argv)
  source = _source(args)
  encode = partial(_encode, encoding=args.encoding, size=args.size, channels=args.channels,
                   quality=args.quality)
  out = pathlib.Path(args.out).expanduser()
  if out.exists() and not out.is_dir():
    raise ConfigError(f'--out={args.out} is a file; give a folder')
  out.mkdir(parents=True, exist_ok=True)
  progress = _Progress(len(source))
  with _pool(args.workers, source, encode) as run_all:
    _check_space(out, source, run_all)
    unreadable = Unreadable(args.unreadable, len(source))
    bounds = np.linspace(0, len(source), args.shards + 1).astype(int)
    shards = [_items(run_all(range(first, last)), unreadable, progress)
              for first, last in zip(bounds, bounds[1:])]
    count = write_shards(
      out, args.split, shards, classes=source.classes, overwrite=args.overwrite,
      about=dict(origin=args.folder or args.tfds, encoding=args.encoding, size=args.size,
                 quality=args.quality, unreadable=[name for name, _ in unreadable.seen.values()]))
  progress.close()
  print(f'{count:,} images in {args.shards} shards in {out}')
  print(f"config.data = dict(name='array_record', path={str(out)!r}, split={args.split!r}, "
        f'size={args.size})')
  return 0


def _arguments(argv: list[str]):
  parser = Parser('pack', DESCRIPTION)
  parser.add_argument('--folder', metavar='FOLDER', help='images in a folder, see docs/data.md')
  parser.add_argument('--tfds', metavar='NAME', help='a prepared TFDS dataset')
  parser.add_argument('--data_dir', metavar='FOLDER', help='where TFDS datasets are prepared')
  parser.add_argument('--image', default='image', help='feature of the TFDS dataset')
  parser.add_argument('--label', default='label', help="feature of the TFDS dataset, or 'none'")
  parser.add_argument('--split', default='train', help='which split, and what it is called')
  parser.add_argument('--out', metavar='FOLDER', help='where the shards go')
  parser.add_argument('--size', type=int, default=256, help='pixels of the shorter side')
  parser.add_argument('--channels', type=int, default=3, help='3, or 1 for grey')
  parser.add_argument('--encoding', default='jpeg', choices=ENCODINGS, help='how images are stored; '
                      'raw: squares of pixels; keep: the files as they are')
  parser.add_argument('--quality', type=int, default=90, help='of jpeg and webp')
  parser.add_argument('--shards', type=int, default=8, help='number of files')
  parser.add_argument('--workers', type=int, default=0, help='processes that encode')
  parser.add_argument('--unreadable', type=float, default=0.001, metavar='SHARE',
                      help='share of the images that may be damaged')
  parser.add_argument('--overwrite', action='store_true', help='replace a split of this name')
  args, _ = parser.read(argv)
  if not args.out or (args.folder is None) == (args.tfds is None):
    parser.error('needs --out=FOLDER and one of --folder=FOLDER and --tfds=NAME')
  if not 1 <= args.quality <= 100:
    parser.error(f'--quality must be between 1 and 100, got {args.quality}')
  for name, low in (('size', 1), ('shards', 1), ('workers', 0)):
    if getattr(args, name) < low:
      parser.error(f'--{name} must be at least {low}, got {getattr(args, name)}')
  if (pathlib.Path(args.out).expanduser() / f'{args.split}.json').exists() and not args.overwrite:
    parser.error(f'{args.out} has a split {args.split!r} already; --overwrite replaces it')
  return args


def _source(args) -> EncodedImages:
  options = dict(split=args.split, size=args.size, channels=args.channels, crop='device',
                 unreadable=args.unreadable)
  try:
    if args.folder is not None:
      return image_folder(path=args.folder, **options)
    return tfds(builder=args.tfds, data_dir=args.data_dir, image=args.image,
                label=None if args.label == 'none' else args.label, **options)
  except DataError:
    raise
  except ValueError as error:
    raise ConfigError(str(error)) from error


# --- one image ------------------------------------------------------------------------------------


def _encode(source: EncodedImages, index: int, *, encoding: str, size: int, channels: int,
            quality: int) -> Item | Fault:
  """Deterministic: the same image gives the same bytes in any process."""
  try:
    data, fields = source.read(index)
    label = fields.get('label')
    if encoding == 'keep':
      centre(data, size=8, channels=channels)  # Damage is found now, not in training.
      image = data
    elif encoding == 'raw':
      image = centre(data, size=size, channels=channels)
    else:
      pixels = decode(data, channels=channels, at_least=size)
      image = _file(pixels, encoding, quality)
    return Item(image, None if label is None else int(label))
  except (UnreadableImage, OSError) as error:
    return index, source.name(index), getattr(error, 'reason', str(error))


def _file(pixels: np.ndarray, encoding: str, quality: int) -> bytes:
  out = io.BytesIO()
  options = {} if encoding == 'png' else dict(quality=quality)
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  image.save(out, encoding.upper(), **options)
  return out.getvalue()


def _items(results: Iterable[Item | Fault], unreadable: Unreadable, progress) -> Iterator[Item]:
  for result in results:
    progress()
    if isinstance(result, Item):
      yield result
    else:
      unreadable.add([result])


# --- all of them ----------------------------------------------------------------------------------


class _pool:
  """`with _pool(workers, source, encode) as run_all`: run_all(indices) -> results in their order."""

  def __init__(self, workers: int, source: EncodedImages, encode):
    self._workers, self._work = workers, (source, encode)
    self._pool = None

  def __enter__(self):
    if not self._workers:
      source, encode = self._work
      return lambda indices: (encode(source, int(i)) for i in indices)
    # Spawned: forking after JAX or TFDS started threads may hang.
    self._pool = multiprocessing.get_context('spawn').Pool(self._workers, _start, self._work)
    return lambda indices: self._pool.imap(_in_worker, map(int, indices), CHUNK)

  def __exit__(self, *exception) -> None:
    if self._pool is not None:
      self._pool.terminate()
      self._pool.join()


_WORK = []  # (source, encode) of this worker process


def _start(*work) -> None:
  _WORK[:] = work


def _in_worker(index: int) -> Item | Fault:
  source, encode = _WORK
  return encode(source, index)


def _check_space(out: pathlib.Path, source: EncodedImages, run_all, sample: int = 32) -> None:
  """A few images tell what all will take; better to know before hours of work."""
  indices = np.unique(np.linspace(0, len(source) - 1, sample).astype(int))
  sizes = [len(item.image) if isinstance(item.image, bytes) else item.image.nbytes
           for item in run_all(indices) if isinstance(item, Item)]
  needed = int(np.mean(sizes) * len(source) * 1.05) if sizes else 0
  free = shutil.disk_usage(out).free
  if needed > free:
    raise DataError(f'the shards would take about {needed / 1e9:.1f} GB, and {out} has '
                    f'{free / 1e9:.1f} GB left; use a smaller --size or another --encoding')
  print(f'about {needed / 1e6:,.0f} MB for {len(source):,} images', file=sys.stderr, flush=True)


class _Progress:
  """A line on stderr every few seconds."""

  def __init__(self, total: int, every: float = 5.0):
    self._total, self._every = total, every
    self._began = self._said = time.monotonic()
    self._done = 0

  def __call__(self) -> None:
    self._done += 1
    now = time.monotonic()
    if now - self._said > self._every:
      self._said = now
      rate = self._done / (now - self._began)
      print(f'{self._done:,} of {self._total:,} images  {rate:.0f} images/s  '
            f'{(self._total - self._done) / rate:.0f} s left', file=sys.stderr, flush=True)

  def close(self) -> None:
    seconds = time.monotonic() - self._began
    print(f'{self._done:,} images in {seconds:.1f} s, {self._done / max(seconds, 1e-9):.0f} images/s',
          file=sys.stderr, flush=True)
