"""From an encoder and batches to arrays: recalibrated normalisation, embeddings, standardisation.

A batch is a mapping of arrays with rows first. Its field 'weight' (1 real, 0 padding; absent: all
real) says which rows count; batches may be sharded over any mesh, of several processes too.
"""

from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ssl_jax.types import Batch, PyTree

# A feature that varies less than this in training carries nothing; it is centred but not scaled up.
MIN_STD = 1e-6


# The functions are static arguments, so that evaluating again during training compiles nothing.
@partial(jax.jit, static_argnums=(0, 1))
def _calibrate(method_calibrate, inputs, params, state, batch):
  new = method_calibrate(params, state, inputs(batch))
  weight = _weight(batch)
  return new, jnp.where(jnp.all(weight > 0), len(weight), 0).astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _embed(embed, inputs, params, state, batch):
  features = embed(params, state, inputs(batch))
  return features.astype(jnp.float32), batch.get('label'), _weight(batch)


@jax.jit
def _running_mean(mean: PyTree, total: jax.Array | None, new: PyTree, rows: jax.Array):
  """(mean, total) of `total` rows (None: 0) and `rows` more; only floating leaves change.

  `mean + (new - mean) * share` leaves a leaf that is the same in both exactly as it is.
  """
  total = rows if total is None else total + rows
  share = rows / jnp.maximum(total, 1)

  def merge(a, b):
    if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
      return a
    mixed = (a + (b - a) * share).astype(b.dtype)
    return jnp.where(share == 0, a, jnp.where(share == 1, b, mixed))

  return jax.tree.map(merge, mean, new), total


def calibrate(method_calibrate: Callable, params: PyTree, state: PyTree, batches: Iterable[Batch],
              *, inputs: Callable[[Batch], jax.Array]) -> PyTree:
  """State whose normalisation statistics are those of one pass over `batches`.

  The mean over batches of the statistics of each (a variance is therefore the mean variance within
  a batch, as in training), weighted by rows. Batches with padding are left out whole, since padded
  rows would enter the statistics.

  Args:
    method_calibrate: `Method.calibrate`: (params, state, inputs) -> state.
    params: of the method.
    state: of the method; leaves that are not floating, or that calibration does not touch, come
      back as they are.
    batches: one pass; on the devices where `params` are.
    inputs: batch -> inputs of the encoder (`Views.inputs`); runs inside the jitted function.

  Raises:
    ValueError: no batch without padding.
  """
  mean, total = state, None
  for batch in batches:
    new, rows = _calibrate(method_calibrate, inputs, params, state, dict(batch))
    mean, total = _running_mean(mean, total, new, rows)
  if total is None or not jax.device_get(total):
    raise ValueError('calibration needs at least one batch without padding; use a batch size of '
                     'at most the number of examples')
  return mean


def embed_all(embed: Callable, params: PyTree, state: PyTree, batches: Iterable[Batch], *,
              inputs: Callable[[Batch], jax.Array]) -> tuple[np.ndarray, np.ndarray | None]:
  """Embeds every real row of `batches` once, in their order; every process gets all rows.

  Args:
    embed: `Method.embed`: (params, state, inputs) -> [B, D], any floating dtype.
    params, state: of the method.
    batches: with fields 'label' [B] (optional, but in all or none) and 'weight' [B] (optional).
    inputs: batch -> inputs of the encoder (`Views.inputs`); runs inside the jitted function.

  Returns:
    features float32 [N, D], labels int32 [N] or None.

  Raises:
    ValueError: no batches, or `embed` does not return one vector per row.
  """
  parts, running = [], None
  for batch in batches:
    following = _embed(embed, inputs, params, state, dict(batch))
    # Fetched one batch late: the device computes the next one meanwhile.
    parts += [] if running is None else [_real_rows(*running)]
    running = following
  if running is None:
    raise ValueError('there are no batches to embed')
  features, labels = zip(*parts, _real_rows(*running))
  return np.concatenate(features), None if labels[0] is None else np.concatenate(labels)


def _weight(batch: Batch) -> jax.Array:
  rows = len(jax.tree.leaves(dict(batch))[0])
  return batch['weight'] if 'weight' in batch else jnp.ones(rows, jnp.float32)


def _fetch(x: jax.Array) -> np.ndarray:
  """A global array on the host of every process."""
  return jax.device_get(x) if x.is_fully_addressable else np.asarray(
    multihost_utils.process_allgather(x, tiled=True))


def _real_rows(features, labels, weight):
  real = _fetch(weight) > 0
  if features.ndim != 2 or len(features) != len(real):
    raise ValueError(f'embed must return [B, D] for {len(real)} rows, got shape {features.shape}')
  return (_fetch(features)[real],
          None if labels is None else _fetch(labels)[real].astype(np.int32))


def standardize(train: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
  """(train, *others), each [*, D] float32, with mean and deviation of `train` taken out.

  A feature whose deviation in training is below 1e-6 (relative to its largest magnitude, if that is
  more than 1) is centred only: scaling would turn rounding errors into features.
  """
  train, *others = (np.asarray(x).astype(np.float32) for x in (train, *others))
  # Sums of float32 rows lose digits as N grows; in float64 the result does not depend on N.
  mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
  floor = MIN_STD * np.maximum(1, np.abs(train).max(axis=0))
  scale = 1 / np.where(std < floor, 1, std)
  mean, scale = mean.astype(np.float32), scale.astype(np.float32)
  return tuple((x - mean) * scale for x in (train, *others))
