"""ELECTRA: what is replaced, what is shared, and the weights of its two terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.losses.prediction import sample_tokens
from ssl_jax.methods import electra
from ssl_jax.models.language_heads import masked_lm, replaced_token
from ssl_jax.models.network import from_linen
from ssl_jax.models.transformer import LanguageModel, transformer
from ssl_jax.types import Mode

VOCABULARY = 30


def net(width, head, **options):
  return from_linen(LanguageModel(transformer(
    architecture='electra_small', vocabulary=VOCABULARY, width=width, depth=1, heads=1, length=16,
    types=0, embedding=8, dropout=0., attention_dropout=0., **options), head))


DISCRIMINATOR, GENERATOR = net(16, replaced_token()), net(8, masked_lm())


def batch(rows=4, length=12, slots=3):
  rng = np.random.default_rng(0)
  tokens = rng.integers(5, VOCABULARY, (rows, length))
  segments = np.ones((rows, length), int)
  segments[0, 8:] = 0
  where = np.stack([rng.choice(8, slots, replace=False) for _ in range(rows)])
  targets = np.take_along_axis(tokens, where, 1)
  masked = tokens.copy()
  np.put_along_axis(masked, where, 4, 1)
  weights = np.ones((rows, slots), np.float32)
  weights[1, 2] = 0
  masked[1, where[1, 2]] = targets[1, 2]
  made = dict(tokens=masked, segments=segments, slots=where, targets=targets)
  return {k: jnp.asarray(x, jnp.int32) for k, x in made.items()} | {'weights': jnp.asarray(weights)}


@pytest.fixture(scope='module')
def started():
  method = electra.build(DISCRIMINATOR, generator=GENERATOR)
  return method, *method.init(jax.random.key(0), batch())


def test_the_loss_is_the_sum_of_two_means_over_unequal_weights(started):
  """Recomputed term by term from the two networks, with the same draws."""
  method, params, state = started
  key, data = jax.random.key(3), batch()
  loss, (_, metrics) = method.loss(params, state, data, key=key, step=0)
  drawing = jax.random.split(key, 3)[2]
  small = dict(params['generator'], backbone=dict(
    params['generator']['backbone'], embed=params['discriminator']['backbone']['embed']))
  small['backbone']['embed'] = {k: v for k, v in small['backbone']['embed'].items() if k != 'project'}
  (_, hidden), _ = GENERATOR.apply(small, {}, data, Mode())
  matrix, bias = GENERATOR.readout(small)
  log_p = jax.nn.log_softmax(hidden @ matrix.T + bias[None, None])
  ce = -np.take_along_axis(np.asarray(log_p), np.asarray(data['targets'])[..., None], 2)[..., 0]
  masked = (ce * data['weights']).sum() / 11
  drawn = np.asarray(sample_tokens(drawing, hidden, matrix, bias))
  used, where = np.asarray(data['weights']) > 0, np.asarray(data['slots'])
  original = np.array(data['tokens'])
  np.put_along_axis(original, where, np.asarray(data['targets']), 1)
  seen = original.copy()
  for row, place, token, ok in zip(range(4), where, drawn, used):
    seen[row, place[ok]] = token[ok]
  rest = {'tokens': jnp.asarray(seen), 'segments': data['segments']}
  (_, logits), _ = DISCRIMINATOR.apply(params['discriminator'], {}, rest, Mode())
  replaced, real = seen != original, np.asarray(data['segments']) > 0
  p = jax.nn.sigmoid(logits)
  bce = -np.where(replaced, np.log(p), np.log1p(-p))
  found = (bce * real).sum() / real.sum()
  np.testing.assert_allclose(metrics['generator_loss'], masked, rtol=1e-5)
  np.testing.assert_allclose(metrics['discriminator_loss'], found, rtol=1e-5)
  np.testing.assert_allclose(loss, masked + 50 * found, rtol=1e-5)
  assert replaced.any() and not replaced[1, where[1, 2]]


def test_embeddings_are_shared_and_the_discriminator_does_not_train_the_generator(started):
  method, params, state = started
  assert 'tokens' not in params['generator']['backbone'].get('embed', {})
  only = electra.build(DISCRIMINATOR, generator=GENERATOR, weight=1e3)

  def grad(method):
    loss = lambda p: method.loss(p, state, batch(), key=jax.random.key(3), step=0)[0]
    return jax.jit(jax.grad(loss))(params)

  a, b = grad(method), grad(only)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a['generator'],
               b['generator'])
  assert np.abs(a['discriminator']['head']['dense']['kernel']
                - b['discriminator']['head']['dense']['kernel']).max() > 1e-3


def test_samples_follow_the_softmax_whatever_the_chunk():
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32)
  matrix, bias = jnp.asarray(rng.normal(size=(7, 4)), jnp.float32), jnp.arange(7) / 7.
  p = jax.nn.softmax(hidden[0, 0] @ matrix.T + bias)
  draw = lambda chunk: np.asarray(jax.vmap(lambda k: sample_tokens(
    k, hidden, matrix, bias, chunk=chunk)[0, 0])(jax.random.split(jax.random.key(0), 4000)))
  for chunk in (None, 3):
    share = np.bincount(draw(chunk), minlength=7) / 4000
    np.testing.assert_allclose(share, p, atol=4 * np.sqrt(.25 / 4000))


def test_embeddings_of_other_shapes_are_refused():
  other = net(8, masked_lm())
  wide = from_linen(LanguageModel(transformer(
    architecture='electra_small', vocabulary=VOCABULARY, width=8, depth=1, heads=1, length=16, types=0,
    embedding=4), masked_lm()))
  electra.build(DISCRIMINATOR, generator=other).init(jax.random.key(0), batch())
  with pytest.raises(ValueError, match='share their embeddings, whose shapes differ'):
    electra.build(DISCRIMINATOR, generator=wide).init(jax.random.key(0), batch())
