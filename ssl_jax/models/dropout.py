"""Dropout (arXiv:1207.0580) whose draws depend on rows of the global batch, not on devices.

The random bits are threefry2x32's (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"), all
64 of a block: four draws of 16 bits. `jax.random.bits` takes a block for each draw of 16 bits.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p

from ssl_jax.parallel import axis_index
from ssl_jax.types import Mode

QUARTERS = 4  # draws of a block


class Drop(NamedTuple):
  """What is dropped of an array of rows: row i of the global batch has the draws of (key, i).

  key: of this layer and step. rate: of zeros. rows: uint32 [B], the numbers of the rows.
  """

  key: jax.Array
  rate: float
  rows: jax.Array

  def words(self) -> jax.Array:
    """uint32 [B, 2]: the key of each row."""
    of = lambda row: jax.random.bits(jax.random.fold_in(self.key, row), 2, jnp.uint32)
    return jax.vmap(of)(self.rows)

  def factors(self, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """[B, *shape]: 0, or 1 / (1 - rate) so that the mean stays.

    `rate` is rounded to a multiple of 1 / 65,536, of which the factor knows. Block n of the generator
    serves four elements: element n of each quarter of the array along its last axis but one.
    """
    *outer, length, last = (1,) * (2 - len(shape)) + shape
    quarter = -(-length // QUARTERS)
    size = (*outer, quarter, last)
    place = jnp.arange(math.prod(size), dtype=jnp.uint32).reshape(size)
    keys = self.words().reshape(-1, 2, *[1] * len(size))
    words = threefry2x32_p.bind(*jnp.broadcast_arrays(keys[:, 0], keys[:, 1], place, jnp.uint32(0)))
    factors = jnp.concatenate(kept(words, self.rate, dtype), axis=-2)
    return factors[..., :length, :].reshape(-1, *shape)


def kept(words, rate: float, dtype=jnp.float32) -> list[jax.Array]:
  """The four arrays of factors that the words (two arrays uint32) of the generator decide."""
  cut = min(round(rate * 65536), 65535)
  factor, zero = jnp.asarray(65536 / (65536 - cut), dtype), jnp.zeros((), dtype)
  draws = [half for word in words for half in (word & 0xffff, word >> 16)]
  return [jnp.where(draw >= cut, factor, zero) for draw in draws]


def drop_rows(key: jax.Array, count: int, rate: float, mode: Mode) -> Drop:
  """For `count` rows: on any number of devices, in the global view, shard_map, pmap or vmap, the same
  draws for the same row."""
  rows = jnp.arange(count, dtype=jnp.uint32)
  return Drop(key, rate, rows + jnp.asarray(axis_index(mode.axis_name) * count, jnp.uint32))


def dropout_factors(key: jax.Array, shape: tuple[int, ...], rate: float, mode: Mode,
                    dtype=jnp.float32) -> jax.Array:
  """Factors [B, ...] for what is dropped, see `Drop`."""
  return drop_rows(key, shape[0], rate, mode).factors(shape[1:], dtype)
