"""Masked language modelling and a question about two sentences, as BERT and ALBERT are trained.

  loss = MLM + CE(g(first token), next)     each a mean over its own weights;
  next-sentence prediction (BERT): does B follow A, or is it from elsewhere (1)?  Sentence-order
  prediction (ALBERT, arXiv:1909.11942): are A and B in their order, or swapped (1)? Which of the two
  it is, the data say: `pairs='nsp'` or `pairs='sop'`.

Reference: Devlin et al., BERT, arXiv:1810.04805.
"""

import jax.numpy as jnp

from ssl_jax.losses.classification import accuracy, cross_entropy
from ssl_jax.losses.prediction import masked_prediction, token_sums
from ssl_jax.parallel import Placement, local, weighted_mean
from ssl_jax.types import Method, Mode, Network

# The sums of the losses, of their weights and of gradients.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, chunk: int | None = None, on_batch: Placement = local) -> Method:
  """Predicts `batch['targets']` [B, K] at `batch['slots']` [B, K], and `batch['next']` [B].

  Args:
    net: inputs -> (representation, (hidden [B, K, E], logits [B, 2])), with a `readout`: a
      transformer with the head `masked_lm_and_sentence`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: the network has no output layer for a vocabulary; at tracing, the data have no pairs.
  """
  if net.readout is None:
    raise ValueError('masked_lm_nsp needs a language model; use config.network.name=transformer')
  train = Mode(train=True, axis_name=on_batch.axis_name, mesh=on_batch.mesh)

  def predict(hidden, targets, weights, matrix, bias, *, axis_name):
    return masked_prediction(hidden, matrix, bias, targets, weights, chunk=chunk, axis_name=axis_name)

  predict = on_batch(predict, shared=2)
  classify, correct = on_batch(cross_entropy), on_batch(accuracy)
  mean = on_batch(lambda x, *, axis_name: weighted_mean(x, x * 0 + 1, axis_name))

  def init(key, batch):
    return net.init(key, batch)

  def loss(params, state, batch, *, key, step):
    del step
    if 'next' not in batch:
      raise ValueError("masked_lm_nsp needs pairs of sentences; use config.data.pairs='nsp' or 'sop' "
                       'and config.data.pack=False')
    (_, (hidden, logits)), state = net.apply(params, state, dict(batch), train, key=key)
    masked, hits = predict(hidden, batch['targets'], batch['weights'], *net.readout(params))
    sentence = classify(logits, batch['next'])
    metrics = {'masked_loss': masked, 'accuracy': hits, 'sentence_loss': sentence,
               'sentence_accuracy': correct(logits, batch['next']),
               'overflow': mean(batch['overflow'].astype(hits.dtype))}
    return masked + sentence, (state, metrics)

  def embed(params, state, inputs):
    (representation, _), _ = net.apply(params, state, inputs, Mode(mesh=on_batch.mesh))
    return representation

  def measure(params, state, batch):
    (_, (hidden, logits)), _ = net.apply(params, state, dict(batch), Mode(mesh=on_batch.mesh))
    weights = batch['weights'] * batch['weight'][:, None]
    sums = token_sums(hidden, *net.readout(params), batch['targets'], weights, chunk=chunk)
    right = (jnp.argmax(logits, axis=1) == batch['next']) * batch['weight']
    return sums | {'sentence_accuracy': (jnp.sum(right), jnp.sum(batch['weight']))}

  return Method(init, loss, embed, measure=measure)
