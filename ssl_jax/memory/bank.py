"""A memory bank: one embedding of every example of the data set (instance discrimination,
arXiv:1805.01978), whole on every device or its rows spread over an axis.

Queries travel to the rows of a bank that is spread, never the bank to the queries.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.all_pairs import Spread, product, row_lse, spread
from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.memory.queue import of_all_devices
from ssl_jax.parallel import all_gather, as_varying, axis_index
from ssl_jax.types import AxisName


def random_bank(key: jax.Array, examples: int, dim: int) -> jax.Array:
  """[examples, dim], random directions."""
  return l2_normalize(jax.random.normal(key, (examples, dim)))


def bank_scores(bank: jax.Array, queries: jax.Array, ids: jax.Array, *, bank_axis: AxisName = None
                ) -> jax.Array:
  """Products of each query with rows of its own choice, [B, K]; the bank gets no gradient.

  One query at a time, and again in the backward pass, so that memory holds K x D rows of the bank,
  not B x K x D.

  Args:
    bank: [n, D], whole, or consecutive rows of it where it is spread over `bank_axis`.
    queries: [B, D]. ids: integers [B, K]; one that the bank does not have gives NaN.
    bank_axis: an axis over which queries are spread as well, or None.
  """
  bank = lax.stop_gradient(jnp.asarray(bank))

  @_checkpoint
  def one(query, rows):
    known = bank.at[rows].get(mode='fill', fill_value=jnp.nan)
    return product('kd,d->k', known, query)

  @_checkpoint
  def held(query, rows):
    mine, place = _mine(rows, bank, bank_axis)
    return jnp.where(mine, product('kd,d->k', bank[place], query), 0)

  if bank_axis is None:
    return lax.map(lambda pair: one(*pair), (queries, ids))
  queries, ids = all_gather(queries, bank_axis), all_gather(ids, bank_axis)
  scores = lax.map(lambda pair: held(*pair), (queries, ids))
  scores = jnp.where(ids < len(bank) * lax.axis_size(bank_axis), scores, jnp.nan)
  return lax.psum_scatter(scores, bank_axis, tiled=True)


def bank_lse(bank: jax.Array, queries: jax.Array, *, axis_name: AxisName = None,
             bank_axis: AxisName = None) -> jax.Array:
  """log sum_j exp(query . row_j) over the whole bank, [B]; the bank gets no gradient.

  Args:
    bank, bank_axis: as in `bank_scores`.
    queries: [B, D], divided by the temperature.
    axis_name: over which queries are spread.
  """
  bank = as_varying(bank.astype(queries.dtype), axis_name)
  where = spread(None, None, queries, bank, None)
  if bank_axis is not None:
    block = max(where.block // lax.axis_size(bank_axis), 64)  # for the queries of so many devices
    where = Spread(bank_axis, bank_axis, None, None, block)
  return row_lse(queries, bank, where, fixed=True)


def write_bank(
    bank: jax.Array, ids: jax.Array, new: jax.Array, *, momentum: float, axis_name: AxisName = None,
    bank_axis: AxisName = None,
) -> jax.Array:
  """`bank` with normalise(m row + (1 - m) new) in the row of every id of all devices.

  Of an id that comes twice, the last one of the global batch counts, on any hardware.

  Args:
    bank, bank_axis: as in `bank_scores`.
    ids: integers [B]; those that the bank does not have are ignored. new: [B, D], unit rows; no
      gradient.
    momentum: m.
    axis_name: over which ids and new are spread.
  """
  ids = of_all_devices(ids, axis_name, bank_axis)
  new = of_all_devices(lax.stop_gradient(new), axis_name, bank_axis)
  again = jnp.triu(ids[:, None] == ids[None], k=1).any(axis=1)
  mine, place = _mine(ids, bank, bank_axis)
  rows = l2_normalize(momentum * bank[place] + (1 - momentum) * new.astype(bank.dtype))
  place = jnp.where(mine & ~again, place, len(bank))  # outside: dropped
  return jnp.asarray(bank).at[place].set(rows, mode='drop')


def _checkpoint(function):
  # Inside a loop nothing can undo the recomputation, so the barriers against it are not needed.
  return jax.checkpoint(function, prevent_cse=False)


def _mine(ids, bank, bank_axis):
  """(which ids this device holds, their rows here)."""
  place = ids.astype(jnp.int32) - axis_index(bank_axis) * len(bank)
  mine = (place >= 0) & (place < len(bank))
  return mine, jnp.clip(place, 0, len(bank) - 1)
