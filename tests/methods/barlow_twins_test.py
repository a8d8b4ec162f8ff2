"""Barlow Twins: the loss of two projections, each view normalised as a batch of its own."""

import jax
import numpy as np

from ssl_jax.losses import redundancy
from ssl_jax.methods import barlow_twins
from ssl_jax.models import heads
from ssl_jax.models.convnet import convnet
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.types import Mode

BATCH = {'views': np.random.default_rng(0).uniform(size=(8, 2, 8, 8, 1)).astype(np.float32)}
NET = from_linen(with_head(convnet(channels=(4,), strides=(2,)),
                           heads.barlow(layers=2, hidden=6, out=5)))


def run(**options):
  method = barlow_twins.build(NET, **options)
  params, state = jax.jit(method.init)(jax.random.key(0), BATCH)
  value, (new, _) = jax.jit(method.loss)(params, state, BATCH, key=jax.random.key(1), step=0)
  return method, params, state, value, new


def test_the_loss_and_statistics_are_those_of_the_views_one_by_one():
  _, params, state, value, new = run(off_diagonal=0.1)
  z = []
  for v in (0, 1):
    (_, out), state = NET.apply(params, state, BATCH['views'][:, v], Mode(train=True))
    z.append(out)
  np.testing.assert_allclose(value, redundancy.barlow_twins(*z, off_diagonal=0.1), rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), new, state)


def test_scale_multiplies_the_loss():
  np.testing.assert_allclose(run(scale=1 / 32)[3] * 32, run()[3], rtol=1e-5)


def test_embed_is_the_representation():
  method, params, state, *_ = run()
  images = BATCH['views'][:, 0]
  h, _ = NET.apply(params, state, images, Mode())[0]
  np.testing.assert_allclose(method.embed(params, state, images), h, rtol=1e-6)
