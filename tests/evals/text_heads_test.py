"""Heads by hand: shapes, what is ignored, what is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evals.text_heads import Head, inputs_of, losses_of, outputs_of, start_head

ROWS = dict(tokens=np.array([[3, 1, 2, 0], [2, 2, 0, 0]]),
            segments=np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int8))


def encode(params, inputs, *, key):
  return params[inputs['tokens']]


def params_of(head, pooler=None):
  table = jax.random.normal(jax.random.key(1), (4, 8))
  return dict(encoder=table, head=start_head(head, 8, jax.random.key(0), pooler))


@pytest.mark.parametrize('head, shape', [
  (Head('classes', 3), (2, 3)), (Head('number', 1), (2,)), (Head('tags', 5), (2, 4, 5)),
  (Head('spans', 2), (2, 4, 2))])
def test_shapes(head, shape):
  params = params_of(head)
  assert ('pooler' in params['head']) == (head.kind in ('classes', 'number'))
  found = outputs_of(encode, head, params, ROWS, None)
  assert found.shape == shape and found.dtype == jnp.float32
  dropped = outputs_of(encode, head._replace(dropout=0.5), params, ROWS, jax.random.key(2))
  assert np.abs(dropped - found).max() > 0


def test_classes_by_hand():
  head = Head('classes', 3, 'mean')
  pooler = dict(kernel=np.eye(8, dtype=np.float32), bias=np.ones(8, np.float32))
  params = params_of(head, pooler)
  table, last = np.asarray(params['encoder']), params['head']['output']
  means = np.stack([table[[3, 1, 2]].mean(0), table[[2, 2]].mean(0)])
  want = np.tanh(means + 1) @ last['kernel'] + last['bias'][None]
  np.testing.assert_allclose(outputs_of(encode, head, params, ROWS, None), want, atol=1e-6)


def test_spans_do_not_point_to_padding():
  found = np.asarray(outputs_of(encode, Head('spans', 2), params_of(Head('spans', 2)), ROWS, None))
  np.testing.assert_array_equal(found[..., 0] == -1e9, ROWS['segments'] == 0)


def test_losses():
  logits = np.log(np.array([[.2, .8], [.5, .5]], np.float32))
  losses, counts = losses_of(Head('classes', 2), logits, np.array([1, 0]))
  np.testing.assert_allclose(losses, -np.log([.8, .5]), rtol=1e-6)
  assert counts.tolist() == [1, 1]
  losses, counts = losses_of(Head('tags', 2), logits[None], np.array([[-1, 0]]))
  np.testing.assert_allclose(losses, [[0, -np.log(.5)]], rtol=1e-6)
  assert counts.tolist() == [[0, 1]]
  losses, _ = losses_of(Head('number', 1), np.array([1., 3.]), np.array([0., 1.]))
  assert losses.tolist() == [1, 4]
  spans = np.zeros((1, 4, 2), np.float32)
  losses, counts = losses_of(Head('spans', 2), spans, np.array([[0, 3]]))
  np.testing.assert_allclose(losses, [[np.log(4)] * 2], rtol=1e-6)


def test_inputs():
  assert set(inputs_of(ROWS | dict(label=1, weight=2))) == {'tokens', 'segments'}
