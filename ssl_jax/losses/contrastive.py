"""Contrastive losses: a sample's own partner among the samples of all devices.

  info_nce: -log exp(q_i.k_i / T) / sum_j exp(q_i.k_j / T)                          (arXiv:1807.03748)
  nt_xent:  the same over both views of N samples, 2N anchors, self excluded        (arXiv:2002.05709)

With `axis_name` every device holds its own rows, scores them against the rows of all devices, and
returns the mean over all anchors: the value is the same on every device and on any device count.
The gathered side carries gradient; each device keeps (local anchors) x (all keys) logits, never a
square of the global batch.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.parallel import all_gather, axis_index, pmean
from ssl_jax.types import AxisName


def l2_normalize(x: jax.Array, *, epsilon: float = 1e-12) -> jax.Array:
  """Rows of x [..., D] scaled to unit length; a zero row stays zero and has a finite gradient.

  Computed in at least float32. `epsilon` is a floor on the squared norm, as in TensorFlow.
  """
  x = x.astype(_at_least_float32(x))
  return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), epsilon))


def info_nce(
    queries: jax.Array, keys: jax.Array, *, temperature: float | jax.Array,
    axis_name: AxisName = None,
) -> jax.Array:
  """Each query's own key among the keys of all devices.

  Args:
    queries: [B, D], normalised here.
    keys: [B, D], the partner of each query in the same row; carries gradient.
    temperature: divides the cosine similarities.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar, the mean over all queries of all devices; invariant over `axis_name`.
  """
  chex.assert_rank([queries, keys], 2)
  chex.assert_equal_shape([queries, keys])
  queries, keys = l2_normalize(queries), l2_normalize(keys)
  logits = _similarity(queries, all_gather(keys, axis_name)) / temperature
  own = _global_rows(len(queries), axis_name)
  return pmean(jnp.mean(_cross_entropy(logits, own)), axis_name)


def nt_xent(
    z1: jax.Array, z2: jax.Array, *, temperature: float | jax.Array, axis_name: AxisName = None,
) -> jax.Array:
  """NT-Xent, Algorithm 1 of SimCLR (arXiv:2002.05709).

  The mean over the 2N anchors; an anchor's negatives are the 2N - 2 other rows of both views.
  google-research/simclr sums two N-means instead, which is exactly twice this value.

  Args:
    z1, z2: [B, D], the two views of the same samples, row by row; normalised here.
    temperature: divides the cosine similarities.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar, the mean over all anchors of all devices; invariant over `axis_name`.
  """
  chex.assert_rank([z1, z2], 2)
  chex.assert_equal_shape([z1, z2])
  z1, z2 = l2_normalize(z1), l2_normalize(z2)
  all1, all2 = all_gather(z1, axis_name), all_gather(z2, axis_name)
  own = _global_rows(len(z1), axis_name)
  itself = own[:, None] == jnp.arange(len(all1))[None, :]

  def one_view(anchors, partners, same_view):
    """Logits against the other view first, so that the positive is in column `own`."""
    same = jnp.where(itself, -jnp.inf, _similarity(anchors, same_view))
    logits = jnp.concatenate([_similarity(anchors, partners), same], axis=1) / temperature
    return jnp.mean(_cross_entropy(logits, own))

  loss = (one_view(z1, all2, all1) + one_view(z2, all1, all2)) / 2
  return pmean(loss, axis_name)


def _at_least_float32(x: jax.Array) -> jnp.dtype:
  return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _similarity(a: jax.Array, b: jax.Array) -> jax.Array:
  """a [N, D], b [M, D] -> [N, M]. HIGHEST: accelerators round float32 operands by default."""
  return jnp.einsum('nd,md->nm', a, b, precision=lax.Precision.HIGHEST)


def _global_rows(rows: int, axis_name: AxisName) -> jax.Array:
  """The positions of this device's rows among the gathered rows, int32 [rows]."""
  return jnp.arange(rows) + axis_index(axis_name) * rows


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
  """logits [N, M], target int [N] -> [N]."""
  picked = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
  return jax.nn.logsumexp(logits, axis=1) - picked
