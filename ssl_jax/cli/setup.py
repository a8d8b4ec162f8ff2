"""What surrounds a command: the compilation cache, signals, the profiler."""

import os
import pathlib
import signal
from collections.abc import Callable

import jax


def use_compilation_cache(folder: str | None = None) -> None:
  """Compiled programs are kept between runs, by default in the user's cache folder."""
  if folder == 'none':
    return
  jax.config.update('jax_compilation_cache_dir', str(folder or cache_folder()))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def cache_folder() -> pathlib.Path:
  base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'ssl_jax' / 'xla'


class StopOnSignal:
  """`stop()` turns True at the first SIGINT or SIGTERM; a second one ends the process as usual."""

  def __init__(self, say: Callable[[str], None]):
    self._say, self._stop, self._before = say, False, {}

  def __enter__(self) -> 'StopOnSignal':
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def __call__(self) -> bool:
    return self._stop

  def _handle(self, number, frame):
    del frame
    self._stop = True
    self._say(f'{signal.Signals(number).name}: saving after this step; once more ends at once')
    signal.signal(number, self._before[number])


class Profiler:
  """Traces steps first..last (counted from 1) into a folder."""

  def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
    self._steps, self._folder, self._open = steps, folder, False

  def __call__(self, done: int) -> None:
    """`done` steps are done."""
    if self._steps is None:
      return
    first, last = self._steps
    if not self._open and first - 1 <= done < last:
      jax.profiler.start_trace(str(self._folder))
      self._open = True
    elif self._open and done >= last:
      self.close()

  def close(self) -> None:
    if self._open:
      jax.profiler.stop_trace()
      self._open = False
