"""ResNet-18 and ResNet-50 (arXiv:1512.03385); the stride sits in the 3x3 convolution ("v1.5").

  y = relu(shortcut(x) + branch(x))

Same function as torchvision's, without the classifier, given the same weights (tested).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.types import Mode

STEMS = ('cifar', 'imagenet')
PADDINGS = ('torch', 'SAME')


def _pad(padding: str, kernel: int) -> Any:
  """'torch' pads both sides alike; at stride 2 'SAME' pads less, or nothing, on the first side."""
  return 'SAME' if padding == 'SAME' else [(kernel // 2, kernel // 2)] * 2


class Block(nn.Module):
  """One residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1 (4 x wider)."""

  channels: int
  stride: int
  bottleneck: bool
  conv: Any
  norm: Any
  padding: str
  zero_init: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    # (channels, kernel, stride) of each convolution in the branch.
    layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
    if self.bottleneck:
      layers = [(self.channels, 1, 1), (self.channels, 3, self.stride), (4 * self.channels, 1, 1)]
    y = x
    for i, (channels, kernel, stride) in enumerate(layers, 1):
      y = self.conv(channels, (kernel, kernel), stride, padding=_pad(self.padding, kernel),
                    name=f'conv{i}')(y)
      is_last = i == len(layers)
      scale_init = nn.initializers.zeros if is_last and self.zero_init else nn.initializers.ones
      y = self.norm(scale_init=scale_init, name=f'norm{i}')(y, mode)
      y = y if is_last else nn.relu(y)
    if x.shape != y.shape:
      x = self.conv(y.shape[-1], (1, 1), self.stride, padding=_pad(self.padding, 1),
                    name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x, mode)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """[B, H, W, C] -> [B, D], the mean over positions of the last stage."""

  stages: Sequence[int]
  bottleneck: bool
  stem: str
  padding: str
  width: float
  zero_init: bool
  batch_norm: BatchNormPolicy
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    fan_out = nn.initializers.variance_scaling(2., 'fan_out', 'normal')
    conv = partial(Conv, dtype=self.dtype, kernel_init=fan_out)
    norm = partial(BatchNorm, self.batch_norm)
    kernel, stride = (3, 1) if self.stem == 'cifar' else (7, 2)
    x = conv(round(64 * self.width), (kernel, kernel), stride, padding=_pad(self.padding, kernel),
             name='stem_conv')(x)
    x = nn.relu(norm(name='stem_norm')(x, mode))
    if self.stem == 'imagenet':
      x = nn.max_pool(x, (3, 3), (2, 2), _pad(self.padding, 3))
    for stage, blocks in enumerate(self.stages):
      for block in range(blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        channels = round(64 * self.width) * 2**stage
        x = Block(channels, stride, self.bottleneck, conv, norm, self.padding, self.zero_init,
                  name=f'stage{stage + 1}_block{block + 1}')(x, mode)
    return x.mean((1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))


def resnet18(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
             zero_init: bool = True, batch_norm: Mapping[str, Any] | None = None,
             dtype: Any = None) -> nn.Module:
  """ResNet-18: two-layer blocks, a representation of 512 * width numbers.

  Args:
    stem: 'imagenet' (7x7 at stride 2, max-pool) or 'cifar' (3x3 at stride 1, no pooling; SimCLR
      appendix B.9).
    padding: 'torch' (both sides alike) or 'SAME' (TensorFlow, Haiku): they differ at stride 2.
    width: multiplies all channels; 1/16 makes a network for tests.
    zero_init: blocks start as the identity: gamma of their last BatchNorm is 0 (arXiv:1706.02677).
    batch_norm: keywords of `BatchNormPolicy`.
    dtype: of the computation; None is that of the images. Parameters and result are float32.

  Raises:
    ValueError: an unknown stem, padding or key in `batch_norm`, or a width without channels.
  """
  return _resnet((2, 2, 2, 2), False, stem, padding, width, zero_init, batch_norm, dtype)


def resnet50(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
             zero_init: bool = True, batch_norm: Mapping[str, Any] | None = None,
             dtype: Any = None) -> nn.Module:
  """ResNet-50: bottleneck blocks, 2048 * width numbers; arguments and errors as `resnet18`."""
  return _resnet((3, 4, 6, 3), True, stem, padding, width, zero_init, batch_norm, dtype)


def _resnet(stages, bottleneck, stem, padding, width, zero_init, batch_norm, dtype) -> nn.Module:
  for name, value, known in (('stem', stem, STEMS), ('padding', padding, PADDINGS)):
    if value not in known:
      raise ValueError(f'resnet {name} must be one of {known}, not {value!r}')
  if round(64 * width) < 1:
    raise ValueError(f'resnet width {width} leaves no channels')
  policy = BatchNormPolicy.of(batch_norm)
  return ResNet(stages, bottleneck, stem, padding, width, zero_init, policy, dtype)
