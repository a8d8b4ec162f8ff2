"""The small network: shapes, cost as documented, refused options."""

import jax
import jax.numpy as jnp
import pytest

from ssl_jax.models.convnet import convnet
from ssl_jax.models.network import from_linen
from ssl_jax.types import Mode


def test_representation():
  net = from_linen(convnet(channels=(4, 6), strides=(2, 1), dtype='bfloat16'))
  images = jnp.ones((3, 28, 28, 1))
  params, state = net.init(jax.random.key(0), images)
  h, _ = net.apply(params, state, images, Mode(True))
  assert h.shape == (3, 6) and h.dtype == jnp.float32
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 9 * (4 + 4 * 6) + 2 * (4 + 6)


def test_cost_is_as_documented():
  net = from_linen(convnet())
  image = jnp.ones((1, 28, 28, 1))
  params, state = jax.eval_shape(net.init, jax.random.key(0), image)
  forward = jax.jit(lambda p, s, x: net.apply(p, s, x, Mode())[0])
  flops = forward.lower(params, state, image).compile().cost_analysis()['flops']
  assert abs(flops / 1e6 - 3.4) < .1


@pytest.mark.parametrize('options', [{'channels': (4, 6)}, {'batch_norm': {'size': 4}}])
def test_wrong_options_are_refused(options):
  with pytest.raises(ValueError, match='one stride per layer|does not know'):
    convnet(**options)
