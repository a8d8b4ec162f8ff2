"""Dot-product attention (arXiv:1706.03762), within documents, causal or in a window.

  y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j      over the j that i may see

A token sees those of its own segment (document), with `causal` only itself and earlier ones, with a
`window` only those at most window // 2 away.
"""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from ssl_jax.models.dropout import Drop
from ssl_jax.models.fused_attention import fits, fused_attention
from ssl_jax.parallel import batch_axes, varying
from ssl_jax.types import Mode

IMPLEMENTATIONS = ('auto', 'plain', 'xla', 'cudnn', 'splash', 'fused')
ALONE = Mode()  # rows of one device, or spread in a way that nothing tells
DROPPING = ('auto', 'plain', 'fused')
# From this length splash, which takes keys in blocks, is made for the rows; below, our kernel.
SPLASH_LENGTH = 1024
# TPUs whose matrix units take no bfloat16 from a kernel.
OLD = ('TPU v2', 'TPU v3')
# The name of what a kernel gives, for policies of rematerialisation: its backward pass computes the
# weights again anyway, so a block that is computed again should not do so twice.
KEPT = 'attended'


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array | None = None,
    causal: bool = False, window: int | None = None, drop: Drop | None = None,
    implementation: str = 'plain', mode: Mode = ALONE,
) -> jax.Array:
  """Attention of q [B, T, heads, D] to k, v [B, S, heads, D], its softmax in float32 or wider.

  Args:
    q, k, v: T = S wherever one of the following is given.
    segments: int [B, T]; tokens with unequal numbers do not see each other. Padding is a segment
      of its own, so that its rows are finite.
    causal: a token does not see later ones.
    window: it does not see those further than window // 2 away.
    drop: dropout of the weights; only the forms plain and fused know it.
    implementation: of the same function. 'plain' is the formula, in any dtype; 'fused' is a TPU kernel
      of ours that takes whole rows of keys; 'splash' is JAX's TPU kernel, whose memory does not grow
      with T S; 'xla' and 'cudnn' are `jax.nn.dot_product_attention`, whose softmax is float32 also for
      float64; 'auto' takes what the platform is best at.
    mode: tells how rows lie: spread over its mesh, or those of this device (`axis_name`). The
      compiler cannot partition a TPU's kernels, so without either 'auto' takes none, and one that is
      asked for must be on one device.

  Raises:
    ValueError: an unknown implementation, or one that cannot do what is asked.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation must be one of {IMPLEMENTATIONS}, '
                     f'not {implementation!r}')
  if drop is not None and implementation not in DROPPING:
    raise ValueError(f'attention dropout needs the implementation plain or fused, not '
                     f'{implementation}')
  if implementation == 'auto':
    implementation = _best(q, k, drop is not None, mode)
  seen = dict(segments=segments, causal=causal, window=window)
  if implementation == 'plain':
    return _plain(q, k, v, _mask(q, k, **seen), drop)
  if implementation == 'splash':
    return _on_each_device(partial(_splash, causal=causal, window=window), mode.mesh,
                           q, k, v, segments, None)
  if implementation == 'fused':
    return _on_each_device(partial(fused_attention, causal=causal, window=window), mode.mesh,
                           q, k, v, segments, drop)
  return jax.nn.dot_product_attention(
    q, k, v, mask=_mask(q, k, **seen), implementation=implementation)


def _best(q, k, drops: bool, mode: Mode) -> str:
  """The implementation that 'auto' is here."""
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # Tracing cuDNN's asks for it, which is only where a GPU is: programs compiled elsewhere go without.
  if not drops and half and jax.default_backend() == 'gpu':
    return 'cudnn'
  placed = mode.mesh is not None or mode.axis_name is not None
  if not placed or q.shape != k.shape or q.dtype not in (jnp.bfloat16, jnp.float32):
    return 'plain'
  device = jax.devices()[0] if mode.mesh is None else mode.mesh.devices.flat[0]
  if device.platform != 'tpu' or device.device_kind in OLD:
    return 'plain'
  if varying(q):  # kernels do not say what varies
    return 'plain'
  length = q.shape[1]
  if not drops and length >= SPLASH_LENGTH and length % 128 == 0:
    return 'splash'
  return 'fused' if fits(q, drops) else 'plain'


def _mask(q, k, segments, causal, window) -> jax.Array | None:
  """bool [B or 1, 1, T, S], or None where every token sees every other."""
  i, j = jnp.arange(q.shape[1])[:, None], jnp.arange(k.shape[1])[None, :]
  masks = []
  if segments is not None:
    masks.append(segments[:, None, :, None] == segments[:, None, None, :])
  if causal:
    masks.append((j <= i)[None, None])
  if window is not None:
    masks.append((abs(i - j) <= window // 2)[None, None])
  return reduce(jnp.logical_and, masks) if masks else None


def _plain(q, k, v, mask, drop):
  wide = jnp.promote_types(q.dtype, jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=wide)
  logits = logits * q.shape[-1]**-.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(wide).min)
  weights = jax.nn.softmax(logits)
  if drop is not None:
    weights = weights * drop.factors(weights.shape[1:])
  return jnp.einsum('bhqk,bkhd->bqhd', weights.astype(v.dtype), v)


def _on_each_device(kernel, mesh: Mesh | None, q, k, v, segments, drop):
  """`kernel` of rows that may be spread over a mesh: the compiler cannot partition it by itself."""
  key, rate, numbers = drop or (None, None, None)

  def local(q, k, v, segments, key, numbers):
    drop = None if key is None else Drop(key, rate, numbers)
    return kernel(q, k, v, segments=segments, drop=drop)

  arguments = (q, k, v, segments, key, numbers)
  if mesh is not None and mesh.size > 1:
    rows = PartitionSpec(batch_axes(mesh))
    specs = tuple(None if x is None else PartitionSpec() if x is key else rows for x in arguments)
    local = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
  return checkpoint_name(local(*arguments), KEPT)


def _splash(q, k, v, *, segments, drop, causal, window):
  """JAX's splash attention, which knows no dropout."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash
  length, heads = q.shape[1], q.shape[2]
  if length % 128:
    raise ValueError(f'splash attention needs a length that is a multiple of 128, not {length}')
  shape, mask = (length, length), splash.FullMask((length, length))
  if causal:
    mask = splash.CausalMask(shape)
  if window is not None:
    local = splash.LocalMask(shape, (window // 2, window // 2), offset=0)
    mask = local & mask if causal else local
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * heads), block_sizes=_blocks(splash, length))

  def one(q, k, v, segments):
    ids = None if segments is None else splash.SegmentIds(segments, segments)
    turned = (jnp.swapaxes(x, 0, 1) for x in (q * q.shape[-1]**-.5, k, v))
    return jnp.swapaxes(kernel(*turned, segment_ids=ids), 0, 1)

  return jax.vmap(one, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)


def _blocks(splash: Any, length: int):
  size = next(size for size in (512, 384, 256, 128) if length % size == 0)
  return splash.BlockSizes(
    block_q=size, block_kv=size, block_kv_compute=size, block_q_dkv=size, block_kv_dkv=size,
    block_kv_dkv_compute=size, block_q_dq=size, block_kv_dq=size)
