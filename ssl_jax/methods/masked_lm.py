"""Masked language modelling: tokens that were masked are predicted from those around them.

  loss = - sum_i w_i log p(x_i | masked row) / sum_i w_i     over the chosen tokens of the batch;
  the representation is what the encoder makes of a row, pooled.

Reference: Devlin et al., BERT, arXiv:1810.04805.
"""

from ssl_jax.losses.prediction import masked_prediction, token_sums
from ssl_jax.parallel import Placement, local, weighted_mean
from ssl_jax.types import Method, Mode, Network

# The sums of the loss, of the weights and of gradients.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, chunk: int | None = None, on_batch: Placement = local) -> Method:
  """Predicts `batch['targets']` [B, K] at `batch['slots']` [B, K], see `ssl_jax.views.masks`.

  Args:
    net: inputs -> (representation, hidden [B, K, E]), with a `readout`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: the network has no output layer for a vocabulary.
  """
  if net.readout is None:
    raise ValueError('masked_lm needs a language model; use config.network.name=transformer')
  train = Mode(train=True, axis_name=on_batch.axis_name, mesh=on_batch.mesh)

  def predict(hidden, targets, weights, matrix, bias, *, axis_name):
    return masked_prediction(hidden, matrix, bias, targets, weights, chunk=chunk, axis_name=axis_name)

  predict = on_batch(predict, shared=2)
  mean = on_batch(lambda x, *, axis_name: weighted_mean(x, x * 0 + 1, axis_name))

  def init(key, batch):
    return net.init(key, batch)

  def loss(params, state, batch, *, key, step):
    del step
    (_, hidden), state = net.apply(params, state, dict(batch), train, key=key)
    value, accuracy = predict(hidden, batch['targets'], batch['weights'], *net.readout(params))
    return value, (state, {'accuracy': accuracy,
                           'overflow': mean(batch['overflow'].astype(accuracy.dtype))})

  def embed(params, state, inputs):
    (representation, _), _ = net.apply(params, state, inputs, Mode(mesh=on_batch.mesh))
    return representation

  def measure(params, state, batch):
    (_, hidden), _ = net.apply(params, state, dict(batch), Mode(mesh=on_batch.mesh))
    weights = batch['weights'] * batch['weight'][:, None]
    return token_sums(hidden, *net.readout(params), batch['targets'], weights, chunk=chunk)

  return Method(init, loss, embed, measure=measure)
