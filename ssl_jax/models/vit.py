"""Vision transformers (arXiv:2010.11929; sizes Ti and S: arXiv:2012.12877), pre-norm.

  x = x + attention(norm(x)),   x = x + W2 gelu(W1 norm(x))

Same function as timm's `vit_*_patch16_224` and DINO's, without the classifier, given the same
weights (tested). Images of another size than `image_size` get a resampled position table.

Features: 'tokens' ([B, T, width] after the last LayerNorm, the class token first if there is one)
and every block, 'block1' .. 'block12' ([B, T, width]).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ssl_jax.models.attention import attention
from ssl_jax.models.conv import Conv
from ssl_jax.models.positions import interpolate, sincos_table
from ssl_jax.parallel import axis_index, axis_size
from ssl_jax.types import Mode

POSITIONS = ('learned', 'sincos')
POOLS = ('token', 'mean')
WEIGHT_INITS = ('normal', 'xavier')
EPSILON = 1e-6
# "Truncated normal 0.02" cuts at -2 and 2 in DeiT's and DINO's code, at 100 deviations: a normal.
NORMAL = nn.initializers.normal(.02)


class VisionTransformer(nn.Module):
  """[B, H, W, C] -> [B, width]."""

  width: int
  depth: int
  heads: int
  patch_size: int
  image_size: int
  position: str
  pool: str
  fixed_patch_projection: bool
  drop_path: float
  qkv_bias: bool
  weight_init: str
  dtype: Any

  @property
  def fixed(self) -> tuple[str, ...]:
    """Paths of parameters that no optimizer may change, see `network.fixed_parameters`."""
    return ('patch',) if self.fixed_patch_projection else ()

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    """Returns the class token, or the mean of the patches' tokens, after the last LayerNorm.

    Raises:
      ValueError: an image that patches do not tile; drop path in training without a key.
    """
    if any(side % self.patch_size for side in x.shape[1:3]):
      raise ValueError(f'vit patches of {self.patch_size} do not tile an image of '
                       f'{x.shape[1]}x{x.shape[2]}; use sides that are multiples')
    x = self._patches(x)
    x = self._with_positions(x)
    rates = np.linspace(0, self.drop_path, self.depth)
    for i, rate in enumerate(rates, 1):
      x = Block(self.heads, float(rate), self.qkv_bias, self.weight_init, self.dtype,
                name=f'block{i}')(x, mode)
    x = _layer_norm(self.dtype, 'norm')(x)
    self.sow('intermediates', 'tokens', x)
    x = x[:, 0] if self.pool == 'token' else x.mean(1)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _patches(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / patch_size, W / patch_size, width]."""
    size, fan_in = self.patch_size, self.patch_size**2 * x.shape[-1]
    # 'normal': DeiT and DINO leave torch's default, uniform in +-1 / sqrt(fan_in). 'xavier': that
    # of a dense layer; a convolution's would count a fan-out of patch_size^2 * width.
    limit = fan_in**-.5 if self.weight_init == 'normal' else (6 / (fan_in + self.width))**.5
    x = Conv(self.width, (size, size), size, padding='VALID', use_bias=True, dtype=self.dtype,
             kernel_init=_uniform(limit), name='patch')(x)
    return jax.lax.stop_gradient(x) if self.fixed_patch_projection else x

  def _with_positions(self, x: jax.Array) -> jax.Array:
    """[B, h, w, width] -> [B, T, width], positions added and the class token first."""
    side, class_tokens = self.image_size // self.patch_size, int(self.pool == 'token')
    if self.position == 'learned':
      shape = (class_tokens + side**2, self.width)
      table = self.param('position', NORMAL, shape, jnp.float32)
    else:
      table = np.pad(sincos_table(side, self.width), ((class_tokens, 0), (0, 0)))
    first, table = table[:class_tokens], table[class_tokens:]
    table = interpolate(table.reshape(side, side, -1), x.shape[1:3]).reshape(1, -1, self.width)
    x = x.reshape(len(x), -1, self.width)
    x = x + table.astype(x.dtype)
    if class_tokens:
      deviation = .02 if self.weight_init == 'normal' else 1e-6
      token = self.param('token', nn.initializers.normal(deviation), (1, self.width), jnp.float32)
      token = jnp.broadcast_to((token + first).astype(x.dtype), (len(x), 1, self.width))
      x = jnp.concatenate([token, x], 1)
    return x


class Block(nn.Module):
  """[B, T, D] -> [B, T, D]: attention among tokens, then a perceptron on each."""

  heads: int
  drop_path: float
  qkv_bias: bool
  weight_init: str
  dtype: Any

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    width = x.shape[-1]
    y = _layer_norm(self.dtype, 'norm1')(x)
    y = self._dense(3 * width, 'qkv', use_bias=self.qkv_bias)(y)
    q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in jnp.split(y, 3, axis=-1))
    y = attention(q, k, v, implementation='auto', mode=mode).reshape(x.shape)
    x = x + self._dropped(self._dense(width, 'proj')(y), mode)
    y = _layer_norm(self.dtype, 'norm2')(x)
    y = nn.gelu(self._dense(4 * width, 'fc1')(y), approximate=False)
    return x + self._dropped(self._dense(width, 'fc2')(y), mode)

  def _dense(self, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    init = NORMAL if self.weight_init == 'normal' else nn.initializers.xavier_uniform()
    if self.weight_init == 'xavier' and name == 'qkv':  # of each of the three (MoCo v3)
      init = _uniform((6 / (features / 3 + features / 3))**.5)
    return nn.Dense(features, use_bias=use_bias, dtype=self.dtype, kernel_init=init, name=name)

  def _dropped(self, y: jax.Array, mode: Mode) -> jax.Array:
    """Stochastic depth (arXiv:1603.09382): the whole branch or nothing, for each example.

    Drawn for the global batch: neither the device count nor the rows of this device matter.
    """
    if not self.drop_path or not mode.train or mode.momentum is not None:  # calibration
      return y
    if not self.has_rng('dropout'):
      raise ValueError("vit drop_path needs a key: pass key= to the network's apply")
    keep = 1 - self.drop_path
    rows = len(y) * axis_size(mode.axis_name)
    kept = jax.random.bernoulli(self.make_rng('dropout'), keep, (rows,))
    if mode.axis_name is not None:
      kept = kept[jnp.arange(len(y)) + axis_index(mode.axis_name) * len(y)]
    return jnp.where(kept[:, None, None], y / keep, jnp.zeros_like(y))


def _uniform(limit: float) -> nn.initializers.Initializer:
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


def _layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
  # use_fast_variance takes E[x^2] - E[x]^2, which loses digits where |mean| >> deviation.
  return nn.LayerNorm(EPSILON, dtype, use_fast_variance=False, name=name)


def vit_tiny(*, patch_size: int = 16, image_size: int = 224, heads: int | None = None,
             position: Literal['learned', 'sincos'] = 'learned',
             pool: Literal['token', 'mean'] = 'token', fixed_patch_projection: bool = False,
             drop_path: float = 0., qkv_bias: bool = True,
             weight_init: Literal['normal', 'xavier'] = 'normal', dtype: Any = None) -> nn.Module:
  """ViT-Ti: 12 blocks of width 192 with 3 heads; 5.5M parameters.

  Args:
    patch_size: side of the square patches.
    image_size: side of the square images for which the position table is made; others resample it.
    heads: of each attention; None is that of the size. MoCo v3 has 12 in ViT-S.
    position: 'learned', or 'sincos', fixed (MoCo v3; MAE).
    pool: 'token' (a class token) or 'mean' (of the patches' tokens, no class token).
    fixed_patch_projection: the patch projection keeps its random initial values (MoCo v3,
      arXiv:2104.02057): its gradient is zero, and `network.fixed_parameters` names it, for
      `Method.frozen`, because weight decay acts without a gradient.
    drop_path: probability of leaving out a branch in the last block, growing linearly from 0 in the
      first; needs a key in training.
    qkv_bias: biases of queries, keys and values.
    weight_init: 'normal' (deviation .02: DeiT, DINO) or 'xavier' (uniform: MoCo v3).
    dtype: of the computation; None is float32. Parameters and result are float32.

  Raises:
    ValueError: an unknown option, patches that do not tile the image, heads that do not divide the
      width, a rate outside [0, 1).
  """
  return _vit(192, 12, heads or 3, patch_size, image_size, position, pool, fixed_patch_projection,
              drop_path, qkv_bias, weight_init, dtype)


def vit_small(*, patch_size: int = 16, image_size: int = 224, heads: int | None = None,
              position: Literal['learned', 'sincos'] = 'learned',
              pool: Literal['token', 'mean'] = 'token', fixed_patch_projection: bool = False,
              drop_path: float = 0., qkv_bias: bool = True,
              weight_init: Literal['normal', 'xavier'] = 'normal', dtype: Any = None) -> nn.Module:
  """ViT-S: 12 blocks of width 384 with 6 heads; 21.7M parameters; otherwise as `vit_tiny`."""
  return _vit(384, 12, heads or 6, patch_size, image_size, position, pool, fixed_patch_projection,
              drop_path, qkv_bias, weight_init, dtype)


def vit_base(*, patch_size: int = 16, image_size: int = 224, heads: int | None = None,
             position: Literal['learned', 'sincos'] = 'learned',
             pool: Literal['token', 'mean'] = 'token', fixed_patch_projection: bool = False,
             drop_path: float = 0., qkv_bias: bool = True,
             weight_init: Literal['normal', 'xavier'] = 'normal', dtype: Any = None) -> nn.Module:
  """ViT-B: 12 blocks of width 768 with 12 heads; 85.8M parameters; otherwise as `vit_tiny`."""
  return _vit(768, 12, heads or 12, patch_size, image_size, position, pool, fixed_patch_projection,
              drop_path, qkv_bias, weight_init, dtype)


def vit_large(*, patch_size: int = 16, image_size: int = 224, heads: int | None = None,
              position: Literal['learned', 'sincos'] = 'learned',
              pool: Literal['token', 'mean'] = 'token', fixed_patch_projection: bool = False,
              drop_path: float = 0., qkv_bias: bool = True,
              weight_init: Literal['normal', 'xavier'] = 'normal', dtype: Any = None) -> nn.Module:
  """ViT-L: 24 blocks of width 1024 with 16 heads; 303.3M parameters; otherwise as `vit_tiny`."""
  return _vit(1024, 24, heads or 16, patch_size, image_size, position, pool, fixed_patch_projection,
              drop_path, qkv_bias, weight_init, dtype)


def _vit(width, depth, heads, patch_size, image_size, position, pool, fixed_patch_projection,
         drop_path, qkv_bias, weight_init, dtype) -> nn.Module:
  for name, value, known in (('position', position, POSITIONS), ('pool', pool, POOLS),
                             ('weight_init', weight_init, WEIGHT_INITS)):
    if value not in known:
      raise ValueError(f'vit {name} must be one of {known}, not {value!r}')
  if patch_size < 1 or image_size < 1 or image_size % patch_size:
    raise ValueError(f'vit patches of {patch_size} do not tile an image of {image_size}; '
                     'image_size must be a multiple of patch_size')
  if heads < 1 or width % heads:
    raise ValueError(f'{heads} heads do not divide the width {width}')
  if not 0 <= drop_path < 1:
    raise ValueError(f'vit drop_path must be in [0, 1), not {drop_path}')
  return VisionTransformer(width, depth, heads, patch_size, image_size, position, pool,
                           fixed_patch_projection, drop_path, qkv_bias, weight_init, dtype)
