"""Online clustering: a view's code, an even assignment to prototypes, is predicted by other views.

  codes Q = argmax tr(Q' S) + epsilon H(Q)   over matrices whose rows sum to 1 and columns to B / K
  loss = -sum_k q_k log softmax(s / T)_k

Reference: Caron et al., SwAV, arXiv:2006.09882; Sinkhorn's algorithm in Cuturi, arXiv:1306.0895.
"""

from functools import reduce

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.all_pairs import positive, wide
from ssl_jax.parallel import pmean, psum
from ssl_jax.types import AxisName


def sinkhorn(
    scores: jax.Array, *, epsilon: float = 0.05, iterations: int = 3, more: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
  """Codes by Sinkhorn's algorithm on logarithms: nothing over- or underflows.

  Prototypes are normalised first and samples last, so that rows sum to 1 exactly and columns to
  B / K as iterations grow. It is the reference's number: there exp(scores / epsilon) without
  logarithms. (Subtracting each *sample's* maximum first, as is sometimes done, changes the result of
  three iterations.)

  Args:
    scores: [B, K], samples times prototypes (cosines).
    epsilon: regularisation; smaller is nearer to a hard assignment.
    iterations: of the algorithm, at least 1.
    more: [N, K] of further samples, such as a queue's, equal on all devices; they count once, and
      their codes are not returned.
    axis_name: the axis (or axes) over which samples are spread, or None; all devices' count.

  Returns:
    [B, K] in float32 or wider, without gradient.
  """
  chex.assert_rank(scores, 2)
  if iterations < 1:
    raise ValueError(f'iterations must be at least 1, got {iterations}')
  groups = [(scores, axis_name)] + ([] if more is None else [(more, None)])
  log_qs = [lax.stop_gradient(x.astype(wide(x))) / positive('epsilon', epsilon) for x, _ in groups]
  for _ in range(iterations):
    sums = [_lse_of_samples(log_q, axis) for log_q, (_, axis) in zip(log_qs, groups)]
    of_prototypes = reduce(jnp.logaddexp, sums)[None]
    log_qs = [jax.nn.log_softmax(log_q - of_prototypes) for log_q in log_qs]
  return jnp.exp(log_qs[0])


def _lse_of_samples(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """[K], over the rows of all devices."""
  highest = jnp.max(x, axis=0)
  highest = highest if axis_name is None else lax.pmax(highest, axis_name)
  return highest + jnp.log(psum(jnp.sum(jnp.exp(x - highest[None]), axis=0), axis_name))


def swapped_prediction(
    scores: jax.Array, codes: jax.Array, *, temperature: float = 0.1, axis_name: AxisName = None,
) -> jax.Array:
  """Each code predicted from all crops but its own; the mean over codes, crops and samples.

  Args:
    scores: [B, V, K] of V crops.
    codes: [B, C, K], those of the first C crops; no gradient.
    temperature: of the prediction.
    axis_name: the axis (or axes) over which samples are spread, or None.

  Returns:
    A scalar; invariant over `axis_name`.
  """
  chex.assert_rank([scores, codes], 3)
  crops, coded = scores.shape[1], codes.shape[1]
  if not 1 <= coded <= crops or crops < 2:
    raise ValueError(f'expected codes of some of at least two crops, got {coded} and {crops}')
  scores = scores.astype(wide(scores)) / positive('temperature', temperature)
  return cross_prediction(codes, scores, axis_name)


def swav(
    scores1: jax.Array, scores2: jax.Array, *, temperature: float = 0.1, epsilon: float = 0.05,
    iterations: int = 3, axis_name: AxisName = None,
) -> jax.Array:
  """SwAV of two views: each is predicted from the other's code.

  Args:
    scores1, scores2: [B, K], row by row: cosines of embeddings and prototypes.
    temperature: of the prediction. epsilon, iterations: of `sinkhorn`.
    axis_name: the axis (or axes) over which samples are spread, or None.

  Returns:
    A scalar; invariant over `axis_name`.
  """
  chex.assert_equal_shape([scores1, scores2])
  codes = [sinkhorn(s, epsilon=epsilon, iterations=iterations, axis_name=axis_name)
           for s in (scores1, scores2)]
  return swapped_prediction(jnp.stack([scores1, scores2], axis=1), jnp.stack(codes, axis=1),
                            temperature=temperature, axis_name=axis_name)


def cross_prediction(targets: jax.Array, logits: jax.Array, axis_name: AxisName) -> jax.Array:
  """The mean cross-entropy of each target with the softmax of every crop but its own.

  targets: [B, C, K], those of the first C crops, no gradient; logits: [B, V, K]. Memory holds no pairs.
  """
  log_p = jax.nn.log_softmax(logits)
  targets = lax.stop_gradient(targets).astype(log_p.dtype)
  # All crops, minus one's own: sums first, rather than C x V products.
  everything = jnp.sum(jnp.sum(targets, axis=1) * jnp.sum(log_p, axis=1))
  own = jnp.sum(targets * log_p[:, :targets.shape[1]])
  pairs = targets.shape[1] * (logits.shape[1] - 1) * len(logits)
  return pmean((own - everything) / pairs, axis_name)
