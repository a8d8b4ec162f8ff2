"""Masked language modelling and next-sentence prediction, as BERT is trained.

  loss = MLM + CE(g(first token), next)     each a mean over its own weights;
  next: does B follow A (0), or is it from elsewhere (1)? With `config.data.pairs='nsp'`. ALBERT's
  question, are A and B in their order, is `methods/sop.py`.

Reference: Devlin et al., BERT, arXiv:1810.04805.
"""

from ssl_jax.losses.language import masked_and_sentence
from ssl_jax.models.network import language_method
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# The sums of the losses, of their weights and of gradients.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, chunk: int | None = None, vocabulary_axis: str | None = None,
          on_batch: Placement = local) -> Method:
  """Predicts `batch['targets']` [B, K] at `batch['slots']` [B, K], and `batch['next']` [B].

  Args:
    net: inputs -> (representation, (hidden [B, K, E], logits [B, 2])), with a `readout`: a
      transformer with the head `masked_lm_and_sentence`.
    chunk: entries of the vocabulary at a time, see `losses.prediction`.
    vocabulary_axis: of the mesh, over which the loss spreads the vocabulary, see `losses.language`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: the network has no output layer for a vocabulary; at tracing, the data have no
      pairs.
  """
  objective = masked_and_sentence(on_batch, chunk=chunk, vocabulary_axis=vocabulary_axis)
  return language_method('masked_lm_nsp', net, objective, on_batch)
