"""A command is a list of arguments; this is the only place where one is quoted or run."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from launch.errors import LaunchError

NO_ANSWER = 124  # as timeout(1) has it


class Command(NamedTuple):
  """What is run.

  Attributes:
    argv: program and arguments, exact; no shell takes part.
    note: why, for whoever reads a dry run.
    sample: its output when all goes well; a dry run goes on with it.
    timeout: seconds after which the answer is not waited for any longer.
  """

  argv: tuple[str, ...]
  note: str = ''
  sample: str = ''
  timeout: float = 120

  def __str__(self) -> str:
    return quoted(self.argv)


class Result(NamedTuple):
  code: int
  out: str = ''
  err: str = ''


def quoted(argv: Sequence[str]) -> str:
  """One line of POSIX shell that runs exactly `argv`."""
  return shlex.join(argv)


class World(NamedTuple):
  """All effects: what tests and dry runs replace."""

  run: Callable[[Command], Result]
  say: Callable[[str], None]
  sleep: Callable[[float], None] = time.sleep
  jitter: Callable[[], float] = random.random
  dry: bool = False


def real() -> World:
  return World(run=_run, say=lambda text: print(text, file=sys.stderr, flush=True))


def dry() -> World:
  """Prints the commands, as a script that could be pasted, and believes that all go well."""
  def show(command: Command) -> Result:
    if command.note:
      print(f'# {command.note}')
    print(command, flush=True)
    return Result(0, command.sample)
  return World(run=show, say=lambda text: print('# ' + text.replace('\n', '\n# ')),
               sleep=lambda seconds: None, jitter=lambda: 0.5, dry=True)


INSTALL = {
  'gcloud': 'install the Google Cloud CLI (cloud.google.com/sdk/docs/install), then `gcloud auth '
            'login`',
  'sbatch': 'this is no login node of a Slurm cluster; on one machine `python -m launch local` '
            'starts several processes',
}


def need(program: str) -> None:
  """Raises LaunchError unless the program is on PATH."""
  if shutil.which(program) is None:
    raise LaunchError(f'needs {program}, which is not on PATH; {INSTALL.get(program, "install")}')


def _run(command: Command) -> Result:
  """Runs in a group of its own: Ctrl-C is ours to handle, and a timeout ends all it started."""
  need(command.argv[0])
  process = subprocess.Popen(
    command.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True, errors='replace', process_group=0)
  try:
    out, err = process.communicate(timeout=command.timeout)
  except subprocess.TimeoutExpired:
    _kill(process)
    out, err = process.communicate()
    return Result(NO_ANSWER, out, f'{err}\nno answer within {command.timeout:.0f} s (timed out)')
  except BaseException:  # Ctrl-C: nothing may be left behind
    _kill(process)
    process.communicate()
    raise
  return Result(process.returncode, out, err)


def _kill(process: subprocess.Popen) -> None:
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
