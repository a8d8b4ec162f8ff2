"""Several processes meet: process 0 waits at the coordinator's address until all have come.

JAX would do so too, but where one does not come it ends the others (SIGABRT), and cannot say which
one it is. So they meet before, over plain sockets at the same address; JAX listens there
afterwards.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from ssl_jax.schema import ConfigError

START = 300  # seconds in which all processes must have come
REMIND = 30  # seconds between two lines about who is waited for


class MissingError(RuntimeError):
  """Not all processes came, or one was lost: worth another start."""


class Place(NamedTuple):
  """Where a process stands among those of a run.

  Attributes:
    coordinator: HOST:PORT of process 0.
    processes, process: how many there are, and which one this is.
    devices: numbers of this host's GPUs that are this process's; None is all of them.
    source: who said so.
  """

  coordinator: str
  processes: int
  process: int
  devices: tuple[int, ...] | None
  source: str


def meet(place: Place) -> None:
  """Returns once all processes are here.

  Raises:
    MissingError: not all came in time; says which.
    ConfigError: two say that they are the same one, or their numbers differ, or the port is taken.
  """
  if place.process == 0:
    _gather(place)
  else:
    _report(place)


def _gather(place: Place) -> None:
  """Process 0: waits for the others at the coordinator's address and tells them who came."""
  came: dict[int, Guest] = {}
  answer: dict = {}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(place))
    connections, deadline, told = [], time.monotonic() + START, 0.0
    while not answer and len(came) < place.processes - 1:
      missing = set(range(1, place.processes)) - set(came)
      if time.monotonic() > told + REMIND:
        told = time.monotonic()
        print(f'process 0 of {place.processes} ({place.source}): waiting for {listed(missing)} at '
              f'{place.coordinator}', file=sys.stderr)
      if time.monotonic() > deadline:
        answer = {'missing': sorted(missing)}
      elif (guest := _accept(server)) is not None:
        connections.append(stack.enter_context(guest.connection))
        answer = _let_in(guest, came, place)
      came = {i: guest for i, guest in came.items() if not _gone(guest.connection)}
    for connection in connections:
      with contextlib.suppress(OSError):
        connection.sendall(json.dumps(answer).encode() + b'\n')
  _heed(answer, place)


def _report(place: Place) -> None:
  """The others: say that they are here, and wait until all are."""
  host, _, port = place.coordinator.rpartition(':')
  deadline = time.monotonic() + START
  while True:
    try:
      with socket.create_connection((host.strip('[]'), int(port)), timeout=5) as connection:
        me = [place.process, place.processes, socket.gethostname()]
        connection.sendall(json.dumps(me).encode() + b'\n')
        connection.settimeout(START + REMIND)
        with connection.makefile() as file:
          answer = json.loads(file.readline())
        break
    except (OSError, ValueError) as error:
      # Not there yet, or it went away while we waited: started again by a supervisor, perhaps.
      if time.monotonic() > deadline:
        raise MissingError(
          f'process 0 did not answer at {place.coordinator} in {START} s ({error}): is the same '
          f'command running on its host, and does a firewall let the port through? '
          f'--coordinator_port=PORT on all hosts takes another') from error
      time.sleep(0.2)
  _heed(answer, place)


def _listen(place: Place) -> socket.socket:
  address = os.environ.get('JAX_COORDINATOR_BIND_ADDRESS')  # as JAX, which listens here afterwards
  host, _, port = (address or place.coordinator).rpartition(':')
  host = host.strip('[]') if address else ''
  both = not address and socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both or ':' in host else socket.AF_INET
  try:
    server = socket.create_server((host, int(port)), family=family, backlog=place.processes,
                                  dualstack_ipv6=both)
  except OSError as error:
    raise ConfigError(f'process 0 cannot listen on port {port}: {error}; end what uses it, or '
                      f'choose another with --coordinator_port=PORT on all hosts') from error
  server.settimeout(1)
  return server


class Guest(NamedTuple):
  """Who came to process 0, by its own words."""

  process: int
  processes: int
  host: str
  connection: socket.socket


def _accept(server: socket.socket) -> Guest | None:
  """Whoever comes within a second; None if nobody, or a stranger, did."""
  try:
    connection, _ = server.accept()
  except TimeoutError:
    return None
  try:
    connection.settimeout(5)
    with connection.makefile() as file:
      process, processes, host = json.loads(file.readline(1000))
    return Guest(int(process), int(processes), str(host), connection)
  except (OSError, ValueError, TypeError):
    connection.close()
    return None


def _let_in(guest: Guest, came: dict[int, Guest], place: Place) -> dict:
  """Adds a guest to those who `came`; returns what is wrong with it, if anything."""
  here, earlier = socket.gethostname(), came.get(guest.process)
  if guest.processes != place.processes:
    return {'fault': f'process {guest.process} ({guest.host}) was told of {guest.processes} '
                     f'processes, process 0 ({here}) of {place.processes}'}
  if guest.process == 0 or (earlier is not None and not _gone(earlier.connection)):
    return {'fault': f'two processes were told to be number {guest.process}, on '
                     f'{earlier.host if earlier else here} and {guest.host}'}
  came[guest.process] = guest
  return {}


def _gone(connection: socket.socket) -> bool:
  """Whether the other side has closed it, as a process does that is started again."""
  connection.setblocking(False)
  try:
    return connection.recv(1, socket.MSG_PEEK) == b''
  except BlockingIOError:
    return False
  except OSError:
    return True


def _heed(answer: dict, place: Place) -> None:
  if 'fault' in answer:
    raise ConfigError(answer['fault'])
  if 'missing' in answer:
    raise MissingError(
      f'{listed(answer["missing"])} of {place.processes} did not come to {place.coordinator} in '
      f'{START} s: is the same command running on every host, and does a firewall let the port '
      f'through? --coordinator_port=PORT on all hosts takes another')


def listed(processes: Iterable[int]) -> str:
  """'process 3', 'processes 1, 2'; of many the first."""
  numbers = sorted(processes)
  text = ', '.join(map(str, numbers[:20])) + (f' and {len(numbers) - 20} more' if len(numbers) > 20
                                              else '')
  return f'process{"es" if len(numbers) > 1 else ""} {text}'
