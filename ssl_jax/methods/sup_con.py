"""Supervised contrastive learning: all views of all samples of a label are each other's positives.

  loss = mean_i -1 / |P(i)| sum_{p in P(i)} log exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T)

With a label of its own for every sample it is SimCLR. A classifier is trained on f(x) afterwards.

Reference: Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362 (equation 2, "L_out").
"""

from functools import partial

import jax.numpy as jnp

from ssl_jax.losses.contrastive import sup_con
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# Gathered views and labels; the sums of gradients and of BatchNorm statistics.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})


def build(net: Network, *, temperature: float = 0.1, on_batch: Placement = local) -> Method:
  """SupCon over `batch['views']` [B, V, ...] and `batch['label']` [B].

  Args:
    net: x -> (representation, projection).
    temperature: divides the cosine similarities.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a temperature that is not positive; at tracing, the batch has no labels.
  """
  if temperature <= 0:
    raise ValueError(f'temperature must be positive, got {temperature}')
  contrast = on_batch(partial(sup_con, temperature=temperature))
  train = on_batch.mode(train=True)

  def init(key, batch):
    return net.init(key, batch['views'][:, 0])

  def loss(params, state, batch, *, key, step):
    del step
    if 'label' not in batch:
      raise ValueError(f"sup_con needs a field 'label'; the batch has {sorted(batch)}")
    outputs, state = apply_views(net, params, state, batch['views'], train, key=key)
    z = jnp.stack([z for _, z in outputs], axis=1)
    rows = z.reshape(-1, z.shape[-1])
    return contrast(rows, jnp.repeat(batch['label'], z.shape[1])), (state, {})

  return Method(init, loss, **evaluated(net, train))
