"""Decoding and cropping on the host: Pillow, torchvision's distribution, the device's crops."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.images import Crop, EncodedImages, centre, decode, draw_box, random_crops
from ssl_jax.data.sources import UnreadableImage
from ssl_jax.views import crops

CROP = Crop(16, (0.08, 1.0), (3 / 4, 4 / 3))


def picture(height=40, width=60, seed=0) -> Image.Image:
  """Smooth, so that neither JPEG nor resampling changes much."""
  small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
  return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind='PNG', **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def rngs(*seeds):
  return [np.random.default_rng(seed) for seed in seeds]


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind, options, error', [
  ('PNG', {}, 0), ('BMP', {}, 0), ('WEBP', {'lossless': True}, 0), ('JPEG', {'quality': 98}, 12)])
def test_formats(kind, options, error):
  image = picture()
  got = decode(encoded(image, kind, **options), channels=3)
  assert got.shape == (40, 60, 3) and got.dtype == np.uint8
  assert np.abs(got.astype(int) - np.asarray(image)).max() <= error


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGBA', 'LA', 'CMYK', 'YCbCr', 'I;16', 'PA'])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_mode_becomes_the_wanted_number_of_channels(mode, channels):
  grey = picture().convert('L')
  if mode == 'I;16':
    data = encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257))
  elif mode in ('CMYK', 'YCbCr'):
    data = encoded(grey.convert('RGB').convert(mode), 'TIFF')
  elif mode == 'PA':
    data = encoded(grey.convert('P'), transparency=255)
  else:
    data = encoded(grey.convert(mode))
  got = decode(data, channels=channels)
  assert got.shape == (40, 60, channels)
  if mode not in ('1', 'PA'):
    assert np.abs(got.astype(int) - np.asarray(grey)[..., None]).max() <= 2


def test_transparency_is_laid_over_white():
  clear = Image.new('RGBA', (4, 4), (10, 20, 30, 0))
  assert (decode(encoded(clear), channels=3) == 255).all()
  paletted = Image.new('P', (4, 4), 0)
  paletted.putpalette([9, 9, 9] * 256)
  assert (decode(encoded(paletted, transparency=0), channels=3) == 255).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_all_eight_orientations_come_out_upright(orientation):
  """The file is made by turning an upright picture the other way."""
  upright = picture()
  inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose: FLIP_LEFT_RIGHT = 0, ...
  stored = upright if orientation == 1 else upright.transpose(
    Image.Transpose(inverse[orientation]))
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(stored, 'JPEG', quality=98, exif=exif)
  got = decode(data, channels=3)
  assert got.shape == (40, 60, 3)
  assert np.abs(got.astype(int) - np.asarray(upright)).max() <= 12
  square = centre(data, size=20, channels=3)
  expected = np.asarray(upright.crop((10, 0, 50, 40)).resize((20, 20), Image.Resampling.BICUBIC))
  assert np.abs(square.astype(int) - expected).mean() < 3


def test_the_centre_is_pillows():
  image = picture(50, 80)
  expected = image.crop((15, 0, 65, 50)).resize((32, 32), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(centre(encoded(image), size=32, channels=3), expected)


def test_decoding_can_resize_the_shorter_side():
  got = decode(encoded(picture()), channels=3, at_least=20)
  assert got.shape == (20, 30, 3)


def test_pixels_take_the_place_of_encoded_images():
  image = np.asarray(picture())
  np.testing.assert_array_equal(
    random_crops(image, [CROP], rngs=rngs(0), channels=3),
    random_crops(encoded(picture()), [CROP], rngs=rngs(0), channels=3))
  assert centre(image[..., :1], size=8, channels=1).shape == (8, 8, 1)


@pytest.mark.parametrize('data', [b'', b'not an image', encoded(picture())[:200],
                                  encoded(picture(400, 600), 'JPEG')[:3000]])
def test_damage_is_an_unreadable_image(data):
  with pytest.raises(UnreadableImage, match=f'{len(data)} bytes'):
    decode(data, channels=3)


def test_a_decompression_bomb_is_refused(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
  with pytest.raises(UnreadableImage, match='DecompressionBomb'):
    decode(encoded(picture()), channels=3)


# --- crops ----------------------------------------------------------------------------------------


def test_boxes_have_the_distribution_of_the_devices():
  """Both follow torchvision's definition; means of sides and corners within 4 standard errors."""
  n, height, width = 4000, 60, 100
  rng = np.random.default_rng(0)
  host = np.array([draw_box(CROP, height, width, rng) for _ in range(n)])
  host = np.stack([host[:, 1], host[:, 0], host[:, 3] - host[:, 1], host[:, 2] - host[:, 0]], 1)
  uniforms = jax.random.uniform(jax.random.key(0), (n, crops.BOX_DRAWS))
  device = np.stack(jax.jit(jax.vmap(lambda u: crops.draw_box(
    u, height, width, area=CROP.area, aspect=CROP.aspect)))(uniforms), 1)
  error = np.sqrt((host.var(0) + device.var(0)) / n)
  assert (np.abs(host.mean(0) - device.mean(0)) < 4 * error).all()
  np.testing.assert_allclose(host.std(0), device.std(0), rtol=0.1)


def test_boxes_lie_in_the_image_and_a_hopeless_one_is_the_centre():
  rng = np.random.default_rng(0)
  for height, width in ((1, 1), (1, 50), (50, 1), (7, 9)):
    for misfit in ('redraw', 'cut'):
      for _ in range(50):
        left, top, right, bottom = draw_box(CROP._replace(misfit=misfit), height, width, rng)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
  # A strip of 10 x 100 has no box of its whole area within the aspect ratios.
  assert draw_box(CROP._replace(area=(1.0, 1.0)), 10, 100, rng) == (43, 0, 56, 10)


def test_a_crop_is_pillows_crop_resized():
  image = picture(60, 90)
  got, = random_crops(encoded(image), [CROP], rngs=rngs(3), channels=3)
  box = draw_box(CROP, 60, 90, np.random.default_rng(3))
  np.testing.assert_array_equal(
    got, image.crop(box).resize((16, 16), Image.Resampling.BICUBIC))


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(monkeypatch):
  image = picture(1200, 1600)
  data = encoded(image, 'JPEG', quality=95)
  big = CROP._replace(area=(0.5, 1.0))
  sizes = []
  original = Image.Image.resize

  def spy(self, size, *args, **options):
    sizes.append(self.size)
    return original(self, size, *args, **options)

  monkeypatch.setattr(Image.Image, 'resize', spy)
  got, = random_crops(data, [big], rngs=rngs(1), channels=3)
  box = draw_box(big, 1200, 1600, np.random.default_rng(1))
  assert sizes[0][0] < (box.right - box.left) / 4
  expected = original(image.crop(box), (16, 16), Image.Resampling.BICUBIC)
  assert np.abs(got.astype(int) - np.asarray(expected)).max() <= 6


@pytest.mark.parametrize('area', [(0.01, 0.05), (0.2, 0.4), (0.9, 1.0)])
def test_reduction_never_makes_a_view_larger_than_its_pixels(monkeypatch, area):
  data = encoded(picture(300, 400), 'JPEG')
  wishes = [CROP._replace(size=60, area=area), CROP._replace(size=20, area=(0.5, 1.0))]
  cut = []
  original = Image.Image.crop

  def spy(self, box):
    cut.append((box, self.size))
    return original(self, box)

  monkeypatch.setattr(Image.Image, 'crop', spy)
  for seed in range(10):
    cut.clear()
    random_crops(data, wishes, rngs=rngs(seed, seed + 100), channels=3)
    for (box, size), wish, number in zip(cut, wishes, (seed, seed + 100)):
      full = draw_box(wish, 300, 400, np.random.default_rng(number))
      by = 400 / size[0]
      if by > 1:  # decoded smaller: then there still are as many pixels as the view wants
        assert (full.right - full.left) / by >= wish.size
        assert (full.bottom - full.top) / by >= wish.size
      assert box[2] - box[0] <= size[0]


# --- sources --------------------------------------------------------------------------------------


class Pictures(EncodedImages):
  def __init__(self, data, **options):
    super().__init__(**{'size': 24, 'channels': 3, 'unreadable': 0.5, 'crops': None, **options})
    self._data = data

  def __len__(self):
    return len(self._data)

  def read(self, index):
    return self._data[index], {'label': np.int32(index)}

  def name(self, index):
    return f'picture {index}'


WISHES = {'crops': (dict(size=16, area=(0.08, 1.0), aspect=(0.75, 1.33), resample='bicubic'),) * 2,
          'local_crops': (dict(size=8, area=(0.05, 0.3), aspect=(1, 1), resample='bilinear'),)}


def test_draws_depend_on_seed_epoch_example_and_view_alone():
  source = Pictures([encoded(picture())] * 3, crops=WISHES)
  one = source.draw(1, seed=5, epoch=2)
  assert one['crops'].shape == (2, 16, 16, 3) and one['local_crops'].shape == (1, 8, 8, 3)
  assert one['label'] == 1
  again = source.draw(1, seed=5, epoch=2)
  for name in one:
    np.testing.assert_array_equal(one[name], again[name])
  assert (one['crops'][0] != one['crops'][1]).any()
  for other in (source.draw(1, seed=6, epoch=2), source.draw(1, seed=5, epoch=3),
                source.draw(2, seed=5, epoch=2)):
    assert (one['crops'] != other['crops']).any()
  # More views leave those before as they were.
  fewer = Pictures([encoded(picture())] * 3, crops={'crops': WISHES['crops'][:1]})
  np.testing.assert_array_equal(fewer.draw(1, seed=5, epoch=2)['crops'][0], one['crops'][0])


def test_without_wishes_a_draw_is_the_example():
  source = Pictures([encoded(picture())])
  assert source[0]['image'].shape == (24, 24, 3)
  np.testing.assert_array_equal(source.draw(0, seed=0, epoch=0)['image'], source[0]['image'])


def test_a_fault_names_its_example():
  source = Pictures([b'no', encoded(picture())], crops=WISHES)
  for read in (lambda: source[0], lambda: source.draw(0, seed=0, epoch=0)):
    with pytest.raises(UnreadableImage, match='^picture 0: no image'):
      read()


@pytest.mark.parametrize('change, words', [
  ({'size': 0}, 'size must be positive'), ({'channels': 2}, 'channels 1 or 3'),
  ({'unreadable': 1.5}, 'share')])
def test_wrong_arguments(change, words):
  with pytest.raises(ValueError, match=words):
    Pictures([], **change)
