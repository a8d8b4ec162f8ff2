"""Dot-product attention (arXiv:1706.03762), within documents, causal or in a window.

  y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j      over the j that i may see

A token sees those of its own segment (document), with `causal` only itself and earlier ones, with a
`window` only those at most window // 2 away.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec

from ssl_jax.models.dropout import Drop
from ssl_jax.parallel import batch_axes

IMPLEMENTATIONS = ('auto', 'plain', 'rows', 'xla', 'cudnn', 'splash')
# Below this length the plain form is as good on a TPU: at 512 tokens it takes 50 MB where splash
# takes 2, at 4096 9 GB where splash takes 0.8 (compiled for a v5e, 8 x 12 heads of 64).
SPLASH_LENGTH = 1024
# Bytes of logits, float32, that 'rows' makes at a time: they stay in a TPU's on-chip memory.
TURN = 16 << 20
# The name of what 'rows' gives, for policies of rematerialisation: it recomputes its inside anyway, so
# a block that is computed again should not do so twice.
KEPT = 'attended'


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: jax.Array | None = None,
    causal: bool = False, window: int | None = None, drop: Drop | None = None,
    implementation: str = 'plain', mesh: Mesh | None = None,
) -> jax.Array:
  """Attention of q [B, T, heads, D] to k, v [B, S, heads, D], its softmax in float32 or wider.

  Args:
    q, k, v: T = S wherever one of the following is given.
    segments: int [B, T]; tokens with unequal numbers do not see each other. Padding is a segment
      of its own, so that its rows are finite.
    causal: a token does not see later ones.
    window: it does not see those further than window // 2 away.
    drop: dropout of the weights; only the forms plain and rows know it.
    implementation: of the same function. 'plain' is the formula, in any dtype; 'rows' is the formula
      for some rows of the batch at a time, and once more in the backward pass; 'xla' and 'cudnn' are
      `jax.nn.dot_product_attention`, whose softmax is float32 also for float64; 'splash' is JAX's
      TPU kernel, whose memory does not grow with T S; 'auto' takes what the platform is best at.
    mesh: where rows are global arrays on a mesh, which 'rows' and 'splash' must be told.

  Raises:
    ValueError: an unknown implementation, or one that cannot do what is asked.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation must be one of {IMPLEMENTATIONS}, '
                     f'not {implementation!r}')
  if drop is not None and implementation not in ('auto', 'plain', 'rows'):
    raise ValueError(f'attention dropout needs the implementation plain or rows, not '
                     f'{implementation}')
  seen = dict(segments=segments, causal=causal, window=window)
  if implementation == 'auto':
    return _by_platform(q, k, v, drop, seen, mesh)
  if implementation == 'plain':
    return _plain(q, k, v, _mask(q, k, **seen), drop)
  if implementation == 'rows':
    return _rows(q, k, v, drop, mesh=mesh, **seen)
  if implementation == 'splash':
    return _splash(q, k, v, mesh=mesh, **seen)
  return jax.nn.dot_product_attention(
    q, k, v, mask=_mask(q, k, **seen), implementation=implementation)


def _by_platform(q, k, v, drop, seen, mesh):
  def plain(q, k, v):
    return _plain(q, k, v, _mask(q, k, **seen), drop)

  def cudnn(q, k, v):
    return jax.nn.dot_product_attention(q, k, v, mask=_mask(q, k, **seen), implementation='cudnn')

  def splash(q, k, v):
    return _splash(q, k, v, mesh=mesh, **seen)

  def rows(q, k, v):
    return _rows(q, k, v, drop, mesh=mesh, **seen)

  choices = {}
  # Tracing it asks for cuDNN, which is only where a GPU is: programs compiled elsewhere go without.
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  if drop is None and half and jax.default_backend() == 'gpu':
    choices['cuda'] = cudnn
  if q.shape[1] >= SPLASH_LENGTH and q.shape == k.shape:
    if drop is not None:
      choices['tpu'] = rows
    elif q.shape[1] % 128 == 0:
      choices['tpu'] = splash
  if not choices:
    return plain(q, k, v)
  return lax.platform_dependent(q, k, v, default=plain, **choices)


def _logits_of_row(q, k) -> int:
  """Bytes."""
  return 4 * q.shape[2] * q.shape[1] * k.shape[1]


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
  if not masks:
    return None
  mask = masks[0]
  for other in masks[1:]:
    mask = mask & other
  return mask


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


def _rows(q, k, v, drop, *, segments, causal, window, mesh):
  """`_plain` for a few rows at a time, in shard_map where rows are spread over a mesh, lest a loop over
  them gathers them. Nothing [T, S] is kept for the backward pass.

  For memory, not for speed: at 512 tokens with dropout it takes 41 instead of 65 GB of HBM traffic
  (3 blocks of BERT base, 64 rows, v5e), but the compiler expects 23 % more cycles, most of them for
  random numbers.
  """
  key, numbers = (None, None) if drop is None else (drop.key, drop.rows)

  def local(q, k, v, segments, numbers, key):
    @jax.checkpoint
    def turn(row):
      q, k, v, segments, number = jax.tree.map(lambda x: x[None], row)
      mask = _mask(q, k, segments, causal, window)
      return _plain(q, k, v, mask, drop and drop._replace(key=key, rows=number))[0]

    at_once = min(TURN // _logits_of_row(q, k), len(q))
    return lax.map(turn, (q, k, v, segments, numbers), batch_size=at_once if at_once > 1 else None)

  if mesh is None or mesh.size == 1:
    return checkpoint_name(local(q, k, v, segments, numbers, key), KEPT)
  spread = PartitionSpec(batch_axes(mesh))
  arguments = (q, k, v, segments, numbers, key)
  specs = [None if x is None else PartitionSpec() if x is key else spread for x in arguments]
  mapped = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=spread,
                         axis_names=set(batch_axes(mesh)), check_vma=False)
  return checkpoint_name(mapped(*arguments), KEPT)


def _splash(q, k, v, *, segments, causal, window, mesh):
  """JAX's splash attention, in shard_map where the rows are spread over a mesh: a kernel cannot be
  partitioned by the compiler."""
  def local(q, k, v, segments):
    return _splash_rows(q, k, v, segments, causal=causal, window=window)

  if mesh is None or mesh.size == 1:
    return local(q, k, v, segments)
  rows = PartitionSpec(batch_axes(mesh))
  specs = (rows, rows, rows, None if segments is None else rows)
  return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
    q, k, v, segments)


def _splash_rows(q, k, v, segments, *, causal, window):
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
