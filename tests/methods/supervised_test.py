"""The supervised baseline: its loss, its metric, its refusals."""

from functools import partial

import jax
import numpy as np
import pytest

from ssl_jax.losses.classification import cross_entropy
from ssl_jax.methods import supervised
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.types import Mode

RNG = np.random.default_rng(0)
BATCH = {'views': RNG.uniform(size=(16, 2, 8, 8, 1)).astype(np.float32),
         'label': RNG.integers(0, 5, 16).astype(np.int32)}
NET = from_linen(with_head(
  convnet(channels=(4,), strides=(2,)), mlp(layers=1, out=5, output_norm=None)))


def test_the_loss_is_the_mean_over_views_of_the_cross_entropy():
  method = supervised.build(NET, smoothing=0.1)
  params, state = jax.jit(method.init)(jax.random.key(0), BATCH)
  value, (_, metrics) = jax.jit(partial(method.loss, step=0))(
    params, state, BATCH, key=jax.random.key(1))
  rows = BATCH['views'].reshape(32, 8, 8, 1)  # both views are one batch for BatchNorm
  (_, logits), _ = NET.apply(params, state, rows, Mode(train=True))
  labels = np.repeat(BATCH['label'], 2)
  np.testing.assert_allclose(value, cross_entropy(logits, labels, smoothing=0.1), rtol=1e-5)
  assert metrics['accuracy'] == pytest.approx(np.mean(np.argmax(logits, 1) == labels))


def test_data_without_labels_are_refused():
  method = supervised.build(NET)
  params, state = jax.eval_shape(method.init, jax.random.key(0), BATCH)
  with pytest.raises(ValueError, match="needs a field 'label'"):
    jax.eval_shape(partial(method.loss, step=0), params, state, {'views': BATCH['views']},
                   key=jax.random.key(1))


def test_smoothing_outside_its_range_is_refused():
  with pytest.raises(ValueError, match='smoothing'):
    supervised.build(NET, smoothing=1.0)
