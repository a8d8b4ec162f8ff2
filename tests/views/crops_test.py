import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from ssl_jax.views import crops

RNG = np.random.default_rng(0)
PILLOW = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
# top, left, height, width of an image of 37 x 45: reduced, enlarged, one pixel, everything.
BOXES = [(3, 5, 30, 21), (10, 2, 7, 9), (36, 44, 1, 1), (0, 0, 37, 45), (0, 20, 37, 12)]

draw = jax.jit(
  jax.vmap(
    lambda u, height, width, area, aspect: crops.draw_box(
      u, height, width, area=area, aspect=aspect),
    in_axes=(0, None, None, None, None)),
  static_argnums=(1, 2, 3, 4))


def drawn_boxes(n, height, width, area=(0.08, 1.), aspect=(3 / 4, 4 / 3), seed=0):
  uniforms = jax.random.uniform(jax.random.key(seed), (n, crops.BOX_DRAWS))
  return crops.Box(*map(np.asarray, draw(uniforms, height, width, area, aspect)))


def by_the_loop(rng, height, width, area, aspect):
  """The definition of RandomResizedCrop as the loop that it is; NumPy."""
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = np.exp(rng.uniform(*np.log(aspect)))
    w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
    if 0 < w <= width and 0 < h <= height:
      return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
  w, h = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_equals_pillow_on_float_images(resample, strict_dtypes):
  image = RNG.random((37, 45, 3)).astype(np.float32)
  size = 16
  crop = jax.jit(jax.vmap(
    lambda image, box, flip: crops.crop_resize(image, box, size, resample=resample, flip=flip),
    in_axes=(None, 0, 0)))
  boxes = crops.Box(*jnp.asarray(BOXES, jnp.float32).T)
  flips = np.arange(len(BOXES)) % 2 == 1
  got = np.asarray(crop(image, boxes, flips))
  for i, (top, left, h, w) in enumerate(BOXES):
    for c in range(3):
      channel = Image.fromarray(image[..., c]).crop((left, top, left + w, top + h))
      expected = np.asarray(channel.resize((size, size), PILLOW[resample]))
      expected = expected[:, ::-1] if flips[i] else expected
      np.testing.assert_allclose(got[i, ..., c], expected, atol=2e-6)


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_the_whole_image_at_its_size_is_itself(resample):
  matrix = crops.resize_matrix(0., 12., 12, 12, resample=resample)
  np.testing.assert_array_equal(matrix, np.eye(12))
  mirrored = crops.resize_matrix(0., 12., 12, 12, resample=resample, flip=True)
  np.testing.assert_array_equal(mirrored, np.eye(12)[::-1])


def test_pixels_outside_of_the_box_do_not_leak_in():
  matrix = np.asarray(crops.resize_matrix(4., 9., 20, 8, resample='bicubic'))
  assert not matrix[:, :4].any() and not matrix[:, 13:].any()
  np.testing.assert_allclose(matrix.sum(1), 1., atol=1e-6)


@pytest.mark.parametrize('height, width', [(28, 28), (60, 100)])
def test_boxes_are_whole_pixels_inside_of_the_image(height, width):
  box = drawn_boxes(4000, height, width)
  for side in box:
    np.testing.assert_array_equal(side, np.round(side))
  assert box.top.min() == 0 and box.left.min() == 0
  assert (box.top + box.height).max() == height and (box.left + box.width).max() == width
  assert min(box.height.min(), box.width.min()) >= 1


def test_area_is_uniform_and_aspect_log_uniform_where_every_box_fits():
  side, area, aspect = 2000, (0.1, 0.5), (3 / 4, 4 / 3)
  box = drawn_boxes(4000, side, side, area, aspect)
  share = box.height * box.width / side ** 2
  log_aspect = np.log(box.width / box.height)
  for sample, (low, high) in ((share, area), (log_aspect, np.log(aspect))):
    # Rounding to pixels widens the range by a thousandth.
    assert low - 2e-3 < sample.min() and sample.max() < high + 2e-3
    assert stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 0.01
  assert abs(np.corrcoef(share, log_aspect)[0, 1]) < 0.05
  for start, room in ((box.top, side - box.height), (box.left, side - box.width)):
    assert stats.kstest((start + 0.5) / (room + 1), stats.uniform.cdf).pvalue > 0.01


@pytest.mark.parametrize('height, width, area', [(28, 28, (0.08, 1.)), (60, 100, (0.5, 1.))])
def test_boxes_are_distributed_as_those_of_the_loop(height, width, area):
  aspect = (3 / 4, 4 / 3)
  box = drawn_boxes(4000, height, width, area, aspect, seed=1)
  rng = np.random.default_rng(1)
  loop = np.array([by_the_loop(rng, height, width, area, aspect) for _ in range(4000)]).T
  for got, expected in zip(box, loop):
    assert stats.ks_2samp(got, expected).pvalue > 0.01


@pytest.mark.parametrize('height, width, expected', [
  (10, 400, (0, 193, 10, 13)), (401, 10, (194, 0, 13, 10)), (20, 24, (0, 0, 20, 24)),
])
def test_falls_back_to_the_largest_centred_box(height, width, expected):
  # Aspect 1 at the full area fits none of these images.
  aspect = (3 / 4, 4 / 3) if height != 20 else (1., 1.2)
  uniforms = jnp.zeros((1, crops.BOX_DRAWS)).at[:, crops.TRIES:].set(0.5 if height != 20 else 0.)
  box = draw(uniforms, height, width, (1., 1.), aspect)
  assert tuple(int(x[0]) for x in box) == expected


def test_a_box_that_does_not_fit_can_be_cut():
  n, height, width, area, aspect = 4000, 60, 40, (0.5, 1.), (3 / 4, 4 / 3)
  uniforms = jax.random.uniform(jax.random.key(5), (n, crops.BOX_DRAWS))
  got = crops.Box(*map(np.asarray, jax.jit(jax.vmap(lambda u: crops.draw_box(
    u, height, width, area=area, aspect=aspect, misfit='cut')))(uniforms)))
  # The first try alone: its area and aspect are the first of each ten.
  u = np.asarray(uniforms, np.float64)
  areas = height * width * (area[0] + (area[1] - area[0]) * u[:, 0])
  ratios = np.exp(np.log(aspect[0]) + np.log(aspect[1] / aspect[0]) * u[:, crops.TRIES])
  widths = np.minimum(np.round(np.sqrt(areas * ratios)), width)
  heights = np.minimum(np.round(np.sqrt(areas / ratios)), height)
  # A side within rounding of half a pixel may go either way.
  assert np.mean((got.width == widths) & (got.height == heights)) > 0.999
  assert np.mean(widths == width) > 0.3, 'boxes must be too wide at times'
  assert (got.top >= 0).all() and (got.top + got.height <= height).all()
  assert (got.left >= 0).all() and (got.left + got.width <= width).all()
  slack = height - got.height
  assert stats.kstest((got.top / np.maximum(slack, 1))[slack > 10], 'uniform').statistic < 0.06
