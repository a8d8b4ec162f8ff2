"""Commands run one at a time for another: signals passed on, their folder locked."""

import fcntl
import pathlib
import subprocess

from ssl_jax.cli import AGAIN
from ssl_jax.cli.process import listen, restore
from ssl_jax.schema import ConfigError

LOCK = 'sweep.lock'


class Child:
  """Runs one command at a time, passes signals on to it, and keeps the folder for itself.

  A terminal sends Ctrl-C to all of its foreground group, and a second signal would end a child
  before it has saved; so children get a group of their own and one signal from here. The lock is
  handed to them: should this process be killed, the folder is taken until its child has ended.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder, self._process, self._stopped, self._before = folder, None, False, {}

  def __enter__(self) -> 'Child':
    self._folder.mkdir(parents=True, exist_ok=True)
    self._lock = (self._folder / LOCK).open('a')
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._lock.close()
      raise ConfigError(f'another sweep, or a run that one left, is at work in {self._folder}; wait '
                        'for it or stop it') from error
    self._before = listen(self._handle)
    return self

  def __exit__(self, *exception) -> None:
    restore(self._before)
    self._lock.close()

  def __call__(self, arguments: list[str]) -> int:
    """The exit code of the command, or `AGAIN` once a signal has come. Its stdout goes to stderr."""
    if not self._stopped:
      self._process = subprocess.Popen(
        arguments, stdin=subprocess.DEVNULL, stdout=2, process_group=0, pass_fds=[self._lock.fileno()])
      if self._stopped:  # the signal came while it was started
        self._process.terminate()
      code = self._process.wait()
    return AGAIN if self._stopped else code

  def _handle(self, number, frame):
    del number, frame
    self._stopped = True
    if self._process is not None and self._process.poll() is None:
      self._process.terminate()  # train saves at the first and ends at once at the second
