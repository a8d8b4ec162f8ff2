"""Encoded images to pixels: decoding what people have, whole or as random crops, on the host.

The host does as little as it can: decode, crop, resize; mirroring, colour and blur are the
accelerator's. A random crop is RandomResizedCrop as in `ssl_jax.views.crops`, with numbers from
(seed, epoch, example, view), so that it does not depend on workers, hosts or the past.

JPEGs are decoded at 1/2, 1/4 or 1/8 of their size (the DCT's own scaling) where no view would have to
be enlarged for it.
"""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssl_jax.data.sources import UnreadableImage

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# What a file may hold, whatever it is called. Pillow knows more, but would start Ghostscript for some.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000')
MISFITS = ('redraw', 'cut')
TRIES = 10
REDUCTIONS = (8, 4, 2)
ORIENTATION = 0x0112  # the EXIF tag, and what makes an image of each value upright
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
           4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
           6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}
CROPS = ('host', 'device')


class Crop(NamedTuple):
  """What one view wants of a host; the keys of the mappings in `ssl_jax.types.Views.crops`.

  size: side of the result, pixels.
  area, aspect: ranges of the box's share of the image and of its width / height.
  resample: 'bicubic' or 'bilinear', antialiased.
  misfit: 'redraw' a box that does not fit, or 'cut' its sides to the image's.
  """

  size: int
  area: tuple[float, float]
  aspect: tuple[float, float]
  resample: str = 'bicubic'
  misfit: str = 'redraw'


class Box(NamedTuple):
  """Whole pixels of an upright image."""

  left: int
  top: int
  right: int
  bottom: int


def draw_box(crop: Crop, height: int, width: int, rng: np.random.Generator) -> Box:
  """A random box, by the definition of `ssl_jax.views.crops.draw_box`."""
  u_area, u_aspect, (u_top, u_left) = rng.random(TRIES), rng.random(TRIES), rng.random(2)
  low, high = map(math.log, crop.aspect)
  for area, aspect in zip(u_area.tolist(), u_aspect.tolist()):
    pixels = height * width * (crop.area[0] + (crop.area[1] - crop.area[0]) * area)
    ratio = math.exp(low + (high - low) * aspect)
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if crop.misfit == 'cut':
      w, h = min(max(w, 1), width), min(max(h, 1), height)
    if 1 <= w <= width and 1 <= h <= height:
      left, top = math.floor(u_left * (width - w + 1)), math.floor(u_top * (height - h + 1))
      return Box(left, top, left + w, top + h)
  w = min(max(round(height * crop.aspect[1]), 1), width)
  h = min(max(round(width / crop.aspect[0]), 1), height)
  left, top = (width - w) // 2, (height - h) // 2
  return Box(left, top, left + w, top + h)


def random_crops(data: bytes | np.ndarray, crops: Sequence[Crop], *,
                 rngs: Sequence[np.random.Generator], channels: int) -> list[np.ndarray]:
  """Crops of one image, which is decoded once.

  Args:
    data: an encoded image, or pixels uint8 [H, W, C].
    crops: what each view wants.
    rngs: where the box of each comes from.
    channels: 3 or 1 (luma).

  Returns:
    uint8 [size, size, channels] for each crop.

  Raises:
    UnreadableImage: the data are no image, damaged, or too large to be one.
  """
  picture = _Picture(data, channels)
  boxes = [draw_box(crop, picture.height, picture.width, rng) for crop, rng in zip(crops, rngs)]
  return picture.resized(boxes, [crop.size for crop in crops], [crop.resample for crop in crops])


def centre(data: bytes | np.ndarray, *, size: int, channels: int) -> np.ndarray:
  """The central square of an image, uint8 [size, size, channels]; as `random_crops` otherwise."""
  picture = _Picture(data, channels)
  side = min(picture.height, picture.width)
  left, top = (picture.width - side) // 2, (picture.height - side) // 2
  return picture.resized([Box(left, top, left + side, top + side)], [size], ['bicubic'])[0]


def decode(data: bytes | np.ndarray, *, channels: int, at_least: int | None = None) -> np.ndarray:
  """All of an image, upright, uint8 [H, W, channels].

  `at_least` makes it smaller, never larger: its shorter side then has this many pixels. Raises
  UnreadableImage.
  """
  picture = _Picture(data, channels)
  shape = picture.height, picture.width
  if at_least is not None and at_least < min(shape):
    shape = tuple(round(n * at_least / min(shape)) for n in shape)
  return picture.whole(*shape)


# --- one image ------------------------------------------------------------------------------------


class _Picture:
  """An image that knows its upright size and has not been decoded yet."""

  def __init__(self, data: bytes | np.ndarray, channels: int):
    self._mode, self._orientation = {1: 'L', 3: 'RGB'}[channels], 1
    if isinstance(data, np.ndarray):
      self._image = Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
    else:
      with _damage(data):
        self._image = Image.open(io.BytesIO(data), formats=_formats())
        self._orientation = _orientation(self._image)
    self._data = data
    size = self._image.size
    self.width, self.height = size[::-1] if self._orientation in (5, 6, 7, 8) else size

  def resized(self, boxes: Sequence[Box], sizes: Sequence[int],
              filters: Sequence[str]) -> list[np.ndarray]:
    """Each box at size x size."""
    scale = min(min(box.right - box.left, box.bottom - box.top) / size
                for box, size in zip(boxes, sizes))
    image, by = self._decoded(scale)
    return [self._array(_cut(image, box, by).resize((size, size), FILTERS[name], *rest))
            for box, size, name in zip(boxes, sizes, filters)
            for rest in [_fraction(box, by)]]

  def whole(self, height: int, width: int) -> np.ndarray:
    image, _ = self._decoded(min(self.height / height, self.width / width))
    if image.size != (width, height):
      image = image.resize((width, height), FILTERS['bicubic'])
    return self._array(image)

  def _decoded(self, scale: float) -> tuple[Image.Image, int]:
    """(upright image, reduction): at most `scale` times smaller than the file says."""
    image, (width, height) = self._image, self._image.size
    with _damage(self._data):
      if image.format == 'JPEG':
        by = next((n for n in REDUCTIONS if n <= scale), 1)
        image.draft(self._mode, (width // by, height // by))
      by = round(width / image.size[0])
      image.load()
      image = _converted(image, self._mode)
    upright = UPRIGHT.get(self._orientation)
    return image if upright is None else image.transpose(upright), by

  def _array(self, image: Image.Image) -> np.ndarray:
    pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


@functools.cache
def _formats() -> tuple[str, ...]:
  """Those of FORMATS that this Pillow was built with."""
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
  """As EXIF says; damaged EXIF data are no damaged image."""
  try:
    return image.getexif().get(ORIENTATION, 1)
  except Exception:  # Pillow raises several kinds
    return 1


def _cut(image: Image.Image, box: Box, by: int) -> Image.Image:
  """The pixels of the box and no others: a filter must not see beyond it."""
  left, top = box.left // by, box.top // by
  right, bottom = min(-(-box.right // by), image.width), min(-(-box.bottom // by), image.height)
  return image.crop((left, top, right, bottom))


def _fraction(box: Box, by: int) -> tuple:
  """Where the box lies in what `_cut` gives, if not on whole pixels."""
  if by == 1:
    return ()
  left, top = box.left / by - box.left // by, box.top / by - box.top // by
  right, bottom = (box.right / by - box.left // by, box.bottom / by - box.top // by)
  return ((left, top, right, bottom),)


def _converted(image: Image.Image, mode: str) -> Image.Image:
  """8 bits of the wanted kind; transparency is laid over white, 16-bit greys keep their range."""
  if image.mode == mode:
    return image
  if image.mode.startswith('I') or image.mode == 'F':
    return Image.fromarray(_to_8_bits(np.asarray(image))).convert(mode)
  if image.mode in ('LA', 'PA', 'RGBA', 'La', 'RGBa') or 'transparency' in image.info:
    image = image.convert('RGBA')
    image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
  return image.convert(mode)


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
  """Greys of 16 bits (mode I holds them in 32) to 8; floats in [0, 1] or [0, 255]."""
  if pixels.dtype.kind == 'f':
    return np.clip(pixels * (255 if pixels.max(initial=0) <= 1 else 1), 0, 255).astype(np.uint8)
  return np.clip(pixels.astype(np.int64) // 257 if pixels.max(initial=0) > 255 else pixels,
                 0, 255).astype(np.uint8)


@contextlib.contextmanager
def _damage(data: bytes | np.ndarray) -> Iterator[None]:
  """Whatever Pillow says of damaged files is an UnreadableImage."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of odd EXIF data and large images
      yield
  except MemoryError:
    raise
  except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged files
    reason = ('no image of a kind that Pillow knows' if isinstance(error, UnidentifiedImageError)
              else f'{type(error).__name__}: {error}')
    raise UnreadableImage('', f'{reason} ({len(data)} bytes)') from error


# --- sources that decode --------------------------------------------------------------------------


class EncodedImages:
  """A `Source` of encoded images: the base of folders, TFDS datasets and shards.

  `self[i]` has 'image', the central square uint8 [size, size, channels]; `draw(i, seed, epoch)` has
  the crops that the views want instead, {field: uint8 [views, size, size, channels]}. Both have the
  other fields of the example. A subclass gives `__len__`, `read`, `name` and `fingerprint`.

  Attributes:
    labels: int32 [N] or None.
    unreadable: the share of examples that may be unreadable.
  """

  labels: np.ndarray | None = None

  def __init__(self, *, size: int, channels: int, unreadable: float,
               crops: Mapping[str, Sequence[Mapping[str, Any]]] | None):
    """Raises ValueError for an argument out of its range."""
    if size < 1 or channels not in (1, 3):
      raise ValueError(f'size must be positive and channels 1 or 3, got {size} and {channels}')
    if not 0 <= unreadable <= 1:
      raise ValueError(f'unreadable is a share of the images, in [0, 1], got {unreadable}')
    self._size, self._channels, self.unreadable = size, channels, unreadable
    self._crops = {field: tuple(Crop(**wish) for wish in wishes)
                   for field, wishes in (crops or {}).items()}

  def __len__(self) -> int:
    raise NotImplementedError

  def read(self, index: int) -> tuple[bytes | np.ndarray, dict[str, np.ndarray]]:
    """(encoded image or pixels uint8 [H, W, C], the other fields)."""
    raise NotImplementedError

  def name(self, index: int) -> str:
    """What to call example `index` in a message, such as its path."""
    raise NotImplementedError

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    with self._named(index):
      data, fields = self.read(index)
      return {'image': centre(data, size=self._size, channels=self._channels), **fields}

  def draw(self, index: int, *, seed: int, epoch: int) -> dict[str, np.ndarray]:
    """Random crops, a function of (seed, epoch, index) and nothing else; `self[index]` without."""
    if not self._crops:
      return self[index]
    crops = [crop for wishes in self._crops.values() for crop in wishes]
    rngs = [np.random.Generator(np.random.Philox(key=(seed, epoch), counter=(0, view, index, 0)))
            for view in range(len(crops))]
    with self._named(index):
      data, fields = self.read(index)
      pixels = iter(random_crops(data, crops, rngs=rngs, channels=self._channels))
    drawn = {field: np.stack([next(pixels) for _ in wishes])
             for field, wishes in self._crops.items()}
    return {**drawn, **fields}

  @contextlib.contextmanager
  def _named(self, index: int) -> Iterator[None]:
    try:
      yield
    except UnreadableImage as error:
      raise UnreadableImage(self.name(index), error.reason) from error
    except OSError as error:  # a file that vanished, or may not be read
      raise UnreadableImage(self.name(index), str(error)) from error
