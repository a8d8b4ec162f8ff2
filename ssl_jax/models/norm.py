"""Batch normalisation whose rows are chosen by a policy, not by the hardware (arXiv:1502.03167).

  y = gamma (x - mean) / sqrt(var + epsilon) + beta

The mean and variance are those of all rows of the global batch, or of groups of a stated number of
rows: what "per-GPU BatchNorm with 32 images per GPU" means, written so that it gives the same
numbers on any number of devices.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from ssl_jax.parallel import axis_index, axis_size, psum
from ssl_jax.types import AxisName, Mode


class BatchNormPolicy(NamedTuple):
  """Which rows share statistics, and how running statistics follow them.

  group_size: rows that are normalised together; None is the whole global batch. Rows g * n ..
    g * n + n - 1 form group g.
  shuffle: draw the groups at random, by one permutation of the global batch per forward pass
    (MoCo's shuffling BN, arXiv:1911.05722 section 3.3); needs the rng 'batch_norm'.
  momentum: weight of the old running statistics (torch writes 1 - momentum).
  epsilon: added to the variance.
  unbiased: running variance divides by n - 1 (torch) rather than by n (Flax, TensorFlow). The
    variance that normalises the batch always divides by n.
  """

  group_size: int | None = None
  shuffle: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  unbiased: bool = True

  @classmethod
  def of(cls, options: 'Mapping[str, Any] | BatchNormPolicy | None') -> 'BatchNormPolicy':
    """A policy from keywords, so that configs need not import this module.

    Raises:
      ValueError: an unknown keyword, a group of less than one row, a shuffle without groups.
    """
    if isinstance(options, cls):
      policy = options
    else:
      unknown = sorted(set(options or {}) - set(cls._fields))
      if unknown:
        raise ValueError(f'batch_norm does not know {unknown}; it knows {list(cls._fields)}')
      policy = cls(**(options or {}))
    if policy.group_size is not None and policy.group_size < 1:
      raise ValueError(f'batch_norm group_size must be at least 1, not {policy.group_size}')
    if policy.shuffle and policy.group_size is None:
      raise ValueError('batch_norm shuffle needs a group_size: the global batch has one group')
    return policy


class BatchNorm(nn.Module):
  """Normalises the last axis of [B, ..., C]; running statistics live in 'batch_stats'.

  Statistics are computed in float32 or wider, whatever the dtype of the activations, as mean and
  then mean squared deviation: E[x^2] - E[x]^2 loses all digits where |mean| >> deviation.

  Attributes:
    policy: which rows share statistics.
    use_scale, use_bias: learn gamma, beta.
    scale_init: initial gamma; zeros make a residual branch start as the identity.
    dtype: of the result; None keeps the dtype of the input.
  """

  policy: BatchNormPolicy = BatchNormPolicy()
  use_scale: bool = True
  use_bias: bool = True
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  dtype: Any = None

  @nn.compact
  def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
    """Returns x normalised, [B, ..., C].

    Raises:
      ValueError: in training, the global batch is not a multiple of the policy's group_size, or
        groups are shuffled and the rng 'batch_norm' is missing.
    """
    policy, channels = self.policy, (x.shape[-1],)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels, jnp.float32)
    if mode.train:
      stats = self._statistics(wide, mode)
      mean, var = stats.mean, stats.var
      correction = stats.count / max(stats.count - 1, 1) if policy.unbiased else 1.
      momentum = policy.momentum if mode.momentum is None else mode.momentum
      _follow(running_mean, stats.mean_of_groups, momentum)
      _follow(running_var, stats.var_of_groups * correction, momentum)
    else:
      mean, var = running_mean.value.astype(wide.dtype), running_var.value.astype(wide.dtype)
    factor = lax.rsqrt(var + policy.epsilon)
    if self.use_scale:
      scale = self.param('scale', self.scale_init, channels, jnp.float32)
      factor = factor * _align(scale, factor.ndim)
    shift = -mean * factor
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
      shift = shift + _align(bias, shift.ndim)
    # One multiply-add: the gradient of (x - mean) * factor + bias takes twice as long on CPU.
    y = wide * _align(factor, x.ndim) + _align(shift, x.ndim)
    return y.astype(self.dtype or x.dtype)

  def _statistics(self, x: jax.Array, mode: Mode) -> 'Statistics':
    if self.policy.group_size is None or mode.momentum is not None:  # calibration: one group
      return batch_statistics(x, mode.axis_name)
    rows = len(x) * axis_size(mode.axis_name)
    order = None
    if self.policy.shuffle:
      if not self.has_rng('batch_norm'):
        raise ValueError("shuffled batch_norm groups need a key: pass key= to the network's apply")
      # Without the layer's name in it: all layers of one forward pass share one permutation.
      key = self.scope.rngs['batch_norm'].clear_suffix().as_jax_rng()
      order = jax.random.permutation(key, rows)
    return group_statistics(x, self.policy.group_size, order, mode.axis_name)


class Statistics(NamedTuple):
  """mean, var: per channel [C], or per row [B, C] where groups differ; count: values per channel
  behind each. mean_of_groups, var_of_groups: [C], for the running statistics."""

  mean: jax.Array
  var: jax.Array
  count: int
  mean_of_groups: jax.Array
  var_of_groups: jax.Array


def batch_statistics(x: jax.Array, axis_name: AxisName = None) -> Statistics:
  """Mean and biased variance over all rows and positions of [B, ..., C], over `axis_name` too."""
  axes = tuple(range(x.ndim - 1))
  count = math.prod(x.shape[:-1]) * axis_size(axis_name)
  mean = psum(jnp.sum(x, axes), axis_name) / count
  var = psum(jnp.sum(jnp.square(x - _align(mean, x.ndim)), axes), axis_name) / count
  return Statistics(mean, var, count, mean, var)


def group_statistics(x: jax.Array, group_size: int, order: jax.Array | None = None,
                     axis_name: AxisName = None) -> Statistics:
  """Mean and biased variance of groups of rows of [B, ..., C].

  Membership is a one-hot matrix [B, groups] and sums over groups are matrix products, so that only
  [groups, C] moves between devices; gathering `x[order]` would move the whole batch.

  Args:
    x: the rows of this device, float32 or float64.
    group_size: rows per group, divides the global number of rows.
    order: a permutation of the global rows, the same on all devices: row i is in group
      `order[i] // group_size`. None: row i is in group `i // group_size`.
    axis_name: the axis over which the rows are spread; device d holds rows d * B .. d * B + B - 1.

  Raises:
    ValueError: the global number of rows is not a multiple of `group_size`.
  """
  rows = len(x) * axis_size(axis_name)
  groups = rows // group_size
  if rows % group_size:
    raise ValueError(f'batch_norm groups of {group_size} rows do not fit a batch of {rows} rows; '
                     f'use {max(groups, 1) * group_size} rows, or a divisor of {rows}')
  row = jnp.arange(len(x)) + axis_index(axis_name) * len(x)
  group = (row if order is None else order[row]) // group_size
  member = (group[:, None] == jnp.arange(groups)[None]).astype(x.dtype)
  count = group_size * math.prod(x.shape[1:-1])
  positions = tuple(range(1, x.ndim - 1))

  def mean_in_groups(values):
    sums = jnp.matmul(member.T, jnp.sum(values, positions), precision=lax.Precision.HIGHEST)
    return psum(sums, axis_name) / count

  def of_rows(stats):
    return jnp.matmul(member, stats, precision=lax.Precision.HIGHEST)

  mean = mean_in_groups(x)
  mean_of_rows = of_rows(mean)
  var = mean_in_groups(jnp.square(x - _align(mean_of_rows, x.ndim)))
  return Statistics(mean_of_rows, of_rows(var), count, mean.mean(0), var.mean(0))


def _align(stat: jax.Array, ndim: int) -> jax.Array:
  """[C] -> [1, ..., 1, C] and [B, C] -> [B, 1, ..., 1, C], with `ndim` axes."""
  rows = stat.shape[:-1] or (1,)
  return stat.reshape(*rows, *(1,) * (ndim - 2), stat.shape[-1]) if ndim > stat.ndim else stat


def _follow(running: nn.Variable, batch: jax.Array, momentum: float) -> None:
  old = running.value
  running.value = momentum * old + (1 - momentum) * batch.astype(old.dtype)
