"""Sums over all pairs of a row and a column that are spread over devices, without all pairs at once.

  log-sum-exp of row i:   l_i = log sum_j exp(a_i . b_j)                      and of every column
  its gradient:           da_i = sum_j (g_i p_ij + h_j q_ij) b_j,   p_ij = exp(a_i . b_j - l_i)

Columns are walked in blocks: forward keeps a running maximum and sum (online softmax,
arXiv:1805.02867), backward computes each block's logits again. Memory holds rows x block numbers.
How a device's rows meet the columns of the others is an implementation:

  gather, chunked: every device gathers all columns (gather keeps all its logits, and has no block)
  ring:    columns go around from device to device, one block in flight while the one before is used
  grid:    devices are a table of two mesh axes; each gathers the rows of its line of the table and the
           columns of its column, and computes that rectangle of the pairs

What is gathered along an axis comes back summed along it. Where rows and columns are one set, the
logits are symmetric: the gradient of a row then needs the log-sum-exp of the columns, a vector, and
nothing has to come back (no gradient collective in `chunked` and `ring`).

Scales belong into the embeddings (`a` times the scale, or both times its root), so that their gradient
is nobody's business here. Inputs of 16 bits are multiplied as they are and summed in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.tree_util import Partial

from ssl_jax.parallel import all_gather, as_varying, axis_index, axis_size
from ssl_jax.types import AxisName, PyTree

IMPLEMENTATIONS = ('gather', 'chunked', 'ring', 'grid')
# Logits of a block: 4 MiB in float32, which caches of CPUs and the VMEM of TPUs have room for.
BLOCK_LOGITS = 1 << 20
# Up to so many bytes of columns are gathered rather than sent around.
GATHERED_BYTES = 1 << 26


class Spread(NamedTuple):
  """How rows and columns meet.

  axis_name: over which both are spread.
  rows, columns: the part of it over which either is gathered.
  ring: that around which columns go.
  block: columns at a time; 0 keeps all logits.
  """

  axis_name: AxisName
  rows: AxisName
  columns: AxisName
  ring: AxisName
  block: int


def spread(
    implementation: str | None, block: int | None, rows: jax.Array, columns: jax.Array,
    axis_name: AxisName,
) -> Spread:
  """The named implementation for rows [n, D] and columns [m, D] of each device.

  None takes `chunked` up to `GATHERED_BYTES` of gathered columns, then `ring`. `block` None is what
  gives `BLOCK_LOGITS`, a multiple of 128 (64 where there are very many rows). Sizes are those of a
  device and the whole, never of the hardware.

  Raises:
    ValueError: an unknown name, a block below 1, a grid without exactly two axes.
  """
  if implementation is None:
    gathered = columns.size * columns.dtype.itemsize * axis_size(axis_name)
    implementation = 'chunked' if gathered <= GATHERED_BYTES else 'ring'
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(f'implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}')
  if block is not None and block < 1:
    raise ValueError(f'block must be at least 1, got {block}')
  if implementation == 'gather':
    return Spread(axis_name, None, axis_name, None, 0)
  if implementation == 'chunked':
    return Spread(axis_name, None, axis_name, None, block or _block(len(rows)))
  if implementation == 'ring':
    return Spread(axis_name, None, None, axis_name, block or _block(len(rows)))
  if not isinstance(axis_name, tuple) or len(axis_name) != 2:
    raise ValueError("implementation='grid' needs rows spread over two mesh axes, such as "
                     f"('data', 'fsdp'); they are spread over {axis_name!r}")
  line, column = axis_name
  return Spread(axis_name, column, line, None,
                block or _block(len(rows) * axis_size(column)))


def _block(rows: int) -> int:
  fits = BLOCK_LOGITS // rows
  return 64 if fits < 128 else fits // 128 * 128


# --- log-sum-exp of rows and columns --------------------------------------------------------------


def pair_lse(a: jax.Array, b: jax.Array, where: Spread) -> tuple[jax.Array, jax.Array]:
  """The log-sum-exp of every row's and of every column's logits a_i . b_j.

  Args:
    a: [n, D], rows of this device. b: [m, D], columns of this device.
    where: from `spread`.

  Returns:
    ([n], [m]) in float32 or wider, over the columns and rows of all devices. One product of rows and
    columns serves both, forwards and (with the two of the gradient) backwards.
  """
  if not where.block:
    return _kept_lse(a, b, where), _kept_lse(b, a, where)
  return _pair_lse(where, BOTH, a, b)


def row_lse(a: jax.Array, b: jax.Array, where: Spread, *, fixed: bool = False) -> jax.Array:
  """The first of `pair_lse`, [n]; `fixed` columns, such as a queue, get no gradient."""
  if where.block:
    return _pair_lse(where, FIXED if fixed else ROWS, a, b)[0]
  return _kept_lse(a, lax.stop_gradient(b) if fixed else b, where)


# What is asked for: log-sum-exp of rows and columns, of rows alone, of rows when columns are fixed.
BOTH, ROWS, FIXED = 'both', 'rows', 'fixed'


def _kept_lse(a, b, where):
  return jax.nn.logsumexp(dot(a, all_gather(b, where.columns)), axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pair_lse(where, what, a, b):
  return _pair_lse_forward(where, what, a, b)[0]


def _pair_lse_forward(where, what, a, b):
  both = what == BOTH

  def visit(rows, columns, found, left):
    logits = _masked(dot(rows['x'], columns['x']), columns)
    return _online(found, logits, 1), _online(left, logits, 0) if both else left

  rows, columns = _sides(where, {'x': a}, {'x': b})
  left = _nothing(columns) if both else ()
  found, left = _sweep(visit, rows, columns, _nothing(rows), left, where)
  lse = _joined_lse(found, where.rows), _joined_lse(left, where.columns) if both else ()
  saved = a, b, *lse
  return lse, (saved, _traced(partial(_pair_lse_gradient, where, what), saved, lse))


def _pair_lse_gradient(where, what, saved, cotangents):
  (a, b, row, column), both = saved, what == BOTH

  def visit(rows, columns, d_rows, d_columns):
    logits = _masked(dot(rows['x'], columns['x']), columns)
    d_logits = rows['g'][:, None] * jnp.exp(logits - rows['lse'][:, None])
    if both:
      d_logits += columns['g'][None] * jnp.exp(logits - columns['lse'][None])
    d_rows += product('nm,md->nd', d_logits, columns['x'])
    if what == FIXED:
      return d_rows, d_columns
    return d_rows, d_columns + product('nm,nd->md', d_logits, rows['x'])

  of_columns = {'lse': column, 'g': cotangents[1]} if both else {}
  rows, columns = _sides(where, {'x': a, 'lse': row, 'g': cotangents[0]}, {'x': b} | of_columns)
  left = () if what == FIXED else _zeros(columns)
  d_rows, d_columns = _sweep(visit, rows, columns, _zeros(rows), left, where)
  d_rows = _home(d_rows, where.rows).astype(a.dtype)
  if what == FIXED:
    return d_rows, jnp.zeros_like(b)
  return d_rows, _home(d_columns, where.columns).astype(b.dtype)


_pair_lse.defvjp(_pair_lse_forward, lambda where, what, *given: _backward(*given))


# --- one symmetric set ----------------------------------------------------------------------------


def self_lse(z: jax.Array, where: Spread) -> jax.Array:
  """The log-sum-exp over j != i of z_i . z_j, [n], over the rows of all devices. z: [n, D]."""
  return _self_sums(where, z, None)[0]


def self_sums(z: jax.Array, labels: jax.Array, where: Spread
              ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`self_lse`, the sum of z_i . z_j over the other j of the same label, and their number.

  Args:
    z: [n, D], rows of this device. labels: integers [n].
    where: from `spread`.

  Returns:
    ([n], [n], [n]) in float32 or wider; the last carries no gradient.
  """
  return _self_sums(where, z, labels)


def _self_sums(where, z, labels):
  if where.block:
    return _blocked_self_sums(where, z, labels)
  rows, columns = _sides(where, *[_labelled({'x': z}, labels, where)] * 2)
  logits = dot(rows['x'], columns['x'])
  itself, same = _relations(rows, columns)
  lse = jax.nn.logsumexp(jnp.where(itself, -jnp.inf, logits), axis=1)
  if labels is None:
    return lse, None, None
  return lse, jnp.sum(jnp.where(same, logits, 0), axis=1), jnp.sum(same, axis=1, dtype=lse.dtype)


def _labelled(side, labels, where):
  """With the number of each row among all, from 1 on (0 is padding), and the label if there is one."""
  rows = len(side['x'])
  number = 1 + jnp.arange(rows, dtype=jnp.int32) + axis_index(where.axis_name) * rows
  return side | {'number': number} | ({} if labels is None else {'label': labels})


def _relations(rows, columns):
  """[n, m] each: which column is the row itself; which is another of the same label, or None."""
  itself = rows['number'][:, None] == columns['number'][None]
  if 'label' not in rows:
    return itself, None
  same = (rows['label'][:, None] == columns['label'][None]) & ~itself & (columns['number'] > 0)[None]
  return itself, same


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blocked_self_sums(where, z, labels):
  return _self_forward(where, z, labels)[0]


def _self_forward(where, z, labels):
  def visit(rows, columns, found, left):
    logits = _masked(dot(rows['x'], columns['x']), columns)
    itself, same = _relations(rows, columns)
    lse, *positives = found
    lse = _online(lse, jnp.where(itself, -jnp.inf, logits), 1)
    if same is not None:
      positives = (positives[0] + jnp.sum(jnp.where(same, logits, 0), axis=1),
                   positives[1] + jnp.sum(same, axis=1, dtype=logits.dtype))
    return (lse, *positives), left

  rows, columns = _sides(where, *[_labelled({'x': z}, labels, where)] * 2)
  nothing = _nothing(rows)
  start = (nothing,) if labels is None else (nothing, jnp.zeros_like(nothing[1]),
                                             jnp.zeros_like(nothing[1]))
  (lse, *positives), _ = _sweep(visit, rows, columns, start, (), where)
  lse = _joined_lse(lse, where.rows)
  sums = [_home(x, where.rows) for x in positives] or [None, None]
  saved, found = (z, labels, lse), (lse, *sums)
  return found, (saved, _traced(partial(_self_gradient, where), saved, found))


def _self_gradient(where, saved, cotangents):
  z, labels, lse = saved
  g, h, _ = cotangents

  def visit(rows, columns, d_rows, left):
    logits = _masked(dot(rows['x'], columns['x']), columns)
    itself, same = _relations(rows, columns)
    d_logits = (rows['g'][:, None] * jnp.exp(logits - rows['lse'][:, None])
                + columns['g'][None] * jnp.exp(logits - columns['lse'][None]))
    d_logits = jnp.where(itself, 0, d_logits)
    if same is not None:
      d_logits += jnp.where(same, rows['h'][:, None] + columns['h'][None], 0)
    return d_rows + product('nm,md->nd', d_logits, columns['x']), left

  side = _labelled({'x': z, 'lse': lse, 'g': g}, labels, where)
  side |= {} if labels is None else {'h': h}
  rows, columns = _sides(where, side, side)
  d_rows, _ = _sweep(visit, rows, columns, _zeros(rows), (), where)
  return _home(d_rows, where.rows).astype(z.dtype), None


_blocked_self_sums.defvjp(_self_forward, lambda where, *given: _backward(*given))


# --- sigmoid of every pair ------------------------------------------------------------------------


def sigmoid_sums(a: jax.Array, b: jax.Array, bias: jax.Array, where: Spread) -> jax.Array:
  """sum_j log(1 + exp(-y_ij (a_i . b_j + bias))), y_ij = 1 for the same row of both and -1 else.

  Args:
    a, b: [n, D], rows of this device. bias: a scalar, the same everywhere.
    where: from `spread`.

  Returns:
    [n] in float32 or wider, over the rows of b of all devices.
  """
  bias = as_varying(bias, where.axis_name)
  if where.block:
    return _sigmoid_sums(where, a, b, bias)
  rows, columns = _sides(where, *(_labelled({'x': x}, None, where) for x in (a, b)))
  return jnp.sum(jax.nn.softplus(-_signed(rows, columns, bias)[0]), axis=1)


def _signed(rows, columns, bias):
  """(y times the logits, y), [n, m] each."""
  logits = _masked(dot(rows['x'], columns['x']) + bias, columns)
  sign = jnp.where(_relations(rows, columns)[0], 1., -1.).astype(logits.dtype)
  return sign * logits, sign


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid_sums(where, a, b, bias):
  return _sigmoid_forward(where, a, b, bias)[0]


def _sigmoid_forward(where, a, b, bias):
  def visit(rows, columns, total, left):
    return total + jnp.sum(jax.nn.softplus(-_signed(rows, columns, bias)[0]), axis=1), left

  rows, columns = _sides(where, *(_labelled({'x': x}, None, where) for x in (a, b)))
  total, _ = _sweep(visit, rows, columns, jnp.zeros_like(_nothing(rows)[1]), (), where)
  saved, total = (a, b, bias), _home(total, where.rows)
  return total, (saved, _traced(partial(_sigmoid_gradient, where), saved, total))


def _sigmoid_gradient(where, saved, g):
  a, b, bias = saved

  def visit(rows, columns, found, d_columns):
    d_rows, d_bias = found
    signed, sign = _signed(rows, columns, bias)
    d_logits = -rows['g'][:, None] * sign * jax.nn.sigmoid(-signed)
    return ((d_rows + product('nm,md->nd', d_logits, columns['x']), d_bias + jnp.sum(d_logits)),
            d_columns + product('nm,nd->md', d_logits, rows['x']))

  rows, columns = _sides(where, _labelled({'x': a, 'g': g}, None, where),
                         _labelled({'x': b}, None, where))
  start = _zeros(rows), jnp.zeros_like(g[0])
  (d_rows, d_bias), d_columns = _sweep(visit, rows, columns, start, _zeros(columns), where)
  return (_home(d_rows, where.rows).astype(a.dtype),
          _home(d_columns, where.columns).astype(b.dtype), d_bias.astype(bias.dtype))


_sigmoid_sums.defvjp(_sigmoid_forward, lambda where, *given: _backward(*given))


# --- pieces ---------------------------------------------------------------------------------------


def _traced(gradient: Callable, saved: PyTree, result: PyTree) -> Partial:
  """`gradient(saved, cotangents)` as a function without names of axes to look up.

  `grad` of `vmap(axis_name=...)` runs backward rules when the axis is not bound any more (jax 0.10); so
  they are traced with the forward rule, where it is.
  """
  closed, shape = jax.make_jaxpr(gradient, return_shape=True)(saved, result)
  tree = jax.tree.structure(shape)

  def run(*leaves):
    return jax.tree.unflatten(tree, jaxpr_as_fun(closed)(*leaves))

  return Partial(run)


def _backward(residuals, cotangents):
  saved, gradient = residuals
  return gradient(*jax.tree.leaves((saved, cotangents)))


def wide(x: jax.Array) -> jnp.dtype:
  """The dtype in which products of x are summed: float32, or x's own if wider."""
  return x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.dtype(jnp.float32)


def positive(name: str, value: float | jax.Array) -> float | jax.Array:
  """`value`, a temperature or scale. What an array holds is not looked at: it may be traced.

  Raises:
    ValueError: a number that is not above 0, or whose inverse is none in float32.
  """
  if not isinstance(value, jax.Array):
    tiny = float(jnp.finfo(jnp.float32).tiny)
    if not tiny <= value <= 1 / tiny:
      raise ValueError(f'{name} must be a number above 0 that float32 can divide by, got {value!r}')
  return value


def product(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """einsum with b's precision, summed in float32 or wider. HIGHEST: accelerators round float32
  operands by default; 16 bits have nothing to lose."""
  precision = lax.Precision.HIGHEST if jnp.finfo(b.dtype).bits >= 32 else None
  return jnp.einsum(subscripts, a.astype(b.dtype), b, precision=precision,
                    preferred_element_type=wide(b))


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """[n, D], [m, D] -> logits [n, m]."""
  return product('nd,md->nm', a, b)


def _sides(where: Spread, rows: PyTree, columns: PyTree) -> tuple[PyTree, PyTree]:
  """Both as this device sees them, gathered where the implementation says so."""
  return (jax.tree.map(lambda x: all_gather(x, where.rows), rows),
          jax.tree.map(lambda x: all_gather(x, where.columns), columns))


def _nothing(side: PyTree) -> tuple[jax.Array, jax.Array]:
  """(running maximum, sum) of no logits. Finite, since -inf - -inf is NaN."""
  x = side['x']
  zero = jnp.zeros(len(x), wide(x))
  return zero + jnp.finfo(zero.dtype).min, zero


def _zeros(side: PyTree) -> jax.Array:
  return jnp.zeros(side['x'].shape, wide(side['x']))


def _masked(logits: jax.Array, columns: PyTree) -> jax.Array:
  return jnp.where(columns['real'][None] > 0, logits, -jnp.inf) if 'real' in columns else logits


def _online(found, logits, axis):
  """(maximum, sum) with more logits, reduced over `axis`."""
  top, total = found
  new = jnp.maximum(top, jnp.max(logits, axis=axis))
  terms = jnp.exp(logits - jnp.expand_dims(new, axis))
  return new, total * jnp.exp(top - new) + jnp.sum(terms, axis=axis)


def _joined_lse(found, axis_name: AxisName) -> jax.Array:
  """Log-sum-exp of this device's own rows from what each device along the axis found for all."""
  top, total = found
  if axis_name is None:
    return top + jnp.log(total)
  highest = lax.pmax(top, axis_name)
  total = lax.psum(total * jnp.exp(top - highest), axis_name)
  return _own(highest + jnp.log(total), axis_name)


def _own(x: jax.Array, axis_name: AxisName) -> jax.Array:
  rows = len(x) // axis_size(axis_name)
  return lax.dynamic_slice_in_dim(x, axis_index(axis_name) * rows, rows)


def _home(x: jax.Array, axis_name: AxisName) -> jax.Array:
  """The sum over devices, of which each keeps its own rows."""
  return x if axis_name is None else lax.psum_scatter(x, axis_name, tiled=True)


def _sweep(visit: Callable, rows: PyTree, columns: PyTree, found: PyTree, left: PyTree,
           where: Spread) -> tuple[PyTree, PyTree]:
  """Every row meets every column.

  `visit(rows, block, found, left) -> (found, left)` takes a block of columns; `found` is about the
  rows, `left` about the columns of the block. In a ring both go from device to device, `left` one
  hop behind, so that a block's transfer does not wait for what is computed with it; after as many
  hops as there are devices everything is home.
  """
  total = len(jax.tree.leaves(columns)[0])
  blocks = -(-total // where.block)
  size = -(-total // blocks)
  if blocks * size > total:
    columns = columns | {'real': as_varying(jnp.ones(total, jnp.int32), where.axis_name)}
    columns, left = (jax.tree.map(partial(_padded, rows=blocks * size), x) for x in (columns, left))
  found, left = _varying((found, left), (rows, columns), where.axis_name)
  hops = axis_size(where.ring)
  send = partial(_next_device, axis_name=where.ring) if hops > 1 else lambda tree: tree

  def step(i, loop):
    columns, found, left = loop
    start = i % blocks * size
    block, behind = (_rows(x, start, size) for x in (columns, left))
    found, behind = visit(rows, block, found, send(behind))
    if hops > 1:
      columns = _put(columns, send(block), start)
    return columns, found, _put(left, behind, start)

  loop = columns, found, left
  if hops * blocks == 1:
    loop = step(0, loop)
  else:
    loop = lax.fori_loop(0, hops * blocks, step, loop)
  _, found, left = loop
  return found, jax.tree.map(lambda x: x[:total], send(left))


def _varying(tree: PyTree, operands: PyTree, axis_name: AxisName) -> PyTree:
  """`tree` as values that vary over the axis, and over whatever else the operands vary."""
  zero = sum(jnp.zeros_like(x[(0,) * x.ndim], jnp.float32) for x in jax.tree.leaves(operands))
  zero = as_varying(zero, axis_name)
  return jax.tree.map(lambda x: x + zero.astype(x.dtype), tree)


def _padded(x: Any, rows: int) -> jax.Array:
  return jnp.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))


def _rows(tree: PyTree, start, size: int) -> PyTree:
  return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), tree)


def _put(tree: PyTree, block: PyTree, start) -> PyTree:
  return jax.tree.map(lambda x, b: lax.dynamic_update_slice_in_dim(x, b, start, 0), tree, block)


def _next_device(tree: PyTree, axis_name: AxisName) -> PyTree:
  devices = axis_size(axis_name)
  around = [(i, (i + 1) % devices) for i in range(devices)]
  return jax.tree.map(lambda x: lax.ppermute(x, axis_name, around), tree)
