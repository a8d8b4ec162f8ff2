"""ELECTRA: which tokens of a text has a small masked language model replaced?

  g: masked tokens -> p(token);     replace each masked token by one drawn from p
  loss = CE of g at the masked tokens + 50 BCE of the discriminator at all tokens, each a mean over
  its own weights; a drawn token that equals the original counts as original. Generator and
  discriminator share the embeddings. The representation is the discriminator's.

Reference: Clark et al., ELECTRA, arXiv:2003.10555; https://github.com/google-research/electra
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.losses.language import tokens
from ssl_jax.losses.prediction import sample_tokens
from ssl_jax.parallel import Placement, local, weighted_mean
from ssl_jax.types import Batch, Method, Network, PyTree

# The sums of the losses, of their weights and of gradients; replacing tokens stays on their device.
COLLECTIVES = frozenset({'all-reduce'})


class Outputs(NamedTuple):
  """What both networks make of a batch.

  Attributes:
    hidden, readout: the generator's states [B, K, E], and (matrix, bias) of its output layer.
    logits: the discriminator's [B, L].
    replaced, real: bool [B, L], which tokens it sees replaced, and which are no padding.
  """

  hidden: jax.Array
  readout: tuple[jax.Array, jax.Array | None]
  logits: jax.Array
  replaced: jax.Array
  real: jax.Array


def build(net: Network, *, generator: Network, weight: float = 50., chunk: int | None = None,
          vocabulary_axis: str | None = None, on_batch: Placement = local) -> Method:
  """Trains on `batch['targets']` [B, K] at `batch['slots']` [B, K], see `ssl_jax.views.masks`.

  Args:
    net: the discriminator: inputs -> (representation, logits [B, L] of having been replaced): a
      transformer with the head `replaced_token`.
    generator: a smaller masked language model with embeddings of the same shapes; in a config a
      section like `config.network`.
    weight: of the discriminator's loss.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    vocabulary_axis: of the mesh, over which the generator's loss spreads the vocabulary, see
      `losses.language`; drawing tokens does not.
    on_batch: how the loss heads run; see `ssl_jax.parallel`.

  Raises:
    ValueError: a network that is no language model; at tracing, embeddings of other shapes.
  """
  if net.readout is None or generator.readout is None:
    raise ValueError('electra needs language models; use config.network.name=transformer')
  train = on_batch.mode(train=True)
  at_rest = on_batch.mode()
  masked_lm = tokens(on_batch, chunk=chunk, vocabulary_axis=vocabulary_axis)
  discriminate = on_batch(_discrimination)

  def init(key, batch):
    return _init(key, batch, net, generator)

  def run(params, state, batch, mode, drawing, keys):
    """(Outputs, new state); `keys`: of the generator's dropout and the discriminator's."""
    small = _complete(params)
    readout = generator.readout(small)
    (_, hidden), small_state = generator.apply(
      small, state['generator'], dict(batch), mode, key=keys[0])
    drawn = sample_tokens(drawing, jax.lax.stop_gradient(hidden), *readout, chunk=chunk,
                          axis_name=on_batch.axis_name)
    seen, replaced, real = _corrupted(batch, drawn)
    (_, logits), new = net.apply(params['discriminator'], state['discriminator'], seen, mode,
                                 key=keys[1])
    return (Outputs(hidden, readout, logits, replaced, real),
            {'discriminator': new, 'generator': small_state})

  def loss(params, state, batch, *, key, step):
    del step
    *keys, drawing = jax.random.split(key, 3)
    out, state = run(params, state, batch, train, drawing, keys)
    masked, metrics = masked_lm.loss(out.hidden, batch, out.readout)
    found, right = discriminate(
      out.logits, *(x.astype(out.logits.dtype) for x in (out.replaced, out.real)))
    metrics |= {'generator_loss': masked, 'discriminator_loss': found,
                'discriminator_accuracy': right}
    return masked + weight * found, (state, metrics)

  def embed(params, state, inputs):
    (representation, _), _ = net.apply(*encoder(params, state), inputs, at_rest)
    return representation

  def measure(params, state, batch):
    out, _ = run(params, state, batch, at_rest, jax.random.key(0), (None, None))
    right = (out.logits > 0) == out.replaced
    counted = out.real * batch['weight'][:, None]
    return masked_lm.sums(out.hidden, batch, out.readout) | {
      'discriminator_accuracy': (jnp.sum(right * counted), jnp.sum(counted))}

  return Method(init, loss, embed, encoder=encoder, measure=measure)


def encoder(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
  """(params, state) of the discriminator."""
  return params['discriminator'], state['discriminator']


# --- shared embeddings ----------------------------------------------------------------------------


def _init(key: jax.Array, batch: Batch, net: Network, generator: Network) -> tuple[PyTree, PyTree]:
  """(params, state) of both, the generator's without the embeddings that it shares."""
  first, second = jax.random.split(key)
  large, state = net.init(first, _whole(batch))
  small, small_state = generator.init(second, batch)
  _check_shared(large, small)
  small['backbone'] = dict(small['backbone'], embed=_own(small['backbone']['embed']))
  return ({'discriminator': large, 'generator': small},
          {'discriminator': state, 'generator': small_state})


def _complete(params: PyTree) -> PyTree:
  """The generator's parameters with the discriminator's embeddings in them."""
  small = params['generator']
  embed = {**_shared(params['discriminator']['backbone']['embed']), **small['backbone']['embed']}
  return {**small, 'backbone': {**small['backbone'], 'embed': embed}}


def _own(embed: Mapping) -> dict:
  """What of a generator's embeddings is its own: the layer from their width to its blocks'."""
  return {name: x for name, x in embed.items() if name == 'project'}


def _shared(embed: Mapping) -> dict:
  return {name: x for name, x in embed.items() if name != 'project'}


def _check_shared(large: Mapping, small: Mapping) -> None:
  a, b = (jax.tree.map(jnp.shape, _shared(tree['backbone']['embed'])) for tree in (large, small))
  if a != b:
    raise ValueError(
      f'generator and discriminator share their embeddings, whose shapes differ: {b} and {a}; give '
      'both the same vocabulary, embedding, length and types')


# --- replaced tokens ------------------------------------------------------------------------------


def _corrupted(batch: Batch, drawn: jax.Array) -> tuple[Batch, jax.Array, jax.Array]:
  """(the batch with `drawn` [B, K] in its slots, which tokens differ, which are real [B, L])."""
  used = batch['weights'] > 0
  original = _put(batch['tokens'], batch['slots'], batch['targets'], used)
  corrupted = _put(original, batch['slots'], drawn, used)
  real = batch['segments'] > 0 if 'segments' in batch else jnp.ones(corrupted.shape, bool)
  return {**_whole(batch), 'tokens': corrupted}, corrupted != original, real


def _whole(batch: Batch) -> Batch:
  """Without slots a head sees all tokens of a row."""
  return {name: x for name, x in batch.items() if name != 'slots'}


def _put(tokens: jax.Array, slots: jax.Array, new: jax.Array, used: jax.Array) -> jax.Array:
  """tokens [B, L] with new [B, K] at the slots that are used."""
  length = tokens.shape[1]
  places = jnp.where(used, slots, length)  # outside: dropped
  return jax.vmap(lambda row, place, value: row.at[place].set(value, mode='drop'))(
    tokens, places, new.astype(tokens.dtype))


def _discrimination(logits, replaced, real, *, axis_name):
  """(binary cross-entropy, accuracy) over the tokens that are real."""
  losses = optax.sigmoid_binary_cross_entropy(logits, replaced)
  right = ((logits > 0) == (replaced > 0)).astype(losses.dtype)
  return tuple(weighted_mean(x, real, axis_name) for x in (losses, right))
