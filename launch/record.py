"""What was created from here: one JSON file per machine, and the lock of whoever drives it.

The record is written *before* the machine is asked for, so nothing can be rented that is not on
record. Its token is also a label of the machine; both must agree before anything is deleted.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from launch.errors import LaunchError


class Record(NamedTuple):
  """A machine that was asked for, and the run on it.

  Attributes:
    capacity: on-demand, spot or reserved.
    bucket: gs://..., where runs and logs outlive the machine; '' for none.
    data: what training reads and `setup` looks for; '' for nothing to look for.
    token: also the label of the machine in the cloud.
    code: name of the archive that was set up, '' before.
    arguments: of `python -m ssl_jax` that runs, () before.
    attempt: how often a run was started on this machine or its predecessors.
    stopped: why the babysitter gave up, '' while it has not.
  """

  name: str
  project: str
  zone: str
  accelerator: str
  slices: int = 1
  capacity: str = 'on-demand'
  bucket: str = ''
  data: str = ''
  token: str = ''
  code: str = ''
  arguments: tuple[str, ...] = ()
  attempt: int = 0
  stopped: str = ''

  @property
  def folder(self) -> pathlib.Path:
    """Archives of the code that was sent."""
    return state_folder() / self.name


def new_token() -> str:
  return secrets.token_hex(6)


def state_folder() -> pathlib.Path:
  chosen = os.environ.get('SSL_JAX_LAUNCH_STATE')
  return pathlib.Path(chosen) if chosen else pathlib.Path.home() / '.ssl_jax' / 'launch'


def load(name: str) -> Record | None:
  """The record of a machine, or None if it was not created from here."""
  try:
    fields = json.loads(_path(name).read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise LaunchError(f'{_path(name)} is damaged ({error}); look for {name} in the cloud console, '
                      'delete it there if it is yours, then remove this file') from error
  return Record(**{**fields, 'arguments': tuple(fields['arguments'])})


def save(record: Record) -> None:
  """Whole or not at all, whatever happens meanwhile."""
  path = _path(record.name)
  partial = path.with_suffix('.partial')
  with writing(path.parent):
    partial.write_text(json.dumps(record._asdict(), indent=1) + '\n')
    partial.replace(path)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
  """Makes the folder, and answers in words what its disk refuses."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise LaunchError(
      f'{folder} cannot be written ({error.strerror}), where what was rented is kept on record; make '
      'room there, or say export SSL_JAX_LAUNCH_STATE=FOLDER with one that can') from error


def forget(record: Record) -> None:
  _path(record.name).unlink(missing_ok=True)


@contextlib.contextmanager
def driving(name: str) -> Iterator[None]:
  """Only one command at a time may change a machine: two drivers would undo each other's work."""
  path = state_folder() / f'{name}.lock'
  with writing(path.parent):
    file = path.open('a+')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      file.seek(0)
      raise LaunchError(f'{name} is being driven by another command (process {file.read().strip()})'
                        '; wait for it, or end it with Ctrl-C; training goes on') from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    yield


def check_name(name: str) -> str:
  """Cloud TPU's rule for names; it also keeps file names and scripts harmless."""
  if not re.fullmatch(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?', name):
    raise LaunchError(f'the name {name!r} is not possible: expected lower-case letters, digits and '
                      'dashes, a letter first, at most 40, such as simclr-v5e')
  return name


def check_filled_in(**values: str) -> None:
  """Refuses what was copied from an example without being replaced."""
  for option, value in values.items():
    if re.search(r'[<>$\s]|\.\.\.|^(your|my)[-_]|change[-_]?me|placeholder', value, re.I) or (
        value and value == value.upper() and re.search('[A-Z]', value)):
      raise LaunchError(f'--{option}={value} looks like a placeholder; put your own value there')


def _path(name: str) -> pathlib.Path:
  return state_folder() / f'{name}.json'
