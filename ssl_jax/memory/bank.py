"""A memory bank: one embedding of every example of the data set (instance discrimination,
arXiv:1805.01978), whole on every device or its rows spread over an axis."""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.all_pairs import product
from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.parallel import all_gather, axis_index, axis_size, psum
from ssl_jax.types import AxisName


def random_bank(key: jax.Array, examples: int, dim: int) -> jax.Array:
  """[examples, dim], random directions."""
  return l2_normalize(jax.random.normal(key, (examples, dim)))


def bank_rows(bank: jax.Array, ids: jax.Array, *, axis_name: AxisName = None,
              bank_axis: AxisName = None) -> jax.Array:
  """The bank's rows [B, D] of examples `ids` [B]; an id that it does not have gives NaN.

  Where the bank is spread over `bank_axis`, each device gives the rows it holds of all ids asked for.
  """
  if bank_axis is None:
    return bank.at[ids].get(mode='fill', fill_value=jnp.nan)
  asked = all_gather(ids, axis_name)
  mine, place = _mine(asked, bank, bank_axis)
  rows = psum(jnp.where(mine[:, None], bank[place], 0), bank_axis)
  known = asked < len(bank) * axis_size(bank_axis)
  rows = jnp.where(known[:, None], rows, jnp.nan)
  return lax.dynamic_slice_in_dim(rows, axis_index(axis_name) * len(ids), len(ids))


def bank_scores(bank: jax.Array, queries: jax.Array, ids: jax.Array) -> jax.Array:
  """queries [B, D] times the bank's rows of `ids` [B, K], each its own: [B, K].

  One example at a time, so that memory holds K x D rows rather than B x K x D.
  """
  bank = lax.stop_gradient(bank)
  return lax.map(lambda pair: product('kd,d->k', bank[pair[1]], pair[0]), (queries, ids))


def write_bank(
    bank: jax.Array, ids: jax.Array, new: jax.Array, *, momentum: float, axis_name: AxisName = None,
    bank_axis: AxisName = None,
) -> jax.Array:
  """`bank` whose row i is normalise(m row + (1 - m) new) for every id of the batches of all devices.

  Of an id that comes twice, the last one of the global batch counts, on any hardware.

  Args:
    bank: [n, D], whole, or consecutive rows of it where it is spread over `bank_axis`.
    ids: integers [B]. new: [B, D], unit rows; no gradient.
    momentum: m.
  """
  ids, new = all_gather(ids, axis_name), lax.stop_gradient(all_gather(new, axis_name))
  again = jnp.triu(ids[:, None] == ids[None], k=1).any(axis=1)
  mine, place = _mine(ids, bank, bank_axis)
  rows = l2_normalize(momentum * bank[place] + (1 - momentum) * new.astype(bank.dtype))
  place = jnp.where(mine & ~again, place, len(bank))  # outside: dropped
  return bank.at[place].set(rows, mode='drop')


def _mine(ids, bank, bank_axis):
  """(which ids this device holds, their rows here)."""
  place = ids.astype(jnp.int32) - axis_index(bank_axis) * len(bank)
  mine = (place >= 0) & (place < len(bank))
  return mine, jnp.clip(place, 0, len(bank) - 1)
