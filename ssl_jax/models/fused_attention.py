"""Attention whose weights stay in a TPU's on-chip memory, with dropout: two Pallas kernels.

The formula is that of `attention`, and so are the draws of `Drop`. JAX's splash attention knows no
dropout, and its blocks are made for long rows; here one program takes whole rows of keys, so that a
softmax is one softmax. The backward pass makes the weights again from q, k and v: nothing [T, T] is
ever in HBM.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ssl_jax.models.dropout import QUARTERS, Drop, kept

LANES = 128
# A chunk of 128 rows keeps the matrix unit busy; this many weights of one head are in work at once. A
# program takes more heads while an operand's block has no more than PREFERRED bytes. With MOST, all
# copies still fit the 16 MiB that a kernel may use.
ROWS, WEIGHTS, PREFERRED, MOST = 128, 1 << 16, 160 << 10, 512 << 10
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Shape(NamedTuple):
  """What a kernel is compiled for.

  batch, length, heads, depth: of q, k and v, [batch, length, heads, depth].
  together: heads of one program.
  chunk: rows of q that meet all keys at once.
  """

  batch: int
  length: int
  heads: int
  depth: int
  together: int
  chunk: int
  causal: bool
  window: int | None
  rate: float | None
  segmented: bool


def fits(q: jax.Array, drop: bool) -> bool:
  """Whether the kernels take q, k and v like this one: the lengths that `fused_attention` names, in
  blocks that are small enough."""
  _, length, heads, depth = q.shape
  block = length * _together(length, heads, depth) * depth * q.dtype.itemsize
  return _chunk(length, drop) > 0 and block <= MOST


def fused_attention(q, k, v, *, segments=None, causal=False, window=None, drop: Drop | None = None):
  """See `attention`: q, k, v [B, T, heads, D], on one device.

  Raises:
    ValueError: rows of a length that the kernels do not take, or too many columns for on-chip memory.
  """
  batch, length, heads, depth = q.shape
  if q.shape != k.shape or not fits(q, drop is not None):
    raise ValueError('fused attention needs as many keys as queries, at most 256 or a multiple of '
                     f'16, with dropout a multiple of 64, and blocks of {MOST >> 10} KiB at most; not '
                     f'{length} queries and {k.shape[1]} keys of {heads} heads of {depth}')
  shape = Shape(batch, length, heads, depth, _together(length, heads, depth),
                _chunk(length, drop is not None), causal, window, drop and drop.rate,
                segments is not None)
  keys = jnp.zeros((batch, 2), jnp.uint32) if drop is None else drop.words()
  if segments is None:
    segments = jnp.zeros((batch, length), jnp.int32)
  flat = (x.reshape(batch, length, heads * depth) for x in (q, k, v))
  return _attend(shape, keys, segments[:, None], *flat).reshape(q.shape)


def _chunk(length: int, drop: bool) -> int:
  """Rows of q at a time: a part of those that share draws; 0 if there is no such number."""
  parts = QUARTERS if drop else 1
  share, most = length // parts, min(ROWS, WEIGHTS // length)
  if not drop and length <= 2 * ROWS:
    return length
  whole = [rows for rows in (16, 32, 64, 128) if rows <= most and share % rows == 0]
  return max(whole, default=0) if length % parts == 0 else 0


def _together(length: int, heads: int, depth: int) -> int:
  """The most heads whose columns are whole lanes and whose blocks are small enough."""
  whole = [n for n in range(1, heads + 1) if heads % n == 0 and (n * depth % LANES == 0 or n == heads)]
  small = [n for n in whole if 2 * length * n * depth <= PREFERRED]
  return max(small, default=min(whole))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape, keys, segments, q, k, v):
  return _call(shape, _forward, 1, 2, keys, segments, q, k, v)[0]


def _attend_and_keep(shape, keys, segments, q, k, v):
  return _attend(shape, keys, segments, q, k, v), (keys, segments, q, k, v)


def _attend_backward(shape, kept, g):
  keys, segments, q, k, v = kept
  return None, None, *_call(shape, _backward, 3, 5, keys, segments, q, k, v, g)


_attend.defvjp(_attend_and_keep, _attend_backward)


def _call(shape: Shape, kernel, results: int, products: int, keys, segments, *operands):
  """Runs `kernel` for every row and every `together` heads."""
  columns = shape.together * shape.depth
  block = pl.BlockSpec((1, shape.length, columns), lambda b, h: (b, 0, h))
  row = pl.BlockSpec((1, 1, shape.length), lambda b, h: (b, 0, 0))
  size = shape.batch * shape.heads * shape.length
  return pl.pallas_call(
    partial(kernel, shape), grid=(shape.batch, shape.heads // shape.together),
    in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), row] + [block] * len(operands),
    out_specs=[block] * results,
    scratch_shapes=[pltpu.VMEM((shape.length, 8), jnp.int32)],
    out_shape=[jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)] * results,
    cost_estimate=pl.CostEstimate(
      flops=2 * products * size * shape.length * shape.depth, transcendentals=size * shape.length,
      bytes_accessed=(len(operands) + results) * size * shape.depth * operands[0].dtype.itemsize),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'parallel')),
    name=f'fused_attention{kernel.__name__}',
  )(keys, segments, *operands)


# --- in the kernels -------------------------------------------------------------------------------


def _forward(shape: Shape, keys, segments, q, k, v, y, column):
  _turn(segments, column)
  key, first = _place(shape, keys)
  for head in range(shape.together):
    here = slice(head * shape.depth, (head + 1) * shape.depth)

    def chunk(rows, drop, none, here=here):
      weights = _weights(q[0, rows, here], k[0, :, here], _mask(shape, rows, segments, column))
      if drop is not None:
        weights = weights * drop
      y[0, rows, here] = _product(weights.astype(v.dtype), v[0, :, here], 1, 0).astype(y.dtype)
      return none

    _over_chunks(shape, key, first + head, chunk, ())


def _backward(shape: Shape, keys, segments, q, k, v, g, dq, dk, dv, column):
  _turn(segments, column)
  key, first = _place(shape, keys)
  for head in range(shape.together):
    here = slice(head * shape.depth, (head + 1) * shape.depth)

    def chunk(rows, drop, sums, here=here):
      to_k, to_v = sums
      weights = _weights(q[0, rows, here], k[0, :, here], _mask(shape, rows, segments, column))
      to_weights = _product(g[0, rows, here], v[0, :, here], 1, 1)
      dropped = weights
      if drop is not None:
        dropped, to_weights = weights * drop, to_weights * drop
      to_v += _product(dropped.astype(g.dtype), g[0, rows, here], 0, 0)
      mean = jnp.sum(weights * to_weights, axis=1, keepdims=True)
      to_logits = (weights * (to_weights - mean) * shape.depth**-.5).astype(q.dtype)
      dq[0, rows, here] = _product(to_logits, k[0, :, here], 1, 0).astype(dq.dtype)
      return to_k + _product(to_logits, q[0, rows, here], 0, 0), to_v

    zero = jnp.zeros((shape.length, shape.depth), jnp.float32)
    to_k, to_v = _over_chunks(shape, key, first + head, chunk, (zero, zero))
    dk[0, :, here] = to_k.astype(dk.dtype)
    dv[0, :, here] = to_v.astype(dv.dtype)


def _product(a, b, axis_a: int, axis_b: int):
  """Of matrices, over one axis of each, float32."""
  return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())),
                         preferred_element_type=jnp.float32)


def _weights(q, k, mask):
  """float32 [chunk, T] of q [chunk, D] and k [T, D]."""
  logits = _product(q, k, 1, 1) * q.shape[-1]**-.5
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return weights / jnp.sum(weights, axis=1, keepdims=True)


def _over_chunks(shape: Shape, key, head, chunk, carry):
  """carry = chunk(rows of q, factors of dropout [chunk, T] or None, carry), for all rows."""
  parts = 1 if shape.rate is None else QUARTERS
  share = shape.length // parts

  def turn(first, carry):
    factors = [None] if shape.rate is None else _factors(shape, key, head, first)
    for number, drop in enumerate(factors):
      start = number * share + first
      carry = chunk(pl.ds(start, shape.chunk), drop, carry)
    return carry

  if share == shape.chunk:
    return turn(0, carry)
  first = lambda i: pl.multiple_of(i * shape.chunk, shape.chunk)
  return lax.fori_loop(0, share // shape.chunk, lambda i, carry: turn(first(i), carry), carry)


def _factors(shape: Shape, key, head, first):
  """Those of the chunks that begin `first` rows into each quarter: see `Drop.factors`."""
  row, column = (lax.broadcasted_iota(jnp.int32, (shape.chunk, shape.length), axis) for axis in (0, 1))
  place = (head * (shape.length // QUARTERS) + first + row) * shape.length + column
  return kept(_threefry(*key, place.astype(jnp.uint32)), shape.rate)


def _threefry(key0, key1, x):
  """Both words of threefry2x32's block (x, 0), as JAX's primitive gives them, which no kernel takes."""
  keys = (key0, key1, key0 ^ key1 ^ jnp.uint32(0x1BD11BDA))
  a, b = x + key0, jnp.zeros_like(x) + key1
  for group in range(5):
    for turn in ROTATIONS[group % 2]:
      a = a + b
      b = a ^ (b << turn | b >> 32 - turn)
    a, b = a + keys[(group + 1) % 3], b + keys[(group + 2) % 3] + jnp.uint32(group + 1)
  return a, b


def _place(shape: Shape, keys):
  """The key of this program's row, and its first head."""
  row = pl.program_id(0)
  return (keys[row, 0], keys[row, 1]), pl.program_id(1) * shape.together


def _turn(segments, column):
  """Writes the row of segments [1, 1, T] as columns [T, 8]."""
  column[...] = jnp.broadcast_to(segments[0], column.shape[::-1]).T


def _mask(shape: Shape, rows, segments, column):
  """bool [chunk, T] for rows of q, or None where every token sees every other."""
  i, j = (lax.broadcasted_iota(jnp.int32, (shape.chunk, shape.length), axis) for axis in (0, 1))
  i, masks = i + rows.start, []
  if shape.segmented:
    masks.append(column[rows, :1] == segments[0])
  if shape.causal:
    masks.append(j <= i)
  if shape.window is not None:
    masks.append(abs(i - j) <= shape.window // 2)
  return reduce(jnp.logical_and, masks) if masks else None
