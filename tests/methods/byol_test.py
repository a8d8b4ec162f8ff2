"""BYOL: the symmetric loss, a target of its own that follows, the momentum's cosine."""

import jax
import numpy as np
import pytest

from ssl_jax.losses import distillation
from ssl_jax.methods import byol
from ssl_jax.models import heads
from ssl_jax.models.convnet import convnet
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.types import Mode

ROWS = 8
BATCH = {'views': np.random.default_rng(0).uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32)}
NET = from_linen(with_head(convnet(channels=(4,), strides=(2,)), heads.byol(hidden=6, out=5)))
PREDICTOR = from_linen(heads.byol(hidden=6, out=5))


def method(**options):
  return byol.build(NET, predictor=PREDICTOR, **{**dict(momentum=0.9, steps=100), **options})


@pytest.fixture(scope='module')
def started():
  return jax.jit(method().init)(jax.random.key(0), BATCH)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_the_loss_is_symmetric_and_each_view_is_a_batch_of_its_own(started):
  params, state = started
  value, (new, _) = jax.jit(method().loss)(params, state, BATCH, key=jax.random.key(1), step=0)
  train, online, target = Mode(train=True), state['net'], state['target']
  seen, p_state, z, other, p = target['state'], state['predictor'], [], [], []
  for v in (0, 1):
    (_, out), online = NET.apply(params['net'], online, BATCH['views'][:, v], train)
    (_, slow), seen = NET.apply(target['params'], seen, BATCH['views'][:, v], train)
    z.append(out), other.append(slow)
  for out in z:
    guess, p_state = PREDICTOR.apply(params['predictor'], p_state, out, train)
    p.append(guess)
  np.testing.assert_allclose(
    value, distillation.byol(p[0], other[1]) + distillation.byol(p[1], other[0]), rtol=1e-4)
  close(new, {'net': online, 'predictor': p_state, 'target': {**target, 'state': seen}})


def test_the_target_starts_elsewhere(started):
  params, state = started
  same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params['net'], state['target']['params'])
  kernels = [s for path, s in jax.tree_util.tree_leaves_with_path(same) if 'kernel' in str(path)]
  assert kernels and not any(kernels)


@pytest.mark.parametrize('step, tau', [
  (0, 0.9), (25, 1 - 0.1 * (np.cos(np.pi / 4) + 1) / 2), (50, 0.95), (100, 1.)])
def test_the_target_follows_the_new_parameters_along_the_cosine(started, step, tau):
  params, state = started
  same, new = method().after(params, state, step)
  assert same is params
  close(new['target']['params'], jax.tree.map(
    lambda t, p: tau * t + (1 - tau) * p, state['target']['params'], params['net']))
  close({**new, 'target': new['target']['state']}, {**state, 'target': state['target']['state']})


def test_the_target_has_no_gradient(started):
  params, state = started
  grad = jax.jit(jax.grad(lambda t: method().loss(
    params, {**state, 'target': {**state['target'], 'params': t}}, BATCH, key=jax.random.key(1),
    step=0)[0]))(state['target']['params'])
  assert all(not np.any(g) for g in jax.tree.leaves(grad))


def test_embed_is_the_online_representation(started):
  params, state = started
  images = BATCH['views'][:, 0]
  h, _ = NET.apply(params['net'], state['net'], images, Mode())[0]
  np.testing.assert_allclose(method().embed(params, state, images), h, rtol=1e-6)


@pytest.mark.parametrize('options, message', [
  ({'momentum': 1.5}, 'momentum'), ({'steps': None}, 'steps'),
  ({'momentum_schedule': 'quick'}, 'unknown schedule')])
def test_what_it_cannot_run_with_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    method(**options)
