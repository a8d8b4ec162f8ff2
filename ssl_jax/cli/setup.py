"""What surrounds a command: the compilation cache, the profiler."""

import pathlib

import jax

from ssl_jax.data.folders import user_cache


def use_compilation_cache(folder: str | None = None) -> None:
  """Compiled programs are kept between runs, by default in the user's cache folder."""
  if folder == 'none':
    return
  jax.config.update('jax_compilation_cache_dir', str(folder or cache_folder()))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def cache_folder() -> pathlib.Path:
  return user_cache() / 'xla'


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
