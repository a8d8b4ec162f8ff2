"""Causal language modelling: every token is predicted from those before it.

  loss = - sum_i w_i log p(x_{i+1} | x_1 ... x_i) / sum_i w_i     over all tokens of the batch;
  the representation is what the decoder makes of a row, pooled.

Reference: Radford et al., Language Models are Unsupervised Multitask Learners, 2019,
https://github.com/openai/gpt-2
"""

import jax.numpy as jnp

from ssl_jax.losses.language import tokens
from ssl_jax.models.network import language_method
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# The sums of the loss, of the weights and of gradients.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, chunk: int | None = None, vocabulary_axis: str | None = None,
          on_batch: Placement = local) -> Method:
  """Predicts `batch['targets']` [B, L], see `ssl_jax.views.next_token`.

  Args:
    net: inputs -> (representation, hidden [B, L, E]), causal, with a `readout`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    vocabulary_axis: of the mesh, over which the loss spreads the vocabulary, see `losses.language`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: the network has no output layer for a vocabulary.
  """
  objective = tokens(on_batch, chunk=chunk, vocabulary_axis=vocabulary_axis)

  def loss(hidden, batch, readout):
    value, metrics = objective.loss(hidden, batch, readout)
    return value, metrics | {'perplexity': jnp.exp(value)}

  return language_method('causal_lm', net, objective._replace(loss=loss), on_batch)
