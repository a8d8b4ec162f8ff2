"""Heads of language models against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ssl_jax.models import language_heads as heads
from ssl_jax.models.transformer import Architecture, LanguageModel, Transformer
from ssl_jax.types import Mode

WIDE = Architecture(20, 8, 1, 2, 8, length=8, deviation=.5)
NARROW = WIDE._replace(embedding=6, activation='gelu_tanh', epsilon=1e-3)
TOKENS, FIRST = np.random.default_rng(0).normal(size=(2, 3, 3, 8)).astype(np.float32)
FIRST = FIRST[:, 0]


def variables(head, a):
  shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), TOKENS, FIRST, a, Mode()))
  r = np.random.default_rng(1)
  return jax.tree.map(lambda s: r.normal(size=s.shape).astype(np.float32), shapes)


def apply(head, params, a, train=False, **kwargs):
  return head.apply(params, TOKENS, FIRST, a, Mode(train), **kwargs)


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def gelu(x, tanh):
  if tanh:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + .044715 * x**3)))
  return x / 2 * (1 + special.erf(x / np.sqrt(2)))


@pytest.mark.parametrize('a', [WIDE, NARROW], ids=['exact', 'tanh, narrow'])
def test_masked_lm(a):
  params = variables(heads.masked_lm(), a)
  p = params['params']
  x = gelu(dense(p['dense'], TOKENS), a is NARROW)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + a.epsilon)
  got = apply(heads.masked_lm(), params, a)
  assert got.shape == (3, 3, a.embedding or 8) and p['bias'].shape == (20,)
  np.testing.assert_allclose(got, x * p['norm']['scale'] + p['norm']['bias'], atol=2e-5)


def test_masked_lm_and_sentence():
  head = heads.masked_lm_and_sentence()
  params = variables(head, WIDE)
  p = params['params']
  hidden, logits = apply(head, params, WIDE)
  alone = {name: x for name, x in p.items() if name not in ('pooler', 'sentence')}
  np.testing.assert_allclose(hidden, apply(heads.masked_lm(), {'params': alone}, WIDE), atol=1e-6)
  expected = dense(p['sentence'], np.tanh(dense(p['pooler'], FIRST)))
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  dropped = apply(head, params, WIDE, True, rngs={'dropout': jax.random.key(0)})[1]
  assert np.abs(dropped - logits).max() > .01


def test_replaced_token():
  params = variables(heads.replaced_token(), NARROW)
  p = params['params']
  expected = dense(p['logit'], gelu(dense(p['dense'], TOKENS), True))[..., 0]
  np.testing.assert_allclose(apply(heads.replaced_token(), params, NARROW), expected, atol=1e-5)
  assert p['dense']['kernel'].shape == (8, 8)


def test_tied_is_nothing():
  assert not variables(heads.tied(), WIDE)
  np.testing.assert_array_equal(apply(heads.tied(), {}, WIDE), TOKENS)


def test_logits_are_float32_and_hidden_is_not():
  for make in (heads.masked_lm_and_sentence, heads.replaced_token):
    head = make(dtype=jnp.bfloat16)
    *hidden, logits = jax.tree.leaves(apply(head, variables(head, WIDE), WIDE))
    assert logits.dtype == jnp.float32 and {x.dtype for x in hidden} <= {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('head, bias', [(heads.masked_lm(), (20,)), (heads.tied(), None)])
def test_readout_is_the_embedding_and_the_bias(head, bias):
  model = LanguageModel(Transformer(WIDE), head)
  tokens = dict(tokens=jnp.zeros((1, 4), jnp.int32))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, Mode()))['params']
  matrix, got = LanguageModel.readout(params)
  assert matrix.shape == (20, 8) and (got if bias is None else got.shape) == bias
