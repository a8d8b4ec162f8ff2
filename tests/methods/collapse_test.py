"""What keeps methods without negatives from collapsing does: without it, their projections collapse.

Small perceptrons learn from pairs of noisy readings of the same numbers, 200 steps. The verdict is
asked of projections: the representation before the head keeps its spread in every collapse here (the
head alone becomes constant), so that a monitor of representations would not have warned.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from ssl_jax.evals.health import collapse_verdict, spread
from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.methods import byol, dino, swav
from ssl_jax.models import heads
from ssl_jax.models.mlp import MLP
from ssl_jax.models.network import apply_views, from_linen, with_head
from ssl_jax.train.step import init_state, make_train_step
from ssl_jax.types import Mode, Network

STEPS, ROWS, FACTORS, DIM, OUT = 200, 128, 6, 16, 16
MIX = np.random.default_rng(1).normal(size=(FACTORS, DIM)).astype(np.float32)
IDENTITY = Network(lambda key, x: ({}, {}), lambda params, state, x, mode, *, key=None: (x, state))


class Encoder(nn.Module):
  """Two layers, [B, DIM] -> [B, 32]."""

  @nn.compact
  def __call__(self, x, mode):
    return nn.relu(nn.Dense(32)(nn.relu(nn.Dense(32)(x))))


def network(head) -> Network:
  return from_linen(with_head(Encoder(), head))


def readings(key, noise: float, rows: int = ROWS):
  """Two noisy views [B, 2, DIM] of each of `rows` points."""
  point, error = jax.random.split(key)
  x = jax.random.normal(point, (rows, FACTORS)) @ MIX
  return {'views': x[:, None] + noise * jax.random.normal(error, (rows, 2, DIM))}


def verdicts(method, net, rate, noise, params_in=None):
  """(of the representation, of the projection) after training."""
  tx = optax.adam(rate)
  step = make_train_step(method, tx, key=jax.random.key(1))

  def one(ts, k):
    return step(ts, readings(jax.random.fold_in(jax.random.key(2), k), noise))[0], None

  def run():
    ts = init_state(method, tx, jax.random.key(0), readings(jax.random.key(0), noise))
    ts, _ = jax.lax.scan(one, ts, jnp.arange(STEPS))
    params = ts.params if params_in is None else ts.params[params_in]
    x = readings(jax.random.key(3), noise, 512)['views'][:, 0]
    return net.apply(params, ts.state['net'], x, Mode())[0]

  h, z = map(np.asarray, jax.jit(run)())
  print(f'spread: representation {spread(h):.3f}, projection {spread(z):.3f}')
  return collapse_verdict(h), collapse_verdict(z)


# --- DINO -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('options, collapses', [
  ({}, False),
  ({'center_momentum': 1.}, True),  # the centre stays 0: one output wins
  ({'teacher_temperature': 1., 'warmup_teacher_temperature': 1.}, True),  # all outputs become equal
], ids=['intact', 'no centring', 'no sharpening'])
def test_dino(options, collapses):
  net = network(heads.dino(layers=2, hidden=32, bottleneck=OUT, out=32))
  method = dino.build(net, **{
    **dict(momentum=0.97, steps=STEPS, teacher_temperature=0.04, warmup_teacher_epochs=0.,
           freeze_last_layer_epochs=0.), **options})
  representation, projection = verdicts(method, net, rate=1e-2, noise=1.)
  assert representation is None
  assert (projection is not None) == collapses, projection


# --- SwAV -----------------------------------------------------------------------------------------


def softmax_codes(scores, *, epsilon, iterations, axis_name):
  """Each sample's own favourite, whatever the others have."""
  return jax.lax.stop_gradient(jax.nn.softmax(scores / epsilon))


@pytest.mark.parametrize('codes, collapses', [(None, False), (softmax_codes, True)],
                         ids=['intact', 'no Sinkhorn'])
def test_swav(codes, collapses, monkeypatch):
  if codes is not None:
    monkeypatch.setattr(swav, 'sinkhorn', codes)
  # Without the BatchNorm of SwAV's own head, which slows the collapse down.
  net = network(MLP(2, 32, OUT, 'unit', hidden_norm=False, hidden_bias=True, out_bias=True))
  method = swav.build(net, prototypes=32, freeze_prototypes_steps=0)
  representation, projection = verdicts(method, net, rate=2e-2, noise=1., params_in='net')
  assert representation is None
  assert (projection is not None) == collapses, projection


# --- BYOL -----------------------------------------------------------------------------------------


def without_stop_gradient(method, net, predictor):
  """Both sides are the online network, and both are pulled."""
  def loss(params, state, batch, *, key, step):
    train = Mode(train=True)
    outputs, new = apply_views(net, params['net'], state['net'], batch['views'], train, separate=True)
    value, q_state = 0., state['predictor']
    for (_, z), (_, other) in zip(outputs, outputs[::-1]):
      p, q_state = predictor.apply(params['predictor'], q_state, z, train)
      value += jnp.mean(jnp.sum(jnp.square(l2_normalize(p) - l2_normalize(other)), axis=1))
    return value, ({**state, 'net': new, 'predictor': q_state}, {})

  return method._replace(loss=loss)


@pytest.mark.parametrize('missing', [None, 'predictor', 'stop-gradient'])
def test_byol(missing):
  net = network(heads.byol(hidden=32, out=OUT))
  predictor = IDENTITY if missing == 'predictor' else from_linen(heads.byol(hidden=32, out=OUT))
  method = byol.build(net, predictor=predictor, momentum=0.5, steps=STEPS)
  if missing == 'stop-gradient':
    method = without_stop_gradient(method, net, predictor)
  representation, projection = verdicts(method, net, rate=2e-2, noise=2., params_in='net')
  assert representation is None
  assert (projection is not None) == (missing is not None), projection
