"""DINO's centre: the running mean of the teacher's logits, taken from them against collapse.

  c <- m c + (1 - m) mean of t over the rows of all devices,  after the loss     (arXiv:2104.14294)
"""

import jax
import jax.numpy as jnp

from ssl_jax.parallel import pmean
from ssl_jax.types import AxisName


def follow(center: jax.Array, logits: jax.Array, *, momentum: float, axis_name: AxisName = None
           ) -> jax.Array:
  """center [K] and logits [..., K] -> the new centre, without gradient."""
  rows = jax.lax.stop_gradient(logits).reshape(-1, logits.shape[-1])
  return momentum * center + (1 - momentum) * pmean(jnp.mean(rows, axis=0), axis_name)
