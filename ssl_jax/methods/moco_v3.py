"""MoCo v3: queries find their keys, from a slow encoder, among the keys of the batch.

  loss = 2 T (InfoNCE(q(g(f(x1))), k2) + InfoNCE(q(g(f(x2))), k1)),   k = g'(f'(x)), no gradient
  slow encoder <- m slow + (1 - m) encoder, before keys are computed; m from m_0 to 1 along a cosine

For ViT the patch projection is random and fixed (`network.fixed_patches`). The representation is
f(x).

Reference: Chen et al., An Empirical Study of Training Self-Supervised Vision Transformers,
arXiv:2104.02057; https://github.com/facebookresearch/moco-v3 (the factor 2 T is its).
"""

from functools import partial

import jax
import jax.numpy as jnp

from ssl_jax.losses.contrastive import info_nce
from ssl_jax.memory.average import average
from ssl_jax.memory.schedules import schedule
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Mode, Network

# Gathered keys; the sums of gradients, of BatchNorm statistics and of the loss.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})
SEPARATE_VIEWS = True


def build(
    net: Network, *, predictor: Network, temperature: float = 0.2, momentum: float = 0.99,
    momentum_schedule: str = 'cosine', steps: int | None = None, on_batch: Placement = local,
) -> Method:
  """MoCo v3 over `batch['views']` [B, 2, ...].

  Args:
    net: x -> (representation, projection).
    predictor: projection -> query of the same width; in a config a head.
    temperature: 0.2 for ViT, 1.0 for ResNet-50.
    momentum: m_0, of the slow encoder.
    momentum_schedule: 'cosine' to 1 at the end of the run, 'linear', or 'constant'.
    steps: of the run.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a number out of its range, or a schedule without `steps`.
  """
  if temperature <= 0 or not 0 <= momentum <= 1:
    raise ValueError('moco_v3 needs temperature > 0 and momentum in [0, 1], got '
                     f'{temperature} and {momentum}')
  pace = schedule(momentum_schedule, momentum, 1., steps)
  train = on_batch.mode(train=True)
  contrast = on_batch(partial(info_nce, temperature=temperature))

  def init(key, batch):
    first, second = jax.random.split(key)
    view = batch['views'][:, 0]
    params, state = net.init(first, view)
    z = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1])
    q, q_state = predictor.init(second, jnp.zeros(z.shape, z.dtype))
    return ({'net': params, 'predictor': q},
            {'net': state, 'predictor': q_state, 'key': {'params': params, 'state': state}})

  def loss(params, state, batch, *, key, step):
    keys, views = jax.random.split(key), batch['views']
    slow = average(state['key']['params'], params['net'], pace(step))
    outputs, new = apply_views(net, params['net'], state['net'], views, train, key=keys[0],
                               separate=True)
    found, seen = apply_views(net, slow, state['key']['state'], views, train, key=keys[1],
                              separate=True)
    value, q_state = 0., state['predictor']
    for (_, z), (_, k) in zip(outputs, found[::-1]):
      q, q_state = predictor.apply(params['predictor'], q_state, z, train)
      value += contrast(q, jax.lax.stop_gradient(k))
    state = {'net': new, 'predictor': q_state, 'key': {'params': slow, 'state': seen}}
    return 2 * temperature * value, (state, {})

  return Method(init, loss, **evaluated(net, train, params_in='net', state_in='net'))
