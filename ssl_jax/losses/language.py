"""Objectives of language models, as functions of what a network returns; methods share them.

  tokens:               - sum_i w_i log p(x_i) / sum_i w_i      over the tokens of all devices
  masked_tokens:        the same, of masked tokens
  masked_and_sentence:  that + CE(g(first token), y), for pairs of sentences

Reference: Devlin et al., BERT, arXiv:1810.04805.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ssl_jax.losses.classification import accuracy, cross_entropy
from ssl_jax.losses.prediction import masked_prediction, token_sums
from ssl_jax.parallel import Placement, local, weighted_mean


class Objective(NamedTuple):
  """What a network's outputs are trained for; `readout` is (matrix [V, D], bias [V] or None).

  loss: (outputs, batch, readout) -> (scalar, metrics)
  sums: (outputs, batch, readout) -> {name: (sum, weight)}, see `Method.measure`
  """

  loss: Callable
  sums: Callable


def tokens(on_batch: Placement = local, *, chunk: int | None = None,
           vocabulary_axis: str | None = None) -> Objective:
  """Predicts `batch['targets']` [B, K], weighted by `batch['weights']`, from hidden [B, K, D].

  Args:
    on_batch: how the head runs; see `ssl_jax.parallel`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    vocabulary_axis: axis of the mesh of `on_batch` over which the head spreads the vocabulary, such
      as 'tensor'; the sums of `Method.measure` do not.

  Raises:
    ValueError: at tracing, the mesh has no such axis, it holds rows of the batch, or it does not
      divide the vocabulary.
  """
  def predict(hidden, targets, weights, matrix, bias, *, axis_name):
    return masked_prediction(hidden, matrix, bias, targets, weights, chunk=chunk,
                             axis_name=axis_name, vocabulary_axis=vocabulary_axis)

  predict = on_batch(predict, shared=2, shared_axis=vocabulary_axis)

  def loss(hidden, batch, readout):
    _check_axis(vocabulary_axis, on_batch, len(readout[0]))
    value, hits = predict(hidden, batch['targets'], batch['weights'], *readout)
    return value, {'accuracy': hits}

  def sums(hidden, batch, readout):
    weights = batch['weights'] * batch['weight'][:, None]
    return token_sums(hidden, *readout, batch['targets'], weights, chunk=chunk)

  return Objective(loss, sums)


def masked_tokens(on_batch: Placement = local, **options) -> Objective:
  """`tokens`, and the mean of `batch['overflow']` [B]: tokens that were chosen without a slot."""
  predicted = tokens(on_batch, **options)
  mean = on_batch(lambda x, *, axis_name: weighted_mean(x, x * 0 + 1, axis_name))

  def loss(hidden, batch, readout):
    value, metrics = predicted.loss(hidden, batch, readout)
    overflow = mean(batch['overflow'].astype(metrics['accuracy'].dtype))
    return value, metrics | {'overflow': overflow}

  return predicted._replace(loss=loss)


def masked_and_sentence(on_batch: Placement = local, **options) -> Objective:
  """`masked_tokens` + the cross-entropy of `batch['next']` [B]; outputs are (hidden [B, K, D],
  logits [B, 2]).

  Raises:
    ValueError: at tracing, the data have no pairs, or the outputs no logits of a sentence.
  """
  masked = masked_tokens(on_batch, **options)
  classify, correct = on_batch(cross_entropy), on_batch(accuracy)

  def loss(outputs, batch, readout):
    hidden, logits = _pair(outputs, batch)
    value, metrics = masked.loss(hidden, batch, readout)
    sentence = classify(logits, batch['next'])
    return value + sentence, metrics | {
      'masked_loss': value, 'sentence_loss': sentence,
      'sentence_accuracy': correct(logits, batch['next'])}

  def sums(outputs, batch, readout):
    hidden, logits = _pair(outputs, batch)
    right = (jnp.argmax(logits, axis=1) == batch['next']) * batch['weight']
    return masked.sums(hidden, batch, readout) | {
      'sentence_accuracy': (jnp.sum(right), jnp.sum(batch['weight']))}

  return Objective(loss, sums)


def _pair(outputs, batch):
  if 'next' not in batch:
    raise ValueError("the objective needs pairs of sentences; use config.data.pairs='nsp' for "
                     "masked_lm_nsp, 'sop' for sop, and config.data.pack=False")
  if not isinstance(outputs, tuple):
    raise ValueError('the network has no output for a pair of sentences; use '
                     'config.head.name=masked_lm_and_sentence')
  return outputs


def _check_axis(axis: str | None, on_batch: Placement, entries: int) -> None:
  if axis is None:
    return
  rows = (on_batch.axes,) if isinstance(on_batch.axes, str) else on_batch.axes
  sizes = {} if on_batch.mesh is None else {
    name: size for name, size in on_batch.mesh.shape.items() if name not in rows}
  if axis not in sizes:
    raise ValueError(
      f'vocabulary_axis is {axis!r}, but the axes of the mesh that hold no rows of the batch are '
      f'{tuple(sizes)}; use config.mesh.tensor=2 and config.method.vocabulary_axis=tensor')
  if entries % sizes[axis]:
    fits = -(-entries // sizes[axis]) * sizes[axis]
    raise ValueError(f'vocabulary_axis {axis!r} has {sizes[axis]} devices, which do not divide a '
                     f'vocabulary of {entries}; use config.network.vocabulary={fits}')
