"""Keeps one run alive through preemptions: looks, decides, acts, and looks again.

`decide` is a pure function of what was seen and of a small memory. What it tells apart:

* a program that failed (exit code 1 to 126): stop, show every worker, keep the machine;
* one that asks to be started again (42) or was killed (127 to 255): start it, unless it has ended
  several times without a new checkpoint in between;
* a machine that is gone: delete it, ask for another, set it up, go on;
* a cloud that refuses for good (quota, permission, a type that does not exist): stop, say the fix;
* a cloud that does not answer, or has nothing free: wait, longer each time.

There is one name, and it is asked for only after the cloud has said that nothing of that name is
left. So there are never two machines.
"""

import enum
from collections import Counter
from typing import NamedTuple

from launch import machine as cloud
from launch import record as records
from launch.commands import World
from launch.errors import AGAIN, BUG, CONFIGURATION, DATA, DONE, again
from launch.gcloud import FIXES, REFUSALS, Trouble, trouble
from launch.machine import Answer, CloudError, Machine, Worker
from launch.record import Record

POLL = 60               # seconds between looks
BACK_OFF = (30, 600)    # the first wait after a failure, and the longest
STALLS = 3              # starts in a row without a new checkpoint, then it is a crash loop
SILENT = 10             # looks in a row at a worker that does not answer
RAGGED = 5              # looks in a row at workers of which some ended
STILL = 600             # seconds without progress, then it is said
PATIENCE = 5            # failures in a row of a kind that is not known, or of a quota being freed
KILLED = 137            # 128 + SIGKILL, as the kernel does when memory runs out


class Action(enum.Enum):
  WAIT = 'look again'
  CREATE = 'create'
  DELETE = 'delete'
  SETUP = 'setup'
  START = 'start'          # under a new attempt
  JOIN = 'join'            # those that the last start did not reach
  KILL = 'kill'
  FINISH = 'finish'
  STOP = 'stop'


class Seen(NamedTuple):
  """What there is to decide on.

  Attributes:
    machine: None if the cloud did not say.
    workers: of a machine that is ready.
    trouble, text: of the last call to the cloud.
    broken: workers on which the last setup or start failed.
  """

  machine: Machine | None
  workers: tuple[Worker, ...] = ()
  trouble: Trouble | None = None
  text: str = ''
  broken: tuple[Answer, ...] = ()


class Memory(NamedTuple):
  """What is remembered between looks."""

  step: int = -1        # newest checkpoint at the last start
  stalls: int = 0       # ends in a row without a newer one
  failures: int = 0     # machines lost and calls refused since the run last got on
  silent: int = 0
  ragged: int = 0
  lost: int = 0         # machines lost
  due: bool = False     # one was lost, the wait before the next is still to come
  worked: bool = False  # some machine was reached and set up


class Decision(NamedTuple):
  action: Action
  memory: Memory
  wait: float = 0       # seconds before the action
  why: str = ''
  code: int = DONE      # of STOP


def back_off(failures: int) -> float:
  first, longest = BACK_OFF
  return 0.0 if failures <= 0 else min(first * 2.0**min(failures - 1, 10), longest)


def decide(seen: Seen, memory: Memory) -> Decision:
  """The next thing to do."""
  if seen.trouble is not None:
    return _on_trouble(seen, memory)
  if seen.machine == Machine.ABSENT:
    wait = back_off(memory.failures - 1) if memory.due else 0
    return Decision(Action.CREATE, memory._replace(due=False), wait, 'there is no machine')
  if seen.machine == Machine.BUSY:
    return Decision(Action.WAIT, memory, POLL, seen.text)
  if seen.machine == Machine.GONE:
    return _replace(memory, f'the machine is lost ({seen.text})')
  return _on_workers(seen, memory)


def _replace(memory: Memory, why: str) -> Decision:
  memory = memory._replace(failures=memory.failures + 1, lost=memory.lost + 1, silent=0, ragged=0,
                           due=True)
  return Decision(Action.DELETE, memory, 0, why)


def _on_trouble(seen: Seen, memory: Memory) -> Decision:
  memory = memory._replace(failures=memory.failures + 1)
  patient = memory.failures <= PATIENCE
  if seen.trouble in (Trouble.TRANSIENT, Trouble.CAPACITY) or (
      seen.trouble in (Trouble.UNKNOWN, Trouble.ABSENT) and patient) or (
      # A machine that was taken away holds its quota for a while after it was deleted.
      seen.trouble == Trouble.QUOTA and memory.lost and patient):
    return Decision(Action.WAIT, memory, back_off(memory.failures), seen.text.splitlines()[0])
  return Decision(Action.STOP, memory, 0, seen.text, CONFIGURATION)


def _on_workers(seen: Seen, memory: Memory) -> Decision:
  states = Counter(worker.state for worker in seen.workers)
  broken = [answer for answer in seen.broken if answer.code is not None]
  if states['lost'] or seen.broken and not broken:
    return _on_silence(seen, memory)
  if broken:
    return Decision(Action.STOP, memory, 0, f'setup or start failed on {len(broken)} of '
                    f'{len(seen.workers)} workers', DATA)
  if states['running'] and states['bare']:
    return Decision(Action.KILL, memory, 0, 'some workers have lost what was installed')
  if states['bare']:
    return Decision(Action.SETUP, memory, 0, f'{states["bare"]} workers are not set up')
  memory = memory._replace(silent=0, worked=True)
  if states['ended']:
    return _on_ends(seen.workers, memory)
  step = _step(seen.workers)
  if states['running'] == len(seen.workers):
    got_on = step > memory.step
    return Decision(Action.WAIT, memory._replace(
      ragged=0, failures=0 if got_on else memory.failures), POLL,
      f'running, step {step}{_stuck(seen.workers)}')
  if states['running']:
    return _start(Action.JOIN, memory, step, 'the last start did not reach every worker')
  return _start(Action.START, memory, step, 'ready to go')


def _on_silence(seen: Seen, memory: Memory) -> Decision:
  memory = memory._replace(silent=memory.silent + 1)
  silent = [answer for answer in (*seen.broken, *(worker.answer for worker in seen.workers))
            if answer.code is None]
  heard = silent[0].text.splitlines()[-1:]
  if memory.silent < SILENT:
    return Decision(Action.WAIT, memory, POLL, ': '.join(['a worker does not answer', *heard]))
  if memory.worked:
    return _replace(memory, f'a worker has not answered {SILENT} times')
  return Decision(Action.STOP, memory, 0, 'not every worker could be reached and set up: try '
                  '`gcloud compute tpus tpu-vm ssh` by hand. Often it is a key with a passphrase, '
                  f'or a firewall without port 22. The last words: {" ".join(heard)}',
                  CONFIGURATION)


def _on_ends(workers: tuple[Worker, ...], memory: Memory) -> Decision:
  ended = [worker.code for worker in workers if worker.state == 'ended']
  if any(worker.state == 'running' for worker in workers):
    return _on_ragged(ended, memory)
  memory = memory._replace(ragged=0)
  # Those that a start did not reach are idle; the others ended because they waited in vain.
  complete = len(ended) == len(workers)
  if complete and not any(ended):
    return Decision(Action.FINISH, memory, 0, 'done')
  faults = [code for code in ended if code and not again(code)]
  if complete and faults and KILLED not in ended:
    return Decision(Action.STOP, memory, 0, f'the program failed with exit code {faults[0]}',
                    faults[0])
  step = _step(workers)
  memory = memory._replace(stalls=memory.stalls + 1)
  if step <= memory.step and memory.stalls >= STALLS:
    return Decision(Action.STOP, memory, 0, f'crash loop at step {max(step, 0)}: {STALLS} starts '
                    f'ended with {sorted(set(ended))} before a new checkpoint', BUG)
  codes = ', '.join(str(code) for code in sorted(set(ended)))
  return _start(Action.START, memory, step, f'ended with {codes}, to be started again')


def _on_ragged(ended: list[int], memory: Memory) -> Decision:
  """Some ended, some did not: they are saving, or wait for those that will not come back."""
  memory = memory._replace(ragged=memory.ragged + any(ended))
  if memory.ragged < RAGGED:
    return Decision(Action.WAIT, memory, POLL, f'{len(ended)} workers have ended')
  return Decision(Action.KILL, memory._replace(ragged=0), 0,
                  f'{len(ended)} workers have ended, the others do not')


def _start(action: Action, memory: Memory, step: int, why: str) -> Decision:
  memory = memory._replace(step=max(step, memory.step), ragged=0,
                           stalls=0 if step > memory.step else memory.stalls)
  return Decision(action, memory, back_off(memory.stalls), why)


def _stuck(workers: tuple[Worker, ...]) -> str:
  """A run that is alive but stuck ends itself, after a while; until then it is said."""
  worst = max(workers, key=lambda worker: worker.still)
  return f', no progress for {worst.still // 60} min ({worst.doing})' if worst.still > STILL else ''


def _step(workers: tuple[Worker, ...]) -> int:
  """The newest checkpoint that any worker sees, -1 before the first."""
  return max((worker.step for worker in workers if worker.step is not None), default=-1)


# --- the loop -------------------------------------------------------------------------------------


def babysit(world: World, record: Record, *, autodelete: bool = False) -> int:
  """Brings the run of the record to its end; returns the exit code."""
  memory, seen, said = Memory(), None, ''
  while True:
    seen = _observe(world, record, seen)
    decision = decide(seen, memory)
    memory = decision.memory
    if said != (said := _tell(record, decision)):
      world.say(said)
    if decision.wait:
      world.sleep(decision.wait * (0.75 + 0.5 * world.jitter()))
    if decision.action == Action.FINISH:
      return _finish(world, record, autodelete)
    if decision.action == Action.STOP:
      return _give_up(world, record, seen, decision)
    record, seen = _act(world, record, decision.action)


def _tell(record: Record, decision: Decision) -> str:
  wait = f' in {decision.wait:.0f} s' if decision.wait else ''
  return f'{record.name}: {decision.why}; {decision.action.value}{wait}'


def _observe(world: World, record: Record, after: Seen | None) -> Seen:
  """A fresh look; of the last action only what went wrong with it is kept."""
  if after is not None and after.trouble is not None:
    return after
  try:
    look = cloud.look(world, record)
    if look.machine != Machine.ABSENT and not look.mine:
      return Seen(None, trouble=Trouble.EXISTS, text=f'{record.name} in {record.zone} is not the '
                  f'machine that was created from here: {FIXES[Trouble.EXISTS]}')
    if look.failure and (kind := trouble(look.failure)) in REFUSALS:
      return Seen(None, trouble=kind, text=f'the request failed: {look.failure}\n'
                  f'what to do: {FIXES[kind]}')
    if look.machine != Machine.READY:
      return Seen(look.machine, text=look.text)
    workers = tuple(cloud.workers(world, record))
    return Seen(Machine.READY, workers, text=look.text, broken=after.broken if after else ())
  except CloudError as error:
    return Seen(None, trouble=error.kind, text=str(error))


def _act(world: World, record: Record, action: Action) -> tuple[Record, Seen | None]:
  """Does it. Returns the record as it is then, and what went wrong."""
  try:
    if action == Action.CREATE:
      cloud.create(world, record)
    if action == Action.DELETE:
      cloud.delete(world, record)
    if action == Action.KILL:
      cloud.ask(world, record, cloud.worker.kill(), note='end what is left of the program')
    if action == Action.SETUP:
      return record, _failed(cloud.setup(world, record))
    if action in (Action.START, Action.JOIN):
      record = record._replace(attempt=record.attempt + (action == Action.START))
      records.save(record)  # before it starts: an attempt's number is never used twice
      return record, _failed(cloud.start(world, record))
  except CloudError as error:
    return record, Seen(None, trouble=error.kind, text=str(error))
  return record, None


def _failed(answers: list[Answer]) -> Seen | None:
  bad = tuple(answer for answer in answers if answer.code != 0)
  return Seen(None, broken=bad) if bad else None


def _finish(world: World, record: Record, autodelete: bool) -> int:
  world.say(f'{record.name}: done')
  for failures in range(1, PATIENCE + 1) if autodelete else ():
    try:
      cloud.delete(world, record)
      if cloud.look(world, record).machine == Machine.ABSENT:
        records.forget(record)
        world.say(f'{record.name} is deleted')
        return DONE
    except CloudError as error:
      world.say(str(error))
    world.sleep(back_off(failures))
  world.say(f'the machine still costs: python -m launch tpu delete {record.name}')
  return AGAIN if autodelete else DONE


def _give_up(world: World, record: Record, seen: Seen, decision: Decision) -> int:
  """Stops, shows every worker, keeps the machine."""
  records.save(record._replace(stopped=decision.why.splitlines()[0]))
  if seen.broken:
    world.say(cloud.failures(record, list(seen.broken), 'setup or start', len(seen.workers)))
  elif seen.workers:
    world.say(cloud.logs(world, record, 40))
  if seen.machine == Machine.READY:
    world.say(f'the machine is kept, and costs: python -m launch tpu delete {record.name}\n'
              f'after a fix: python -m launch tpu setup {record.name}, then babysit again')
  return decision.code
