"""SigLIP: the sum over all pairs, where its scale and bias begin, and what decays."""

from functools import cache

import jax
import numpy as np
import pytest

from ssl_jax import testing
from ssl_jax.methods import siglip
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.models.towers import TextTower, text_inputs
from ssl_jax.models.transformer import ARCHITECTURES, Transformer
from ssl_jax.train.optimizers import excluded
from ssl_jax.types import Mode

ROWS, LENGTH = 16, 5


@cache
def batch():
  r = np.random.default_rng(0)
  return {'views': r.uniform(size=(ROWS, 1, 8, 8, 1)).astype(np.float32),
          'tokens': r.integers(1, 20, (ROWS, LENGTH)).astype(np.int32),
          'segments': np.ones((ROWS, LENGTH), np.int32)}


def make(**options):
  a = ARCHITECTURES['gpt2']._replace(vocabulary=20, width=8, depth=1, heads=2, hidden=16, length=5,
                                     dropout=0., attention_dropout=0., causal=False)
  head = lambda: mlp(layers=1, out=6, output_norm=None)
  net = from_linen(with_head(convnet(channels=(4,), strides=(2,)), head()))
  text = from_linen(TextTower(Transformer(a, 'mean'), head()))
  return net, text, siglip.build(net, text=text, **options)


def test_the_loss_is_the_papers_sum_over_all_pairs():
  net, text, method = make()
  params, state = jax.jit(method.init)(jax.random.key(0), batch())
  value, (_, metrics) = jax.jit(method.loss)(params, state, batch(), key=jax.random.key(1), step=0)
  (_, a), _ = net.apply(params['net'], state['net'], batch()['views'][:, 0], Mode(train=True))
  (_, b), _ = text.apply(params['text'], state['text'], text_inputs(batch()), Mode(train=True))
  a, b = (np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
  y = 2 * np.eye(ROWS) - 1
  expected = np.log1p(np.exp(-y * (10 * a @ b.T - 10))).sum() / ROWS
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose([metrics['scale'], metrics['bias']], [10, -10], rtol=1e-6)


def test_weight_decay_leaves_scale_and_bias_alone():
  _, _, method = make()
  params, _ = jax.eval_shape(method.init, jax.random.key(0), batch())
  left = excluded(params)
  assert left['scale'] and left['bias'] and not left['net']['head']['Dense_0']['kernel']


@pytest.mark.parametrize('implementation', ['ring'])
def test_other_implementations_are_equal_on_8_devices(implementation):
  testing.check_same_on_any_device_count(
    lambda on: make(implementation=implementation, on_batch=on)[2], batch())
