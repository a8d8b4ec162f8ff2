"""Fine-tuning of a small encoder on toy tasks; its steps against optax, its choices, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.evals.text_finetune import (
  DivergedError,
  Epoch,
  Recipe,
  finetune,
  predict,
)
from ssl_jax.evals.text_heads import Head
from ssl_jax.evals.text_spans import Window, measure_spans
from ssl_jax.evals.text_tags import measure_tags
from ssl_jax.evals.text_tasks import measure_labels
from ssl_jax.models.dropout import dropout_factors
from ssl_jax.parallel import make_mesh
from ssl_jax.types import Mode

VOCABULARY, LENGTH, WIDTH = 12, 20, 8
RATES = (0.03,)


def encode(params, inputs, *, key):
  """Embeddings by token and type, with dropout in training."""
  h = params['tokens'][inputs['tokens']]
  if 'types' in inputs:
    h = h * params['types'][inputs['types']]
  if key is not None:
    h = h * dropout_factors(key, h.shape, 0.1, Mode(train=True))
  return h


def still(params, inputs, *, key):
  return encode(params, inputs, key=None)


def weights(seed=0):
  rng = np.random.default_rng(seed)
  return dict(tokens=rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
              types=rng.normal(1, .1, size=(2, WIDTH)).astype(np.float32))


def texts(count=80, seed=0, pair=False):
  """Rows of 6 to 20 tokens; the number of 3s in each row and type varies."""
  rng = np.random.default_rng(seed)
  segments = (np.arange(LENGTH)[None] < rng.integers(6, LENGTH + 1, count)[:, None]).astype(np.int8)
  tokens = rng.integers(4, VOCABULARY, size=(count, LENGTH)).astype(np.int32)
  threes = rng.random((count, LENGTH)) < rng.choice([0, .6], size=count)[:, None]
  tokens = np.where(threes, 3, tokens)
  rows = dict(tokens=np.where(segments, tokens, 0).astype(np.int32), segments=segments)
  types = ((np.arange(LENGTH) > 3) & (segments > 0)).astype(np.int8)
  return rows | dict(types=types) if pair else rows


def task(kind, count=80, seed=0):
  """(rows with labels, head, measure)."""
  rows = texts(count, seed, pair=kind == 'pair')
  three = rows['tokens'] == 3
  if kind == 'classes':
    measure = measure_labels(('accuracy', 'matthews'))
    return rows | dict(label=three.any(1).astype(np.int32)), Head('classes', 2, 'mean'), measure
  if kind == 'pair':  # a 3 in the second text
    label = (three & (rows['types'] > 0)).any(1).astype(np.int32)
    return rows | dict(label=label), Head('classes', 2, 'mean'), measure_labels(('accuracy',))
  if kind == 'number':
    share = three.sum(1) / rows['segments'].sum(1)
    return rows | dict(label=share.astype(np.float32)), Head('number', 1, 'mean'), measure_labels(
      ('pearson', 'spearman'))
  if kind == 'tags':
    label = np.where((rows['segments'] > 0) & (np.arange(LENGTH) % 2 == 0), three, -1)
    names = np.array(('O', 'B-x'))
    return rows | dict(
      label=label.astype(np.int32),
      tags=objects([names[own[own >= 0]].tolist() for own in label]),
      kept=objects([np.arange((own >= 0).sum()) for own in label])), Head('tags', 2), measure_tags(
        names)
  return spans(rows)


def spans(rows):
  """The answer is what stands between a 1 and a 2."""
  rng = np.random.default_rng(1)
  count = len(rows['tokens'])
  label = np.sort(rng.permuted(np.tile(np.arange(1, 6), (count, 1)), axis=1)[:, :2], axis=1)
  for token, column in zip((1, 2), label.T):
    rows['tokens'][np.arange(count), column] = token
  context = ''.join(f'{chr(97 + i)} ' for i in range(LENGTH))
  windows = []
  for (a, b), own in zip(label, rows['segments']):
    at = 2 * np.arange(1, own.sum())
    windows.append(Window(1, np.stack([at, at + 1], 1), np.ones(len(at), bool), context,
                          (context[2 * a:2 * b + 1],)))
  rows |= dict(label=label.astype(np.int32), window=objects(windows),
               group=np.arange(count, dtype=np.int32))
  return rows, Head('spans', 2), measure_spans()


def objects(values) -> np.ndarray:
  found = np.empty(len(values), object)
  for i, value in enumerate(values):
    found[i] = value
  return found


@functools.cache
def learned(kind):
  rows, head, measure = task(kind)
  test, *_ = task(kind, 40, 1)
  epochs = []
  found = finetune(encode, weights(), rows, dict(test=test), head=head, measure=measure,
                   learning_rates=RATES, recipe=Recipe(batch_size=16, epochs=12),
                   report=epochs.append)
  return found, epochs


@pytest.mark.parametrize('kind, metric', [
  ('classes', 'matthews'), ('pair', 'accuracy'), ('number', 'spearman'), ('tags', 'entity_f1'),
  ('spans', 'exact_match')])
def test_learns(kind, metric):
  found, epochs = learned(kind)
  scores = found.trials[0].scores['test']
  assert scores[metric] > .85, scores
  assert epochs[0].loss > 2 * epochs[-1].loss
  assert [e.epoch for e in epochs] == list(range(1, 13)) and isinstance(epochs[0], Epoch)
  assert epochs[-1].scores == scores and found.selection.startswith('none: one learning rate')


def test_everything_follows_from_the_seed():
  rows, head, measure = task('classes')
  run = lambda seeds: finetune(
    encode, weights(), rows, dict(test=rows), head=head, measure=measure, learning_rates=RATES,
    recipe=Recipe(batch_size=16, epochs=12), seeds=seeds)
  first, again, other = learned('classes')[0], run((0, 1)), run((1,))
  jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
  assert [trial.seed for trial in again.trials] == [0, 1]
  assert np.abs(other.params['encoder']['tokens'] - first.params['encoder']['tokens']).max() > 1e-3
  assert again.trials[1] == other.trials[0]


def test_takes_the_steps_of_adamw():
  """Against optax's own: one batch an epoch, so that the order does not matter; it is padded."""
  rows, _, measure = task('number', 13)
  pooler = dict(kernel=np.eye(WIDTH, dtype=np.float32), bias=np.ones(WIDTH, np.float32))
  losses = []

  def tuned(rate):
    losses.clear()
    return finetune(
      still, weights(), rows, dict(test=rows), head=Head('number', 1, 'mean', dropout=0.),
      measure=measure, learning_rates=(rate,), recipe=Recipe(batch_size=16, epochs=20),
      pooler=pooler, report=lambda e: losses.append(e.loss)).params

  start = tuned(1e-12)  # Which moves nothing: where the head starts.
  assert 0 < np.abs(start['head']['output']['kernel']).max() < .046  # a normal, cut at 2 x 0.02
  np.testing.assert_allclose(start['head']['pooler']['kernel'], np.eye(WIDTH), atol=1e-6)
  want, want_losses = optax_steps(start, rows, 20)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), tuned(.01), want)
  np.testing.assert_allclose(losses, want_losses, rtol=1e-3)


def toy_loss(params, rows):
  """The model written out."""
  real = rows['segments'][:, :, None] > 0
  h = params['encoder']['tokens'][rows['tokens']]
  mean = jnp.where(real, h, 0).sum(1) / real.sum(1)
  pooler, output = params['head']['pooler'], params['head']['output']
  y = jnp.tanh(mean @ pooler['kernel'] + pooler['bias'][None]) @ output['kernel']
  y += output['bias'][None]
  return jnp.mean((y[:, 0] - rows['label'])**2)


def optax_steps(params, rows, steps):
  decayed = dict(encoder=dict(tokens=True, types=True),
                 head={name: dict(kernel=True, bias=False) for name in ('pooler', 'output')})
  warm = steps // 10
  schedule = optax.join_schedules([optax.linear_schedule(0, .01, warm),
                                   optax.linear_schedule(.01, 0, steps - warm)], [warm])
  tx = optax.chain(optax.clip_by_global_norm(1.),
                   optax.adamw(schedule, weight_decay=.01, mask=decayed))
  state, losses = tx.init(params), []
  step = jax.jit(jax.value_and_grad(toy_loss))
  for _ in range(steps):
    loss, grads = step(params, rows)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    losses.append(float(loss))
  return params, losses


def test_equal_on_eight_devices():
  rows, head, measure = task('tags')
  run = lambda mesh: finetune(
    encode, weights(), rows, dict(test=rows), head=head, measure=measure, learning_rates=RATES,
    recipe=Recipe(batch_size=16, epochs=1), mesh=mesh)
  one, many = run(None), run(make_mesh())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, many.params)
  assert one.trials == many.trials
  with pytest.raises(ValueError, match='12 rows does not split over 8 devices'):
    finetune(encode, weights(), rows, dict(test=rows), head=head, measure=measure,
             recipe=Recipe(batch_size=12), mesh=make_mesh())


def test_predictions_stand_in_the_order_of_the_rows():
  rows, head, _ = task('tags')
  params = learned('tags')[0].params
  outputs = predict(encode, head, params, rows)
  assert outputs.shape == (80, LENGTH, 2)
  for i in (0, 7):
    alone = predict(encode, head, params, {name: x[i:i + 1] for name, x in rows.items()})
    real = rows['segments'][i] > 0
    np.testing.assert_allclose(alone[0][real], outputs[i][real], atol=1e-5)


# --- what is chosen -------------------------------------------------------------------------------


def choose(**options):
  rows, head, measure = task('classes')
  return finetune(still, weights(), rows, dict(validation=rows, test=rows), head=head,
                  measure=measure, recipe=Recipe(batch_size=16, epochs=2), **options)


def test_the_rate_is_chosen_where_it_says():
  found = choose(learning_rates=(1e-9, .03), select='validation', seeds=(0, 1))
  assert found.learning_rate == .03
  assert found.selection.startswith('learning rate, one of 2, chosen on validation')
  assert [trial.learning_rate for trial in (*found.trials, *found.others)] == [.03, .03, 1e-9, 1e-9]
  scores = found.trials[0].scores
  assert set(scores) == {'validation', 'test'} and scores['validation'] == scores['test']
  assert found.trials[0].score == pytest.approx(np.mean(list(scores['validation'].values())))
  held = choose(learning_rates=(1e-9, .03))
  assert 'chosen on 8 examples of the training set that were not trained on' in held.selection


def test_rows_of_a_group_are_held_out_together():
  rows, head, measure = task('classes')
  seen = []

  def watching(outputs, rows):
    seen.append(rows['group'].tolist())
    return measure(outputs, rows)

  groups = np.arange(80) // 4
  finetune(still, weights(), rows | dict(group=groups), dict(test=rows | dict(group=groups)),
           head=head, measure=watching, learning_rates=(.01, .03),
           recipe=Recipe(batch_size=16, epochs=1))
  held = seen[0]
  assert len(held) == 8 and len(set(held)) == 2  # a tenth of 20 groups, with all of their rows


def test_a_rate_that_diverges_is_not_chosen_and_all_of_them_are_named():
  found = choose(learning_rates=(1e38, .03), select='validation')
  assert found.learning_rate == .03 and found.others[0].scores == {}
  with pytest.raises(DivergedError, match=r'at every learning rate \(1e\+38\); try smaller'):
    choose(learning_rates=(1e38,))


@pytest.mark.parametrize('change, words', [
  (dict(head=Head('class', 2)), 'kind must be one of classes, number, tags, spans'),
  (dict(head=Head('classes', 2, 'max')), 'pool must be one of mean, token, last'),
  (dict(head=Head('classes', 1)), 'test: labels of classes must be from 0 to 0, got 0 to 1'),
  (dict(head=Head('tags', 2)), r'labels of tags must be \[80, 20\], got \[80\]'),
  (dict(select='dev'), 'select must be one of held_out, test'),
  (dict(evaluation={}), 'there must be a split'), (dict(seeds=()), 'there must be a split'),
  (dict(learning_rates=(0.,)), 'learning rates must be above 0'),
  (dict(recipe=Recipe(epochs=0)), 'at least 1; got 2e-05, 3e-05, 5e-05, 0 and 32')])
def test_mistakes_are_answered(change, words):
  rows, head, measure = task('classes')
  arguments = dict(evaluation=dict(test=rows), head=head, measure=measure) | change
  with pytest.raises(ValueError, match=words):
    finetune(still, weights(), {**rows, 'label': rows['label'] * 0}, arguments.pop('evaluation'),
             **arguments)
