"""Several processes as one run: who takes part, how they join, how they end.

Who takes part is said by flags, by the environment or by the cluster (`find`); a process that is
alone does nothing of all this.
"""

import argparse
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TextIO

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from ssl_jax.cli import AGAIN, explain, meeting
from ssl_jax.cli.meeting import MissingError, Place
from ssl_jax.cli.process import Surviving
from ssl_jax.schema import ConfigError

DEAD = 60  # seconds without a sign of life after which JAX ends the others
LAST = 10  # seconds in which an error must have reached all, to be an error of all
ENDED = 'ssl_jax/ended/'

ENVIRONMENT = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


# --- who takes part -------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='several hosts: where process 0 '
                      'is reached; default $JAX_COORDINATOR_ADDRESS, else the cluster (Cloud TPU, '
                      'Slurm, Open MPI) tells')
  parser.add_argument('--processes', type=int, metavar='N', help='several hosts: how many '
                      'processes there are; default $JAX_NUM_PROCESSES')
  parser.add_argument('--process', type=int, metavar='I', help='several hosts: which one this is, '
                      'from 0; default $JAX_PROCESS_ID')
  parser.add_argument('--coordinator_port', type=int, metavar='PORT', help='several hosts: another '
                      'port of process 0, where a firewall blocks the one of the cluster')


def find(coordinator: str | None = None, processes: int | None = None, process: int | None = None,
         port: int | None = None) -> Place | None:
  """This process's place by flags, then JAX's variables, then the cluster; None where it is alone.

  Raises:
    ConfigError: what is said is not complete, or makes no sense.
    MissingError: the cluster's process 0 has no address yet.
  """
  values = coordinator, processes, process
  said = [_said(name, value) for name, value in zip(ENVIRONMENT, values, strict=True)]
  if said[1] == 1:
    return None
  source, devices = 'flags or environment', None
  if None in said:
    cluster = detected()
    if cluster is None and said == [None, None, None]:
      return None
    if cluster is None:
      missing = [f'--{flag} (or ${name})' for flag, name, value in
                 zip(('coordinator=HOST:PORT', 'processes=N', 'process=I'), ENVIRONMENT, said)
                 if value is None]
      raise ConfigError(f'to be one of several processes takes all three of address, number of '
                        f'processes and number of this one; there is no {" and no ".join(missing)}')
    said = [said[0] or _address(cluster, port),
            cluster.get_process_count() if said[1] is None else said[1],
            cluster.get_process_id() if said[2] is None else said[2]]
    source, devices = cluster.name, _local_devices(cluster)
  return Place(*_checked(*said, port), devices, source)


def note_alone() -> None:
  """Of commands that run in one process, and were started as one of several."""
  if find() is not None:
    print('note: this command runs in one process; start it once', file=sys.stderr)


def detected():
  """JAX's description of the cluster of several processes to which this one belongs, or None."""
  from jax._src import clusters
  known = (clusters.OmpiCluster, clusters.SlurmCluster, clusters.GkeTpuCluster,
           clusters.GceTpuCluster)
  try:
    cluster = next((cluster for cluster in known if cluster.is_env_present()), None)
    return cluster if cluster is not None and cluster.get_process_count() > 1 else None
  except OSError:  # a TPU without Google Cloud's metadata server, as in a notebook, is one host's
    return None


def _address(cluster, port: int | None) -> str:
  try:
    return cluster.get_coordinator_address(meeting.START, port and str(port))
  except RuntimeError as error:  # a name that is not known yet
    raise MissingError(f'{error} in {meeting.START} s') from error


def _said(name: str, value: str | int | None) -> str | int | None:
  """A flag's value, or that of the variable `name`."""
  if value is not None or not os.environ.get(name):
    return value
  text = os.environ[name]
  if name == ENVIRONMENT[0]:
    return text
  if not text.isdigit():
    raise ConfigError(f'${name} must be a number, got {text!r}')
  return int(text)


def _checked(address: str, processes: int, process: int, port: int | None):
  host, _, its_port = address.rpartition(':')
  if port is not None:
    host, its_port = (host or its_port), str(port)
  if not host or not its_port.isdigit() or not 0 < int(its_port) < 2**16:
    raise ConfigError(f'the coordinator is given as HOST:PORT, got {address!r}'
                      + (f' and port {port}' if port is not None else ''))
  if processes < 1 or not 0 <= process < processes:
    raise ConfigError(f'of {processes} processes this one is said to be number {process}; they are '
                      f'counted from 0 to {processes - 1}')
  return f'{host}:{its_port}', processes, process


def _local_devices(cluster) -> tuple[int, ...] | None:
  """Of several tasks on a node each takes the GPU of its number; a task alone on it takes all."""
  alone = os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1' or (
    'SLURM_NTASKS' in os.environ
    and os.environ['SLURM_NTASKS'] == os.environ.get('SLURM_STEP_NUM_NODES'))
  number = cluster.get_local_process_id()
  if number is None or alone or os.environ.get('JAX_LOCAL_DEVICE_IDS'):
    return None
  return (number,)


# --- from the first to the last moment -----------------------------------------------------------


def run(place: Place, work: Callable[[], int]) -> int:
  """Joins, works, and returns the exit code."""
  try:
    join(place)
  except MissingError as error:
    return start_again(error)
  try:
    return work()
  except Exception as error:
    code, lines = _explain(error)
    print('\n'.join(lines), file=sys.stderr)
    if code != AGAIN and _all_end(code, f'{type(error).__name__}: {error}'):
      return code
    # JAX would wait for the others at exit, who are dead or wait in the middle of a step.
    sys.stdout.flush()
    os._exit(code)


def start_again(error: MissingError) -> int:
  print(f'error (start again): {error}', file=sys.stderr)
  return AGAIN


def _explain(error: Exception) -> tuple[int, list[str]]:
  """As `cli.explain`; a lost process is worth another start, or has told why it ended."""
  chain = [error]
  while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
    chain.append(before)
  lost = any(isinstance(one, MissingError) or (
    isinstance(one, jax.errors.JaxRuntimeError) and 'Gloo' in str(one)) for one in chain)
  if lost and (ends := ended()):
    return ends[0]['code'], [f'ended with process {one["process"]} ({one["host"]}): {one["text"]}'
                             for one in ends]
  if lost:
    said = error if isinstance(error, MissingError) else f'another process was lost: {error}'
    return AGAIN, [f'error (start again): {said}']
  code, lines = explain(error)
  return code, lines if code != 1 else [''.join(traceback.format_exception(error)).rstrip()]


def ended() -> list[dict]:
  """What processes have told of their end by an error: [{process, host, code, text}, ...]."""
  try:
    found = distributed.global_state.client.key_value_dir_get(ENDED)
  except jax.errors.JaxRuntimeError:  # process 0 holds what is told, and is gone
    return []
  return [json.loads(text) for _, text in found]


def _all_end(code: int, text: str) -> bool:
  """Tells the others of this end; whether all of them end by an error now."""
  state = distributed.global_state
  mine = dict(process=state.process_id, host=socket.gethostname(), code=code, text=text)
  try:
    state.client.key_value_set(f'{ENDED}{state.process_id}', json.dumps(mine))
  except jax.errors.JaxRuntimeError:
    return False
  deadline = time.monotonic() + LAST
  while len(ended()) < state.num_processes:
    if time.monotonic() > deadline:
      return False
    time.sleep(0.1)
  return True


def join(place: Place) -> None:
  """Connects this process with the others; afterwards `jax.devices()` are those of all.

  Raises:
    MissingError: not all came in time; says which.
    ConfigError: two say that they are the same one, or their numbers differ, or the port is taken.
  """
  speak_as(place)
  meeting.meet(place)
  jax.distributed.initialize(
    place.coordinator, place.processes, place.process, local_device_ids=place.devices,
    cluster_detection_method='deactivate', initialization_timeout=DEAD,
    heartbeat_timeout_seconds=DEAD, shutdown_timeout_seconds=DEAD)


# --- speaking and stopping ------------------------------------------------------------------------


def speak_as(place: Place) -> None:
  """Process 0 speaks for all; of the others errors are heard, with their name before every line.

  Lines leave at once: what is in a buffer is lost when JAX ends a process because a peer died.
  """
  # Gloo reports on file descriptor 1 of every process; stdout is for results.
  results = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  sys.stdout = Surviving(results)
  if place.process > 0:
    sys.stderr = Prefixed(
      sys.stderr, f'[process {place.process} of {place.processes}, {socket.gethostname()}] ')


class Prefixed:
  """A text stream with something before each line."""

  def __init__(self, stream: TextIO, prefix: str):
    self._stream, self._prefix, self._fresh = stream, prefix, True

  def write(self, text: str) -> int:
    for line in text.splitlines(keepends=True):
      self._stream.write(self._prefix + line if self._fresh else line)
      self._fresh = line.endswith('\n')
    return len(text)

  def __getattr__(self, name):
    return getattr(self._stream, name)


class StopTogether:
  """StopOnSignal for several: a signal to one process makes `stop()` True on all at the same step.

  From `join` on JAX catches SIGTERM, however often it comes, and settles the step in the
  background; a handler of ours would blind it. Ctrl-C becomes a SIGTERM, the third ends at once.
  """

  def __init__(self):
    self._asked, self._stop, self._interrupts = 0, False, 0

  def __enter__(self) -> 'StopTogether':
    self._before = signal.signal(signal.SIGINT, self._interrupt)
    return self

  def __exit__(self, *exception) -> None:
    signal.signal(signal.SIGINT, self._before)

  def __call__(self) -> bool:
    """To be asked equally often by all processes."""
    if not self._stop:
      self._stop = multihost_utils.reached_preemption_sync_point(self._asked)
      self._asked += 1
      if self._stop:
        print('a process was told to stop: all save after this step', file=sys.stderr)
    return self._stop

  def defer(self) -> None:
    """JAX defers every signal."""

  def while_waiting(self) -> bool:
    """The others may be in the middle of a step, which takes this process."""
    return False

  def _interrupt(self, number, frame) -> None:
    del number, frame
    self._interrupts += 1
    if self._interrupts > 1:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
