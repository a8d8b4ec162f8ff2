import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


def test_sigma_zero_is_the_identity():
  np.testing.assert_array_equal(blur.blur_matrix(jnp.float32(0.), 9, 2), np.eye(9))


def test_sigma_is_uniform_or_zero():
  uniforms = jax.random.uniform(jax.random.key(0), (4000, 2))
  sigmas = np.asarray(jax.vmap(lambda u: blur.draw_sigma(u, probability=0.5))(uniforms))
  blurred = sigmas > 0
  assert abs(blurred.mean() - 0.5) < 0.03
  assert stats.kstest(sigmas[blurred], stats.uniform(0.1, 1.9).cdf).pvalue > 0.01
