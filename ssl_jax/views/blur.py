"""Gaussian blur as two band matrices: out[:, :, c] = K image[:, :, c] K^T.

K[i, j] is proportional to exp(-(i - j)^2 / (2 sigma^2)) for |i - j| <= radius. What the references
do differently is the radius and what surrounds the image; each form is here by the name of the
library or project that defines it, see `FORMS`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ssl_jax.views import crops

OPENCV_RADIUS = 11
BOXES = 3


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


def gaussian_blur(
  image: jax.Array, sigma: jax.Array, *, form: str = 'simclr', largest: float = 2.,
) -> jax.Array:
  """Blurs an image [H, W, C]; the image itself where sigma is 0.

  Args:
    sigma: in pixels, a float32 scalar.
    form: a key of `FORMS`.
    largest: no sigma exceeds it; 'pillow' needs to know how many taps there may be.
  """
  rows, columns = (FORMS[form](sigma, size, largest) for size in image.shape[:2])
  return crops.separable(image, rows, columns)


def blur_matrix(sigma: jax.Array, size: int, radius: int) -> jax.Array:
  """The band matrix K [size, size] of a Gaussian of 2 * radius + 1 taps.

  Taps are normalised to 1 and zeros surround the image, so that borders darken.
  """
  pixels = jnp.arange(size, dtype=jnp.float32)
  return _taps(pixels[:, None] - pixels[None, :], sigma, radius)


def simclr_matrix(sigma: jax.Array, size: int, largest: float) -> jax.Array:
  """A tenth of the image wide, zeros around it: a 'SAME' depthwise convolution.

  https://github.com/google-research/simclr, data_util.py; BYOL in
  https://github.com/google-deepmind/deepmind-research, byol/utils/augmentations.py.
  """
  del largest
  return blur_matrix(sigma, size, simclr_radius(size))


def opencv_matrix(sigma: jax.Array, size: int, largest: float) -> jax.Array:
  """23 taps whatever the size, the image mirrored at its outermost pixels (BORDER_REFLECT_101).

  cv2.GaussianBlur(image, (23, 23), sigma), https://github.com/facebookresearch/swav,
  src/multicropdataset.py. Images of fewer than 12 pixels have as many taps as can be mirrored once.
  """
  del largest
  radius = min(OPENCV_RADIUS, size - 1)
  here = jnp.arange(size, dtype=jnp.float32)[:, None]
  there = jnp.arange(size, dtype=jnp.float32)[None, :]
  # The outermost pixels are their own mirror images: they must not count twice.
  above = jnp.where(there > 0, _taps(here + there, sigma, radius), 0.)
  below = jnp.where(there < size - 1, _taps(2. * (size - 1) - here - there, sigma, radius), 0.)
  return _taps(here - there, sigma, radius) + above + below


def pillow_matrix(sigma: jax.Array, size: int, largest: float) -> jax.Array:
  """Three boxes of fractional width whose variance is sigma^2, the border repeated outwards.

  PIL.ImageFilter.GaussianBlur (https://github.com/python-pillow/Pillow, BoxBlur.c), without its
  rounding to 8 bits after every box. Boxes: Gwosdek et al. (2011),
  https://doi.org/10.1007/978-3-642-24785-9_38, equations 7, 11 and 14.
  """
  def inner(variance):
    return jnp.floor((jnp.sqrt(12. * variance + 1.) - 1.) / 2.)

  variance = jnp.square(sigma) / BOXES
  whole = inner(variance)
  edge = (2. * whole + 1.) * (whole * (whole + 1.) - 3. * variance)
  edge /= 6. * (variance - (whole + 1.) ** 2)

  pixels = jnp.arange(size)
  weights = lambda offset: jnp.where(offset <= whole, 1., jnp.where(offset == whole + 1, edge, 0.))
  box = jnp.zeros((size, size))
  reach = pillow_reach(largest)
  for offset in range(-reach, reach + 1):
    source = jnp.clip(pixels + offset, 0, size - 1)
    box += jnp.where(source[:, None] == pixels[None, :], weights(abs(offset)), 0.)
  box /= 2. * (whole + edge) + 1.
  twice = jnp.matmul(box, box, precision=crops.PRECISION)
  return jnp.matmul(twice, box, precision=crops.PRECISION)


def pillow_reach(largest: float) -> int:
  """How many pixels one box reaches to either side at most."""
  return int((math.sqrt(12. * largest ** 2 / BOXES + 1.) - 1.) / 2.) + 1


def _taps(distances: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
  """The weights of pixels at these distances; 2 * radius + 1 neighbours sum to 1."""
  # At 1e-3 the neighbours' weights underflow to exactly 0: sigma 0 is the identity.
  sigma = jnp.maximum(sigma, 1e-3)
  taps = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  band = jnp.where(jnp.abs(distances) <= radius, jnp.exp(-0.5 * (distances / sigma) ** 2), 0.)
  return band / jnp.sum(jnp.exp(-0.5 * (taps / sigma) ** 2))


FORMS: dict[str, Callable[[jax.Array, int, float], jax.Array]] = {
  'simclr': simclr_matrix, 'opencv': opencv_matrix, 'pillow': pillow_matrix,
}
