"""ResNet-18 to ResNet-200 (arXiv:1512.03385); the stride sits in the 3x3 convolution ("v1.5").

  y = relu(shortcut(x) + branch(x))

Same function as torchvision's, without the classifier, given the same weights (tested). With
`sk_ratio` the selective-kernel networks of SimCLR v2, see `ssl_jax.models.selective`.

Features: 'stem' (after its max-pool), 'stage1' .. 'stage4', and every block, 'stage3_block2'.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm, BatchNormPolicy
from ssl_jax.models.selective import SelectiveKernel, pool_shortcut
from ssl_jax.types import Mode

STEMS = ('cifar', 'imagenet')
PADDINGS = ('torch', 'SAME', 'simclr')


def _pad(padding: str, kernel: int) -> Any:
  """'torch' pads both sides alike; at stride 2 'SAME' pads less, or nothing, on the first side."""
  return 'SAME' if padding == 'SAME' else [(kernel // 2, kernel // 2)] * 2


def _pad_pool(padding: str) -> Any:
  return _pad('torch' if padding == 'torch' else 'SAME', 3)


class Block(nn.Module):
  """One residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1 (4 x wider).

  With `sk_ratio` the 3x3 of the bottleneck is a selective kernel and the shortcut that of ResNet-D.
  """

  channels: int
  stride: int
  bottleneck: bool
  conv: Any
  norm: Any
  padding: str
  zero_init: bool
  sk_ratio: float = 0.

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    # (channels, kernel, stride) of each convolution in the branch.
    layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
    if self.bottleneck:
      layers = [(self.channels, 1, 1), (self.channels, 3, self.stride), (4 * self.channels, 1, 1)]
    y = x
    for i, (channels, kernel, stride) in enumerate(layers, 1):
      if self.sk_ratio and kernel == 3:
        y = SelectiveKernel(channels, stride, self.sk_ratio, self.conv, self.norm,
                            _pad(self.padding, 3), name=f'selective{i}')(y, mode)
        continue
      y = self.conv(channels, (kernel, kernel), stride, padding=_pad(self.padding, kernel),
                    name=f'conv{i}')(y)
      is_last = i == len(layers)
      scale_init = nn.initializers.zeros if is_last and self.zero_init else nn.initializers.ones
      y = self.norm(scale_init=scale_init, name=f'norm{i}')(y, mode)
      y = y if is_last else nn.relu(y)
    if x.shape != y.shape:
      stride = self.stride
      if self.sk_ratio:
        x, stride = pool_shortcut(x, stride), 1
      x = self.conv(y.shape[-1], (1, 1), stride, padding=_pad(self.padding, 1),
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
  sk_ratio: float = 0.

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    fan_out = nn.initializers.variance_scaling(2., 'fan_out', 'normal')
    conv = partial(Conv, dtype=self.dtype, kernel_init=fan_out)
    norm = partial(BatchNorm, self.batch_norm)
    x = self._stem(x, conv, norm, mode)
    self.sow('intermediates', 'stem', x)
    for stage, blocks in enumerate(self.stages):
      for block in range(blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        channels = round(64 * self.width) * 2**stage
        x = Block(channels, stride, self.bottleneck, conv, norm, self.padding, self.zero_init,
                  self.sk_ratio, name=f'stage{stage + 1}_block{block + 1}')(x, mode)
      self.sow('intermediates', f'stage{stage + 1}', x)
    return x.mean((1, 2)).astype(jnp.promote_types(x.dtype, jnp.float32))

  def _stem(self, x: jax.Array, conv: Any, norm: Any, mode: Mode) -> jax.Array:
    """One convolution, or ResNet-D's three of 3x3, then ImageNet's max-pool."""
    channels = round(64 * self.width)
    layers = [(channels, 3, 1) if self.stem == 'cifar' else (channels, 7, 2)]
    if self.sk_ratio and self.stem == 'imagenet':
      layers = [(channels // 2, 3, 2), (channels // 2, 3, 1), (channels, 3, 1)]
    for i, (channels, kernel, stride) in enumerate(layers, 1):
      suffix = '' if len(layers) == 1 else str(i)
      x = conv(channels, (kernel, kernel), stride, padding=_pad(self.padding, kernel),
               name=f'stem_conv{suffix}')(x)
      x = nn.relu(norm(name=f'stem_norm{suffix}')(x, mode))
    return x if self.stem == 'cifar' else nn.max_pool(x, (3, 3), (2, 2), _pad_pool(self.padding))


def resnet18(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
             zero_init: bool = True, batch_norm: Mapping[str, Any] | None = None,
             dtype: Any = None) -> nn.Module:
  """ResNet-18: two-layer blocks, a representation of 512 * width numbers.

  Args:
    stem: 'imagenet' (7x7 at stride 2, max-pool) or 'cifar' (3x3 at stride 1, no pooling; SimCLR
      appendix B.9).
    padding: at stride 2, 'torch' (both sides alike), 'SAME' (Haiku: BYOL) or 'simclr' (convolutions
      as torch, max-pool SAME: google-research/simclr).
    width: multiplies all channels; 1/16 makes a network for tests.
    zero_init: blocks start as the identity: gamma of their last BatchNorm is 0 (arXiv:1706.02677).
    batch_norm: keywords of `BatchNormPolicy`.
    dtype: of the computation; None is that of the images. Parameters and result are float32.

  Raises:
    ValueError: an unknown stem, padding or key in `batch_norm`, or a width without channels.
  """
  return _resnet((2, 2, 2, 2), False, stem, padding, width, zero_init, batch_norm, dtype)


def resnet34(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
             zero_init: bool = True, batch_norm: Mapping[str, Any] | None = None,
             dtype: Any = None) -> nn.Module:
  """ResNet-34: two-layer blocks, 512 * width numbers; arguments and errors as `resnet18`."""
  return _resnet((3, 4, 6, 3), False, stem, padding, width, zero_init, batch_norm, dtype)


def resnet50(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
             sk_ratio: float = 0., zero_init: bool = True,
             batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """ResNet-50: bottleneck blocks, 2048 * width numbers.

  Args:
    sk_ratio: squeeze ratio of selective kernels, with ResNet-D's stem and shortcuts; 0 is a plain
      ResNet. SimCLR v2 has 0.0625 with `padding='simclr'`.

  The other arguments and errors are those of `resnet18`; also ValueError: a negative `sk_ratio`.
  """
  return _resnet((3, 4, 6, 3), True, stem, padding, width, zero_init, batch_norm, dtype, sk_ratio)


def resnet101(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
              sk_ratio: float = 0., zero_init: bool = True,
              batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """ResNet-101: bottleneck blocks, 2048 * width numbers; arguments and errors as `resnet50`."""
  return _resnet((3, 4, 23, 3), True, stem, padding, width, zero_init, batch_norm, dtype, sk_ratio)


def resnet152(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
              sk_ratio: float = 0., zero_init: bool = True,
              batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """ResNet-152: bottleneck blocks, 2048 * width numbers; arguments and errors as `resnet50`."""
  return _resnet((3, 8, 36, 3), True, stem, padding, width, zero_init, batch_norm, dtype, sk_ratio)


def resnet200(*, stem: str = 'imagenet', padding: str = 'torch', width: float = 1,
              sk_ratio: float = 0., zero_init: bool = True,
              batch_norm: Mapping[str, Any] | None = None, dtype: Any = None) -> nn.Module:
  """ResNet-200: bottleneck blocks, 2048 * width numbers; arguments and errors as `resnet50`."""
  return _resnet((3, 24, 36, 3), True, stem, padding, width, zero_init, batch_norm, dtype, sk_ratio)


def _resnet(stages, bottleneck, stem, padding, width, zero_init, batch_norm, dtype,
            sk_ratio=0.) -> nn.Module:
  for name, value, known in (('stem', stem, STEMS), ('padding', padding, PADDINGS)):
    if value not in known:
      raise ValueError(f'resnet {name} must be one of {known}, not {value!r}')
  if round(64 * width) < (2 if sk_ratio else 1):
    raise ValueError(f'resnet width {width} leaves no channels')
  if sk_ratio < 0:
    raise ValueError(f'resnet sk_ratio must not be negative, got {sk_ratio}; 0 is a plain ResNet')
  policy = BatchNormPolicy.of(batch_norm)
  return ResNet(stages, bottleneck, stem, padding, width, zero_init, policy, dtype, sk_ratio)
