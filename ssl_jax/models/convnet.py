"""A plain convolutional network for 28x28 and 32x32 images that trains in minutes on two CPU cores.

3x3 convolutions, each with BatchNorm and ReLU, then a mean over positions. At 28x28x1 the default
costs 3.4 MFLOP per image forwards, a ResNet-18 (CIFAR stem, 32x32) some 300 times more.

Features: 'layer1', 'layer2' ..., each layer's output.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.types import Mode


class ConvNet(nn.Module):
  """[B, H, W, C] -> [B, channels[-1]]."""

  channels: Sequence[int]
  strides: Sequence[int]
  batch_norm: BatchNormPolicy = BatchNormPolicy()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    for i, (channels, stride) in enumerate(zip(self.channels, self.strides), 1):
      x = Conv(channels, (3, 3), stride, padding=1, dtype=self.dtype,
               kernel_init=nn.initializers.he_normal())(x)
      x = nn.relu(BatchNorm(self.batch_norm)(x, mode))
      self.sow('intermediates', f'layer{i}', x)
    return x.mean((1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))


def convnet(*, channels: Sequence[int] = (32, 64, 128), strides: Sequence[int] = (2, 2, 2),
            batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """A small convolutional encoder.

  Args:
    channels: output channels of each layer; the representation has channels[-1] numbers.
    strides: stride of each layer.
    batch_norm: keywords of `BatchNormPolicy`.
    dtype: of the computation; None is that of the images. Parameters and result are float32.

  Raises:
    ValueError: `channels` and `strides` differ in length, or an unknown key in `batch_norm`.
  """
  if len(channels) != len(strides):
    raise ValueError(f'convnet has {len(channels)} channels but {len(strides)} strides; '
                     'give one stride per layer')
  return ConvNet(tuple(channels), tuple(strides), BatchNormPolicy.of(batch_norm), dtype)
