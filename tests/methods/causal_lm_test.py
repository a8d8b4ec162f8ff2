"""Causal language modelling: the value, and that no token sees what it predicts."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.methods import causal_lm
from ssl_jax.models.language_heads import tied
from ssl_jax.models.network import from_linen
from ssl_jax.models.transformer import LanguageModel, transformer
from ssl_jax.types import Mode
from ssl_jax.views import next_token

NET = from_linen(LanguageModel(transformer(
  architecture='gpt2', vocabulary=20, width=8, depth=2, heads=2, length=16, dropout=0.,
  attention_dropout=0., pool='last'), tied()))
METHOD = causal_lm.build(NET, chunk=7)


def batch():
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(1, 20, (3, 9)), jnp.int32)
  segments = jnp.array([[1] * 9, [1] * 4 + [2] * 3 + [0] * 2, [1] * 5 + [0] * 4])
  return next_token.build().prepare(None, dict(tokens=tokens, segments=segments))


def test_the_loss_is_the_mean_over_next_tokens():
  data = batch()
  params, state = METHOD.init(jax.random.key(0), data)
  loss, (_, metrics) = METHOD.loss(params, state, data, key=jax.random.key(1), step=0)
  (_, hidden), _ = NET.apply(params, state, data, Mode())
  log_p = np.asarray(jax.nn.log_softmax(hidden @ NET.readout(params)[0].T))
  total = [-log_p[b, t, data['tokens'][b, t + 1]] for b, length in ((0, 9), (1, 4), (2, 5))
           for t in range(length - 1)] + [-log_p[1, t, data['tokens'][1, t + 1]] for t in (4, 5)]
  np.testing.assert_allclose(loss, np.mean(total), rtol=1e-5)
  np.testing.assert_allclose(metrics['perplexity'], np.exp(np.mean(total)), rtol=1e-5)


def test_predictions_do_not_depend_on_later_tokens():
  data = batch()
  params, state = METHOD.init(jax.random.key(0), data)
  other = dict(data, tokens=data['tokens'].at[0, 5].add(1) % 20)
  a, b = (NET.apply(params, state, x, Mode())[0][1][0] for x in (data, other))
  np.testing.assert_array_equal(a[:5], b[:5])
  assert np.abs(a[5:] - b[5:]).max() > 1e-3


def test_the_representation_is_that_of_the_last_token():
  data = batch()
  params, state = METHOD.init(jax.random.key(0), data)
  inputs = {k: data[k] for k in ('tokens', 'segments')}
  z = METHOD.embed(params, state, inputs)
  (_, hidden), _ = NET.apply(params, state, data, Mode())
  np.testing.assert_allclose(z, np.stack([hidden[0, 8], hidden[1, 6], hidden[2, 4]]), rtol=1e-6)
