"""The decision, for every combination of what two workers may be doing."""

import itertools

import pytest

from launch.babysit import (
  BACK_OFF,
  PATIENCE,
  POLL,
  RAGGED,
  SILENT,
  STALLS,
  Action,
  Memory,
  Seen,
  back_off,
  decide,
)
from launch.gcloud import REFUSALS, Trouble
from launch.machine import Answer, Machine, Worker

STATES = [('lost', None), ('bare', None), ('idle', None), ('running', None),
          *(('ended', code) for code in (0, 1, 2, 3, 4, 42, 127, 134, 137, 255))]
MEMORIES = [Memory(), Memory(step=5), Memory(step=5, stalls=STALLS - 1), Memory(silent=SILENT - 1),
            Memory(silent=SILENT - 1, worked=True), Memory(ragged=RAGGED - 1),
            Memory(failures=PATIENCE, lost=2, due=True)]
PAIRS = list(itertools.product(STATES, STATES))


def test_a_run_that_is_stuck_is_said():
  seen = Seen(Machine.READY, (Worker(Answer(0, 0, 0, ''), 'running', step=9, doing='step 12, saving',
                                     still=700),))
  decision = decide(seen, Memory(step=9))
  assert decision.action == Action.WAIT
  assert decision.why == 'running, step 9, no progress for 11 min (step 12, saving)'


def worker(state, code=None, step=None, i=0):
  return Worker(Answer(0, i, None if state == 'lost' else 0, ''), state, code, step=step)


def ready(*states, step=None, broken=()):
  return Seen(Machine.READY, tuple(worker(*state, step=step, i=i) for i, state in enumerate(states)),
              broken=broken)


@pytest.mark.parametrize('memory', MEMORIES)
def test_every_pair_of_workers_obeys_the_rules(memory):
  for pair in PAIRS:
    decision = decide(ready(*pair), memory)
    states, codes = {state for state, _ in pair}, [code for state, code in pair if state == 'ended']
    action, told = decision.action, f'{pair}: {decision}'
    assert action != Action.CREATE, told
    assert 0 <= decision.wait <= max(POLL, BACK_OFF[1]), told
    if action == Action.DELETE:  # only a machine that worked once and now says nothing
      assert 'lost' in states and memory.worked and memory.silent == SILENT - 1, told
    if action in (Action.START, Action.SETUP):
      assert states.isdisjoint({'running', 'lost'}), told
    if action == Action.SETUP:
      assert 'bare' in states, told
    if action == Action.JOIN:
      assert states == {'idle', 'running'}, told
    if action == Action.KILL:
      assert 'running' in states and states != {'running'}, told
    assert (action == Action.FINISH) == (codes == [0, 0]), told
    if len(codes) == 2 and 137 not in codes and any(code in (1, 2, 3, 4) for code in codes):
      assert action == Action.STOP and decision.code in (1, 2, 3, 4), told
    if action == Action.STOP:
      assert decision.why and decision.code, told
    if states == {'running'}:
      assert action == Action.WAIT, told


@pytest.mark.parametrize('machine, action', [
  (Machine.ABSENT, Action.CREATE), (Machine.BUSY, Action.WAIT), (Machine.GONE, Action.DELETE)])
@pytest.mark.parametrize('memory', MEMORIES)
def test_a_machine_is_asked_for_only_when_there_is_none(machine, action, memory):
  assert decide(Seen(machine), memory).action == action


@pytest.mark.parametrize('trouble', Trouble)
@pytest.mark.parametrize('memory', MEMORIES)
def test_trouble_never_deletes_or_creates(trouble, memory):
  decision = decide(Seen(None, trouble=trouble, text='why'), memory)
  assert decision.action in (Action.WAIT, Action.STOP)
  if trouble in (Trouble.TRANSIENT, Trouble.CAPACITY):
    assert decision.action == Action.WAIT and decision.wait >= BACK_OFF[0]
  if trouble in REFUSALS and trouble != Trouble.QUOTA:
    assert decision.action == Action.STOP and decision.code == 2


def test_waits_grow_and_are_bounded():
  waits = [back_off(n) for n in range(2000)]
  assert waits[:4] == [0, 30, 60, 120] and waits == sorted(waits) and waits[-1] == 600


def test_silence_replaces_a_machine_that_worked_and_stops_at_one_that_never_did():
  for worked, end in ((True, Action.DELETE), (False, Action.STOP)):
    memory, actions = Memory(worked=worked), []
    for _ in range(SILENT):
      decision = decide(ready(('lost', None), ('running', None)), memory)
      memory = decision.memory
      actions.append(decision.action)
    assert actions == [Action.WAIT] * (SILENT - 1) + [end]


def test_setup_that_never_gets_through_does_not_go_on_for_ever():
  memory, lost = Memory(), Answer(0, 0, None, 'no space left')
  for _ in range(3 * SILENT):
    decision = decide(ready(('bare', None), broken=(lost,)), memory)
    if decision.action != Action.STOP:
      decision = decide(ready(('bare', None)), decision.memory)
      assert decision.action == Action.SETUP
    memory = decision.memory
    if decision.action == Action.STOP:
      return
  raise AssertionError('it would set up for ever')


def test_a_worker_on_which_setup_failed_stops_it_unless_the_machine_was_taken_away():
  failed = Answer(0, 1, 1, 'pip: no')
  decision = decide(ready(('bare', None), ('bare', None), broken=(failed,)), Memory())
  assert (decision.action, decision.code) == (Action.STOP, 3)
  assert decide(Seen(Machine.GONE, broken=(failed,)), Memory()).action == Action.DELETE
  seen = ready(('bare', None), ('lost', None), broken=(failed,))
  assert decide(seen, Memory()).action == Action.WAIT


def test_progress_forgives_earlier_ends():
  memory = Memory(step=5, stalls=STALLS - 1)
  stuck = decide(ready(('ended', 42), step=5), memory)
  assert stuck.action == Action.STOP and 'step 5' in stuck.why
  further = decide(ready(('ended', 42), step=6), memory)
  assert further.action == Action.START and further.memory.stalls == 0 and further.memory.step == 6


def test_progress_forgives_lost_machines():
  seen = ready(('running', None), step=9)
  assert decide(seen, Memory(step=5, failures=7)).memory.failures == 0
  assert decide(seen, Memory(step=9, failures=7)).memory.failures == 7


def test_stragglers_get_time_to_save_but_not_for_ever():
  memory, actions = Memory(), []
  for _ in range(RAGGED):
    decision = decide(ready(('ended', 42), ('running', None)), memory)
    memory = decision.memory
    actions.append(decision.action)
  assert actions == [Action.WAIT] * (RAGGED - 1) + [Action.KILL]


def test_those_that_are_done_wait_for_the_one_that_still_writes():
  memory = Memory()
  for _ in range(100):
    decision = decide(ready(('ended', 0), ('running', None)), memory)
    assert decision.action == Action.WAIT
    memory = decision.memory
