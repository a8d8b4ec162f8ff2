"""How a process is told to stop, waits, and ends. Without JAX, which `--help` does not wait for."""

import contextlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, NoReturn, TextIO

BACKGROUND = 'ssl_jax_background'  # threads that Python can neither stop nor wait for


# --- signals --------------------------------------------------------------------------------------


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EARLY = 'before the first step: there is nothing to save'


def listen(handler: Callable) -> dict:
  """Lets `handler` hear the SIGNALS that are not ignored (nohup); what did so before."""
  return {number: signal.signal(number, handler) for number in SIGNALS
          if signal.getsignal(number) != signal.SIG_IGN}


def restore(before: dict) -> None:
  for number, handler in before.items():
    signal.signal(number, handler)


class Stopped(BaseException):
  """A signal ends what goes on now. Not an Exception: no reader of data takes it for a fault."""


class StopOnSignal:
  """`stop()` turns True at the first SIGINT, SIGTERM or SIGHUP; the third ends the process at once.

  Until `defer` nothing would be lost, and it raises `Stopped` in the main thread, wherever that is.
  Where Python drops exceptions (in callbacks of its garbage collector) `stop()` still tells.
  """

  def __init__(self):
    self._count, self._deferred, self._before = 0, False, {}

  def __enter__(self) -> 'StopOnSignal':
    self._before = listen(self._handle)
    return self

  def __exit__(self, *exception) -> None:
    restore(self._before)

  def __call__(self) -> bool:
    """Asked in every loop; of several processes equally often by all, see `hosts.StopTogether`."""
    return self._count > 0

  def defer(self) -> None:
    """From now on there is something to save."""
    self._deferred = True

  def while_waiting(self) -> bool:
    """The same, for a process that waits for nobody but itself."""
    return self()

  def _handle(self, number, frame):
    del frame
    self._count += 1
    name = signal.Signals(number).name
    if self._count > 1:
      # By the system: in the middle of a long call into C no Python code would run.
      for one in self._before:
        signal.signal(one, signal.SIG_DFL)
    if not self._deferred:
      raise Stopped(f'{name} {EARLY}')
    elif self._count == 1:
      _write(f'{name}: saving, then ending; twice more ends at once')
    else:
      _write(f'{name}: still saving; once more ends at once, without what is not saved yet')


def _write(text: str) -> None:
  """A line on stderr from within a signal handler, where Python's own streams may be in use."""
  with contextlib.suppress(OSError):
    os.write(2, f'{text}\n'.encode())


# --- waiting --------------------------------------------------------------------------------------


def start(function: Callable[[], Any]) -> Callable[[Callable[[], bool]], Any]:
  """Runs it in the background; returns a function that waits for what it returns or raises, and
  raises `Stopped` once what it is given is true."""
  future = Future()

  def work():
    try:
      future.set_result(function())
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=work, daemon=True, name=BACKGROUND).start()

  def result(told: Callable[[], bool]) -> Any:
    while True:
      done = wait([future], timeout=0.1).done
      if told():
        raise Stopped(f'stopped {EARLY}')
      if done:
        return future.result()

  return result


def patiently(items: Iterator, told: Callable[[], bool]) -> Iterator:
  """The same items, each drawn in the background; ends early once `told()` during a wait."""
  wanted, found = queue.SimpleQueue(), queue.SimpleQueue()

  def draw():
    while wanted.get():
      try:
        found.put((next(items), None))
      except BaseException as error:
        found.put((None, error))
    items.close()

  thread = threading.Thread(target=draw, daemon=True, name=BACKGROUND)
  thread.start()
  try:
    while True:
      wanted.put(True)
      while True:
        with contextlib.suppress(queue.Empty):
          item, error = found.get(timeout=0.1)
          break
        if told():
          return
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    wanted.put(False)
    thread.join(1)  # one that is stuck is left behind


# --- the end --------------------------------------------------------------------------------------


class Surviving:
  """A text stream whose reader may go away: a `tee` that Ctrl-C has ended, a terminal that was
  closed. What cannot be written is dropped; a run must not end because nobody listens."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    with contextlib.suppress(OSError):
      self._stream.write(text)
    return len(text)

  def flush(self) -> None:
    with contextlib.suppress(OSError):
      self._stream.flush()

  def __getattr__(self, name):
    return getattr(self._stream, name)


def leave(code: int) -> NoReturn:
  """Ends the process, also while the compiler runs: it cannot be stopped, and Python would abort."""
  if any(thread.name == BACKGROUND for thread in threading.enumerate()):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)
