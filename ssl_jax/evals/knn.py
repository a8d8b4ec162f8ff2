"""k-nearest-neighbour classification by cosine similarity, without any training.

  votes(c) = sum over the k nearest training rows i with y_i = c of w_i
  w_i = 1 (plain votes), or exp(cos(x, x_i) / temperature)

Weighted votes: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination" (arXiv:1805.01978, section 3.4: k = 200, temperature = 0.07), also used by DINO.

The search is exact. Queries come CHUNK at a time and meet the bank BLOCK rows at a time with a
running top k, so that memory does not grow with either number. Over a mesh every device searches
its part of the bank, and k candidates per device are gathered: the bank itself never moves.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ssl_jax.evals.labelled import labelled_pair
from ssl_jax.parallel import axis_index, batch_axes, batch_sharding, replicated
from ssl_jax.types import AxisName

# 32 MB of similarities. Few queries and long rows: XLA's CPU takes 5 ns per number for the top 200
# of 32,768 and 15 ns for that of 4096; the products (512 columns: 8 to 16 ns) do not mind.
CHUNK, BLOCK = 256, 2**15


class _Bank(NamedTuple):
  rows: jax.Array  # [devices * blocks * block, D], unit rows, then zeros
  labels: jax.Array  # [N]
  count: int  # N
  block: int
  mesh: Mesh | None


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
  """Rows of length 1; a row of zeros stays zero (similarity 0 to everything)."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.where(norm == 0, 1, norm)


def _bank(features: np.ndarray, labels: np.ndarray, mesh: Mesh | None) -> _Bank:
  """Every device holds equally many blocks of consecutive rows; only the last rows are padding."""
  features = np.asarray(features, np.float32)
  count, devices = len(features), 1
  if mesh is not None:
    devices = int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))
  share = -(-count // devices)
  blocks = -(-share // BLOCK)
  block = -(-share // blocks)
  total = devices * blocks * block

  def piece(index):
    start, stop, _ = index[0].indices(total)
    part = features[start:stop]
    return np.pad(part, ((0, stop - start - len(part)), (0, 0)))

  if mesh is None:
    rows, labels = jax.device_put((piece((slice(None),)), np.asarray(labels, np.int32)))
  else:
    shape = total, features.shape[1]
    rows = jax.make_array_from_callback(shape, batch_sharding(mesh), piece)
    labels = _everywhere(np.asarray(labels, np.int32), mesh)
  return _Bank(_unit(rows), labels, count, block, mesh)


def _everywhere(x: np.ndarray, mesh: Mesh | None) -> jax.Array:
  if mesh is None:
    return jax.device_put(x)
  return jax.make_array_from_callback(x.shape, replicated(mesh), lambda index: x[index])


def _merge(one, other, k: int):
  """The k best of two lists of (similarity, row) [Q, *]; equals keep their order."""
  similarity, rows = (jnp.concatenate(pair, axis=1) for pair in zip(one, other))
  similarity, places = lax.top_k(similarity, k)
  return similarity, jnp.take_along_axis(rows, places, axis=1)


def _search(bank, queries, *, k: int, count: int, block: int, axis_name: AxisName):
  """(similarity, row number) [Q, k], nearest first and of equals the lowest row first.

  `lax.top_k` takes the first of equals, and everything here comes in the order of rows.
  """
  first = axis_index(axis_name) * len(bank)

  def visit(best, start):
    rows = lax.dynamic_slice_in_dim(bank, start, block)
    similarity = jnp.matmul(queries, rows.T, precision='highest')
    real = first + start + jnp.arange(block) < count
    similarity, places = lax.top_k(jnp.where(real[None], similarity, -jnp.inf), min(k, block))
    return _merge(best, (similarity, first + start + places), k), None

  shape = len(queries), k
  best = jnp.full(shape, -jnp.inf), jnp.full(shape, count, jnp.int32)
  best, _ = lax.scan(visit, best, block * jnp.arange(len(bank) // block))
  if axis_name is None:
    return best
  candidates = lax.all_gather(best, axis_name, axis=1, tiled=True)
  similarity, places = lax.top_k(candidates[0], k)
  return similarity, jnp.take_along_axis(candidates[1], places, axis=1)


@partial(jax.jit, static_argnames=('k', 'count', 'block', 'mesh'))
def _nearest(bank, queries, *, k, count, block, mesh):
  search = partial(_search, k=k, count=count, block=block,
                   axis_name=None if mesh is None else batch_axes(mesh))
  if mesh is not None:
    # The gathered candidates are the same on every device, which check_vma cannot know.
    search = jax.shard_map(search, mesh=mesh, in_specs=(P(batch_axes(mesh)), P()), out_specs=P(),
                           check_vma=False)
  return search(bank, _unit(queries))


@partial(jax.jit, static_argnames=('ks', 'classes', 'temperature'))
def _votes(similarity, rows, labels, *, ks, classes, temperature):
  """float32 [len(ks), Q, C]; ks ascending."""
  # exp of differences to the nearest: the same order of classes, and no overflow.
  weight = (jnp.ones_like(similarity) if temperature is None else
            jnp.exp((similarity - similarity[:, :1]) / temperature))
  ballots = (labels[rows][..., None] == jnp.arange(classes)[None, None]) * weight[..., None]
  parts = [jnp.sum(ballots[:, start:stop], axis=1) for start, stop in zip((0, *ks), ks)]
  return jnp.cumsum(jnp.stack(parts), axis=0)


@jax.jit
def _ranks(votes, labels):
  """int32 [len(ks), Q]: how many classes come before the right one; of equals the lowest first."""
  classes, right = jnp.arange(votes.shape[-1])[None, None], labels[None, :, None]
  own = jnp.sum(jnp.where(classes == right, votes, 0), axis=-1, keepdims=True)
  return jnp.sum((votes > own) | ((votes == own) & (classes < right)), axis=-1)


def _chunks(bank: _Bank, features: np.ndarray, k: int, chunk: int) -> Iterator[tuple]:
  """(first query, number of queries, (similarity, rows)) of `chunk` queries at a time."""
  chunk = min(chunk, len(features))
  for start in range(0, len(features), chunk):
    piece = np.asarray(features[start:start + chunk], np.float32)
    padded = np.pad(piece, ((0, chunk - len(piece)), (0, 0)))  # one shape, one compilation
    found = _nearest(bank.rows, _everywhere(padded, bank.mesh), k=k, count=bank.count,
                     block=bank.block, mesh=bank.mesh)
    yield start, len(piece), found


def _check(ks: Sequence[int], rows: int, temperature: float | None) -> tuple[int, ...]:
  ks = tuple(sorted(set(map(int, ks))))
  if not ks or not 1 <= ks[0] <= ks[-1] <= rows:
    wrong = [k for k in ks if not 1 <= k <= rows]
    raise ValueError(f'expected 1 <= k <= {rows}, the number of training rows; '
                     f'got k={wrong[0] if wrong else None}')
  if temperature is not None and not temperature > 0:
    raise ValueError(f'expected a positive temperature, or None for plain votes; '
                     f'got {temperature}')
  return ks


def nearest(train_features, features, *, k: int, mesh: Mesh | None = None,
            chunk: int = CHUNK) -> tuple[np.ndarray, np.ndarray]:
  """The k training rows that are most similar by cosine, exactly.

  Args:
    train_features: [N, D], computed in float32.
    features: [M, D]
    k: neighbours, <= N.
    mesh: spreads the training rows over its batch axes; None: one device. Every process gives all
      rows and gets the whole result.
    chunk: queries compared at a time; memory beside the features is chunk * 32,768 floats.

  Returns:
    cosine similarities float32 [M, k], descending, and row numbers int32 [M, k]; of equally
    similar rows the lowest number first, on any number of devices.

  Raises:
    ValueError: k is not in [1, N].
  """
  _check((k,), len(train_features), None)
  bank = _bank(train_features, np.zeros(1), mesh)
  pieces = [jax.tree.map(lambda x, n=count: x[:n], jax.device_get(found))
            for _, count, found in _chunks(bank, features, k, chunk)]
  return tuple(np.concatenate(column) for column in zip(*pieces))


def knn_predict(train_features, train_labels, features, *, k: int = 20, classes: int,
                temperature: float | None = None, mesh: Mesh | None = None,
                chunk: int = CHUNK) -> np.ndarray:
  """Predicted classes, int32 [M], for float32 [N, D], integers [N] and float32 [M, D].

  Raises:
    ValueError: k is not in [1, N], or the temperature is not positive.
  """
  ks = _check((k,), len(train_features), temperature)
  bank = _bank(train_features, train_labels, mesh)
  classify = lambda found: jax.device_get(_votes(*found, bank.labels, ks=ks, classes=classes,
                                                 temperature=temperature))[0].argmax(axis=-1)
  predicted = [classify(found)[:count] for _, count, found in _chunks(bank, features, k, chunk)]
  return np.concatenate(predicted).astype(np.int32)


def knn_sweep(train_features, train_labels, features, labels, *, ks: Sequence[int], classes: int,
              temperature: float | None = None, mesh: Mesh | None = None,
              chunk: int = CHUNK) -> dict[int, dict[str, float]]:
  """Accuracies for several k by one search.

  Arguments as for `knn`, and `ks`, the numbers of neighbours.

  Returns:
    {k: dict(accuracy=..., top5=...)}, in [0, 1]; a row is right among the top 5 if fewer than five
    classes come before its own (classes without a vote come in their order).

  Raises:
    ValueError: see `labelled_pair` and `knn_predict`.
  """
  train, test = labelled_pair(train_features, train_labels, features, labels, classes)
  ks = _check(ks, len(train[0]), temperature)
  bank, ranks = _bank(*train, mesh), []
  for start, count, found in _chunks(bank, test[0], ks[-1], chunk):
    votes = _votes(*found, bank.labels, ks=ks, classes=classes, temperature=temperature)
    right = np.pad(test[1][start:start + count], (0, votes.shape[1] - count))
    ranks.append(jax.device_get(_ranks(votes, _everywhere(right, mesh)))[:, :count])
  ranks = np.concatenate(ranks, axis=1)
  return {k: dict(accuracy=float(np.mean(rank < 1)), top5=float(np.mean(rank < 5)))
          for k, rank in zip(ks, ranks)}


def knn(train_features, train_labels, features, labels, *, k: int = 20, classes: int,
        temperature: float | None = None, mesh: Mesh | None = None,
        chunk: int = CHUNK) -> dict[str, float]:
  """Accuracy of the k nearest neighbours (cosine) over the test rows.

  Equal votes go to the lowest class number and equally near rows to the lowest row number; with
  plain votes that is what scikit-learn's KNeighborsClassifier(metric='cosine') predicts.

  Args:
    train_features: [N, D], any floating dtype; computed in float32.
    train_labels: [N], whole numbers in [0, classes).
    features: [M, D]
    labels: [M]
    k: neighbours, <= N.
    classes: C.
    temperature: None for plain votes, else votes weigh exp(similarity / temperature).
    mesh: see `nearest`.
    chunk: see `nearest`.

  Returns:
    dict(accuracy=...), in [0, 1].

  Raises:
    ValueError: see `labelled_pair` and `knn_predict`.
  """
  train, test = labelled_pair(train_features, train_labels, features, labels, classes)
  predicted = knn_predict(*train, test[0], k=k, classes=classes, temperature=temperature,
                          mesh=mesh, chunk=chunk)
  return dict(accuracy=float(np.mean(predicted == test[1])))
