"""The few types that everything else is written in: Method, Network, Views, TrainState."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

PyTree = Any
Batch = Mapping[str, jax.Array]
# A mesh (or pmap, vmap) axis, several of them (data x fsdp), or None: one device or the global view.
AxisName = str | tuple[str, ...] | None

# What a network for text sees of a batch, integers [B, T] each: tokens; sentence A or B; the position
# within the document; the number of the document within the row, 0 for padding.
TEXT_INPUTS = ('tokens', 'types', 'positions', 'segments')


class Mode(NamedTuple):
  """How a network is run, handed down to every layer that behaves differently in training.

  train: normalise with the statistics of this batch (and drop out, if the network does).
  axis_name: the axis over which the caller's batch is spread, when the caller is inside pmap,
    shard_map or vmap. None in the global view, where a mean over rows already is the global mean.
  momentum: replaces the momentum of running statistics; 0. leaves exactly this batch's statistics.
    Calibration runs so: the batch then is one group and one chunk, whatever training does.
  mesh: of the global view, for kernels that the compiler cannot partition by itself.
  """

  train: bool = False
  axis_name: AxisName = None
  momentum: float | None = None
  mesh: jax.sharding.Mesh | None = None


class Network(NamedTuple):
  """A network as two pure functions; `models.from_linen` makes one, so can any other library.

  init: (key, x [B, ...]) -> (params, state)
  apply: (params, state, x [B, ...], mode, *, key=None) -> (outputs, state)
    outputs are (representation [B, D], projection [B, P]).
  features: (params, state, x [B, ...], names) -> {name: array}, what the layers of these names give
    outside training, such as a stage's [B, H, W, C] or a block's tokens [B, T, D]; or None
  readout: (params) -> (matrix [V, D], bias [V] or None), the output layer of a language model, by
    which its method multiplies the projection; or None

  `x` is an array, or a mapping of arrays [B, ...]. Everything returned has a row per example.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[Any, PyTree]]
  features: Callable[..., Mapping[str, jax.Array]] | None = None
  readout: Callable[[PyTree], tuple[jax.Array, jax.Array | None]] | None = None


class Views(NamedTuple):
  """What happens to a batch of raw examples on the accelerator.

  prepare: (keys [B], batch) -> batch, before `Method.loss`, inside the jitted step. One key per
    example, drawn from (seed, epoch, example id), so that nothing depends on the device count.
  inputs: (batch) -> inputs [B, ...], the deterministic counterpart for `Method.embed`.
  crops: {field: one mapping (of data.images.Crop's fields) per view}, what a host that decodes large
    images may do in advance: instead of 'image' the batch then has these fields, uint8
    [B, views, size, size, C], and `prepare` does all the rest. Empty where there is nothing to crop.
  """

  prepare: Callable[[jax.Array, Batch], Batch]
  inputs: Callable[[Batch], jax.Array]
  crops: Mapping[str, tuple[Mapping[str, Any], ...]] = MappingProxyType({})


def whole(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
  """The default `Method.encoder`: the method holds the variables of its network and nothing else."""
  return params, state


def unchanged(params: PyTree, state: PyTree, step: jax.Array) -> tuple[PyTree, PyTree]:
  """The default `Method.after`."""
  return params, state


class Method(NamedTuple):
  """A self-supervised method as pure functions, in the manner of optax.GradientTransformation.

  init: (key, batch) -> (params, state)
  loss: (params, state, batch, *, key, step) -> (scalar, (state, metrics)); differentiable in params
  embed: (params, state, inputs) -> representation [B, D]
  after: (params, state, step) -> (params, state), after the optimizer: EMA targets, projections
  frozen: (params, step) -> tree of bool, the leaves the optimizer leaves alone now; or None
  calibrate: (params, state, inputs) -> state whose normalisation statistics are those of `inputs`
    alone (evaluation averages it over a pass); or None where there are no such statistics
  encoder: (params, state) -> (params, state) of the Network that `embed` runs; for features of
    inner layers, fine-tuning and export
  measure: (params, state, batch) -> {name: (sum, weight)}, the objective on a prepared batch of
    held-out data, outside training; `batch['weight']` [B] is 0 for rows that do not count; or None

  `state` holds everything that is not trained by gradient: running statistics, EMA targets, queues.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  loss: Callable[..., tuple[jax.Array, tuple[PyTree, Mapping[str, jax.Array]]]]
  embed: Callable[..., jax.Array]
  after: Callable[..., tuple[PyTree, PyTree]] = unchanged
  frozen: Callable[..., PyTree] | None = None
  calibrate: Callable[..., PyTree] | None = None
  encoder: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]] = whole
  measure: Callable[..., Mapping[str, tuple[jax.Array, jax.Array]]] | None = None


class TrainState(NamedTuple):
  """All that training changes; every leaf is a global array. `step` counts batches consumed."""

  step: jax.Array
  params: PyTree
  state: PyTree
  opt: PyTree
