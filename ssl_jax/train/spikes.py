"""A guard against spikes: a step far from what the last ones were is undone, as a NaN would be.

  spike  =  loss > mean + k std  or  |gradient| > mean + k std      over the last `WINDOW` steps

Nothing is judged before half a window was seen. Spikes enter the window too, and widen it: a level
that stays is taken as it is after a few steps. NaN and infinity do not enter.

Reference: the skip-step optimizers of stanford-crfm/levanter (optim/skipstep.py; k = 6, 128 steps)
and OLMo 2 (arXiv:2501.00656).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.types import PyTree

WINDOW = 128


class Guarded(NamedTuple):
  """The state of an optimizer with a guard: in the train state, so that a resume judges the same.

  recent: [2, WINDOW], losses and gradient norms; step number `seen` is written to seen % WINDOW.
  seen: int32.
  opt: of the optimizer.
  """

  recent: jax.Array
  seen: jax.Array
  opt: PyTree


class SkipSpikes(NamedTuple):
  """An optimizer with a guard, which `make_train_step` knows; `deviations` is k."""

  init: Callable
  update: Callable
  deviations: float


def skip_spikes(tx: optax.GradientTransformation, deviations: float) -> SkipSpikes:
  """`tx`, with whose updates `make_train_step` undoes spikes.

  Raises:
    ValueError: `deviations` is not above 0.
  """
  if not deviations > 0:
    raise ValueError(f'skip_spikes must be above 0, got {deviations!r}; 6 is usual')

  def init(params):
    recent = jnp.zeros((2, WINDOW), jnp.float32)
    return Guarded(recent, jnp.zeros((), jnp.int32), tx.init(params))

  def update(updates, state, params=None):
    updates, opt = tx.update(updates, state.opt, params)
    return updates, state._replace(opt=opt)

  return SkipSpikes(init, update, deviations)


def is_spike(state: Guarded, loss: jax.Array, grad_norm: jax.Array, deviations: float) -> jax.Array:
  """Whether loss or gradient norm lies more than `deviations` above the mean of the window."""
  window = state.recent.shape[1]
  known = (jnp.arange(window) < state.seen)[None]
  count = jnp.maximum(jnp.sum(known), 1)
  mean = jnp.sum(state.recent, axis=1, where=known) / count
  square = jnp.sum(jnp.square(state.recent - mean[:, None]), axis=1, where=known) / count
  far = _pair(loss, grad_norm) > mean + deviations * jnp.sqrt(square)
  return jnp.any(far) & (state.seen >= window // 2)


def noted(state: Guarded, loss: jax.Array, grad_norm: jax.Array, finite: jax.Array) -> Guarded:
  """With one more step in the window, if its numbers are finite."""
  recent = state.recent.at[:, state.seen % state.recent.shape[1]].set(_pair(loss, grad_norm))
  return state._replace(recent=jnp.where(finite, recent, state.recent),
                        seen=state.seen + finite.astype(jnp.int32))


def _pair(loss, grad_norm):
  return jnp.stack([loss, grad_norm]).astype(jnp.float32)
