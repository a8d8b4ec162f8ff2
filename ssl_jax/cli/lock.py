"""One job per run folder; what a killed job left of its lock is recognised.

  workdir/run.lock    who is at work: host, pid, since when; empty when nobody is

The system lets go of a lock with the process that holds it, also on shared file systems that lock
for all hosts. On those that do not, the file is touched as a sign of life.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from ssl_jax import runs
from ssl_jax.cli import agreement
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import CheckpointError

NAME = 'run.lock'
GRACE = 10  # seconds for a job that is just ending, or whose children are
BEAT = 10  # seconds between two signs of life
WATCHED = 40  # seconds in which a job on another host must give one
OLD = 600  # seconds since the last one after which nobody looks; clocks may differ


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator['Lock']:
  """Makes the folder and holds its lock; of several processes the first does, for all.

  Raises:
    ConfigError: another job is at work there; on all processes.
    CheckpointError: the folder cannot be written.
  """
  lock, fault = Lock(workdir), None
  if jax.process_index() == 0:
    try:
      lock.take()
    except (ConfigError, CheckpointError) as error:
      fault = error
  if jax.process_count() > 1:
    told = agreement.exchange('lock', {'fault': fault and str(fault)})[0]['facts']['fault']
    fault = told and ConfigError(told)
  if fault:
    raise fault
  try:
    yield lock
  finally:
    lock.release()


class Lock:
  """The lock of a run folder."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir, self._file, self._over = workdir, None, threading.Event()

  def take(self) -> None:
    """Raises as `held`."""
    path = self._workdir / NAME
    try:
      self._workdir.mkdir(parents=True, exist_ok=True)
      file = path.open('a+')
    except OSError as error:
      raise CheckpointError(f'--workdir={self._workdir} cannot be written: {error}') from error
    if (other := _holder(path, file)) is not None:
      file.close()
      raise ConfigError(self._taken(other))
    file.truncate(0)
    file.write(json.dumps(dict(host=socket.gethostname(), pid=os.getpid(), time=_now())) + '\n')
    file.flush()
    self._file, self._over = file, threading.Event()
    threading.Thread(target=_beat, args=(file.fileno(), self._over), daemon=True).start()

  def release(self) -> None:
    if self._file is not None:
      self._over.set()
      with contextlib.suppress(OSError):  # the folder may be gone
        self._file.truncate(0)
      self._file.close()
      self._file = None

  def move_aside(self) -> pathlib.Path | None:
    """Renames an earlier run in the folder, and holds the new folder; where the earlier one is."""
    if not (self._workdir / runs.CONFIG).exists():
      return None
    folder = self._workdir.resolve()  # a link stays, and leads to the new folder
    aside = folder.with_name(f'{folder.name}.before-{time.strftime("%Y%m%d-%H%M%S")}')
    while aside.exists():
      aside = aside.with_name(f'{aside.name}+')
    folder.rename(aside)
    folder.mkdir()
    self.release()
    self.take()
    return aside

  def _taken(self, by: dict) -> str:
    who = (f'process {by["pid"]} on {by["host"]} since {by["time"]}' if by else 'another process')
    return (f'another job is at work in {self._workdir}: {who}; wait for it, stop it, or use '
            'another --workdir')


def _holder(path: pathlib.Path, file) -> dict | None:
  """What is known of another job that is at work; None once `file` is locked for this one."""
  deadline = time.monotonic() + GRACE
  while not _locks(file):
    if time.monotonic() > deadline:
      return _read(path)
    time.sleep(0.1)
  before, here = _read(path), socket.gethostname()
  return before if before.get('host', here) != here and _is_alive(path, before) else None


def _locks(file) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    return True  # a file system without locks: signs of life must do
  return True


def _read(path: pathlib.Path) -> dict:
  """What is known of who holds or held a lock: host, pid, time; or nothing."""
  try:
    found = json.loads(path.read_text())
    return {name: found[name] for name in ('host', 'pid', 'time')}
  except (OSError, ValueError, KeyError, TypeError):
    return {}


def _is_alive(path: pathlib.Path, by: dict) -> bool:
  """Whether a job on another host touches its lock."""
  last = path.stat().st_mtime
  if time.time() - last > OLD:
    return False
  print(f'note: process {by["pid"]} on {by["host"]} was at work in {path.parent}; looking for '
        f'up to {WATCHED} s whether it still is', file=sys.stderr, flush=True)
  deadline = time.monotonic() + WATCHED
  while time.monotonic() < deadline:
    time.sleep(min(1, WATCHED / 10))
    with path.open():  # a network file system asks its server when a file is opened
      if path.stat().st_mtime != last:
        return True
  return False


def _beat(file: int, over: threading.Event) -> None:
  while not over.wait(BEAT):
    with contextlib.suppress(OSError):
      os.utime(file)


def _now() -> str:
  return time.strftime('%Y-%m-%d %H:%M:%S')
