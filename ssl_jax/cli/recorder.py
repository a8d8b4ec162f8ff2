"""What is said, written and saved of a run while it goes on."""

import os
import pathlib
import sys
import time
from collections.abc import Callable

import jax

from ssl_jax import runs
from ssl_jax.cli.process import Stopped
from ssl_jax.cli.setup import Profiler
from ssl_jax.cli.starting import Options, metadata
from ssl_jax.cli.watchdog import Watchdog
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import JsonLines, Progress, TensorBoard


class Recorder:
  """Hears of every step; closes what it has opened.

  owed: looks at the last state that a signal cut short; the next start makes up for them.
  """

  def __init__(self, config, options: Options, experiment, watch: Watchdog):
    self._config, self._options, self._experiment, self._watch = config, options, experiment, watch
    self._writers, self.owed = [], []

  def open(self, checkpoints: Checkpoints, step: int, began: float) -> None:
    """For a run that goes on after `step` steps; `began`: when building it did, monotonic seconds."""
    first = jax.process_index() == 0
    self._checkpoints, self._first_step, self._began = checkpoints, step, began
    self._watch.write_to(self._options.workdir, first)
    self._progress = Progress(
      self._experiment.steps, start=step, batch_size=self._config.batch_size,
      every=self._config.log_every, stream=None if first else open(os.devnull, 'w'))
    self._writers += _writers(self._options.workdir, step)
    self._profiler = Profiler(self._options.profile if first else None,
                              self._options.workdir / 'profile')
    self._profiler(step)

  def say(self, text: str) -> None:
    self._progress.say(text)

  def write(self, step: int, numbers) -> None:
    for writer in self._writers:
      writer(step, numbers)

  def step(self, k: int, metrics) -> None:
    """Step k, counted from 0, is done."""
    if k == self._first_step:
      self.say(f'first step after {time.monotonic() - self._began:.1f} s of building and compiling')
      self._progress.start_clock(k + 1)
    self._watch.step(k + 1)
    self._profiler(k + 1)
    if not metrics.pop('finite'):
      self.say(f'step {k + 1}: loss or gradient not finite; the step was undone')
    if metrics.get('spike'):
      self.say(f'step {k + 1}: a spike (loss {metrics["loss"]:.4g}, gradient norm '
               f'{metrics["grad_norm"]:.4g}); the step was undone')
    self._progress(k + 1, metrics)
    if (k + 1) % self._config.log_every == 0 or k + 1 == self._experiment.steps:
      self.write(k + 1, dict(metrics, learning_rate=float(self._experiment.schedule(k))))

  def save(self, step: int, ts, wait: bool = False) -> None:
    for writer in self._writers:
      writer.sync()  # a checkpoint promises the metrics before it, also if the machine is lost
    about = dict(metadata(self._config, self._experiment), owed=self.owed)
    self._checkpoints.save(step, ts, about, wait=wait or step == self._experiment.steps)

  def apart(self, doing: str, run: Callable) -> Callable:
    """`run`, its time kept out of the speed that is shown."""
    def timed(step, ts):
      self._watch.doing(doing)
      before = time.monotonic()
      try:
        run(step, ts)
      except Stopped:
        self.owed.append(doing)
      self._progress.leave_out(time.monotonic() - before)

    return timed

  def close(self) -> None:
    """After the last save, which it waits for."""
    self._watch.doing('saving')
    self._checkpoints.wait()
    for thing in (self._profiler, self._progress, *self._writers):
      thing.close()


def _writers(workdir: pathlib.Path, step: int) -> list:
  if jax.process_index() > 0:
    return []
  writers = [JsonLines(workdir / runs.METRICS, resume_step=step)]
  try:
    writers.append(TensorBoard(workdir / 'tensorboard', resume_step=step))
  except ModuleNotFoundError as error:
    print(f'note: nothing is written for TensorBoard: pip install {error.name}', file=sys.stderr)
  return writers
