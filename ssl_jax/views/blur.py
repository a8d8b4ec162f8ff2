"""Gaussian blur as two band matrices: out[:, :, c] = K image[:, :, c] K^T.

K[i, j] is proportional to exp(-(i - j)^2 / (2 sigma^2)) for |i - j| <= radius. Taps are normalised
to 1 and zeros surround the image, so that borders darken, as in SimCLR
(https://github.com/google-research/simclr, data_util.py, a 'SAME' depthwise convolution).
"""

import jax
import jax.numpy as jnp

from ssl_jax.views import crops


def simclr_radius(size: int) -> int:
  """SimCLR's kernel covers a tenth of the image: 23 taps at 224 pixels, 3 at 32, 1 below 20."""
  return size // 10 // 2


def draw_sigma(
  uniforms: jax.Array, *, probability: float, low: float = 0.1, high: float = 2.0,
) -> jax.Array:
  """Sigma in pixels, uniform in [low, high) with `probability`, else 0 (no blur).

  Args:
    uniforms: [2] float32 in [0, 1).
  """
  return jnp.where(uniforms[0] < probability, low + (high - low) * uniforms[1], 0.)


def gaussian_blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
  """Blurs an image [H, W, C]; the image itself where sigma is 0."""
  rows, columns = (blur_matrix(sigma, n, radius) for n in image.shape[:2])
  return crops.separable(image, rows, columns)


def blur_matrix(sigma: jax.Array, size: int, radius: int) -> jax.Array:
  """The band matrix K [size, size] of a Gaussian of 2 * radius + 1 taps."""
  # At 1e-3 the neighbours' weights underflow to exactly 0: sigma 0 is the identity.
  sigma = jnp.maximum(sigma, 1e-3)
  pixels = jnp.arange(size, dtype=jnp.float32)
  distances = pixels[:, None] - pixels[None, :]
  taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  band = jnp.where(jnp.abs(distances) <= radius, jnp.exp(-0.5 * (distances / sigma) ** 2), 0.)
  return band / jnp.sum(jnp.exp(-0.5 * (taps / sigma) ** 2))
