"""Barlow Twins: the projections of two views correlate dimension by dimension, others not at all.

  loss = sum_d (1 - c_dd)^2 + lambda sum_{d != e} c_de^2,   c the correlation of z1 and z2

Reference: Zbontar et al., Barlow Twins, arXiv:2103.03230.
"""

from ssl_jax.losses.redundancy import barlow_twins
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# The sums of gradients, of BatchNorm statistics and of correlations.
COLLECTIVES = frozenset({'all-reduce'})
SEPARATE_VIEWS = True


def build(
    net: Network, *, off_diagonal: float = 0.0051, scale: float = 1., on_batch: Placement = local,
) -> Method:
  """Barlow Twins over `batch['views']` [B, 2, ...].

  Args:
    net: x -> (representation, projection), the latter without a BatchNorm behind it.
    off_diagonal: lambda.
    scale: multiplies the loss; the authors' code has 1, older ones 1/32 and 0.025. LARS divides it
      out again except in biases.
    on_batch: see `ssl_jax.parallel`.
  """
  train = on_batch.mode(train=True)

  def init(key, batch):
    return net.init(key, batch['views'][:, 0])

  def loss(params, state, batch, *, key, step):
    del step
    ((_, z1), (_, z2)), state = apply_views(
      net, params, state, batch['views'], train, key=key, separate=True)
    value = barlow_twins(z1, z2, off_diagonal=off_diagonal, axis_name=on_batch.axis_name)
    return scale * value, (state, {})

  return Method(init, loss, **evaluated(net, train))
