"""SimCLR: two augmented views of an image find each other among all views of the batch.

  loss = NT-Xent(g(f(t1(x))), g(f(t2(x))));  the representation is f(x), the projection g is dropped.

Reference: Chen et al., A Simple Framework for Contrastive Learning, arXiv:2002.05709.
"""

from functools import partial

from ssl_jax.losses.contrastive import nt_xent
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# Gathered views; the sums of gradients and of BatchNorm statistics.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})


def build(
    net: Network, *, temperature: float = 0.1, separate_views: bool = False,
    on_batch: Placement = local,
) -> Method:
  """SimCLR over `batch['views']` [B, 2, ...].

  Args:
    net: x -> (representation, projection).
    temperature: of NT-Xent; 0.1 for 4096 images and long training, 0.5 for small batches.
    separate_views: BatchNorm sees each view on its own instead of both together (the paper's).
    on_batch: how the loss head runs; see `ssl_jax.parallel`.
  """
  if temperature <= 0:
    raise ValueError(f'temperature must be positive, got {temperature}')
  contrast = on_batch(partial(nt_xent, temperature=temperature))
  train = on_batch.mode(train=True)

  def init(key, batch):
    return net.init(key, batch['views'][:, 0])

  def loss(params, state, batch, *, key, step):
    del step
    outputs, state = apply_views(
      net, params, state, batch['views'], train, key=key, separate=separate_views)
    (_, z1), (_, z2) = outputs
    return contrast(z1, z2), (state, {})

  return Method(init, loss, **evaluated(net, train))
