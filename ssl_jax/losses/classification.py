"""Cross-entropy of known classes, with label smoothing.

  loss = mean_i -sum_c t_ic log softmax(logits_i)_c,   t = (1 - s) onehot(label) + s / C

Label smoothing: Szegedy et al., arXiv:1512.00567, section 7.
"""

import chex
import jax
import jax.numpy as jnp

from ssl_jax.parallel import pmean
from ssl_jax.types import AxisName


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0, axis_name: AxisName = None,
) -> jax.Array:
  """The mean cross-entropy over the rows of all devices.

  Args:
    logits: [B, C]; computed in at least float32.
    labels: integers [B] in [0, C). A label outside makes the loss NaN, because in a compiled program
      it can neither be refused nor should it be taken for another class.
    smoothing: s, the share of the target spread evenly over all C classes.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar; invariant over `axis_name`.
  """
  chex.assert_rank([logits, labels], [2, 1])
  chex.assert_equal_shape_prefix([logits, labels], 1)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  classes = logits.shape[1]
  log_p = jax.nn.log_softmax(logits)
  own = jnp.take_along_axis(log_p, labels[:, None], axis=1, mode='clip')[:, 0]
  loss = -(1 - smoothing) * own - smoothing * jnp.mean(log_p, axis=1)
  known = (labels >= 0) & (labels < classes)
  return pmean(jnp.mean(jnp.where(known, loss, jnp.nan)), axis_name)


def accuracy(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
  """The share of rows of all devices whose largest logit is their label's.

  logits: [B, C]; labels: integers [B].
  """
  return pmean(jnp.mean(jnp.argmax(logits, axis=1) == labels, dtype=jnp.float32), axis_name)
