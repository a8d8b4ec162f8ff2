"""FLOPs of traced programs, beside closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from ssl_jax import build
from ssl_jax.cli.options import load_config, override
from ssl_jax.models.network import from_linen
from ssl_jax.models.resnet import resnet50
from ssl_jax.parallel import make_mesh
from ssl_jax.plan.arithmetic import Window, traced_flops
from ssl_jax.plan.measure import without_recomputation
from ssl_jax.plan.stand_in import shape_of_data
from ssl_jax.types import Mode


def flops(function, *shapes):
  return traced_flops(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32)
                                                 for s in shapes)))


@pytest.mark.parametrize('size, kernel, stride, low, high, dilation, kernel_dilation', [
  (7, 3, 1, 1, 1, 1, 1), (8, 3, 2, 0, 1, 1, 1), (5, 1, 2, 0, 0, 1, 1), (4, 3, 1, 2, 2, 2, 1),
  (9, 3, 1, 2, 2, 1, 2), (6, 1, 1, 1, 1, 1, 1), (3, 1, 1, 0, 0, 2, 1)])
def test_window_counts_what_a_convolution_multiplies(
    size, kernel, stride, low, high, dilation, kernel_dilation):
  """A convolution of ones sums the products of each output element."""
  out = lax.conv_general_dilated(
    jnp.ones((1, 1, size)), jnp.ones((1, 1, kernel)), (stride,), [(low, high)],
    lhs_dilation=(dilation,), rhs_dilation=(kernel_dilation,))
  window = Window(size, kernel, out.shape[-1], stride, low, dilation, kernel_dilation)
  assert window.products() == int(out.sum())


def test_products_and_gradients():
  def loss(x, w):
    return jnp.sum((x @ w) ** 2)

  assert flops(loss, (8, 16), (16, 32)) == 2 * 8 * 16 * 32
  assert flops(jax.grad(loss, argnums=(0, 1)), (8, 16), (16, 32)) == 3 * 2 * 8 * 16 * 32
  batched = partial(jnp.einsum, 'bij,bjk->bik')
  assert flops(batched, (4, 8, 16), (4, 16, 32)) == 4 * 2 * 8 * 16 * 32


def test_a_gradient_of_a_strided_convolution_costs_what_the_forward_one_does():
  def loss(x, w):
    return jnp.sum(lax.conv_general_dilated(x, w, (2, 2), [(1, 1), (1, 1)]) ** 2)

  forward = flops(loss, (2, 8, 16, 16), (4, 8, 3, 3))
  both = flops(jax.grad(loss, argnums=(0, 1)), (2, 8, 16, 16), (4, 8, 3, 3))
  np.testing.assert_allclose(both, 3 * forward, rtol=1e-12)


def test_loops_recomputation_branches_and_devices():
  def turn(x, w):
    return jnp.tanh(x @ w), None

  def loss(x, w, *, wrap):
    return jnp.sum(lax.scan(lambda x, _: wrap(turn)(x, w), x, None, length=5)[0])

  one = 2 * 8 * 16 * 16
  plain = partial(loss, wrap=lambda f: f)
  assert flops(plain, (8, 16), (16, 16)) == 5 * one
  assert flops(jax.grad(plain, argnums=(0, 1)), (8, 16), (16, 16)) == 15 * one
  again = partial(loss, wrap=jax.checkpoint)
  assert flops(jax.grad(again, argnums=(0, 1)), (8, 16), (16, 16)) == 20 * one

  def branches(i, x, w):
    return lax.cond(i > 0, lambda: (x @ w) @ w, lambda: x @ w)

  assert traced_flops(jax.make_jaxpr(branches)(
    1, jnp.ones((8, 16)), jnp.ones((16, 16)))) == 2 * one

  mesh = make_mesh({'data': 8})
  rows = PartitionSpec('data')
  mapped = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(rows, PartitionSpec()),
                         out_specs=rows)
  assert flops(mapped, (64, 16), (16, 16)) == 8 * one


def test_what_nobody_uses_is_not_counted():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))

  def loss(w, x):
    return jnp.sum(jax.jit(product)(x, w) ** 2)

  assert flops(jax.grad(loss), (16, 32), (8, 16)) == 2 * 2 * 8 * 16 * 32


def test_of_a_choice_of_platforms_only_one_runs():
  def product(x):
    return lax.platform_dependent(x, cpu=lambda x: (x @ x) @ x, default=lambda x: x @ x)

  traced = jax.make_jaxpr(product)(jnp.ones((4, 4)))
  assert traced_flops(traced, platform='tpu') == 2 * 4 ** 3
  assert traced_flops(traced, platform='cpu') == 4 * 4 ** 3


def resnet50_products() -> int:
  """Multiplications of He et al.'s table 1 at 224 pixels, those with padding left out: along an axis a
  kernel of 3 meets 3 n - 2 elements at stride 1 and 3 n - 1 at stride 2, where n is the output's
  side. torchvision gives 4.09e9 with padding, which is 3.5 % more."""
  stem = sum(1 for out in range(112) for k in range(7) if 0 <= 2 * out - 3 + k < 224)
  total = stem ** 2 * 3 * 64
  side, inputs = 56, 64
  for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
    for block in range(blocks):
      step = stride if block == 0 else 1
      out = side // step
      total += side ** 2 * inputs * width  # 1x1
      total += (3 * out - (2 if step == 1 else 1)) ** 2 * width * width  # 3x3
      total += out ** 2 * width * 4 * width  # 1x1
      if block == 0:
        total += out ** 2 * inputs * 4 * width  # shortcut
      side, inputs = out, 4 * width
  return total


def test_resnet50_forward():
  net = from_linen(resnet50(stem='imagenet'))
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  params, state = jax.eval_shape(net.init, jax.random.key(0), image)
  traced = jax.make_jaxpr(lambda p, s, x: net.apply(p, s, x, Mode()))(params, state, image)
  assert traced_flops(traced) == 2 * resnet50_products()
  assert 1 < 4.09e9 / resnet50_products() < 1.05


def step_flops(name, *overrides):
  """Of the whole train step of a config: views or masks, forward, backward, optimizer."""
  config = without_recomputation(override(load_config(f'configs/{name}'), list(overrides)))
  experiment = build.abstract(config, shape_of_data(config)[0], jax.devices())
  program = experiment.program(config)
  return config, traced_flops(program.step.trace(program.state, program.batch).jaxpr)


def test_a_resnet50_step_against_its_closed_form():
  """Three times the forward pass, for two views, without the gradient of the image."""
  config, flops = step_flops('simclr_resnet50_imagenet.py', '--config.batch_size=16')
  stem = sum(1 for out in range(112) for k in range(7) if 0 <= 2 * out - 3 + k < 224) ** 2 * 3 * 64
  head = 2048 * 2048 + 2048 * 128
  products = 3 * (resnet50_products() + head) - stem
  np.testing.assert_allclose(flops, 2 * products * 2 * config.batch_size, rtol=0.03)


def test_a_bert_base_step_against_its_closed_form():
  """Per token and block 12 D^2 of weights and 2 T D of attention; the output layer at the masked
  positions. Three times, nothing recomputed."""
  config, flops = step_flops('bert_base_wikipedia.py:phase2', '--config.batch_size=16')
  width, length, depth = 768, config.data.length, 12
  blocks = length * depth * (12 * width ** 2 + 2 * length * width)
  head = config.views.slots * (width ** 2 + width * config.network.vocabulary)
  np.testing.assert_allclose(flops, 3 * 2 * (blocks + head) * config.batch_size, rtol=0.03)
