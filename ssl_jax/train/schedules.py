"""Learning rates as functions of the step: warm-up, then a cosine or a line; batch scaling.

  lr(t) = peak t / W                                             for t < W (warm-up steps)
  lr(t) = final + (peak - final) (1 + cos(pi (t - W) / (T - W))) / 2      for W <= t <= T
  lr(t) = final + (peak - final) (T - t) / (T - W)                        or this

Both run over the steps that warm-up leaves, T - W, as in google-research/simclr (`model_util.py`)
and byol (`schedules.py`); `warmup_linear` has other forms as well. References: Goyal et al. 2017
(arXiv:1706.02677) for warm-up, Loshchilov and Hutter 2017 (arXiv:1608.03983) for the cosine.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# step (a Python int, or an integer array of any shape) -> learning rate of the same shape
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

LINEAR_FORMS = ('after', 'from_start', 'product')
SCALING_RULES = ('linear', 'sqrt', None)


def constant(value: float) -> Schedule:
  """The same value at every step."""
  return lambda step: jnp.full(jnp.shape(step), value, jnp.result_type(float))


def warmup_cosine(
    peak: float, *, steps: int, warmup_steps: int = 0, final: float = 0.0
) -> Schedule:
  """Linear from 0 at step 0 to `peak` at `warmup_steps`, then a cosine to `final` at `steps`.

  Without warm-up step 0 already has `peak`. From `steps` on the value stays `final`; the last step
  of a run is `steps - 1`, so a run never takes a step with exactly `final`. The result is float32,
  or float64 where JAX runs in 64 bits.

  Raises:
    ValueError: warm-up does not end before the run does.
  """
  _check_warmup(warmup_steps, steps)

  def schedule(step):
    step = jnp.asarray(step, jnp.result_type(float))
    # (1 + cos(pi p)) / 2 = sin(pi (1 - p) / 2)^2; in float32 the left side is 0 before the end.
    left = jnp.clip((steps - step) / (steps - warmup_steps), 0, 1)
    cosine = final + (peak - final) * jnp.square(jnp.sin(jnp.pi / 2 * left))
    if not warmup_steps:
      return cosine
    return jnp.where(step < warmup_steps, peak * (step / warmup_steps), cosine)

  return schedule


def warmup_linear(
    peak: float, *, steps: int, warmup_steps: int = 0, final: float = 0.0, form: str = 'after'
) -> Schedule:
  """Linear from 0 at step 0 to `peak` at `warmup_steps`, then a line to `final` at `steps`.

  With W warm-up steps, T steps and d(t, s) = final + (peak - final) (T - t) / (T - s):

    form          t < W               t >= W
    after         peak t / W          d(t, W)     RoBERTa: polynomial decay in fairseq, of power 1
    from_start    peak t / W          d(t, 0)     BERT, and ALBERT and the MLPerf reference for LAMB
    product       (t / W) d(t, 0)     d(t, 0)     ELECTRA

  `from_start` jumps down by (peak - final) W / T where warm-up ends; neither it nor `product`
  reaches `peak`. Sources: `optimization.py` of google-research/bert (lines 29-54), albert, electra
  (36-45) and of MLPerf; `polynomial_decay_schedule.py` of fairseq. Without warm-up all are equal.
  Steps, dtype and the end are as in `warmup_cosine`.

  Raises:
    ValueError: warm-up does not end before the run does, or an unknown `form`.
  """
  _check_warmup(warmup_steps, steps)
  if form not in LINEAR_FORMS:
    raise ValueError(f'unknown form {form!r}; choose from {LINEAR_FORMS}')
  start = warmup_steps if form == 'after' else 0

  def schedule(step):
    step = jnp.asarray(step, jnp.result_type(float))
    left = jnp.clip((steps - step) / (steps - start), 0, 1)
    line = final + (peak - final) * left
    if not warmup_steps:
      return line
    warm = step / warmup_steps
    return jnp.where(step < warmup_steps, warm * (line if form == 'product' else peak), line)

  return schedule


def _check_warmup(warmup_steps: int, steps: int) -> None:
  if not 0 <= warmup_steps < steps:
    raise ValueError(
      f'warmup_steps must be at least 0 and less than steps, so that something is left for the '
      f'decay; got warmup_steps={warmup_steps}, steps={steps}')


def scale_learning_rate(base: float, *, batch_size: int, rule: str | None = 'linear') -> float:
  """The learning rate for a global batch of `batch_size` examples.

  linear: base * batch_size / 256 (Goyal et al. 2017, arXiv:1706.02677); SimCLR's 0.3 is for this.
  sqrt: base * sqrt(batch_size) (SimCLR, arXiv:2002.05709, appendix B.1, where base is 0.075). It is
    not divided by 256: base differs from that of `linear` by a factor of 16 at 256 examples.
  None: base.

  Raises:
    ValueError: an unknown rule, or a batch without examples.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}')
  if rule not in SCALING_RULES:
    raise ValueError(f'unknown scaling rule {rule!r}; choose from {SCALING_RULES}')
  factor = {'linear': batch_size / 256, 'sqrt': math.sqrt(batch_size), None: 1}[rule]
  return base * factor
