"""Heads of language models: from a Transformer's tokens to what a tied output layer is multiplied with.

A head is called with (tokens [B, K, width], the first token [B, width], the backbone's Architecture,
mode). Its parameter 'bias', where it has one, is the bias of the output layer, whose matrix is the
embedding of the backbone; see `transformer.LanguageModel.readout`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.transformer import Architecture, dense, dropped, layer_norm
from ssl_jax.types import Mode


class MaskedLM(nn.Module):
  """h -> norm(gelu(W h)), as wide as the embedding; with `sentence` also logits of the first token."""

  transform: bool
  sentence: int
  bias: bool
  dtype: Any

  @nn.compact
  def __call__(self, tokens: jax.Array, first: jax.Array, a: Architecture, mode: Mode):
    if self.bias:
      self.param('bias', nn.initializers.zeros, (a.vocabulary,), jnp.float32)
    hidden = tokens
    if self.transform:
      hidden = dense(a, a.embedding or a.width, self.dtype, 'dense')(tokens)
      hidden = nn.gelu(hidden, approximate=a.activation == 'gelu_tanh')
      hidden = layer_norm(a, self.dtype, 'norm')(hidden)
    if not self.sentence:
      return hidden
    pooled = nn.tanh(dense(a, a.width, self.dtype, 'pooler')(first))
    logits = dense(a, self.sentence, self.dtype, 'sentence')(dropped(self, pooled, a.dropout, mode))
    return hidden, logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def masked_lm(*, dtype: Any = None) -> nn.Module:
  """BERT's and RoBERTa's: dense layer, GELU, LayerNorm, tied output layer with a bias.

  Args:
    dtype: of the computation; None is float32.
  """
  return MaskedLM(True, 0, True, dtype)


def masked_lm_and_sentence(*, dtype: Any = None) -> nn.Module:
  """The same, and two logits of the first token through a tanh layer (NSP, SOP)."""
  return MaskedLM(True, 2, True, dtype)


class ReplacedToken(nn.Module):
  """h -> w . gelu(W h): one logit per token."""

  dtype: Any

  @nn.compact
  def __call__(self, tokens: jax.Array, first: jax.Array, a: Architecture, mode: Mode):
    hidden = nn.gelu(dense(a, a.width, self.dtype, 'dense')(tokens),
                     approximate=a.activation == 'gelu_tanh')
    logits = dense(a, 1, self.dtype, 'logit')(hidden)[..., 0]
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def replaced_token(*, dtype: Any = None) -> nn.Module:
  """ELECTRA's discriminator: has this token been replaced?"""
  return ReplacedToken(dtype)


def tied(*, dtype: Any = None) -> nn.Module:
  """GPT-2's: nothing between the tokens and the tied output layer, no bias."""
  return MaskedLM(False, 0, False, dtype)
