"""BYOL: an online network predicts what a slow average of itself, the target, makes of another view.

  loss = |p1 - z2'|^2 + |p2 - z1'|^2,   p = q(g(f(t(x)))) / |.|,  z' = g'(f'(t'(x))) / |.|, no gradient
  target <- tau target + (1 - tau) online after the optimizer,
  tau = 1 - (1 - tau_0)(cos(pi k / K) + 1) / 2

The two start from different random parameters, and the target's BatchNorm sees its own batches. The
representation is the online f(x).

Reference: Grill et al., Bootstrap Your Own Latent, arXiv:2006.07733;
https://github.com/google-deepmind/deepmind-research/tree/master/byol
"""

import jax
import jax.numpy as jnp

from ssl_jax.losses.distillation import byol
from ssl_jax.memory.average import average
from ssl_jax.memory.schedules import schedule
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Mode, Network

# The sums of gradients, of BatchNorm statistics and of the loss.
COLLECTIVES = frozenset({'all-reduce'})
SEPARATE_VIEWS = True


def build(
    net: Network, *, predictor: Network, momentum: float = 0.996, momentum_schedule: str = 'cosine',
    steps: int | None = None, on_batch: Placement = local,
) -> Method:
  """BYOL over `batch['views']` [B, 2, ...].

  Args:
    net: x -> (representation, projection).
    predictor: projection -> prediction of the same width; in a config a head.
    momentum: tau_0. The paper: 0.996 for 1000 epochs, 0.99 for 300 and 100, 0.97 for 40.
    momentum_schedule: 'cosine' to 1 at the end of the run, 'linear', or 'constant'.
    steps: of the run.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a momentum outside [0, 1], or a schedule without `steps`.
  """
  if not 0 <= momentum <= 1:
    raise ValueError(f'momentum must be in [0, 1], got {momentum}')
  tau = schedule(momentum_schedule, momentum, 1., steps)
  train = on_batch.mode(train=True)

  def init(key, batch):
    keys = jax.random.split(key, 3)
    view = batch['views'][:, 0]
    params, state = net.init(keys[0], view)
    target = net.init(keys[1], view)
    z = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1])
    q, q_state = predictor.init(keys[2], jnp.zeros(z.shape, z.dtype))
    return ({'net': params, 'predictor': q},
            {'net': state, 'predictor': q_state, 'target': dict(zip(('params', 'state'), target))})

  def loss(params, state, batch, *, key, step):
    del step
    keys, views = jax.random.split(key, 2), batch['views']
    online, new = apply_views(net, params['net'], state['net'], views, train, key=keys[0],
                              separate=True)
    target, seen = apply_views(net, state['target']['params'], state['target']['state'], views, train,
                               key=keys[1], separate=True)
    value, q_state = 0., state['predictor']
    for (_, z), (_, other) in zip(online, target[::-1]):
      p, q_state = predictor.apply(params['predictor'], q_state, z, train)
      value += byol(p, other, axis_name=on_batch.axis_name)
    target = {**state['target'], 'state': seen}
    return value, ({'net': new, 'predictor': q_state, 'target': target}, {})

  def after(params, state, step):
    slow = average(state['target']['params'], params['net'], tau(step))
    return params, {**state, 'target': {**state['target'], 'params': slow}}

  return Method(init, loss, after=after, **evaluated(net, train, params_in='net', state_in='net'))
