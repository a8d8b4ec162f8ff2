"""Masked language modelling: equal on any devices, in chunks and packed, and it learns."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import testing
from ssl_jax.methods import masked_lm
from ssl_jax.models import language_heads
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import chunked, from_linen, with_head
from ssl_jax.models.transformer import Architecture, LanguageModel, Transformer
from ssl_jax.parallel import batch_sharding, infer_sharding, make_mesh, over
from ssl_jax.types import Mode
from ssl_jax.views import masks

VOCABULARY, SPECIAL, LENGTH, ROWS = 64, (0, 1, 2, 3), 16, 16


def network(depth=2, dropout=0., width=16):
  a = Architecture(VOCABULARY, width, depth, width // 8, 2 * width, length=LENGTH, deviation=.1,
                   dropout=dropout, attention_dropout=dropout)
  return from_linen(LanguageModel(Transformer(a), language_heads.masked_lm()))


def masked(tokens, segments, seed=0, **options):
  prepare = masks.build(vocabulary=VOCABULARY, mask=3, special=SPECIAL, **options).prepare
  keys = jax.random.split(jax.random.key(seed), len(tokens))
  return jax.device_get(jax.jit(prepare)(keys, dict(tokens=tokens, segments=segments)))


@cache
def batch():
  """Rows of 1 to 16 tokens with 0 to 5 masks; on 8 devices, these have unequal weights."""
  r = np.random.default_rng(0)
  tokens = r.integers(4, VOCABULARY, (ROWS, LENGTH))
  segments = (np.arange(LENGTH) <= np.arange(ROWS)[:, None]).astype(np.int32)
  new = masked(tokens, segments, profile='hf_collator', rate=.4, slots=5)
  assert len(set(new['weights'].reshape(8, -1).sum(1))) > 3 and new['overflow'].any()
  return new


@cache
def start():
  return jax.jit(network().init)(jax.random.key(0), batch())[0]


def step(net, x, params=None, **options):
  """((loss, metrics), gradient)."""
  method = masked_lm.build(net, **options)
  loss = lambda p: method.loss(p, {}, x, key=jax.random.key(1), step=0)
  (value, (_, metrics)), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    start() if params is None else params)
  return (value, metrics), grad


def close(a, b):
  norm = float(optax.tree.norm(b))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * norm), a, b)


def logits(params, x):
  hidden = network().apply(params, {}, x, Mode())[0][1]
  matrix, bias = map(np.asarray, network().readout(params))
  return np.asarray(hidden, np.float64) @ matrix.T + bias


def test_the_loss_is_the_cross_entropy_of_the_chosen_tokens():
  b = batch()
  (value, metrics), _ = step(network(), b)
  scores = logits(start(), {name: x for name, x in b.items() if name != 'slots'})
  scores = np.take_along_axis(scores, b['slots'][..., None], 1)
  log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
  own = np.take_along_axis(log_p, b['targets'][..., None], 2)[..., 0]
  np.testing.assert_allclose(value, -np.average(own, weights=b['weights']), rtol=1e-5)
  hits = np.average(scores.argmax(-1) == b['targets'], weights=b['weights'])
  np.testing.assert_allclose(metrics['accuracy'], hits, atol=1e-6)
  np.testing.assert_allclose(metrics['overflow'], b['overflow'].mean())


@pytest.mark.parametrize('net, options', [
  (network(), {'chunk': 20}), (network(dropout=.3), {}), (chunked(network(), 8), {})],
  ids=['vocabulary in chunks', 'dropout', 'microbatch'])
def test_unequal_mask_counts_on_8_devices_equal_one(net, options):
  testing.check_same_on_any_device_count(
    lambda on: masked_lm.build(net, on_batch=on, **options), batch())


@pytest.mark.parametrize('shape', [dict(data=2, tensor=4), dict(data=4, tensor=2)], ids=str)
def test_a_vocabulary_over_devices_equals_one_and_is_not_gathered(shape):
  mesh = make_mesh(shape)
  method = masked_lm.build(network(), chunk=20, vocabulary_axis='tensor', on_batch=over(mesh))
  rules = [('embed/tokens', 'tensor'), ('head/bias$', 'tensor')]
  params = jax.device_put(start(), infer_sharding(start(), rules, mesh))
  table, bias = network().readout(params)
  for spread in (table, bias):
    assert len(spread.addressable_shards[0].data) == VOCABULARY // shape['tensor']
  x = {name: jax.device_put(value, batch_sharding(mesh)) for name, value in batch().items()}
  loss = lambda p, x: method.loss(p, {}, x, key=jax.random.key(1), step=0)
  compiled = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, x).compile()
  (value, (_, metrics)), gradient = compiled(params, x)
  (expected, known), whole = step(network(), batch())
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], known['accuracy'], rtol=1e-6)
  close(gradient, whole)
  assert set(testing.COLLECTIVE.findall(compiled.as_text())) == masked_lm.COLLECTIVES


def test_what_was_trained_with_a_spread_vocabulary_embeds_and_is_measured_without_the_axis():
  method = masked_lm.build(network(), vocabulary_axis='tensor', on_batch=over(make_mesh()))
  plain, x = masked_lm.build(network()), batch() | dict(weight=np.ones(ROWS, np.float32))
  for run in ('embed', 'measure'):
    got, expected = (jax.jit(getattr(m, run))(start(), {}, x) for m in (method, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, expected)
  with pytest.raises(ValueError, match='vocabulary_axis'):
    method.loss(start(), {}, batch(), key=jax.random.key(0), step=0)


@pytest.mark.parametrize('rows', [2, 8])
def test_a_microbatch_equals_the_whole_batch(rows):
  expected, gradient = step(network(), batch())
  got, chunks = step(chunked(network(), rows), batch())
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, expected)
  close(chunks, gradient)


def test_packed_rows_equal_documents_alone():
  r = np.random.default_rng(0)
  sizes = [(5, 7, 4), (9, 6), (16,), (3, 3, 10)]
  tokens = r.integers(4, VOCABULARY, (4, LENGTH))
  segments, positions = np.zeros((2, 4, LENGTH), np.int32)
  alone = dict(tokens=[], segments=[], slots=[], targets=[], weights=[], overflow=[])
  for row, lengths in enumerate(sizes):
    for number, (n, end) in enumerate(zip(lengths, np.cumsum(lengths)), 1):
      segments[row, end - n:end], positions[row, end - n:end] = number, np.arange(n)
  packed = masked(tokens, segments, rate=.3) | dict(positions=positions)
  for row, lengths in enumerate(sizes):
    for n, end in zip(lengths, np.cumsum(lengths)):
      inside = (packed['slots'][row] >= end - n) & (packed['slots'][row] < end)
      fill = lambda x, n=n: np.pad(x, (0, LENGTH - n))
      alone['tokens'].append(fill(packed['tokens'][row, end - n:end]))
      alone['segments'].append(fill(np.ones(n, np.int32)))
      alone['slots'].append(np.where(inside, packed['slots'][row] - (end - n), 0))
      alone['targets'].append(packed['targets'][row])
      alone['weights'].append(packed['weights'][row] * inside)
      alone['overflow'].append(0)
  alone = {name: np.stack(x) for name, x in alone.items()}
  assert alone['weights'].sum() == packed['weights'].sum() and len(alone['tokens']) == 9
  expected, gradient = step(network(), packed)
  got, apart = step(network(), alone)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), got, expected)
  close(apart, gradient)


def test_only_chosen_positions_have_a_gradient():
  b = batch()
  rest = {name: x for name, x in b.items() if name != 'slots'}

  def loss(nudge):
    """With `nudge` [B, L, E] added to what the head makes of every token."""
    def apply(params, state, x, mode, *, key=None):
      (h, hidden), state = network().apply(params, state, rest, mode, key=key)
      return (h, jnp.take_along_axis(hidden + nudge, x['slots'][..., None], 1)), state
    return masked_lm.build(network()._replace(apply=apply)).loss(
      start(), {}, b, key=jax.random.key(0), step=0)[0]

  grads = jax.jit(jax.grad(loss))(jnp.zeros((ROWS, LENGTH, 16)))
  chosen = np.zeros((ROWS, LENGTH), bool)
  for row, slots, weights in zip(chosen, b['slots'], b['weights']):
    row[slots[weights > 0]] = True
  np.testing.assert_array_equal(np.any(grads != 0, axis=-1), chosen)


def test_measured_sums_make_the_loss():
  b, params = batch(), start()
  method = masked_lm.build(network())
  measure = jax.jit(lambda x: method.measure(params, {}, x))
  (value, metrics), _ = step(network(), b)
  halves = [(np.arange(ROWS) % 2 == i).astype(np.float32) for i in (0, 1)]
  counted = [measure(b | dict(weight=half)) for half in halves]
  for name, expected in (('loss', value), ('accuracy', metrics['accuracy'])):
    total, weight = np.sum([c[name] for c in counted], axis=0)
    np.testing.assert_allclose(total / weight, expected, rtol=1e-5)


def test_rows_without_masks_cost_nothing():
  empty = batch() | dict(weights=np.zeros_like(batch()['weights']))
  (value, _), gradient = step(network(), empty)
  assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_it_learns_64_sentences():
  """Of 8 random tokens each, so by heart."""
  tokens = np.random.default_rng(0).integers(4, VOCABULARY, (64, 8)).astype(np.int32)
  views = masks.build(vocabulary=VOCABULARY, mask=3, special=SPECIAL)
  method = masked_lm.build(network(depth=1, width=64))
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, 800))

  def advance(carry, i):
    params, opt = carry
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), i), 64)
    b = views.prepare(keys, dict(tokens=tokens, segments=tokens * 0 + 1))
    (value, _), grads = jax.value_and_grad(method.loss, has_aux=True)(
      params, {}, b, key=jax.random.key(0), step=i)
    updates, opt = tx.update(grads, opt)
    return (optax.apply_updates(params, updates), opt), value

  params = jax.jit(method.init)(jax.random.key(0), dict(tokens=tokens))[0]
  train = jax.jit(lambda carry: jax.lax.scan(advance, carry, jnp.arange(800)))
  _, losses = train((params, tx.init(params)))
  assert losses[0] > 3.5 and np.mean(losses[-50:]) < .1


def test_a_network_without_an_output_layer_is_refused():
  with pytest.raises(ValueError, match='needs a language model'):
    masked_lm.build(from_linen(with_head(convnet(channels=(4,), strides=(2,)), mlp(out=3))))
