import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import ndimage, stats

from ssl_jax.views import blur


@pytest.mark.parametrize('size, taps', [(19, 1), (28, 3), (32, 3), (96, 9), (224, 23)])
def test_kernel_covers_a_tenth_of_the_image(size, taps):
  assert 2 * blur.simclr_radius(size) + 1 == taps


def test_equals_convolution_with_zeros_around_the_image(strict_dtypes):
  image = np.random.default_rng(0).random((61, 72, 3)).astype(np.float32)
  radius = 3
  sigmas = np.array([0.1, 0.7, 2.], np.float32)
  blurred = jax.jit(jax.vmap(lambda s: blur.gaussian_blur(image, s)))(sigmas)
  for sigma, got in zip(sigmas.astype(float), blurred):
    taps = np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2))
    taps /= taps.sum()
    expected = ndimage.convolve(
      image.astype(float), np.multiply.outer(taps, taps)[..., None], mode='constant')
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize('form', blur.FORMS)
def test_sigma_zero_is_the_identity(form):
  matrix = jax.jit(lambda sigma: blur.FORMS[form](sigma, 23, 2.))
  np.testing.assert_array_equal(matrix(jnp.float32(0.)), np.eye(23))


@pytest.mark.parametrize('size', [28, 8])
def test_opencv_form_has_23_taps_and_mirrors_the_image(size, strict_dtypes):
  image = np.random.default_rng(0).random((size, size + 3, 3)).astype(np.float32)
  sigmas = np.array([0.3, 2.], np.float32)
  got = jax.jit(jax.vmap(lambda s: blur.gaussian_blur(image, s, form='opencv')))(sigmas)
  for sigma, result in zip(sigmas.astype(float), got):
    expected = image.astype(float)
    for axis, n in enumerate(image.shape[:2]):
      taps = np.exp(-np.arange(-min(11, n - 1), min(11, n - 1) + 1) ** 2 / (2 * sigma ** 2))
      expected = ndimage.convolve1d(expected, taps / taps.sum(), axis=axis, mode='mirror')
    np.testing.assert_allclose(result, expected, atol=2e-6)


def test_pillow_form_equals_pillow_up_to_its_rounding(strict_dtypes):
  image = np.random.default_rng(0).integers(0, 256, (19, 28, 3), np.uint8)
  sigmas = np.array([0.1, 0.6, 1.4, 1.74, 2.], np.float32)
  got = jax.jit(jax.vmap(lambda s: blur.gaussian_blur(
    image / np.float32(255), s, form='pillow')))(sigmas)
  for sigma, result in zip(sigmas, got):
    expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(sigma)))
    error = 255 * np.asarray(result) - np.asarray(expected)
    # Six passes, each rounded to 8 bits.
    assert np.abs(error).max() < 3.5 and np.abs(error).mean() < 1.5


@pytest.mark.parametrize('largest, reach', [(0.1, 1), (1.4, 1), (1.42, 2), (2., 2), (3., 3)])
def test_pillow_boxes_reach_as_far_as_needed(largest, reach):
  assert blur.pillow_reach(largest) == reach
  kernel = np.asarray(blur.pillow_matrix(jnp.float32(largest), 41, largest))[20]
  offsets = np.arange(41) - 20
  assert np.isclose(kernel.sum(), 1) and np.isclose((kernel * offsets ** 2).sum(), largest ** 2)


def test_sigma_is_uniform_or_zero():
  uniforms = jax.random.uniform(jax.random.key(0), (4000, 2))
  sigmas = np.asarray(jax.vmap(lambda u: blur.draw_sigma(u, probability=0.5))(uniforms))
  blurred = sigmas > 0
  assert abs(blurred.mean() - 0.5) < 0.03
  assert stats.kstest(sigmas[blurred], stats.uniform(0.1, 1.9).cdf).pvalue > 0.01
