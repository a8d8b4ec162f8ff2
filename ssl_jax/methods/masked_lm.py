"""Masked language modelling: tokens that were masked are predicted from those around them.

  loss = - sum_i w_i log p(x_i | masked row) / sum_i w_i     over the chosen tokens of the batch;
  the representation is what the encoder makes of a row, pooled.

Reference: Devlin et al., BERT, arXiv:1810.04805.
"""

from ssl_jax.losses.language import masked_tokens
from ssl_jax.models.network import language_method
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# The sums of the loss, of the weights and of gradients.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, chunk: int | None = None, vocabulary_axis: str | None = None,
          on_batch: Placement = local) -> Method:
  """Predicts `batch['targets']` [B, K] at `batch['slots']` [B, K], see `ssl_jax.views.masks`.

  Args:
    net: inputs -> (representation, hidden [B, K, E]), with a `readout`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    vocabulary_axis: of the mesh, over which the loss spreads the vocabulary, see `losses.language`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: the network has no output layer for a vocabulary.
  """
  objective = masked_tokens(on_batch, chunk=chunk, vocabulary_axis=vocabulary_axis)
  return language_method('masked_lm', net, objective, on_batch)
