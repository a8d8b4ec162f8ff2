"""Heads of text encoders in fine-tuning: parameters, outputs, losses.

  classes   W tanh(P x + p) + b     cross-entropy          x: the first token, the mean, or the last
  number    the same with one output, squared error
  tags      W x_t + b for each token, cross-entropy over those with a label
  spans     W x_t + b, 2 outputs: softmax over the tokens for the begin and for the end, their mean
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.evals.text_rows import IGNORED
from ssl_jax.models.dropout import dropout_factors
from ssl_jax.models.transformer import pooled
from ssl_jax.types import TEXT_INPUTS, Mode, PyTree

KINDS = ('classes', 'number', 'tags', 'spans')

# (params, inputs, *, key) -> tokens [B, L, D]; `inputs` have [B, L] each, `key` is of dropout, None
# outside training
Encode = Callable[..., jax.Array]


class Head(NamedTuple):
  """What stands on the encoder.

  kind: in `KINDS`.
  outputs: classes or tags; 1 for a number, 2 for spans.
  pool: 'token' (the first), 'mean' or 'last'; of classes and numbers.
  dropout: rate before the last layer.
  """

  kind: str
  outputs: int
  pool: str = 'token'
  dropout: float = 0.1


def start_head(head: Head, width: int, key: jax.Array, pooler: PyTree | None) -> PyTree:
  """The parameters of a head on outputs [..., width]; `pooler` is kept where there is one."""
  init = jax.nn.initializers.truncated_normal(0.02)
  keys = jax.random.split(key)
  layer = lambda key, size: dict(kernel=init(key, (width, size)), bias=jnp.zeros(size))
  params = dict(output=layer(keys[0], head.outputs))
  if head.kind in ('classes', 'number'):
    params['pooler'] = layer(keys[1], width) if pooler is None else pooler
  return params


def _dense(x: jax.Array, layer: PyTree) -> jax.Array:
  flat = jnp.matmul(x.reshape(-1, x.shape[-1]), layer['kernel'], precision='highest')
  return (flat + layer['bias'][None]).reshape(*x.shape[:-1], -1)


def outputs_of(encode: Encode, head: Head, params: PyTree, inputs, key) -> jax.Array:
  """[B, C], [B] (number), [B, L, C] (tags) or [B, L, 2] (spans), in float32."""
  own = (None, None) if key is None else jax.random.split(key)
  x = encode(params['encoder'], inputs, key=own[0]).astype(jnp.float32)
  if 'pooler' in params['head']:
    x = jnp.tanh(_dense(pooled(x, inputs, head.pool), params['head']['pooler']))
  if key is not None and head.dropout:
    x = x * dropout_factors(own[1], x.shape, head.dropout, Mode(train=True))
  y = _dense(x, params['head']['output'])
  if head.kind == 'spans' and 'segments' in inputs:
    y = jnp.where((inputs['segments'] > 0)[:, :, None], y, -1e9)
  return y[:, 0] if head.kind == 'number' else y


def losses_of(head: Head, outputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Losses and which of them count, of the same shape; its first axis is that of the rows."""
  if head.kind == 'number':
    return jnp.square(outputs - labels), jnp.ones_like(outputs)
  if head.kind == 'spans':
    outputs = jnp.swapaxes(outputs, 1, 2)  # [B, 2, L]
  counts = (labels != IGNORED).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.maximum(labels, 0))
  return losses * counts, counts


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
  """What the encoder sees of a batch."""
  return {name: batch[name] for name in TEXT_INPUTS if name in batch}
