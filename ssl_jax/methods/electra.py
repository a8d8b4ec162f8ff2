"""ELECTRA: which tokens of a text has a small masked language model replaced?

  g: masked tokens -> p(token);     replace each masked token by one drawn from p
  loss = CE of g at the masked tokens + 50 BCE of the discriminator at all tokens, each a mean over its
  own weights; a drawn token that equals the original counts as original. Generator and
  discriminator share the embeddings. The representation is the discriminator's.

Reference: Clark et al., ELECTRA, arXiv:2003.10555; https://github.com/google-research/electra
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from ssl_jax.losses.prediction import masked_prediction, sample_tokens, token_sums
from ssl_jax.parallel import Placement, local, weighted_mean
from ssl_jax.types import Method, Mode, Network

# The sums of the losses, of their weights and of gradients; rows gathered to be replaced stay local.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, generator: Network, weight: float = 50., chunk: int | None = None,
          on_batch: Placement = local) -> Method:
  """Trains on `batch['targets']` [B, K] at `batch['slots']` [B, K], masked, see `ssl_jax.views.masks`.

  Args:
    net: the discriminator: inputs -> (representation, logits [B, L] of having been replaced): a
      transformer with the head `replaced_token`.
    generator: a smaller masked language model with embeddings of the same shapes; in a config a
      section like `config.network`.
    weight: of the discriminator's loss.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: a network that is no language model; at tracing, embeddings of other shapes.
  """
  if net.readout is None or generator.readout is None:
    raise ValueError('electra needs language models; use config.network.name=transformer')
  train = Mode(train=True, axis_name=on_batch.axis_name, mesh=on_batch.mesh)

  def predict(hidden, targets, weights, matrix, bias, *, axis_name):
    return masked_prediction(hidden, matrix, bias, targets, weights, chunk=chunk, axis_name=axis_name)

  def discriminate(logits, replaced, real, *, axis_name):
    losses = optax.sigmoid_binary_cross_entropy(logits, replaced)
    right = ((logits > 0) == (replaced > 0)).astype(losses.dtype)
    return tuple(weighted_mean(x, real, axis_name) for x in (losses, right))

  predict, discriminate = on_batch(predict, shared=2), on_batch(discriminate)

  def init(key, batch):
    first, second = jax.random.split(key)
    full = {name: x for name, x in batch.items() if name != 'slots'}
    found, state = net.init(first, full)
    small, small_state = generator.init(second, batch)
    _check_shared(found, small)
    small['backbone'] = dict(small['backbone'], embed=_own(small['backbone']['embed']))
    params = {'discriminator': found, 'generator': small}
    return params, {'discriminator': state, 'generator': small_state}

  def complete(params):
    """The generator's parameters with the discriminator's embeddings in them."""
    small = params['generator']
    embed = {**params['discriminator']['backbone']['embed'], **small['backbone']['embed']}
    if 'project' not in small['backbone']['embed']:
      embed.pop('project', None)
    return {**small, 'backbone': {**small['backbone'], 'embed': embed}}

  def corrupted(key, params, batch, hidden):
    """(the batch with drawn tokens in its slots, which tokens differ, which are no padding)."""
    drawn = sample_tokens(key, jax.lax.stop_gradient(hidden), *generator.readout(complete(params)),
                          chunk=chunk, axis_name=on_batch.axis_name)
    used = batch['weights'] > 0
    original = _put(batch['tokens'], batch['slots'], batch['targets'], used)
    tokens = _put(original, batch['slots'], drawn, used)
    real = batch['segments'] > 0 if 'segments' in batch else jnp.ones(tokens.shape, bool)
    rest = {name: x for name, x in batch.items() if name != 'slots'}
    return {**rest, 'tokens': tokens}, tokens != original, real

  def loss(params, state, batch, *, key, step):
    del step
    first, second, drawing = jax.random.split(key, 3)
    full = complete(params)
    (_, hidden), small_state = generator.apply(
      full, state['generator'], dict(batch), train, key=first)
    masked, hits = predict(hidden, batch['targets'], batch['weights'], *generator.readout(full))
    seen, replaced, real = corrupted(drawing, params, batch, hidden)
    (_, logits), new = net.apply(params['discriminator'], state['discriminator'], seen, train,
                                 key=second)
    found, right = discriminate(logits, replaced.astype(logits.dtype), real.astype(logits.dtype))
    metrics = {'generator_loss': masked, 'accuracy': hits, 'discriminator_loss': found,
               'discriminator_accuracy': right}
    return masked + weight * found, ({'discriminator': new, 'generator': small_state}, metrics)

  def embed(params, state, inputs):
    (representation, _), _ = net.apply(
      params['discriminator'], state['discriminator'], inputs, Mode(mesh=on_batch.mesh))
    return representation

  def measure(params, state, batch):
    full = complete(params)
    (_, hidden), _ = generator.apply(full, state['generator'], dict(batch), Mode(mesh=on_batch.mesh))
    rows = batch['weight'][:, None]
    sums = token_sums(hidden, *generator.readout(full), batch['targets'], batch['weights'] * rows,
                      chunk=chunk)
    seen, replaced, real = corrupted(jax.random.key(0), params, batch, hidden)
    (_, logits), _ = net.apply(params['discriminator'], state['discriminator'], seen,
                               Mode(mesh=on_batch.mesh))
    right, counted = (logits > 0) == replaced, real * rows
    return sums | {'discriminator_accuracy': (jnp.sum(right * counted), jnp.sum(counted))}

  def encoder(params, state):
    return params['discriminator'], state['discriminator']

  return Method(init, loss, embed, encoder=encoder, measure=measure)


def _own(embed: Mapping) -> dict:
  """What of a generator's embeddings is its own: the layer from their width to its blocks'."""
  return {name: x for name, x in embed.items() if name == 'project'}


def _check_shared(large: Mapping, small: Mapping) -> None:
  a, b = (jax.tree.map(jnp.shape, {k: v for k, v in tree['backbone']['embed'].items()
                                   if k != 'project'}) for tree in (large, small))
  if a != b:
    raise ValueError(f'generator and discriminator share their embeddings, whose shapes differ: {b} '
                     f'and {a}; give both the same vocabulary, embedding, length and types')


def _put(tokens: jax.Array, slots: jax.Array, new: jax.Array, used: jax.Array) -> jax.Array:
  """tokens [B, L] with new [B, K] at the slots that are used."""
  length = tokens.shape[1]
  places = jnp.where(used, slots, length)  # outside: dropped
  return jax.vmap(lambda row, place, value: row.at[place].set(value, mode='drop'))(
    tokens, places, new.astype(tokens.dtype))
