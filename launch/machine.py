"""One request for a machine and its workers: create, look, set up, start, end, delete."""

import enum
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from launch import gcloud, worker
from launch.accelerators import parse
from launch.commands import Command, Result, World
from launch.errors import AGAIN, CONFIGURATION, DATA, LaunchError
from launch.gcloud import Trouble
from launch.record import Record


class CloudError(LaunchError):
  """gcloud refused; `kind` says what is to be done."""

  def __init__(self, kind: Trouble, command: Command, result: Result):
    super().__init__(f'gcloud refused: {gcloud.complaint(result)}\n  {command}\n'
                     f'what to do: {gcloud.FIXES[kind]}',
                     AGAIN if kind in (Trouble.TRANSIENT, Trouble.CAPACITY) else CONFIGURATION)
    self.kind = kind


class Machine(enum.Enum):
  """The request and all of its slices, as one thing."""

  ABSENT = 'absent'
  BUSY = 'being prepared or deleted'
  READY = 'ready'
  GONE = 'lost, but not deleted yet'


class Answer(NamedTuple):
  """What one worker said; `code` is None if the connection was lost before its script ended."""

  slice: int
  worker: int
  code: int | None
  text: str

  def name(self, record: Record) -> str:
    part = f'slice {self.slice} ' if record.slices > 1 else ''
    return f'{part}worker {self.worker}'


def cloud(world: World, command: Command) -> Result:
  """Runs a gcloud command.

  Raises:
    CloudError: it failed.
  """
  result = world.run(command)
  if result.code:
    raise CloudError(gcloud.trouble(f'{result.err}\n{result.out}'), command, result)
  return result


# --- before and after -----------------------------------------------------------------------------


def check(world: World, record: Record) -> None:
  """Finds what would fail later, before anything is rented."""
  if not cloud(world, gcloud.login()).out.strip():
    raise LaunchError('gcloud is not logged in; `gcloud auth login`, then the same command again')
  wanted = parse(record.accelerator).name
  offered = cloud(world, gcloud.types(record)).out.split()
  if wanted not in offered:
    family = [name for name in offered if name.split('-')[0] == wanted.split('-')[0]]
    raise LaunchError(f'--zone={record.zone} has no {wanted}; it has '
                      f'{", ".join(family or offered) or "no TPUs at all"}. Another --zone, or '
                      'another --accelerator')
  if record.bucket:
    _check_bucket(world, record)


def _check_bucket(world: World, record: Record) -> None:
  if not re.fullmatch(r'gs://[a-z0-9][-_.a-z0-9]{1,61}[a-z0-9]', record.bucket):
    raise LaunchError(f'--bucket={record.bucket}: expected a bucket alone, such as gs://acme-runs')
  region = record.zone.rsplit('-', 1)[0]
  try:
    location = cloud(world, gcloud.bucket(record)).out.strip().lower()
  except CloudError as error:
    if error.kind not in (Trouble.ABSENT, Trouble.PERMISSION):
      raise
    raise LaunchError(
      f'--bucket={record.bucket} does not exist or is not yours; make it with\n'
      f'  gcloud storage buckets create {record.bucket} --project={record.project} '
      f'--location={region} --uniform-bucket-level-access --enable-hierarchical-namespace'
    ) from error
  if '-' in location and location != region:
    world.say(f'note: {record.bucket} is in {location}, the machine in {region}: reading will be '
              'slower and is charged')


def create(world: World, record: Record) -> None:
  """Asks for the machine. The answer may have been lost before: then ours is there already."""
  try:
    cloud(world, gcloud.create(record))
  except CloudError as error:
    if error.kind != Trouble.EXISTS or look(world, record).label != record.token:
      raise


def delete(world: World, record: Record) -> None:
  """Deletes the machine; that it is gone already is no error."""
  try:
    cloud(world, gcloud.delete(record))
  except CloudError as error:
    if error.kind != Trouble.ABSENT:
      raise


class Look(NamedTuple):
  """How things stand in the cloud.

  Attributes:
    mine: the label is that of the record; what is not ready yet may not show one.
    label: the label, '' if there is none.
    text: the states in the cloud's words.
    failure: what the cloud says about a request that failed.
  """

  machine: Machine
  mine: bool = False
  label: str = ''
  text: str = ''
  failure: str = ''


_REQUEST_STATES = dict(
  CREATING=Machine.BUSY, ACCEPTED=Machine.BUSY, WAITING_FOR_RESOURCES=Machine.BUSY,
  PROVISIONING=Machine.BUSY, DELETING=Machine.BUSY, SUSPENDING=Machine.BUSY,
  ACTIVE=Machine.READY, FAILED=Machine.GONE, SUSPENDED=Machine.GONE)
_NODE_STATES = dict(
  READY=Machine.READY, CREATING=Machine.BUSY, STARTING=Machine.BUSY, RESTARTING=Machine.BUSY,
  REIMAGING=Machine.BUSY, REPAIRING=Machine.BUSY, DELETING=Machine.BUSY, STOPPING=Machine.BUSY)


def look(world: World, record: Record) -> Look:
  """Looks at the request, and at each slice once the request is filled.

  Raises:
    CloudError: the cloud did not say.
  """
  answer = _json(world, gcloud.describe(record))
  if answer is None:
    return Look(Machine.ABSENT, text='absent')
  label = gcloud.labels(answer).get(gcloud.LABEL, '')
  state = answer.get('state', {}).get('state', 'UNKNOWN')
  machine, text = _REQUEST_STATES.get(state, Machine.BUSY), state
  failure = json.dumps(answer['state']) if state == 'FAILED' else ''
  if machine == Machine.READY:
    nodes = [_json(world, gcloud.describe_node(record, node)) for node in gcloud.node_names(record)]
    label = label or next((gcloud.labels(node).get(gcloud.LABEL, '') for node in nodes if node), '')
    # The request stays ACTIVE for a while when its machine is taken away, and not every machine
    # that was taken away says PREEMPTED.
    states = [node.get('state', 'UNKNOWN') if node else 'absent' for node in nodes]
    kinds = [_NODE_STATES.get(state, Machine.GONE) for state in states]
    machine = next((kind for kind in (Machine.GONE, Machine.BUSY) if kind in kinds), Machine.READY)
    text = ', '.join(states)
  shown = label or ('' if machine == Machine.READY else record.token)
  return Look(machine, shown == record.token != '', label, text, failure)


def _json(world: World, command: Command) -> dict | None:
  """The description, or None if there is nothing of the name."""
  try:
    return json.loads(cloud(world, command).out)
  except CloudError as error:
    if error.kind != Trouble.ABSENT:
      raise
    return None
  except ValueError as error:
    raise CloudError(Trouble.TRANSIENT, command, Result(1, '', f'no JSON: {error}')) from error


# --- the workers ----------------------------------------------------------------------------------


def ask(world: World, record: Record, script: str, *, note: str, timeout: float = 180,
        sample: str = '') -> list[Answer]:
  """Runs a script on all workers at once; a command that failed and a connection that was lost are
  never mixed up. In a dry run every worker answers `sample`."""
  hosts = range(parse(record.accelerator).hosts)

  def on_slice(number: int, node: str) -> list[Answer]:
    result = world.run(gcloud.ssh(record, node, worker.answering(script), note=note,
                                  timeout=timeout))
    found = dict.fromkeys(hosts, (0, sample)) if world.dry else worker.answers(result.out)
    return [Answer(number, i, *found.get(i, (None, gcloud.complaint(result)))) for i in hosts]

  nodes = gcloud.node_names(record)
  with ThreadPoolExecutor(1 if world.dry else len(nodes)) as threads:
    return sum(threads.map(on_slice, range(len(nodes)), nodes), [])


def patiently(world: World, attempt: Callable[[], list[Answer]], times: int = 3) -> list[Answer]:
  """Again while a worker does not answer: a new VM refuses connections for a while."""
  for i in range(times):
    answers = attempt()
    if all(answer.code is not None for answer in answers):
      break
    if i + 1 < times:
      world.say('not every worker answered; once more in 20 s')
      world.sleep(20)
  return answers


def setup(world: World, record: Record) -> list[Answer]:
  """Installs code and packages on every worker and lets `doctor` look at it."""
  for number, node in enumerate(gcloud.node_names(record)):
    result = world.run(gcloud.copy(record, node, str(record.folder / record.code)))
    if result.code:
      return [Answer(number, i, None, gcloud.complaint(result))
              for i in range(parse(record.accelerator).hosts)]
  return ask(world, record, worker.setup(record, record.code), timeout=gcloud.SETTING_UP,
             note='install, find the data, let doctor look')


def start(world: World, record: Record) -> list[Answer]:
  logs = gcloud.saved_logs(record) if record.bucket else ''
  return ask(world, record, worker.start(record, record.attempt, logs, record.arguments),
             note='start the program, detached', timeout=300)


class Worker(NamedTuple):
  """How one worker stands.

  Attributes:
    state: lost, bare (not set up), idle, running, or ended.
    code: of a program that ended.
    doing: what the run says of itself, such as 'step 12, saving'; '' if nothing.
    still: seconds since the run last got on, by its own words.
  """

  answer: Answer
  state: str
  code: int | None = None
  attempt: int = 0
  step: int | None = None
  last: str = ''
  doing: str = ''
  still: int = 0


def workers(world: World, record: Record) -> list[Worker]:
  """The state of every worker as regards the record's code and attempt."""
  answers = ask(world, record, worker.state(record.arguments), note='how do the workers stand?',
                sample=f'setup={record.code}\nattempt={record.attempt}\nstate=running\nstep=')
  return [_worker(answer, record) for answer in answers]


def _worker(answer: Answer, record: Record) -> Worker:
  if answer.code is None:
    return Worker(answer, 'lost')
  found = dict(line.split('=', 1) for line in answer.text.splitlines() if '=' in line)
  attempt, step = (int(found.get(key) or -1) for key in ('attempt', 'step'))
  doing, still = _heartbeat(found) if found.get('state') == 'running' else ('', 0)
  facts = dict(attempt=max(attempt, 0), step=None if step < 0 else step, last=found.get('last', ''),
               doing=doing, still=still)
  if not found.get('setup') or found['setup'] != record.code:
    # Running with other code than that on record: leave it alone and say so.
    running = found.get('state') == 'running'
    return Worker(answer, 'running' if running else 'bare', **facts)
  state = found.get('state', 'idle')
  if state == 'ended' and attempt != record.attempt:
    state = 'idle'
  code = int(found['code']) if state == 'ended' and found.get('code', '').isdigit() else None
  return Worker(answer, state, 255 if state == 'ended' and code is None else code, **facts)


def _heartbeat(found: dict[str, str]) -> tuple[str, int]:
  """(what the run is doing, seconds since it last got on)."""
  try:
    beat = json.loads(found.get('beat') or '{}')
    since = max(int(found['now']) - beat['time'], 0) + beat['idle']
    return f'step {beat["step"]}, {beat["doing"]}', since
  except (ValueError, KeyError, TypeError):  # none yet, or half a file
    return '', 0


def refuse_failures(record: Record, answers: list[Answer], what: str) -> None:
  """Names the workers on which something failed.

  Raises:
    LaunchError: there are some.
  """
  bad = [answer for answer in answers if answer.code != 0]
  if bad:
    raise LaunchError(failures(record, bad, what, len(answers)), DATA)


def failures(record: Record, bad: list[Answer], what: str, of: int) -> str:
  lines = [f'{what} failed on {len(bad)} of {of} workers:']
  for answer in bad:
    how = 'the connection was lost' if answer.code is None else f'exit code {answer.code}'
    text = '\n'.join('    ' + line for line in answer.text.splitlines()[-12:])
    lines.append(f'  {answer.name(record)}: {how}\n{text}')
  return '\n'.join(lines)


def logs(world: World, record: Record, lines: int) -> str:
  """The last lines of every worker, each under its name."""
  answers = ask(world, record, worker.tail(lines), note='the ends of the logs')
  return '\n'.join(f'--- {answer.name(record)}\n{answer.text}' for answer in answers)
