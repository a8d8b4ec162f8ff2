"""Dropout (arXiv:1207.0580) whose draws depend on rows of the global batch, not on devices."""

import jax
import jax.numpy as jnp

from ssl_jax.parallel import axis_index
from ssl_jax.types import Mode


def dropout_factors(key: jax.Array, shape: tuple[int, ...], rate: float, mode: Mode,
                    dtype=jnp.float32) -> jax.Array:
  """Factors [B, ...] for what is dropped: 0, or 1 / (1 - rate) so that the mean stays.

  Row i of the global batch has the draws of (key, i): on any number of devices, in the global view,
  shard_map, pmap or vmap, they are the same. `rate` is rounded to a multiple of 1 / 65,536, of which
  the factor knows.
  """
  cut = min(round(rate * 65536), 65535)
  rows = jnp.arange(shape[0], dtype=jnp.uint32)
  rows = rows + jnp.asarray(axis_index(mode.axis_name) * shape[0], jnp.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
  bits = jax.vmap(lambda k: jax.random.bits(k, shape[1:], jnp.uint16))(keys)
  return jnp.where(bits >= cut, jnp.asarray(65536 / (65536 - cut), dtype), jnp.zeros((), dtype))
