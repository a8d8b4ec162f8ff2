"""Dropout (arXiv:1207.0580) whose draws depend on rows of the global batch, not on devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.parallel import axis_index
from ssl_jax.types import Mode


class Drop(NamedTuple):
  """What is dropped of an array of rows: row i of the global batch has the draws of (key, i).

  key: of this layer and step. rate: of zeros. rows: uint32 [B], the numbers of the rows.
  """

  key: jax.Array
  rate: float
  rows: jax.Array

  def factors(self, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """[B, *shape]: 0, or 1 / (1 - rate) so that the mean stays.

    `rate` is rounded to a multiple of 1 / 65,536, of which the factor knows.
    """
    cut = min(round(self.rate * 65536), 65535)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, self.rows)
    bits = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint16))(keys)
    return jnp.where(bits >= cut, jnp.asarray(65536 / (65536 - cut), dtype), jnp.zeros((), dtype))


def drop_rows(key: jax.Array, count: int, rate: float, mode: Mode) -> Drop:
  """For `count` rows: on any number of devices, in the global view, shard_map, pmap or vmap, the same
  draws for the same row."""
  rows = jnp.arange(count, dtype=jnp.uint32)
  return Drop(key, rate, rows + jnp.asarray(axis_index(mode.axis_name) * count, jnp.uint32))


def dropout_factors(key: jax.Array, shape: tuple[int, ...], rate: float, mode: Mode,
                    dtype=jnp.float32) -> jax.Array:
  """Factors [B, ...] for what is dropped, see `Drop`."""
  return drop_rows(key, shape[0], rate, mode).factors(shape[1:], dtype)
