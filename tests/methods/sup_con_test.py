"""SupCon: labels decide who is positive; with a label per sample it is SimCLR."""

from functools import partial

import jax
import numpy as np
import pytest

from ssl_jax.losses import contrastive
from ssl_jax.methods import simclr, sup_con
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.types import Mode

ROWS = 8
VIEWS = np.random.default_rng(0).uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32)
NET = from_linen(with_head(convnet(channels=(4,), strides=(2,)), mlp(hidden=6, out=5)))
METHOD = sup_con.build(NET, temperature=0.3)


def run(method, labels):
  batch = {'views': VIEWS, 'label': np.asarray(labels, np.int32)}
  params, state = jax.jit(method.init)(jax.random.key(0), batch)
  return params, state, jax.jit(method.loss)(params, state, batch, key=jax.random.key(1), step=0)


def by_anchors(z, labels, temperature):
  """Equation 2 of arXiv:2004.11362, anchor by anchor."""
  z = z / np.linalg.norm(z, axis=1, keepdims=True)
  scores, losses = z @ z.T / temperature, []
  for i in range(len(z)):
    others = [a for a in range(len(z)) if a != i]
    lse = np.log(sum(np.exp(scores[i, a]) for a in others))
    losses.append(-np.mean([scores[i, p] - lse for p in others if labels[p] == labels[i]]))
  return np.mean(losses)


def test_the_loss_is_the_papers_over_all_views_of_a_label():
  labels = np.arange(ROWS) % 3
  params, state, (value, (new, _)) = run(METHOD, labels)
  (_, z), expected = NET.apply(params, state, VIEWS.reshape(-1, 8, 8, 1), Mode(train=True))
  of_rows = np.repeat(labels, 2)
  np.testing.assert_allclose(value, by_anchors(np.asarray(z, np.float64), of_rows, 0.3), rtol=1e-4)
  np.testing.assert_allclose(value, contrastive.sup_con(z, of_rows, temperature=0.3), rtol=1e-4)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), new, expected)


def test_a_label_for_every_sample_is_simclr():
  params, state, (value, _) = run(METHOD, np.arange(ROWS))
  other, _ = simclr.build(NET, temperature=0.3).loss(
    params, state, {'views': VIEWS}, key=jax.random.key(1), step=0)
  np.testing.assert_allclose(value, other, rtol=1e-5)


def test_a_batch_without_labels_and_a_temperature_of_zero_are_refused():
  params, state = jax.eval_shape(METHOD.init, jax.random.key(0), {'views': VIEWS})
  with pytest.raises(ValueError, match="a field 'label'"):
    jax.eval_shape(partial(METHOD.loss, step=0), params, state, {'views': VIEWS}, key=jax.random.key(0))
  with pytest.raises(ValueError, match='positive'):
    sup_con.build(NET, temperature=0)
