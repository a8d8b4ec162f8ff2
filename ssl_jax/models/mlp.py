"""Projection heads: the small perceptron between a representation and the objective.

SimCLR (arXiv:2002.05709): z = BN(W2 relu(BN(W1 h))), W without bias; its code (google-research/
simclr, tf2/model.py) gives the last BatchNorm a scale but no bias. SimCLR v2 (arXiv:2006.10029) has
three layers.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.types import Mode

OUTPUT_NORMS = (None, 'scale', 'plain', 'unit')
ACTIVATIONS = {'relu': nn.relu, 'gelu': partial(nn.gelu, approximate=False)}


class UnitNorm(nn.Module):
  """x / max(|x|, 1e-12) along one axis, in float32 or wider; its gradient is finite everywhere."""

  axis: int = -1

  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(x), self.axis, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class MLP(nn.Module):
  """[B, D] -> [B, out]."""

  layers: int
  hidden: int | None
  out: int
  output_norm: str | None
  batch_norm: BatchNormPolicy = BatchNormPolicy()
  dtype: Any = None
  hidden_norm: bool = True
  hidden_bias: bool = False
  out_bias: bool = False
  activation: str = 'relu'
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    dense = partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
    hidden = self.hidden or x.shape[-1]
    for layer in range(1, self.layers):
      x = dense(hidden, use_bias=self.hidden_bias)(x)
      x = BatchNorm(self.batch_norm)(x, mode) if self.hidden_norm else x
      x = ACTIVATIONS[self.activation](x)
      self.sow('intermediates', f'layer{layer}', x)
    x = dense(self.out, use_bias=self.out_bias)(x)
    if self.output_norm in ('scale', 'plain'):
      use_scale = self.output_norm == 'scale'
      x = BatchNorm(self.batch_norm, use_scale=use_scale, use_bias=False)(x, mode)
    if self.output_norm == 'unit':
      x = UnitNorm()(x)
    # Losses normalise and exponentiate: not in half precision.
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def mlp(*, layers: int = 2, hidden: int | None = None, out: int = 128,
        output_norm: str | None = 'scale', batch_norm: Mapping[str, Any] | None = None,
        dtype: Any = None) -> nn.Module:
  """A projection head; the defaults are SimCLR's.

  Args:
    layers: dense layers, counting the last.
    hidden: width of the layers before the last; None is the width of the representation.
    out: width of the projection.
    output_norm: on the projection: None, BatchNorm as 'scale' (learned scale, no bias: SimCLR) or
      'plain' (neither: MoCo v3, SimSiam), or 'unit' (each row divided by its norm: SwAV).
    batch_norm: keywords of `BatchNormPolicy`.
    dtype: of the computation; None is that of the input. Parameters and result are float32.

  Raises:
    ValueError: no layer, an unknown `output_norm`, or an unknown key in `batch_norm`.
  """
  if layers < 1:
    raise ValueError(f'mlp needs at least one layer, not {layers}')
  if output_norm not in OUTPUT_NORMS:
    raise ValueError(f'output_norm must be one of {OUTPUT_NORMS}, not {output_norm!r}')
  return MLP(layers, hidden, out, output_norm, BatchNormPolicy.of(batch_norm), dtype)
