"""What SimCLR v2 (arXiv:2006.10029) adds to a ResNet: selective kernels, and the ResNet-D shortcut.

  y = sum_k softmax_k(W2 relu(BN(W1 s))) x_k,   s = mean over positions of x_1 + x_2

Selective kernels: arXiv:1903.06586; shortcut and stem of three convolutions: arXiv:1812.01187.
google-research/simclr, tf2/resnet.py, computes both branches x_1, x_2 as halves of one 3x3
convolution with twice the channels, where the paper of selective kernels dilates the second.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.types import Mode

BRANCHES = 2
MIN_SQUEEZED = 32


class SelectiveKernel(nn.Module):
  """[B, H, W, C] -> [B, H / stride, W / stride, channels]; two branches, mixed per channel.

  The squeezed vector has max(channels * ratio, 32) numbers.
  """

  channels: int
  stride: int
  ratio: float
  conv: Any
  norm: Any
  padding: Any

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    x = self.conv(BRANCHES * self.channels, (3, 3), self.stride, padding=self.padding,
                  name='conv')(x)
    x = nn.relu(self.norm(name='norm')(x, mode))
    x = x.reshape(*x.shape[:-1], BRANCHES, self.channels)
    squeezed = max(int(self.channels * self.ratio), MIN_SQUEEZED)
    s = x.sum(-2).mean((1, 2), keepdims=True)
    s = self.conv(squeezed, (1, 1), 1, padding='VALID', name='squeeze_conv')(s)
    s = nn.relu(self.norm(name='squeeze_norm')(s, mode))
    s = self.conv(BRANCHES * self.channels, (1, 1), 1, padding='VALID', name='mixing_conv')(s)
    mixing = nn.softmax(s.reshape(*s.shape[:-1], BRANCHES, self.channels), -2)
    return jnp.sum(x * mixing, -2)


def pool_shortcut(x: jax.Array, stride: int) -> jax.Array:
  """2x2 mean, of [B, H, W, C], in place of the shortcut's stride: no pixel is skipped.

  At stride 1 the last row and column are means of the pixels there are; at stride 2 an odd image is
  extended by zeros. So does google-research/simclr.
  """
  return nn.avg_pool(x, (2, 2), (stride, stride), ((0, 1), (0, 1)), count_include_pad=stride > 1)
