"""The training loop: one order of events, all input and output in the callbacks it is given.

For every step k:
  1. callbacks that are due see the state after k steps: evaluation first, then the checkpoint;
  2. the next batch is drawn (a checkpoint therefore never knows of a batch it has not used);
  3. the step is dispatched;
  4. the metrics of step k - 1 are read and reported, while the accelerator works on step k
     (before 1 where a callback is due).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ssl_jax.types import Batch, TrainState

Report = Callable[[int, Mapping[str, float]], None]


class Every(NamedTuple):
  """Calls `run(step, state)` after every `steps` steps, and after the last one.

  Attributes:
    steps: the period; 0 is only after the last step, None is never.
    run: sees a state that it must not keep: the next step donates it.
  """

  steps: int | None
  run: Callable[[int, TrainState], None]

  def due(self, step: int, first: int, last: int) -> bool:
    if self.steps is None or step == first:
      return False
    return step == last or (self.steps > 0 and step % self.steps == 0)


class NonFiniteError(ArithmeticError):
  """Too many steps in a row had a loss or gradient that is not finite.

  Attributes:
    step: the last of them (0-based).
    state: the last finite state; none of those steps changed it.
    ids: the example ids of the batches concerned, one array per step.
  """

  def __init__(self, step: int, state: TrainState, ids: list[np.ndarray]):
    super().__init__(f'loss or gradient not finite in {len(ids)} steps in a row, up to step {step}')
    self.step, self.state, self.ids = step, state, ids


def fit(
    step: Callable, state: TrainState, batches: Iterator[Batch], *, steps: int,
    callbacks: Sequence[Every] = (), report: Report = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False, patience: int = 10,
) -> TrainState:
  """Trains from `state.step` to `steps`.

  Args:
    step: (TrainState, batch) -> (TrainState, metrics); may donate its first argument.
    state: where to start; `batches` must begin with batch number `state.step`.
    batches: global batches; they may end before `steps` only where `stop` says so.
    steps: the number of steps of the whole run.
    callbacks: run in order when due.
    report: called as (k, metrics of step k as floats), k counted from 0, one step late.
    stop: asked before every step, and once more after what was due; True ends training cleanly.
    patience: how many non-finite steps in a row are undone before giving up.

  Returns:
    The last state.

  Raises:
    NonFiniteError: `patience` non-finite steps in a row.
    ValueError: the batches ended, and nobody asked for that.
  """
  first = at = int(state.step)
  pending, bad = None, []

  def read(pending, state):
    """Waits for the metrics of an earlier step, which have been on their way for a while."""
    k, metrics, ids = pending
    metrics = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
    finite = metrics.get('finite', 1.0)
    report(k, metrics)
    if finite:
      bad.clear()
      return
    bad.append(ids)
    if len(bad) >= patience:
      raise NonFiniteError(k, state, list(bad))

  while True:
    due = [callback for callback in callbacks if callback.due(at, first, steps)]
    ending = at >= steps or stop()
    if pending is not None and (due or ending):
      # A checkpoint of step k promises that the metrics up to k are on disk.
      pending = read(pending, state)
    for callback in due:
      callback.run(at, state)
    if ending or (due and stop()):  # what was due may have been cut short by the same signal
      return state
    if (batch := next(batches, None)) is None:
      if not stop():
        raise ValueError(f'the batches ended before step {at} of {steps}')
      if pending is not None:
        read(pending, state)
      return state
    # Looking for a NaN, JAX runs the step again operation by operation, which copies constants.
    with jax.transfer_guard('allow' if jax.config.jax_debug_nans else 'disallow'):
      state, metrics = step(state, batch)
    if pending is not None:
      read(pending, state)
    pending = (at, metrics, batch.get('id'))
    at += 1
