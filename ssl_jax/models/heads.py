"""Projection heads of the papers, each with the sizes its authors published.

SimCLR's own is `ssl_jax.models.mlp.mlp`. What a head does after its last layer (normalising for a
cosine, prototypes) belongs to the method, except where the paper counts it to the head. Layers
without a BatchNorm behind them start as torch's do, uniform with variance 1 / (3 fan-in), where the
authors' code is torch; behind a BatchNorm the scale of the initial weights makes no difference.

Features: 'head/layer1', 'head/layer2' ..., each layer's output as the next layer sees it
(in DINO's head 'head/mlp/layer1' ...).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.mlp import MLP, UnitNorm
from ssl_jax.models.norm import BatchNormPolicy
from ssl_jax.types import Mode

TORCH = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class DinoHead(nn.Module):
  """[B, D] -> [B, out]: cosines with `out` prototypes, scaled by g where that is learned."""

  layers: int
  hidden: int
  bottleneck: int
  out: int
  norm_last_layer: bool
  batch_norm: BatchNormPolicy | None
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    normal = nn.initializers.normal(.02)
    x = MLP(self.layers, self.hidden, self.bottleneck, None,
            self.batch_norm or BatchNormPolicy(), self.dtype, hidden_bias=True, out_bias=True,
            hidden_norm=self.batch_norm is not None, activation='gelu', kernel_init=normal,
            name='mlp')(x, mode)
    x = UnitNorm()(x)
    directions = self.param('prototypes', TORCH, (self.bottleneck, self.out), jnp.float32)
    prototypes = UnitNorm(axis=0)(directions)
    if not self.norm_last_layer:
      prototypes *= self.param('g', nn.initializers.ones, (1, self.out), jnp.float32)
    z = jnp.matmul(*nn.dtypes.promote_dtype(x, prototypes, dtype=self.dtype))
    return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def linear(*, out: int = 128, dtype: Any = None) -> nn.Module:
  """One dense layer: MoCo v1 (arXiv:1911.05722), instance discrimination (arXiv:1805.01978).

  Args:
    out: width of the projection.
    dtype: of the computation; None is that of the input. Parameters and result are float32.

  Raises:
    ValueError: a width below 1.
  """
  return _mlp(1, None, out, None, None, dtype, out_bias=True)


def moco_v2(*, hidden: int = 2048, out: int = 128, dtype: Any = None) -> nn.Module:
  """Two layers with ReLU and without BatchNorm (arXiv:2003.04297); `hidden` is ResNet-50's width.

  Arguments and errors as `linear` and `mlp`.
  """
  return _mlp(2, hidden, out, None, None, dtype, hidden_norm=False, hidden_bias=True,
              out_bias=True)


def moco_v3(*, layers: int = 3, hidden: int = 4096, out: int = 256,
            batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """Dense layers with BatchNorm, the last BatchNorm without scale and bias (arXiv:2104.02057).

  Three layers for ViT, two for ResNet; two also in both predictors (that of ResNet is without the
  last BatchNorm: `mlp(hidden=4096, out=256, output_norm=None)`). Arguments and errors as `mlp`.
  """
  return _mlp(layers, hidden, out, 'plain', batch_norm, dtype)


def simclr_v2(*, layers: int = 3, hidden: int | None = None, out: int = 128,
              batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """SimCLR's head with a third layer (arXiv:2006.10029); fine-tuning starts at 'head/layer1'.

  Arguments and errors as `mlp`; `hidden` None is the width of the representation, as published.
  """
  return _mlp(layers, hidden, out, 'scale', batch_norm, dtype)


def byol(*, hidden: int = 4096, out: int = 256, batch_norm: Mapping[str, Any] | None = None,
         dtype: Any = None) -> nn.Module:
  """BYOL's projector, and its predictor (arXiv:2006.07733): a bias in the first layer alone.

  Arguments and errors as `mlp`.
  """
  return _mlp(2, hidden, out, None, batch_norm, dtype, hidden_bias=True,
              kernel_init=nn.initializers.lecun_normal())


def simsiam(*, layers: int = 3, hidden: int = 2048, out: int = 2048,
            batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """SimSiam's projector (arXiv:2011.10566), the last BatchNorm without scale and bias.

  Two layers for CIFAR-10. `hidden` is the width of the representation in the paper. Arguments and
  errors as `mlp`.
  """
  return _mlp(layers, hidden, out, 'plain', batch_norm, dtype)


def simsiam_predictor(*, hidden: int = 512, out: int = 2048,
                      batch_norm: Mapping[str, Any] | None = None,
                      dtype: Any = None) -> nn.Module:
  """SimSiam's predictor (arXiv:2011.10566): narrow in the middle, a bias in the last layer alone.

  Arguments and errors as `mlp`; `out` must be that of the projector.
  """
  return _mlp(2, hidden, out, None, batch_norm, dtype, out_bias=True)


def barlow(*, layers: int = 3, hidden: int = 8192, out: int = 8192,
           batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """Barlow Twins' projector (arXiv:2103.03230); the BatchNorm behind it belongs to the loss.

  Arguments and errors as `mlp`.
  """
  return _mlp(layers, hidden, out, None, batch_norm, dtype)


def swav(*, hidden: int = 2048, out: int = 128, batch_norm: Mapping[str, Any] | None = None,
         dtype: Any = None) -> nn.Module:
  """SwAV's projection (arXiv:2006.09882), of norm 1; the prototypes belong to the method.

  Arguments and errors as `mlp`.
  """
  return _mlp(2, hidden, out, 'unit', batch_norm, dtype, hidden_bias=True, out_bias=True)


def dino(*, layers: int = 3, hidden: int = 2048, bottleneck: int = 256, out: int = 65536,
         norm_last_layer: bool = True, batch_norm: Mapping[str, Any] | None = None,
         dtype: Any = None) -> nn.Module:
  """DINO's head (arXiv:2104.14294): GELU layers, a bottleneck of norm 1, weight-normalised logits.

  Args:
    layers: dense layers up to the bottleneck, counting it.
    hidden: width of the layers before the bottleneck.
    bottleneck: width of the normalised bottleneck.
    out: number of prototypes; the last layer, parameter 'prototypes', is [bottleneck, out].
    norm_last_layer: prototypes have norm 1; otherwise the norms are learned, starting at 1.
    batch_norm: keywords of `BatchNormPolicy`, for BatchNorm in the hidden layers; None is without
      (ViT), {} with the default policy.
    dtype: of the computation; None is that of the input. Parameters and result are float32.

  Raises:
    ValueError: a width or count below 1, or an unknown key in `batch_norm`.
  """
  _check_positive(layers=layers, hidden=hidden, bottleneck=bottleneck, out=out)
  policy = None if batch_norm is None else BatchNormPolicy.of(batch_norm)
  return DinoHead(layers, hidden, bottleneck, out, norm_last_layer, policy, dtype)


def _mlp(layers, hidden, out, output_norm, batch_norm, dtype, kernel_init=TORCH, **options) -> MLP:
  _check_positive(layers=layers, out=out, **({} if hidden is None else {'hidden': hidden}))
  return MLP(layers, hidden, out, output_norm, BatchNormPolicy.of(batch_norm), dtype,
             kernel_init=kernel_init, **options)


def _check_positive(**numbers: int) -> None:
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f'head {name} must be at least 1, not {number}')
