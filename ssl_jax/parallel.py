"""Meshes, shardings, and collectives that accept axis_name=None.

A loss is written once with these collectives. Where it runs is the caller's choice: `local` (one
device, or the global view of jit), `inside(axis)` (the caller is in pmap, shard_map or vmap), or
`over(mesh)` (global arrays; only the loss head is manual).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl_jax.types import AxisName, Mode, PyTree

# Mesh axes over which a batch is spread; a 'tensor' axis holds copies of the same rows.
BATCH_AXES = ('data', 'fsdp')


# --- collectives ----------------------------------------------------------------------------------


def all_gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """Rows of all devices, in the order of `axis_index`; the gradient flows back to their owners."""
  return x if axis_name is None else lax.all_gather(x, axis_name, axis=0, tiled=True)


def psum(x: PyTree, axis_name: AxisName) -> PyTree:
  return x if axis_name is None else lax.psum(x, axis_name)


def pmean(x: PyTree, axis_name: AxisName) -> PyTree:
  return x if axis_name is None else lax.pmean(x, axis_name)


def as_varying(tree: PyTree, axis_name: AxisName) -> PyTree:
  """`tree` as values that differ along the axis, as far as shard_map (check_vma=True) can tell.

  The gradients that a custom rule returns must vary as its operands do, and the transpose of this
  sums them. `lax.pcast` says the same, but not in vmap.
  """
  if axis_name is None:
    return tree
  return jax.tree.map(lambda x: x + (0 * axis_index(axis_name)).astype(x.dtype), tree)


def axis_index(axis_name: AxisName) -> jax.Array | int:
  return 0 if axis_name is None else lax.axis_index(axis_name)


def axis_size(axis_name: AxisName) -> int:
  return 1 if axis_name is None else lax.axis_size(axis_name)


def weighted_mean(values: jax.Array, weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """sum(values * weights) / sum(weights) over all devices; 0 where the weights sum to 0.

  Never a mean of per-device means, which differs as soon as devices hold unequal weights.
  """
  total, weight = psum((jnp.sum(values * weights), jnp.sum(weights)), axis_name)
  return total / jnp.where(weight == 0, 1, weight)


# --- how a loss head runs -------------------------------------------------------------------------


ROWS = 'rows of the batch'  # in Placement.manual


class Placement(NamedTuple):
  """How a loss head runs. Use `local`, `inside` or `over` rather than the constructor."""

  axis_name: AxisName = None
  mesh: Mesh | None = None
  axes: AxisName = None

  def __call__(self, loss: Callable, shared: int = 0, shared_axis: AxisName = None) -> Callable:
    """Wraps `loss(*arrays, axis_name=...)`; the last `shared` arguments are replicated, or their
    rows spread over `shared_axis` of the mesh, along which all others are equal."""
    def head(*args):
      takes = (ROWS,) * (len(args) - shared) + (shared_axis,) * shared
      return self.manual(loss, takes, None)(*args)

    return head

  def manual(self, function: Callable, takes: Sequence[AxisName], gives: AxisName) -> Callable:
    """Wraps `function(*arrays, axis_name=...)`, of which each array's rows are spread in its own way.

    Args:
      function: sees what a device holds, and returns arrays that are all spread alike.
      takes: for each argument the mesh axis over which its rows are spread, ROWS for those of the
        batch, or None for a whole one.
      gives: the same for the results. None promises that they are equal on all devices.
    """
    if self.mesh is None:
      return partial(function, axis_name=self.axis_name)
    axes = [self.axes if axis == ROWS else axis for axis in (*takes, gives)]
    *specs, out = [PartitionSpec(axis) if axis else PartitionSpec() for axis in axes]
    return jax.shard_map(partial(function, axis_name=self.axes), mesh=self.mesh,
                         in_specs=tuple(specs), out_specs=out)


  def mode(self, train: bool = False) -> Mode:
    """How a network runs on a batch that is placed so."""
    return Mode(train, self.axis_name, mesh=self.mesh)


local = Placement()


def inside(axis_name: AxisName) -> Placement:
  """The caller already is inside pmap, shard_map or vmap over `axis_name`."""
  return Placement(axis_name=axis_name)


def over(mesh: Mesh, axes: AxisName = None) -> Placement:
  """Global arrays; the head runs in shard_map over `axes` (default: the mesh's batch axes)."""
  return Placement(mesh=mesh, axes=batch_axes(mesh) if axes is None else axes)


def varying(x: jax.Array) -> frozenset[str]:
  """Axes of an enclosing shard_map (check_vma=True) over which `x` differs."""
  return jax.typeof(x).manual_axis_type.varying


# --- views of one example -------------------------------------------------------------------------


def fold(views: jax.Array) -> jax.Array:
  """[B, V, ...] -> [B * V, ...], example-major, so that every row stays on its device.

  Concatenating views along the batch axis instead would cost an all-to-all.
  """
  return views.reshape(-1, *views.shape[2:])


def unfold(rows: jax.Array, views: int) -> tuple[jax.Array, ...]:
  """The inverse of `fold`, one array [B, ...] per view."""
  return tuple(jnp.moveaxis(rows.reshape(-1, views, *rows.shape[1:]), 1, 0))


# --- meshes and shardings -------------------------------------------------------------------------


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of `Auto` axes; one size may be -1 (all remaining devices). Default: {'data': -1}.

  `jax.make_mesh` defaults to Explicit axes, on which Flax's Embed, Dropout and scans fail.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or no axis spans the TPU slices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = {'data': -1} if not shape else dict(shape)
  free = [name for name, size in shape.items() if size == -1]
  known = math.prod(size for size in shape.values() if size != -1)
  if len(free) > 1 or known < 1 or len(devices) % known:
    raise ValueError(f'mesh {shape} does not fit {len(devices)} devices')
  if free:
    shape[free[0]] = len(devices) // known
  if math.prod(shape.values()) != len(devices):
    raise ValueError(f'mesh {shape} takes {math.prod(shape.values())} devices, '
                     f'there are {len(devices)}; give one axis the size -1 to use all')
  axis_types = (AxisType.Auto,) * len(shape)
  slices = len({getattr(device, 'slice_index', None) for device in devices})
  if slices > 1:
    return Mesh(_over_slices(shape, devices, slices), tuple(shape), axis_types=axis_types)
  return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=axis_types, devices=devices)


def _over_slices(shape: Mapping[str, int], devices: Sequence[Any], slices: int) -> np.ndarray:
  """The devices of several TPU slices, a slice next to the other along one axis, of those that hold the
  batch if they allow it: only that axis' collectives leave the slices."""
  names = sorted(shape, key=lambda name: name not in BATCH_AXES)
  axis = next((name for name in names if shape[name] % slices == 0), None)
  if axis is None:
    raise ValueError(f'mesh {dict(shape)} has no axis that {slices} slices divide')
  within = [size // slices if name == axis else size for name, size in shape.items()]
  between = [slices if name == axis else 1 for name in shape]
  return mesh_utils.create_hybrid_device_mesh(within, between, devices,
                                              allow_split_physical_axes=True)


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """The axes of `mesh` over which a batch is spread."""
  return tuple(name for name in mesh.axis_names if name in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def path_name(path) -> str:
  """'params/encoder/conv/kernel' for a path of jax.tree_util."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def infer_sharding(tree: PyTree, rules: Sequence[tuple[str, str]], mesh: Mesh) -> PyTree:
  """Shardings by name: the first rule whose regular expression is found in a leaf's path wins.

  A rule is (pattern, axis): the largest dimension that `axis` divides is split over it; leaves that
  match no rule, or that no dimension of fits, are replicated. Because the paths of optimizer and
  method state end in the path of the parameter they belong to, one rule covers all of them.
  """
  for pattern, axis in rules:
    if axis not in mesh.axis_names:
      raise ValueError(f'sharding rule {pattern!r} names axis {axis!r}; '
                       f'the mesh has {mesh.axis_names}')

  def leaf_sharding(path, leaf):
    name = path_name(path)
    axis = next((axis for pattern, axis in rules if re.search(pattern, name)), None)
    size = mesh.shape[axis] if axis else 1
    fits = [i for i, n in enumerate(leaf.shape) if n % size == 0 and n >= size]
    if axis is None or not fits:
      return replicated(mesh)
    widest = max(fits, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * widest, axis))

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


# --- host rows to global arrays -------------------------------------------------------------------


def local_rows(sharding: NamedSharding, batch_size: int) -> np.ndarray:
  """The rows of a global batch that this process feeds, ascending.

  Asked of the sharding: on real slices the hosts interleave, a host has no contiguous block.
  """
  slices = sharding.addressable_devices_indices_map((batch_size,)).values()
  rows = [np.arange(batch_size)[index[0]] for index in slices]
  return np.unique(np.concatenate(rows))


def to_global(batch: Mapping[str, np.ndarray], sharding: NamedSharding, batch_size: int) -> dict:
  """Turns this process's rows (in the order of `local_rows`) into global arrays of `batch_size`.

  Raises:
    ValueError: the rows are not as many as the sharding expects of this process. JAX itself accepts
      ragged batches silently and computes with them.
  """
  rows = local_rows(sharding, batch_size)

  def place(name, array):
    if len(array) != len(rows):
      raise ValueError(f'{name!r} has {len(array)} rows on this process, expected {len(rows)}')

    def piece(index):
      return array[np.searchsorted(rows, np.arange(batch_size)[index[0]])]

    return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, piece)

  return {name: place(name, array) for name, array in batch.items()}
