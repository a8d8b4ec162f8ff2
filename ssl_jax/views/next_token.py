"""Causal language modelling: every token's target is the one behind it, within its document.

Radford et al. (2019), GPT-2, https://github.com/openai/gpt-2
"""

import jax.numpy as jnp

from ssl_jax.types import TEXT_INPUTS, Views


def build() -> Views:
  """Targets of batches whose 'tokens' are integers [B, L], see `ssl_jax.data.token_sources`.

  `prepare` keeps the encoder's fields and adds 'targets' int32 [B, L] (the next token) and 'weights'
  float32 [B, L] (1 where the next token is of the same document). `inputs` are the tokens.

  Raises:
    ValueError: at tracing, the batch has no tokens.
  """
  def prepare(keys, batch):
    del keys
    if 'tokens' not in batch:
      raise ValueError(f"a language model needs a field 'tokens'; the data have {sorted(batch)}")
    tokens = batch['tokens'].astype(jnp.int32)
    segments = batch['segments'] if 'segments' in batch else jnp.ones_like(tokens)
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    weights = jnp.pad(follows.astype(jnp.float32), ((0, 0), (0, 1)))
    kept = {name: batch[name] for name in (*TEXT_INPUTS[1:], 'label') if name in batch}
    return kept | dict(tokens=tokens, targets=jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))),
                       weights=weights)

  def inputs(batch):
    return {name: jnp.asarray(batch[name]) for name in TEXT_INPUTS if name in batch}

  return Views(prepare, inputs)
