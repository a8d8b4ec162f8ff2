"""SimCLR: what is specific to it, and that its variants keep the promise of equal results."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import testing
from ssl_jax.losses.contrastive import nt_xent
from ssl_jax.methods import simclr
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import chunked, from_linen, with_head
from ssl_jax.types import Mode

BATCH = {'views': np.random.default_rng(0).uniform(size=(16, 2, 8, 8, 1)).astype(np.float32)}


def network(**batch_norm):
  return from_linen(with_head(convnet(channels=(4,), strides=(2,), batch_norm=batch_norm),
                              mlp(hidden=6, out=5, batch_norm=batch_norm)))


def start(method):
  return jax.jit(method.init)(jax.random.key(0), BATCH)


def loss(method, params, state):
  return jax.jit(partial(method.loss, step=0))(params, state, BATCH, key=jax.random.key(1))


def test_the_loss_is_nt_xent_of_the_projections_of_all_views_in_one_batch():
  net = network()
  method = simclr.build(net, temperature=0.3)
  params, state = start(method)
  value, (new, _) = loss(method, params, state)
  rows = BATCH['views'].reshape(32, 8, 8, 1)
  (_, z), expected_state = net.apply(params, state, rows, Mode(train=True))
  np.testing.assert_allclose(value, nt_xent(z[0::2], z[1::2], temperature=0.3), rtol=1e-5)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new, expected_state)


def test_separate_views_are_normalised_one_by_one():
  net = network()
  together, separate = (simclr.build(net, temperature=0.3, separate_views=s) for s in (False, True))
  params, state = start(together)
  z = [net.apply(params, state, BATCH['views'][:, v], Mode(train=True))[0][1] for v in (0, 1)]
  value, _ = loss(separate, params, state)
  np.testing.assert_allclose(value, nt_xent(*z, temperature=0.3), rtol=1e-5)
  assert abs(value - loss(together, params, state)[0]) > 1e-4


def test_embed_is_the_representation_and_calibration_its_statistics():
  net = network()
  method = simclr.build(net, temperature=0.3)
  params, state = start(method)
  images = BATCH['views'][:, 0]
  new = method.calibrate(params, state, images)
  (h, _), _ = net.apply(params, state, images, Mode(train=True))
  # torch's running variance divides by n - 1: 16 rows of 4 x 4 positions here
  np.testing.assert_allclose(method.embed(params, new, images), h, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize('net, options', [
  (network(group_size=8), {}),
  (network(group_size=8, shuffle=True), {}),
  (network(), {'separate_views': True}),
  (chunked(network(group_size=4), 16, block=4), {}),
], ids=['groups', 'shuffled groups', 'separate views', 'chunks of groups'])
def test_variants_are_equal_on_8_devices(net, options):
  make = lambda on: simclr.build(net, temperature=0.3, on_batch=on, **options)
  testing.check_same_on_any_device_count(make, BATCH)


def test_chunks_of_groups_equal_the_whole_batch():
  whole, parts = (simclr.build(net, temperature=0.3) for net in (
    network(group_size=4), chunked(network(group_size=4), 16, block=4)))
  params, state = start(whole)
  grads = [jax.grad(lambda p, m=m: loss(m, p, state)[0])(params) for m in (whole, parts)]
  norm = float(jnp.sqrt(sum(jnp.sum(g ** 2) for g in jax.tree.leaves(grads[0]))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), *grads)


@pytest.mark.parametrize('temperature', [0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
  with pytest.raises(ValueError, match='positive'):
    simclr.build(network(), temperature=temperature)
