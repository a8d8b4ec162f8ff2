"""A queue of earlier embeddings as one global array: a pointer moves, the rows stay.

MoCo's (arXiv:1911.05722), and SwAV's.
Rolling a queue that is spread over devices would move all of it at each step; so the oldest rows
are overwritten where they are, which costs one gather of the new ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.parallel import all_gather, axis_index, axis_size
from ssl_jax.types import AxisName


class Queue(NamedTuple):
  """rows: [K, D]; pointer: int32, where the next row goes."""

  rows: jax.Array
  pointer: jax.Array


def random_queue(key: jax.Array, size: int, dim: int) -> Queue:
  """Random directions, as MoCo starts."""
  return Queue(l2_normalize(jax.random.normal(key, (size, dim))), jnp.zeros((), jnp.int32))


def enqueue(
    rows: jax.Array, new: jax.Array, pointer: jax.Array, *, axis_name: AxisName = None,
    queue_axis: AxisName = None,
) -> jax.Array:
  """`rows` with those of `new` of all devices written from `pointer` on.

  Args:
    rows: [K, D], the whole queue, or consecutive rows of it where it is spread over `queue_axis`.
    new: [B, D], rows of this device; no gradient.
    pointer: int32, the same everywhere.
    axis_name: over which `new` is spread. queue_axis: over which `rows` are.

  Raises:
    ValueError: the global batch does not divide the queue.
  """
  new = lax.stop_gradient(of_all_devices(new, axis_name, queue_axis)).astype(rows.dtype)
  size = len(rows) * axis_size(queue_axis)
  if size % len(new):
    lower = max(size // len(new), 1) * len(new)
    raise ValueError(f'a queue of {size} rows does not take whole batches of {len(new)} rows; use '
                     f'{lower} or {lower + len(new)}')
  if queue_axis is None:
    return lax.dynamic_update_slice_in_dim(rows, new, pointer, 0)
  # Which of the new rows, if any, each of this device's rows becomes.
  place = jnp.arange(len(rows), dtype=jnp.int32) + axis_index(queue_axis) * len(rows)
  offset = (place - pointer) % size
  fresh = new[jnp.clip(offset, 0, len(new) - 1)]
  return jnp.where((offset < len(new))[:, None], fresh, rows)


def of_all_devices(new: jax.Array, axis_name: AxisName, spread_axis: AxisName) -> jax.Array:
  """`new` of all devices, to be written into a memory whose rows are spread over `spread_axis`.

  Such a memory is written in shard_map, which must be told that these rows are equal on all
  devices: the memory may be whole along some of `axis_name`. The caller of a whole memory may be in
  vmap, where it cannot be said.
  """
  if axis_name is None or spread_axis is None:
    return all_gather(new, axis_name)
  return lax.all_gather(new, axis_name, axis=0, tiled=True, to='invarying')


def advanced(pointer: jax.Array, new: int, size: int) -> jax.Array:
  """The pointer after `new` rows of all devices."""
  return (pointer + new) % size
