"""Objectives of language models: their terms, and a vocabulary that is spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax.losses import language
from ssl_jax.losses.prediction import masked_prediction
from ssl_jax.parallel import local, make_mesh, over

ROWS, SLOTS, DIM, ENTRIES = 8, 3, 6, 48


def operands():
  """(hidden, logits of a sentence, batch, readout)"""
  r = np.random.default_rng(0)
  hidden, logits, matrix, bias = (
    jnp.asarray(r.normal(size=shape), jnp.float32)
    for shape in ((ROWS, SLOTS, DIM), (ROWS, 2), (ENTRIES, DIM), (ENTRIES,)))
  weights = np.float32(np.arange(ROWS)[:, None] > 2 * np.arange(SLOTS))
  batch = dict(targets=r.integers(0, ENTRIES, (ROWS, SLOTS)), weights=weights,
               overflow=np.arange(ROWS), next=np.arange(ROWS) % 2,
               weight=np.float32(np.arange(ROWS) != 5))
  return hidden, logits, {name: jnp.asarray(x) for name, x in batch.items()}, (matrix, bias)


def test_the_terms():
  hidden, logits, batch, readout = operands()
  plain, metrics = language.tokens().loss(hidden, batch, readout)
  expected = masked_prediction(hidden, *readout, batch['targets'], batch['weights'])
  np.testing.assert_array_equal([plain, metrics['accuracy']], expected)
  masked, metrics = language.masked_tokens().loss(hidden, batch, readout)
  assert masked == plain and metrics['overflow'] == 3.5
  both, metrics = language.masked_and_sentence().loss((hidden, logits), batch, readout)
  log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(ROWS), batch['next']]
  np.testing.assert_allclose(both, plain - log_p.mean(), rtol=1e-6)
  assert set(metrics) == {
    'accuracy', 'overflow', 'masked_loss', 'sentence_loss', 'sentence_accuracy'}


def test_sums_of_rows_that_count():
  hidden, logits, batch, readout = operands()
  sums = language.masked_and_sentence().sums((hidden, logits), batch, readout)
  assert float(sums['sentence_accuracy'][1]) == ROWS - 1
  assert float(sums['loss'][1]) == batch['weights'].sum() - batch['weights'][5].sum()
  value, _ = language.tokens().loss(
    hidden, batch | dict(weights=batch['weights'] * batch['weight'][:, None]), readout)
  np.testing.assert_allclose(sums['loss'][0] / sums['loss'][1], value, rtol=1e-6)


@pytest.mark.parametrize('chunk', [7, None])
@pytest.mark.parametrize('shape', [dict(data=2, tensor=4), dict(data=2, fsdp=2, tensor=2)], ids=str)
@pytest.mark.parametrize('biased', [True, False])
def test_a_vocabulary_over_an_axis_gives_the_same(chunk, shape, biased):
  hidden, _, batch, (matrix, bias) = operands()
  mesh = make_mesh(shape)

  def step(objective, hidden, matrix, bias):
    loss = lambda h, m, b: objective.loss(h, batch, (m, b if biased else None))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(hidden, matrix, bias)

  expected = step(language.tokens(local, chunk=chunk), hidden, matrix, bias)
  entries = NamedSharding(mesh, PartitionSpec('tensor'))
  got = step(language.tokens(over(mesh), chunk=chunk, vocabulary_axis='tensor'), hidden,
             jax.device_put(matrix, entries), jax.device_put(bias, entries))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)


@pytest.mark.parametrize('on_batch, axis, entries, words', [
  (local, 'tensor', 48, 'hold no rows of the batch are \\(\\)'),
  (over(make_mesh({'data': 8})), 'tensor', 48, 'hold no rows of the batch are \\(\\)'),
  (over(make_mesh({'data': 4, 'tensor': 2})), 'data', 48, "are \\('tensor',\\)"),
  (over(make_mesh({'data': 2, 'tensor': 4})), 'tensor', 46, 'config.network.vocabulary=48')])
def test_axes_that_cannot_hold_the_vocabulary_are_refused(on_batch, axis, entries, words):
  hidden, _, batch, (matrix, bias) = operands()
  objective = language.tokens(on_batch, vocabulary_axis=axis)
  with pytest.raises(ValueError, match=words):
    objective.loss(hidden, batch, (matrix[:entries], bias[:entries]))


def test_what_a_sentence_needs_is_said():
  hidden, logits, batch, readout = operands()
  objective = language.masked_and_sentence()
  with pytest.raises(ValueError, match='config.head.name=masked_lm_and_sentence'):
    objective.loss(hidden, batch, readout)
  del batch['next']
  with pytest.raises(ValueError, match="pairs='nsp' for masked_lm_nsp, 'sop' for sop"):
    objective.loss((hidden, logits), batch, readout)
