"""Masked words and a question about two sentences: each term keeps its own weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.methods import masked_lm_nsp
from ssl_jax.models.language_heads import masked_lm_and_sentence
from ssl_jax.models.network import from_linen
from ssl_jax.models.transformer import LanguageModel, transformer
from ssl_jax.types import Mode

NET = from_linen(LanguageModel(transformer(
  architecture='bert_tiny', vocabulary=30, width=8, depth=1, heads=1, length=16, dropout=0.,
  attention_dropout=0.), masked_lm_and_sentence()))


def batch():
  rng = np.random.default_rng(0)
  made = dict(tokens=rng.integers(5, 30, (4, 10)), segments=np.ones((4, 10)),
              types=np.arange(10)[None].repeat(4, 0) > 5, slots=rng.integers(0, 10, (4, 3)),
              targets=rng.integers(5, 30, (4, 3)), next=np.array([0, 1, 1, 0]), overflow=np.zeros(4))
  weights = jnp.asarray([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], jnp.float32)
  return {k: jnp.asarray(x, jnp.int32) for k, x in made.items()} | {'weights': weights}


def test_the_loss_is_the_sum_of_two_means():
  method, data = masked_lm_nsp.build(NET), batch()
  params, state = method.init(jax.random.key(0), data)
  loss, (_, metrics) = method.loss(params, state, data, key=jax.random.key(1), step=0)
  (_, (hidden, logits)), _ = NET.apply(params, state, data, Mode())
  matrix, bias = NET.readout(params)
  log_p = np.asarray(jax.nn.log_softmax(hidden @ matrix.T + bias[None, None]))
  own = np.take_along_axis(log_p, np.asarray(data['targets'])[..., None], 2)[..., 0]
  masked = -(own * data['weights']).sum() / 6
  sentence = -np.asarray(jax.nn.log_softmax(logits))[np.arange(4), data['next']].mean()
  np.testing.assert_allclose(metrics['masked_loss'], masked, rtol=1e-5)
  np.testing.assert_allclose(loss, masked + sentence, rtol=1e-5)
  # One weight for both terms is another loss: the tokens of row 3 have none, its sentence counts.
  per_row = (-(own * data['weights']).sum(1) / np.maximum(data['weights'].sum(1), 1)).mean()
  assert abs(per_row - masked) > 1e-2


def test_measured_rows_count_by_their_weight():
  method, data = masked_lm_nsp.build(NET), batch()
  params, state = method.init(jax.random.key(0), data)
  got = method.measure(params, state, data | {'weight': jnp.array([1., 1., 0., 1.])})
  assert float(got['loss'][1]) == 4 and float(got['sentence_accuracy'][1]) == 3


def test_single_texts_are_refused_in_words():
  method, data = masked_lm_nsp.build(NET), batch()
  params, state = method.init(jax.random.key(0), data)
  del data['next']
  with pytest.raises(ValueError, match="pairs='nsp'"):
    method.loss(params, state, data, key=jax.random.key(1), step=0)
