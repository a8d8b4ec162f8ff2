"""Contrastive losses: a sample's own partner among the samples of all devices.

  info_nce:  -log exp(q_i.k_i / T) / sum_j exp(q_i.k_j / T)                         (arXiv:1807.03748)
  nt_xent:   the same over both views of N samples, 2N anchors, self excluded       (arXiv:2002.05709)
  queue_nce: against one's own key and a queue of earlier keys                      (arXiv:1911.05722)
  sup_con:   every sample of the same label is a positive, the mean outside the log (arXiv:2004.11362)
  clip:      info_nce in both directions, with a learnable scale                    (arXiv:2103.00020)
  siglip:    every pair by itself, a sigmoid                                        (arXiv:2303.15343)

With `axis_name` every device holds its own rows, scores them against the rows of all devices, and the
mean over all anchors is returned: the same value on every device and on any device count. Gradient
reaches both sides of every pair, wherever they are. No device holds a square of the global batch, and
no implementation but `gather` holds its rows times the global batch.

All take the keywords

  axis_name: the axis (or axes) over which rows are spread, or None.
  implementation: 'gather', 'chunked', 'ring' or 'grid', ways to the same number; None picks one by the
    sizes. See `ssl_jax.losses.all_pairs` and docs/contrastive.md.
  block: columns at a time; None picks.

and return a scalar in float32 (float64 where the inputs are), invariant over `axis_name`. Embeddings
are normalised here, in at least float32, and rounded to the dtype they came in. A temperature or
scale that is a number, not an array, and not above 0 is a ValueError.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.all_pairs import (
  pair_lse,
  positive,
  row_lse,
  self_lse,
  self_sums,
  sigmoid_sums,
  spread,
  wide,
)
from ssl_jax.parallel import as_varying, pmean, psum, weighted_mean
from ssl_jax.types import AxisName


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-12) -> jax.Array:
  """Rows of x [..., D] scaled to unit length; a zero row stays zero and has a finite gradient.

  Computed in at least float32. `epsilon` is a floor on the squared norm, as in TensorFlow.
  """
  x = x.astype(wide(x))
  return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), epsilon))


def info_nce(
    queries: jax.Array, keys: jax.Array, *, temperature: float | jax.Array,
    weights: jax.Array | None = None, axis_name: AxisName = None,
    implementation: str | None = None, block: int | None = None,
) -> jax.Array:
  """Each query's own key among the keys of all devices; the mean over queries.

  Args:
    queries: [B, D]. keys: [B, D], the partner of each query in the same row.
    temperature: divides the cosine similarities.
    weights: [B] of the queries in the mean, or None; keys are negatives whatever their weight.
    axis_name, implementation, block: see the module.
  """
  _check_pairs(queries, keys)
  a, b = _scaled(queries, _inverse(temperature)), _scaled(keys)
  lse = row_lse(a, b, spread(implementation, block, a, b, axis_name))
  return _mean(lse - _own_logits(a, b), weights, axis_name)


def nt_xent(
    z1: jax.Array, z2: jax.Array, *, temperature: float | jax.Array,
    weights: jax.Array | None = None, axis_name: AxisName = None,
    implementation: str | None = None, block: int | None = None,
) -> jax.Array:
  """NT-Xent, Algorithm 1 of SimCLR: the mean over the 2N anchors, each against its partner and the
  2N - 2 other rows of both views.

  google-research/simclr sums two N-means instead, which is exactly twice this value.

  Args:
    z1, z2: [B, D], the two views of the same samples, row by row.
    temperature: divides the cosine similarities.
    weights: [B] of the samples' anchors in the mean, or None; all rows are negatives of the others.
    axis_name, implementation, block: see the module.
  """
  _check_pairs(z1, z2)
  # Example-major: joining views along the rows would move rows between devices in the global view.
  z = _scaled(jnp.stack([z1, z2], axis=1).reshape(-1, z1.shape[1]), _root(temperature))
  lse = self_lse(z, spread(implementation, block, z, z, axis_name)).reshape(-1, 2)
  own = _own_logits(*jnp.unstack(z.reshape(-1, 2, z.shape[1]), axis=1))
  return _mean(jnp.mean(lse, axis=1) - own, weights, axis_name)


def queue_nce(
    queries: jax.Array, keys: jax.Array, queue: jax.Array, *, temperature: float | jax.Array,
    axis_name: AxisName = None, queue_axis: AxisName = None, implementation: str | None = None,
    block: int | None = None,
) -> jax.Array:
  """MoCo's loss: each query's own key against the rows of a queue; the mean over queries.

  Keys and queue carry no gradient. The loss is that of facebookresearch/moco; MoCo v3, which has no
  queue, multiplies its own by 2 T.

  Args:
    queries, keys: [B, D], row by row. queue: [K, D], unit rows.
    temperature: divides the cosine similarities.
    queue_axis: the axis over which the queue is spread, each device holding consecutive rows; None is
      a whole queue on every device. Along an axis that is not in `axis_name` queries are equal.
    axis_name, implementation, block: see the module.

  Raises:
    ValueError: `queue_axis` is only partly in `axis_name`.
  """
  _check_pairs(queries, keys)
  chex.assert_shape(queue, (None, queries.shape[1]))
  keys, queue = lax.stop_gradient((keys, queue))
  a, b = _scaled(queries, _inverse(temperature)), _scaled(keys)
  own = _own_logits(a, b)
  within = set(_axes(queue_axis)) & set(_axes(axis_name))
  if within and within != set(_axes(queue_axis)):
    raise ValueError(f'queue_axis {queue_axis!r} must be within axis_name {axis_name!r} or outside it')
  apart = queue_axis if not within else None
  queue = as_varying(queue.astype(a.dtype), None if within else axis_name)
  a = as_varying(a, apart)
  where = spread(implementation, block, a, queue, queue_axis if within else None)
  lse = row_lse(a, queue, where, fixed=True)
  if apart is not None:
    top = lax.pmax(lax.stop_gradient(lse), apart)
    lse = top + jnp.log(psum(jnp.exp(lse - top), apart))
  return _mean(jnp.logaddexp(own, lse) - own, None, axis_name)


def sup_con(
    embeddings: jax.Array, labels: jax.Array, *, temperature: float | jax.Array,
    weights: jax.Array | None = None, axis_name: AxisName = None,
    implementation: str | None = None, block: int | None = None,
) -> jax.Array:
  """SupCon ("L_out"): -mean over the others p of the same label of log softmax_i(p), itself excluded.

  Anchors without a positive contribute 0 and do not count. With two rows per label it is `nt_xent`. The
  authors' code multiplies by temperature / 0.07 besides, and solo-learn's is the paper's other variant
  (the mean inside the log).

  Args:
    embeddings: [N, D], all views of all samples. labels: integers [N].
    temperature: divides the cosine similarities.
    weights: [N] of the anchors in the mean, or None.
    axis_name, implementation, block: see the module.
  """
  chex.assert_rank([embeddings, labels], [2, 1])
  chex.assert_equal_shape_prefix([embeddings, labels], 1)
  z = _scaled(embeddings, _root(temperature))
  lse, positives, count = self_sums(z, labels, spread(implementation, block, z, z, axis_name))
  count = lax.stop_gradient(count)
  counts = (count > 0).astype(lse.dtype)
  # A row that is alone in the batch has the log-sum-exp of nothing, and 0 * -inf is NaN.
  losses = jnp.where(count > 0, lse - positives / jnp.maximum(count, 1), 0)
  return weighted_mean(losses, counts if weights is None else counts * weights, axis_name)


def clip(
    image: jax.Array, text: jax.Array, *, scale: float | jax.Array, axis_name: AxisName = None,
    implementation: str | None = None, block: int | None = None,
) -> jax.Array:
  """CLIP: the mean of `info_nce` from images to texts and from texts to images.

  Args:
    image, text: [B, D], row by row.
    scale: multiplies the cosine similarities; learnable (the paper learns its logarithm, at most 100).
    axis_name, implementation, block: see the module.
  """
  _check_pairs(image, text)
  a, b = _scaled(image, positive('scale', scale)), _scaled(text)
  to_text, to_image = pair_lse(a, b, spread(implementation, block, a, b, axis_name))
  return _mean((to_text + to_image) / 2 - _own_logits(a, b), None, axis_name)


def siglip(
    image: jax.Array, text: jax.Array, *, scale: float | jax.Array, bias: float | jax.Array,
    axis_name: AxisName = None, implementation: str | None = None, block: int | None = None,
) -> jax.Array:
  """SigLIP: -sum_j log sigmoid(y_ij (scale a_i . b_j + bias)), y = 1 for one's own and -1 for others;
  the mean over the batch.

  Args:
    image, text: [B, D], row by row.
    scale, bias: learnable; the paper starts at exp(t) = 10 and -10.
    axis_name, implementation, block: see the module.
  """
  _check_pairs(image, text)
  a, b = _scaled(image, positive('scale', scale)), _scaled(text)
  where = spread(implementation, block, a, b, axis_name)
  return _mean(sigmoid_sums(a, b, jnp.asarray(bias, wide(a)), where), None, axis_name)


# --- pieces ---------------------------------------------------------------------------------------


def _check_pairs(a: jax.Array, b: jax.Array) -> None:
  chex.assert_rank([a, b], 2)
  chex.assert_equal_shape([a, b])


def _scaled(x: jax.Array, scale: float | jax.Array = 1.) -> jax.Array:
  """Unit rows times `scale`, rounded once, to the dtype that x has."""
  return (l2_normalize(x) * jnp.asarray(scale, wide(x))).astype(x.dtype)


def _inverse(temperature: float | jax.Array) -> float | jax.Array:
  return 1 / positive('temperature', temperature)


def _root(temperature: float | jax.Array) -> float | jax.Array:
  """What both sides of a pair are multiplied by."""
  return _inverse(temperature) ** 0.5


def _own_logits(a: jax.Array, b: jax.Array) -> jax.Array:
  """a_i . b_i, [B], in float32 or wider."""
  return jnp.sum(a.astype(wide(a)) * b.astype(wide(b)), axis=1)


def _mean(losses: jax.Array, weights: jax.Array | None, axis_name: AxisName) -> jax.Array:
  if weights is None:
    return pmean(jnp.mean(losses), axis_name)
  return weighted_mean(losses, weights.astype(losses.dtype), axis_name)


def _axes(axis_name: AxisName) -> tuple[str, ...]:
  return (axis_name,) if isinstance(axis_name, str) else axis_name or ()
