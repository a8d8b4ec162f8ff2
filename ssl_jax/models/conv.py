"""The convolution of our networks: nn.Conv without bias, its weight gradient fast on CPU.

  dW = sum over bands of output rows of im2col(x)^T g

XLA's CPU backend computes the weight gradient as one convolution with an enormous window: for 64
images of 32x32x64, 3x3, forward 84 ms, weight gradient 2700 ms, in bands 200 ms (side by side on
two busy cores, jax 0.10.2; in CPU time per core, 31 ms forward and 59 ms in bands). Everything but
the weight gradient on CPU is `jax.lax.conv_general_dilated`, and programs for other platforms do
not change.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ssl_jax.parallel import varying

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
# A band's im2col matrix should stay in the cache: 1 to 8 MiB were equally fast, 36 MiB took 1.5
# times as long, 144 MiB twice (the case above, two cores).
BAND_BYTES = 4 << 20


class Window(NamedTuple):
  """What a convolution needs beside its operands; hashable."""

  strides: tuple[int, int]
  padding: tuple[tuple[int, int], tuple[int, int]]
  precision: lax.PrecisionLike = None


def conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
                         dimension_numbers=None, feature_group_count=1, precision=None):
  """`jax.lax.conv_general_dilated`, with another weight gradient on CPU.

  The other gradient serves 2-D convolutions [B, H, W, C] without dilation, cropping and feature
  groups; all the rest is the plain function. Equal to it up to the order of summation. As with
  every custom reverse-mode rule, forward-mode derivatives (jax.jvp) of it are not defined.
  """
  plain = partial(lax.conv_general_dilated, lhs, rhs, window_strides, padding, lhs_dilation,
                  rhs_dilation, dimension_numbers, feature_group_count, precision=precision)
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  if lhs.ndim != 4 or numbers != lax.conv_dimension_numbers(lhs.shape, rhs.shape, DIMENSIONS):
    return plain()
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
  dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
  cropped = any(pad < 0 for pads in padding for pad in pads)
  if cropped or feature_group_count != 1 or any(dilation != 1 for dilation in dilations):
    return plain()
  window = Window(tuple(window_strides), tuple(map(tuple, padding)), precision)
  axes = varying(lhs) | varying(rhs)
  return _conv(_vary(lhs, axes), _vary(rhs, axes), window)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  return lax.conv_general_dilated(x, kernel, window.strides, window.padding,
                                  dimension_numbers=DIMENSIONS, precision=window.precision)


def _forward(x, kernel, window):
  return _conv(x, kernel, window), (x, kernel)


def _backward(window, residuals, g):
  x, kernel = residuals
  plain = partial(_conv.fun, window=window)
  dx, = jax.linear_transpose(lambda x: plain(x, kernel), x)(g)
  xla = lambda x, kernel, g: jax.linear_transpose(partial(plain, x), kernel)(g)[0]
  if jax.config.jax_debug_nans:  # JAX does not look for NaNs in programs with a platform switch
    return dx, xla(x, kernel, g)
  return dx, lax.platform_dependent(
      x, kernel, g, cpu=partial(_kernel_gradient, window=window), default=xla)


_conv.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, kernel: jax.Array, g: jax.Array, window: Window) -> jax.Array:
  """dW [kh, kw, C, D] of x [B, H, W, C] and g [B, H', W', D].

  Bands run over output rows, not over images: a batch spread over devices stays where it is.
  """
  height, width, channels, features = kernel.shape
  batch, rows, columns, _ = g.shape
  row_bytes = batch * columns * height * width * channels * x.dtype.itemsize
  divisors = [n for n in range(1, rows + 1) if rows % n == 0]
  band = max(n for n in divisors if n == 1 or n * row_bytes <= BAND_BYTES)
  down, right = window.strides
  x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))

  def add_band(total, index):
    x_rows = lax.dynamic_slice_in_dim(x, index * band * down, (band - 1) * down + height, 1)
    taps = [x_rows[:, i:i + (band - 1) * down + 1:down, j:j + (columns - 1) * right + 1:right]
            for i in range(height) for j in range(width)]
    patches = jnp.concatenate(taps, -1).reshape(-1, height * width * channels)
    g_rows = lax.dynamic_slice_in_dim(g, index * band, band, 1).reshape(-1, features)
    product = lax.dot_general(patches, g_rows, (((0,), (0,)), ((), ())),
                              precision=window.precision, preferred_element_type=total.dtype)
    return total + product, None

  total = jnp.zeros((height * width * channels, features), jnp.promote_types(g.dtype, jnp.float32))
  total, _ = lax.scan(add_band, _vary(total, varying(g)), jnp.arange(rows // band))
  return total.reshape(kernel.shape).astype(kernel.dtype)


def _vary(x: jax.Array, axes: frozenset) -> jax.Array:
  """Marks `x` as differing over `axes`; the transpose sums its gradient over them."""
  missing = tuple(sorted(axes - varying(x)))
  return lax.pcast(x, missing, to='varying') if missing else x


Conv = partial(nn.Conv, use_bias=False, conv_general_dilated=conv_general_dilated)
