"""Every gcloud command, and what its answers mean. Pure: nothing runs here.

Machines are always asked for as queued resources: one kind of request for on-demand, spot and
reserved capacity, for one slice and for several, and one thing to delete at the end.
"""

import enum
import json
import re

from launch.accelerators import parse
from launch.commands import Command, Result
from launch.record import Record

LABEL = 'ssl-jax-launch'
TPU = ('gcloud', 'compute', 'tpus')
SETTING_UP = 3600  # seconds that installing may take on the slowest worker


def node_names(record: Record) -> list[str]:
  """The TPU nodes of a request: one per slice."""
  if record.slices == 1:
    return [record.name]
  return [f'{record.name}-{i}' for i in range(record.slices)]


def _where(record: Record) -> tuple[str, ...]:
  return f'--zone={record.zone}', f'--project={record.project}'


# --- before anything is rented --------------------------------------------------------------------


def login() -> Command:
  return Command(('gcloud', 'auth', 'list', '--filter=status:ACTIVE', '--format=value(account)'),
                 'who is logged in', sample='someone')


def types(record: Record) -> Command:
  return Command((*TPU, 'tpu-vm', 'accelerator-types', 'list', *_where(record),
                  '--format=value(type)'), 'does the zone have the type?',
                 sample=parse(record.accelerator).name)


def bucket(record: Record) -> Command:
  return Command(('gcloud', 'storage', 'buckets', 'describe', record.bucket,
                  f'--project={record.project}', '--format=value(location)'),
                 'does the bucket exist, and where?', sample=record.zone.rsplit('-', 1)[0].upper())


# --- the machine ----------------------------------------------------------------------------------


def create(record: Record) -> Command:
  slice_ = parse(record.accelerator)
  nodes = ((f'--node-id={record.name}',) if record.slices == 1 else
           (f'--node-count={record.slices}', f'--node-prefix={record.name}'))
  capacity = {'on-demand': (), 'spot': ('--spot',), 'reserved': ('--reserved',)}[record.capacity]
  return Command((*TPU, 'queued-resources', 'create', record.name, *_where(record),
                  f'--accelerator-type={slice_.name}', f'--runtime-version={slice_.runtime}',
                  *nodes, *capacity, f'--labels={LABEL}={record.token}', '--async', '--quiet'),
                 'ask for the machine')


def describe(record: Record) -> Command:
  sample = json.dumps({'state': {'state': 'ACTIVE'}, 'tpu': {'nodeSpec': [
    {'node': {'labels': {LABEL: record.token}}}]}})
  return Command((*TPU, 'queued-resources', 'describe', record.name, *_where(record),
                  '--format=json'), 'is it there?', sample=sample)


def describe_node(record: Record, node: str) -> Command:
  return Command((*TPU, 'tpu-vm', 'describe', node, *_where(record), '--format=json'),
                 'is the slice ready?', sample=json.dumps(
                   {'state': 'READY', 'labels': {LABEL: record.token}}))


def delete(record: Record) -> Command:
  return Command((*TPU, 'queued-resources', 'delete', record.name, *_where(record), '--force',
                  '--quiet'), 'delete the request and its machines', timeout=1200)


# --- the workers ----------------------------------------------------------------------------------


def ssh(record: Record, node: str, command: str, *, note: str, timeout: float) -> Command:
  """Runs `command` in the shell of every worker of a slice at once.

  What they print arrives mixed, and --output-directory loses it (gcloud 528 writes to a folder
  called None); so `command` marks its lines, see `launch.worker.answering`. When a connection drops
  gcloud runs the command again, up to ten times: it must do no harm twice.
  """
  return Command((*TPU, 'tpu-vm', 'ssh', node, *_where(record), '--worker=all', '--quiet',
                  '--ssh-flag=-oServerAliveInterval=30', f'--command={command}'), note,
                 timeout=timeout)


def copy(record: Record, node: str, path: str) -> Command:
  return Command((*TPU, 'tpu-vm', 'scp', path, f'{node}:', *_where(record), '--worker=all',
                  '--quiet'), 'the code, to every worker', timeout=SETTING_UP)


def follow(record: Record, node: str, worker: int, command: str) -> Command:
  """For the terminal: until Ctrl-C."""
  return Command((*TPU, 'tpu-vm', 'ssh', node, *_where(record), f'--worker={worker}',
                  f'--command={command}'), 'Ctrl-C ends watching, not training')


def saved_logs(record: Record) -> str:
  """Where every worker's log goes in the bucket."""
  return f'{record.bucket}/launch/{record.name}'


def show_saved_logs(record: Record) -> Command:
  return Command(('gcloud', 'storage', 'cat', f'{saved_logs(record)}/*.log', '--display-url'),
                 'the machine is gone; its logs are in the bucket')


# --- what gcloud says -----------------------------------------------------------------------------


class Trouble(enum.Enum):
  """Why a gcloud command failed, by what is to be done about it."""

  LOGIN = 'login'
  PERMISSION = 'permission'
  QUOTA = 'quota'
  REQUEST = 'request'          # a type, zone or image that does not exist
  CAPACITY = 'capacity'        # ask again later
  TRANSIENT = 'transient'      # ask again soon
  ABSENT = 'absent'
  EXISTS = 'exists'
  UNKNOWN = 'unknown'


# In order: a quota error is also "RESOURCE_EXHAUSTED" and "429", a wrong zone "permission denied".
_SIGNS = (
  (Trouble.LOGIN, r'gcloud auth login|active account|reauthentication|invalid_grant|'
                  r'UNAUTHENTICATED|refreshing your current auth'),
  (Trouble.QUOTA, r'quota.{0,80}(exceed|limit)|QUOTA_EXCEEDED|insufficient quota|limit: 0\b'),
  (Trouble.REQUEST, r"on 'locations/|location .{0,60}(not found|unavailable|access)|unknown zone|"
                    r'accelerator.{0,60}(not found|not available|invalid|unsupported|not support)|'
                    r'(runtime|software) version.{0,60}(not found|invalid)|INVALID_ARGUMENT|'
                    r'no reservation|reservation.{0,40}not found'),
  (Trouble.PERMISSION, r'PERMISSION_DENIED|(does not have|sufficient) permission|'
                       r'required .{0,80}permission|\b403\b|API has not been used|'
                       r'API is not enabled|SERVICE_DISABLED|insufficient authentication scopes|'
                       r'billing'),
  (Trouble.EXISTS, r'ALREADY_EXISTS|already exists'),
  (Trouble.CAPACITY, r'no more capacity|insufficient (reserved )?capacity|stockout|'
                     r'not enough resources|resources? available|RESOURCE_EXHAUSTED'),
  (Trouble.ABSENT, r'NOT_FOUND|was not found|not found|\b404\b'),
  (Trouble.TRANSIENT, r'\b(500|502|503|504|429)\b|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED|'
                      r'temporar|timed? ?out|connection (reset|refused|aborted)|unreachable|'
                      r'max retries|name resolution|rate limit|try again'),
)

FIXES = {
  Trouble.LOGIN: 'log in: `gcloud auth login`, then the same command again',
  Trouble.PERMISSION: 'ask for the role "TPU Admin" in the project, enable the API with `gcloud '
                      'services enable tpu.googleapis.com`, and see that billing is on',
  Trouble.QUOTA: 'ask for quota of this type in this zone (console: IAM & Admin, Quotas, "TPU"), '
                 'or choose another --zone, --accelerator or --capacity',
  Trouble.REQUEST: 'check --zone and --accelerator: `gcloud compute tpus tpu-vm accelerator-types '
                   'list --zone=ZONE` shows what a zone has',
  Trouble.CAPACITY: 'the zone has no such machine free; ask again later, or in another zone',
  Trouble.TRANSIENT: 'the service did not answer; the same command again',
  Trouble.EXISTS: 'the name is taken by a machine that was not created from here; choose another',
  Trouble.ABSENT: 'there is no such machine; it was deleted, or is in another zone or project',
  Trouble.UNKNOWN: 'if the message does not help, run the command above by hand',
}

# What asking again does not change.
REFUSALS = (Trouble.LOGIN, Trouble.PERMISSION, Trouble.QUOTA, Trouble.REQUEST)


def trouble(text: str) -> Trouble:
  for kind, signs in _SIGNS:
    if re.search(signs, text, re.I | re.S):
      return kind
  return Trouble.UNKNOWN


def complaint(result: Result) -> str:
  """What gcloud complains of, in its own words; stdout where stderr is silent."""
  return (result.err.strip() or result.out.strip() or f'exit code {result.code}')[-2000:]


def labels(answer: dict) -> dict:
  """The labels in the description of a request or a node."""
  found = dict(answer.get('labels', {}))
  for spec in answer.get('tpu', {}).get('nodeSpec', []):
    found.update(spec.get('node', {}).get('labels', {}))
  return found
