"""The order of events, late metrics, and giving up."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.train.loop import Every, NonFiniteError, fit
from ssl_jax.types import TrainState


def state(step=0):
  return TrainState(jnp.int32(step), {}, {}, {})


def stepper(log, bad=()):
  def step(ts, batch):
    k = int(batch['k'])
    log.append(f'step {k}')
    metrics = {'loss': np.float32(k), 'finite': np.bool_(k not in bad)}
    return ts._replace(step=jax.device_put(np.int32(k + 1))), jax.device_put(metrics)
  return step


def numbered(log, start=0):
  for k in itertools.count(start):
    log.append(f'batch {k}')
    yield {'k': np.int32(k), 'id': np.array([k, k + 100])}


def record(log, name):
  return lambda k, ts: log.append(f'{name} {k}')


def test_the_order_of_events():
  log = []
  final = fit(
    stepper(log), state(), numbered(log), steps=3,
    callbacks=[Every(2, record(log, 'evaluate')), Every(2, record(log, 'save'))],
    report=lambda k, m: log.append(f'report {k}'))
  assert log == [
    'batch 0', 'step 0', 'batch 1', 'step 1', 'report 0', 'report 1', 'evaluate 2', 'save 2',
    'batch 2', 'step 2', 'report 2', 'evaluate 3', 'save 3']
  assert int(final.step) == 3


def test_resuming_does_not_repeat_what_was_due():
  log = []
  fit(stepper(log), state(2), numbered(log, 2), steps=3, callbacks=[Every(2, record(log, 'save'))])
  assert log == ['batch 2', 'step 2', 'save 3']


def test_a_finished_run_does_nothing():
  log = []
  fit(stepper(log), state(3), numbered(log), steps=3, callbacks=[Every(1, record(log, 'save'))])
  assert log == []


@pytest.mark.parametrize('steps, due', [(None, []), (0, [5]), (2, [2, 4, 5])])
def test_periods(steps, due):
  assert [k for k in range(6) if Every(steps, None).due(k, 0, 5)] == due


def test_stop_ends_after_a_whole_step_and_reports_it():
  log, reported = [], []
  final = fit(stepper(log), state(), numbered(log), steps=9, stop=lambda: len(log) >= 4,
              report=lambda k, m: reported.append(k))
  assert int(final.step) == 2 and reported == [0, 1]


def test_a_signal_during_what_is_due_ends_before_the_next_batch():
  log = []
  final = fit(stepper(log), state(), numbered(log), steps=9, stop=lambda: 'evaluate 2' in log,
              callbacks=[Every(2, record(log, 'evaluate'))])
  assert int(final.step) == 2 and log[-1] == 'evaluate 2'


def test_batches_end_early_only_where_that_was_asked_for():
  log, reported = [], []
  few = lambda: itertools.islice(numbered([]), 3)
  final = fit(stepper(log), state(), few(), steps=9, stop=lambda: len(log) == 3 and not reported[2:],
              report=lambda k, m: reported.append(k))
  assert int(final.step) == 3 and reported == [0, 1, 2]
  with pytest.raises(ValueError, match='ended before step 3 of 9'):
    fit(stepper([]), state(), few(), steps=9)


def test_giving_up_names_the_examples_and_keeps_the_state():
  log = []
  with pytest.raises(NonFiniteError, match='3 steps in a row') as caught:
    # A report may do what it likes with the metrics.
    fit(stepper(log, bad={2, 4, 5, 6}), state(), numbered(log), steps=20, patience=3,
        report=lambda k, metrics: metrics.clear())
  np.testing.assert_array_equal(caught.value.ids, [[4, 104], [5, 105], [6, 106]])
  assert caught.value.step == 6


def test_an_implicit_transfer_in_the_step_is_an_error():
  """A hidden host-to-device copy in every step is found at the first one."""
  def step(ts, batch):
    return ts, {'loss': jax.jit(lambda x: x + 1)(np.float32(1)), 'finite': True}
  with pytest.raises(Exception, match='[Dd]isallowed'):
    fit(step, state(), numbered([]), steps=1)
