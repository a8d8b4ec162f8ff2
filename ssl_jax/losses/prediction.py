"""Predicting tokens: softmax over a vocabulary that is never written out for all tokens.

  logits_nv = h_n . e_v + b_v,     log p_n = logits_n,target - log sum_v exp(logits_nv)
  loss = - sum_n w_n log p_n / sum_n w_n        over the tokens of all devices

The vocabulary is walked in chunks: forward keeps a running maximum, sum and target logit of every
token (online softmax, arXiv:1805.02867), backward computes each chunk's logits again from the
log-sum-exp (as in arXiv:2411.09009). So memory holds tokens x chunk numbers, whatever the vocabulary.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.parallel import as_varying, axis_index, axis_size, weighted_mean
from ssl_jax.types import AxisName

# Up to so many logits (16 Mi, 64 MiB in float32) are computed at once ...
LOGITS_AT_ONCE = 1 << 24
# ... and a chunk of more holds so many, for which a TPU's VMEM has room beside what they are made of.
CHUNK_LOGITS = 1 << 22
# Entries of the vocabulary that `sample_tokens` draws at a time.
SAMPLED_CHUNK = 1024


def masked_cross_entropy(
    hidden: jax.Array, embedding: jax.Array, bias: jax.Array | None, targets: jax.Array,
    weights: jax.Array, *, chunk: int | None = None, axis_name: AxisName = None,
    vocabulary_axis: AxisName = None,
) -> jax.Array:
  """The mean cross-entropy of tokens against the vocabulary.

  Args:
    hidden: [..., D], the states from which tokens are predicted, such as [B, K, D] at K masked
      positions of each row.
    embedding: [V, D], the output layer; usually the input embedding (tied).
    bias: [V] or None.
    targets: integers [...] in [0, V). A target outside makes the loss NaN, if its weight is not 0.
    weights: [...], 0 for slots that are not used. Devices may hold unequal sums.
    chunk: entries of the vocabulary at a time; None takes all up to `LOGITS_AT_ONCE` logits, else what
      keeps a chunk's below `CHUNK_LOGITS`. Values and gradients do not depend on it beyond rounding.
    axis_name: the axis (or axes) over which tokens are spread, or None.
    vocabulary_axis: the axis over which `embedding` and `bias` are spread: each device holds
      consecutive rows of the vocabulary, `hidden` and the rest are equal along this axis. In pmap,
      which does not know that, the gradient of `hidden` is this device's part: psum it.

  Returns:
    A scalar, sum(w * ce) / sum(w) over all devices, 0 where no token has weight; invariant over
    `axis_name`. (google-research/bert adds 1e-5 to the denominator.)
  """
  return masked_prediction(hidden, embedding, bias, targets, weights, chunk=chunk,
                           axis_name=axis_name, vocabulary_axis=vocabulary_axis)[0]


def masked_prediction(
    hidden: jax.Array, embedding: jax.Array, bias: jax.Array | None, targets: jax.Array,
    weights: jax.Array, *, chunk: int | None = None, axis_name: AxisName = None,
    vocabulary_axis: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
  """(loss, accuracy): `masked_cross_entropy`, and the weighted share of tokens whose most probable
  entry is their target (of equal ones the first), as MLPerf counts it."""
  losses, hits = token_losses(hidden, embedding, bias, targets, weights, chunk=chunk,
                              axis_name=axis_name, vocabulary_axis=vocabulary_axis)
  return weighted_mean(losses, weights, axis_name), weighted_mean(hits, weights, axis_name)


def token_losses(hidden, embedding, bias, targets, weights, **options) -> tuple[jax.Array, jax.Array]:
  """(cross-entropy, 1 where the most probable entry is the target), [...] each, of every token with
  weight; the first is 0 elsewhere. Arguments as `masked_cross_entropy`."""
  chex.assert_equal_shape([targets, weights])
  # An unused slot may hold anything, and 0 * inf is NaN: also in the gradient of the embedding.
  used = weights != 0
  hidden = jnp.where(used[..., None], hidden, 0)
  log_p, best = token_log_probability(hidden, embedding, bias, targets, **options)
  return jnp.where(used, -log_p, 0), (best == targets).astype(log_p.dtype)


def token_sums(hidden, embedding, bias, targets, weights, *, chunk=None
               ) -> dict[str, tuple[jax.Array, jax.Array]]:
  """What `Method.measure` says of predicted tokens: {'loss', 'accuracy'}, each (sum, weight)."""
  losses, hits = token_losses(hidden, embedding, bias, targets, weights, chunk=chunk)
  total = jnp.sum(weights)
  return {'loss': (jnp.sum(losses * weights), total), 'accuracy': (jnp.sum(hits * weights), total)}


def token_log_probability(
    hidden: jax.Array, embedding: jax.Array, bias: jax.Array | None, targets: jax.Array, *,
    chunk: int | None = None, axis_name: AxisName = None, vocabulary_axis: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
  """(log probability of the target, most probable entry) of every token.

  Arguments as `masked_cross_entropy`.

  Returns:
    (float32 or wider [...], int32 [...]); the second carries no gradient.
  """
  chex.assert_equal_shape_prefix([hidden, targets], targets.ndim)
  chex.assert_shape(embedding, (None, hidden.shape[-1]))
  if bias is None:
    bias = jnp.zeros_like(embedding[:, 0])  # varies over the axes that the embedding does
  hidden, shape = hidden.reshape(-1, hidden.shape[-1]), targets.shape
  targets = jnp.asarray(targets).reshape(-1)
  hidden = as_varying(hidden, vocabulary_axis)
  # Gradients of the custom rule are those of this device's tokens and entries.
  embedding, bias = as_varying((embedding, bias), axis_name)
  chunk = _chunk_size(chunk, len(embedding), len(targets))
  column = targets - jnp.asarray(axis_index(vocabulary_axis) * len(embedding), targets.dtype)
  one_chunk = chunk == len(embedding)
  pick = _at_once if one_chunk else partial(_chunked, chunk)
  own, lse, *highest = pick(hidden, embedding, bias, as_varying(column, axis_name))
  top, best = lax.stop_gradient(highest)
  entries = len(embedding) * axis_size(vocabulary_axis)
  if vocabulary_axis is not None:
    own, lse, best = _joined(own, lse, top, best, len(embedding), vocabulary_axis)
  known = (targets >= 0) & (targets < entries)
  return jnp.where(known, own - lse, jnp.nan).reshape(shape), best.reshape(shape)


def _joined(own, lse, top, best, entries, axis):
  """What devices that hold parts of the vocabulary know together."""
  highest = lax.pmax(lax.stop_gradient(lse), axis)
  lse = highest + jnp.log(lax.psum(jnp.exp(lse - highest), axis))
  everywhere = lax.pmax(top, axis)
  number = best + axis_index(axis) * entries
  nowhere = jnp.iinfo(number.dtype).max
  best = -lax.pmax(-jnp.where(top == everywhere, number, nowhere), axis)
  return lax.psum(own, axis), lse, best


def sample_tokens(
    key: jax.Array, hidden: jax.Array, embedding: jax.Array, bias: jax.Array | None, *,
    chunk: int | None = None, axis_name: AxisName = None,
) -> jax.Array:
  """Entries drawn from softmax(logits), int32 [B, K], by the Gumbel-max trick over chunks.

  Args:
    key: what row i of the global batch draws depends on (key, i, chunk) alone, whatever the devices.
    hidden: [B, K, D]; embedding, bias, axis_name: as `masked_cross_entropy`.
    chunk: entries of the vocabulary at a time; None is `SAMPLED_CHUNK`.
  """
  rows, count = hidden.shape[:2]
  numbers = jnp.arange(rows, dtype=jnp.uint32)
  numbers = numbers + jnp.asarray(axis_index(axis_name) * rows, jnp.uint32)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
  if bias is None:
    bias = jnp.zeros_like(embedding[:, 0])  # varies over the axes that the embedding does
  hidden = hidden.reshape(rows * count, -1)
  # A chunk's noise comes from its own key: its size must not depend on the rows of this device.
  chunk = _chunk_size(chunk or SAMPLED_CHUNK, len(embedding), rows * count)

  def body(carry, entries, b, start, fresh):
    top, best = carry
    part = jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, start), (count, chunk)))(keys)
    logits = _logits(hidden, entries, b)
    logits = jnp.where(fresh[None], logits + part.reshape(logits.shape).astype(logits.dtype), -jnp.inf)
    highest = jnp.max(logits, axis=1)
    best = jnp.where(highest > top, start + _argmax(logits), best)
    return jnp.maximum(top, highest), best

  # Made of all operands, so that the carry varies over the axes that they do.
  zero = jnp.zeros_like(hidden[:, 0], jnp.promote_types(hidden.dtype, jnp.float32))
  zero = zero + jnp.zeros_like(bias[0], zero.dtype)
  _, best = _walk(embedding, bias, chunk, body, (zero - jnp.inf, zero.astype(jnp.int32)))
  return lax.stop_gradient(best.reshape(rows, count))


def _chunk_size(chunk: int | None, entries: int, tokens: int) -> int:
  if chunk is None and tokens * entries <= LOGITS_AT_ONCE:
    return entries
  if chunk is None:
    chunk = max(128, CHUNK_LOGITS // tokens // 128 * 128)
  if chunk < 1:
    raise ValueError(f'chunk must be at least 1, got {chunk}')
  return min(chunk, entries)


def _logits(hidden, embedding, bias):
  """[N, D], [V, D], [V] -> [N, V] in float32 or wider."""
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  logits = jnp.einsum('nd,vd->nv', hidden, embedding.astype(hidden.dtype), preferred_element_type=wide,
                      precision=_precision(hidden))
  return logits + bias.astype(wide)[None]


def _precision(x: jax.Array):
  """HIGHEST: accelerators round float32 operands by default. bfloat16 has nothing to lose."""
  return lax.Precision.HIGHEST if jnp.finfo(x.dtype).bits >= 32 else None


def _at_once(hidden, embedding, bias, column):
  """As `_chunked` with one chunk: what is stored is cheaper than computing it twice."""
  logits = _logits(hidden, embedding, bias)
  fixed = lax.stop_gradient(logits)
  return (_picked(logits, column), jax.nn.logsumexp(logits, axis=1), jnp.max(fixed, axis=1),
          _argmax(fixed))


def _picked(logits, column):
  """logits [N, V] at column [N], 0 where that is outside."""
  inside = (column >= 0) & (column < logits.shape[1])
  picked = jnp.take_along_axis(logits, column[:, None], axis=1, mode='clip')[:, 0]
  return jnp.where(inside, picked, 0)


def _argmax(logits):
  return jnp.argmax(logits, axis=1).astype(jnp.int32)


# --- in chunks ------------------------------------------------------------------------------------


def _walk(embedding, bias, chunk, body, carry):
  """Runs `body(carry, entries, bias, start, fresh)` over chunks of the vocabulary.

  The last chunk is moved back to end with the vocabulary; `fresh` says which of its entries have not
  been seen. So any number of entries is walked without a padded copy.
  """
  total = len(embedding)

  def step(i, carry):
    start = jnp.minimum(i * chunk, total - chunk)
    fresh = start + jnp.arange(chunk) >= i * chunk
    return body(carry, lax.dynamic_slice_in_dim(embedding, start, chunk),
                lax.dynamic_slice_in_dim(bias, start, chunk), start, fresh)

  return lax.fori_loop(0, -(-total // chunk), step, carry)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(chunk, hidden, embedding, bias, column):
  """[N, D], [V, D], [V], [N] -> the logit of `column` (0 where that is none of the V), the
  log-sum-exp of all, the highest and its number: [N] each. The last two carry no gradient."""
  return _chunked_forward(chunk, hidden, embedding, bias, column)[0]


def _chunked_forward(chunk, hidden, embedding, bias, column):
  def body(carry, entries, b, start, fresh):
    top, total, own, best = carry
    logits = jnp.where(fresh[None], _logits(hidden, entries, b), -jnp.inf)
    highest = jnp.max(logits, axis=1)
    new_top = jnp.maximum(top, highest)
    total = total * jnp.exp(top - new_top) + jnp.sum(jnp.exp(logits - new_top[:, None]), axis=1)
    # Where the last chunk repeats entries, the target may stand in both.
    place = column - start
    own = own + jnp.where(fresh[jnp.clip(place, 0, chunk - 1)], _picked(logits, place), 0)
    best = jnp.where(highest > top, start + _argmax(logits), best)
    return new_top, total, own, best

  # Made of all operands, so that the carry varies over the axes that they do.
  wide = jnp.promote_types(hidden.dtype, jnp.float32)
  zero = (jnp.zeros_like(hidden[:, 0], wide) + jnp.zeros_like(bias[0], wide)
          + jnp.zeros_like(column, wide))
  top, total, own, best = _walk(
    embedding, bias, chunk, body, (zero - jnp.inf, zero, zero, zero.astype(jnp.int32)))
  lse = top + jnp.log(total)
  return (own, lse, top, best), (hidden, embedding, bias, column, lse)


def _chunked_backward(chunk, saved, cotangents):
  hidden, embedding, bias, column, lse = saved
  g_own, g_lse = cotangents[:2]

  def body(carry, entries, b, start, fresh):
    d_hidden, d_embedding, d_bias = carry
    p = jnp.exp(_logits(hidden, entries, b) - lse[:, None])
    own = (column - start)[:, None] == jnp.arange(chunk)[None]
    d_logits = jnp.where(own, g_own[:, None], 0) + g_lse[:, None] * p
    d_logits = jnp.where(fresh[None], d_logits, 0)
    narrow = d_logits.astype(hidden.dtype)
    product = partial(jnp.einsum, preferred_element_type=d_hidden.dtype,
                      precision=_precision(hidden))
    d_hidden += product('nv,vd->nd', narrow, entries.astype(hidden.dtype))
    d_embedding = _added(d_embedding, product('nv,nd->vd', narrow, hidden), start)
    return d_hidden, d_embedding, _added(d_bias, jnp.sum(d_logits, axis=0), start)

  zeros = (jnp.zeros_like(hidden, lse.dtype) + jnp.zeros_like(lse)[:, None],
           jnp.zeros_like(embedding), jnp.zeros_like(bias))
  d_hidden, d_embedding, d_bias = _walk(embedding, bias, chunk, body, zeros)
  return d_hidden.astype(hidden.dtype), d_embedding, d_bias, None


def _added(x, part, start):
  """x [V, ...] with `part` added from row `start` on."""
  part = part.astype(x.dtype) + lax.dynamic_slice_in_dim(x, start, len(part))
  return lax.dynamic_update_slice_in_dim(x, part, start, 0)


_chunked.defvjp(_chunked_forward, _chunked_backward)
