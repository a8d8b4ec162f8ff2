import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from ssl_jax.views import color

RNG = np.random.default_rng(0)
LUMA = np.array([0.2989, 0.587, 0.114])
# Random pixels, and those where a formula for hue may divide by zero or tie.
IMAGE = RNG.random((8, 6, 3)).astype(np.float32)
IMAGE[0] = [[0, 0, 0], [1, 1, 1], [.5, .5, .5], [1, 0, 0], [0, 1, 1], [.3, .3, .7]]
GREY = IMAGE[..., :1]


def blend(image, pivot, factor):
  return np.clip(factor * image + (1 - factor) * pivot, 0, 1)


def in_hsv(image, change):
  pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p)))
            for p in image.reshape(-1, 3).astype(float)]
  return np.reshape(pixels, image.shape)


def luma(image):
  return (image @ LUMA)[..., None] if image.shape[-1] == 3 else image


EXPECTED = {
  'brightness': lambda x, f: np.clip(x * f, 0, 1),
  'additive': lambda x, f: np.clip(x + f, 0, 1),
  'contrast': lambda x, f: blend(x, luma(x).mean(), f),
  'channel': lambda x, f: blend(x, x.mean((0, 1)), f),
  'saturation': lambda x, f: blend(x, luma(x), f),
  'hsv': lambda x, f: in_hsv(x, lambda h, s, v: (h, min(1, s * f), v)),
  'hue': lambda x, f: in_hsv(x, lambda h, s, v: ((h + f) % 1, s, v)),
}
GOT = {
  'brightness': color.adjust_brightness,
  'additive': lambda x, f: color.adjust_brightness(x, f, 'additive'),
  'contrast': color.adjust_contrast,
  'channel': lambda x, f: color.adjust_contrast(x, f, 'channel'),
  'saturation': color.adjust_saturation,
  'hsv': lambda x, f: color.adjust_saturation(x, f, 'hsv'),
  'hue': color.adjust_hue,
}
AMOUNTS = {'hue': (-0.5, -0.2, 0.1, 0.37, 0.5), 'additive': (-0.4, 0.3)}


@pytest.mark.parametrize('name', GOT)
def test_operation_equals_its_formula(name, strict_dtypes):
  amounts = np.array(AMOUNTS.get(name, (0., 0.2, 1.7)), np.float32)
  got = jax.jit(jax.vmap(GOT[name], (None, 0)))(IMAGE, amounts)
  for amount, image in zip(amounts, got):
    np.testing.assert_allclose(image, EXPECTED[name](IMAGE, float(amount)), atol=2e-6)


@pytest.mark.parametrize('name', GOT)
def test_neutral_amount_is_the_identity(name):
  neutral = 0. if name in ('additive', 'hue') else 1.
  np.testing.assert_allclose(GOT[name](IMAGE, neutral), IMAGE, atol=2e-7)


@pytest.mark.parametrize('name', GOT)
def test_grey_image_has_brightness_and_contrast_only(name):
  got = GOT[name](jnp.asarray(GREY), 0.3)
  expected = GREY if name in ('saturation', 'hsv', 'hue') else EXPECTED[name](GREY, 0.3)
  np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('name, enhance', [
  ('brightness', ImageEnhance.Brightness), ('contrast', ImageEnhance.Contrast),
  ('saturation', ImageEnhance.Color),
])
def test_equals_pillow_up_to_its_rounding(name, enhance):
  image = RNG.integers(0, 256, (8, 6, 3), np.uint8)
  expected = np.asarray(enhance(Image.fromarray(image)).enhance(1.4)).astype(float)
  got = GOT[name](jnp.asarray(image / np.float32(255)), 1.4)
  # Pillow rounds grey, its mean and the result: 0.4 * (0.5 + 0.5) + 1, and luma sums to 0.9999.
  assert np.abs(255 * got - expected).max() < 1.5


def test_grayscale_and_solarize(strict_dtypes):
  image = jnp.asarray(IMAGE)
  grey = np.broadcast_to(luma(IMAGE), IMAGE.shape)
  np.testing.assert_allclose(color.grayscale(image), grey, atol=1e-6)
  np.testing.assert_array_equal(color.grayscale(image, jnp.bool_(False)), IMAGE)
  np.testing.assert_array_equal(color.grayscale(jnp.asarray(GREY)), GREY)
  solarized = np.where(IMAGE >= 0.5, np.float32(1) - IMAGE, IMAGE)
  np.testing.assert_array_equal(color.solarize(image), solarized)
  np.testing.assert_array_equal(color.solarize(image, jnp.bool_(False)), IMAGE)


@pytest.mark.parametrize('channels, forms', [
  (3, ('multiplicative', 'grey', 'luma')), (3, ('additive', 'channel', 'hsv')),
  (1, ('multiplicative', 'grey', 'luma')),
])
def test_jitter_applies_the_operations_in_the_given_order(channels, forms, strict_dtypes):
  image = IMAGE[..., :channels]
  brightness, contrast, saturation = forms
  orders = np.array(list(itertools.permutations(range(4))), np.float32)
  amounts = np.array([1.5 if brightness == 'multiplicative' else 0.3, 0.6, 1.7, -0.2], np.float32)
  jitter = jax.jit(jax.vmap(lambda order: color.jitter(
    image, color.Jitter(*amounts, order), brightness=brightness, contrast=contrast,
    saturation=saturation)))
  names = (
    'brightness' if brightness == 'multiplicative' else 'additive',
    'contrast' if contrast == 'grey' else 'channel',
    'saturation' if saturation == 'luma' else 'hsv', 'hue')
  distinct = set()
  for order, got in zip(orders, jitter(orders)):
    expected = image.astype(float)
    for i in np.argsort(order):
      if channels == 3 or i < 2:
        expected = EXPECTED[names[i]](expected, float(amounts[i]))
    np.testing.assert_allclose(got, expected, atol=5e-6)
    distinct.add(np.asarray(expected).round(4).tobytes())
  assert len(distinct) > (10 if channels == 3 else 1), 'the orders must make a difference'


def test_jitter_equals_torchvision():
  # torchvision 0.29.1 (torch 2.14.1), transforms.functional on a float tensor: saturation 1.6,
  # brightness 0.7, hue 0.15, contrast 1.3; and contrast 0.4, hue -0.2, brightness 1.5,
  # saturation 0.3.
  image = jnp.array([[[.9, .2, .4], [.1, .6, .3]], [[.5, .5, .5], [.25, .75, 1.]]])
  first = color.Jitter(*jnp.array([0.7, 1.3, 1.6, 0.15]), jnp.array([1., 3., 0., 2.]))
  second = color.Jitter(*jnp.array([1.5, 0.4, 0.3, -0.2]), jnp.array([2., 0., 3., 1.]))
  np.testing.assert_allclose(color.jitter(image, first), [
    [[0.82011, 0.44345, 0.], [0., 0.41155, 0.55642]],
    [[0.36514, 0.36514, 0.36514], [0.00317, 0., 0.82011]]], atol=1e-5)
  np.testing.assert_allclose(color.jitter(image, second), [
    [[0.70835, 0.64355, 0.76955], [0.75033, 0.76833, 0.67833]],
    [[0.74482, 0.74482, 0.74482], [0.76609, 0.88762, 0.78409]]], atol=1e-5)


def draw_many(probability, additive, n=6000):
  uniforms = jax.random.uniform(jax.random.key(0), (n, color.JITTER_DRAWS))
  draw = jax.vmap(lambda u: color.draw_jitter(
    u, probability=probability, brightness=0.8, contrast=0.4, saturation=1.2, hue=0.2,
    additive=additive))
  return color.Jitter(*map(np.asarray, draw(uniforms)))


def test_drawn_amounts_are_uniform_and_every_order_as_likely():
  params = draw_many(1., additive=False)
  ranges = dict(brightness=(0.2, 1.8), contrast=(0.6, 1.4), saturation=(0., 2.2), hue=(-0.2, 0.2))
  for name, (low, high) in ranges.items():
    sample = getattr(params, name)
    assert stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 0.01, name
  orders, counts = np.unique(np.argsort(params.order, axis=1), axis=0, return_counts=True)
  assert len(orders) == 24
  assert stats.chisquare(counts).pvalue > 0.01
  additive = draw_many(1., additive=True).brightness
  assert stats.kstest(additive, stats.uniform(-0.8, 1.6).cdf).pvalue > 0.01


@pytest.mark.parametrize('additive', [False, True])
def test_without_jitter_all_amounts_are_neutral_together(additive):
  params = draw_many(0.8, additive)
  neutral = np.stack([
    params.brightness == (0. if additive else 1.), params.contrast == 1.,
    params.saturation == 1., params.hue == 0.])
  assert abs(neutral.all(0).mean() - 0.2) < 0.02
  assert not (neutral.any(0) & ~neutral.all(0)).any()
