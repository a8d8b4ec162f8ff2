"""Redundancy reduction: two views correlate dimension by dimension, and different dimensions do not.

  c_de = sum_b z1_bd z2_be / B,  z normalised per dimension over the batch;
  loss = sum_d (1 - c_dd)^2 + lambda sum_{d != e} c_de^2

Reference: Zbontar et al., Barlow Twins, arXiv:2103.03230;
https://github.com/facebookresearch/barlowtwins
"""

import chex
import jax
import jax.numpy as jnp

from ssl_jax.losses.all_pairs import product, wide
from ssl_jax.parallel import axis_size, psum
from ssl_jax.types import AxisName


def barlow_twins(
    z1: jax.Array, z2: jax.Array, *, off_diagonal: float = 0.0051, axis_name: AxisName = None,
) -> jax.Array:
  """Mean, variance and correlations are those of the rows of all devices, as in the reference.

  Averaging the losses of devices, or normalising with their own statistics as lightly and solo-learn
  do, is another number (6 % more at 16 rows per device). The reference's gradient is 1 / devices of the
  loss's, since its all-reduce is not differentiated; only biases, which LARS leaves alone, notice.

  Args:
    z1, z2: [B, D], two views of the same samples, row by row; normalised here, variance biased, with
      epsilon 1e-5 (a BatchNorm without scale and bias).
    off_diagonal: lambda.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar; invariant over `axis_name`.
  """
  chex.assert_rank([z1, z2], 2)
  chex.assert_equal_shape([z1, z2])
  rows = len(z1) * axis_size(axis_name)
  a, b = (_standardized(z.astype(wide(z)), rows, axis_name) for z in (z1, z2))
  correlation = psum(product('bd,be->de', a, b), axis_name) / rows
  diagonal = jnp.diagonal(correlation)
  others = jnp.sum(jnp.square(correlation)) - jnp.sum(jnp.square(diagonal))
  return jnp.sum(jnp.square(1 - diagonal)) + off_diagonal * others


def _standardized(z, rows, axis_name):
  centred = z - psum(jnp.sum(z, axis=0), axis_name)[None] / rows
  variance = psum(jnp.sum(jnp.square(centred), axis=0), axis_name) / rows
  return centred * jax.lax.rsqrt(variance + 1e-5)[None]
