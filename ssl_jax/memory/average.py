"""The exponential moving average of parameters: a slow copy that gives keys, targets or a teacher.

  theta' <- m theta' + (1 - m) theta

MoCo's three versions move it before they compute keys, with the parameters from before the step; BYOL
and DINO after the optimizer, with the new ones. Only parameters: each network's BatchNorm follows what
it sees itself.
"""

import jax
import jax.numpy as jnp

from ssl_jax.types import PyTree


def average(slow: PyTree, fast: PyTree, momentum: jax.typing.ArrayLike) -> PyTree:
  """m slow + (1 - m) fast, leaf by leaf, in slow's dtype; no gradient reaches `fast`."""
  def leaf(s, f):
    m = jnp.asarray(momentum, s.dtype)
    return m * s + (1 - m) * jax.lax.stop_gradient(f).astype(s.dtype)

  return jax.tree.map(leaf, slow, fast)
