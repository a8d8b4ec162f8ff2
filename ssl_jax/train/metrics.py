"""Metrics to a JSONL file, TensorBoard and the terminal. Only process 0 should hold a writer.

A line of the JSONL file is one JSON object: `step` (steps done), the metrics, and `seconds` (wall
time since the run started), the one field that differs between an interrupted and an uninterrupted run.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping


class JsonLines:
  """Appends one line per call and flushes it; lines beyond `resume_step` are dropped on opening.

  So the file of a resumed run equals that of an undisturbed one, timing aside. A last line that was
  cut by a kill is dropped too.
  """

  def __init__(self, path: str | pathlib.Path, *, resume_step: int = 0):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in read_lines(path) if line['step'] <= resume_step]
    partial = path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(line) + '\n' for line in kept))
    partial.replace(path)
    # An evaluation that a signal cut short is made up for, and perhaps once more after a kill.
    self._there = {frozenset(line) for line in kept if line['step'] == resume_step}
    self._first = resume_step
    self._start = time.monotonic() - (kept[-1].get('seconds', 0.0) if kept else 0.0)
    self._file = path.open('a')

  def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
    seconds = round(time.monotonic() - self._start, 3)
    line = {'step': step, **{name: _json_number(value) for name, value in metrics.items()}}
    line['seconds'] = seconds
    if step == self._first and frozenset(line) in self._there:
      return
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()

  def sync(self) -> None:
    """Onto the disk, or into the bucket that is mounted there."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


def read_lines(path: str | pathlib.Path) -> list[dict]:
  """All whole lines of a metrics file; an absent file has none."""
  path = pathlib.Path(path)
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    try:
      lines.append(json.loads(text))
    except json.JSONDecodeError:
      break
  return lines


def _json_number(value: float) -> float | str:
  """JSON has no NaN or Infinity; they are written as strings so that every reader survives."""
  return value if math.isfinite(value) else str(value)


class TensorBoard:
  """The same numbers as scalars for TensorBoard (tensorboardX, no TensorFlow).

  Written by this thread: that of tensorboardX's SummaryWriter ends at a full disk, or at a clock that
  is set back, and training would wait for it for ever.

  Raises ModuleNotFoundError where that is not installed.
  """

  def __init__(self, folder: str | pathlib.Path, *, resume_step: int = 0):
    from tensorboardX.event_file_writer import EventsWriter  # 0.3 s to import
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    self._event, self._scalar = Event, scalar
    self._events = EventsWriter(str(pathlib.Path(folder) / 'events'))
    if resume_step:  # what an earlier part of the run wrote beyond is not shown
      self._write(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

  def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
      if math.isfinite(value):  # TensorBoard draws nothing for others
        self._write(step, summary=self._scalar(name, value))

  def sync(self) -> None:
    self._events.flush()

  def close(self) -> None:
    self._events.close()

  def _write(self, step: int, **content) -> None:
    self._events.write_event(self._event(wall_time=time.time(), step=step, **content))


class Progress:
  """A progress bar on a terminal, plain lines elsewhere; on stderr, since stdout carries results."""

  def __init__(self, steps: int, *, start: int = 0, batch_size: int, every: int, stream=None):
    self._steps, self._start, self._batch_size, self._every = steps, start, batch_size, every
    self._stream = sys.stderr if stream is None else stream
    self._bar = self._task = None
    self._began = self._last = time.monotonic()
    self._last_step = start
    if self._stream.isatty():
      self._open_bar()

  def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
    """`step` steps are done. On a terminal the bar moves at every call."""
    if self._bar is not None:
      self._bar.update(self._task, completed=step, numbers=self._numbers(step, metrics))
    elif step % self._every == 0 or step == self._steps:
      self.say(f'step {step}/{self._steps}  {self._numbers(step, metrics)}')

  def say(self, text: str) -> None:
    """A line of log, above the bar if there is one."""
    if self._bar is not None:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, file=self._stream, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.stop()

  def start_clock(self, step: int) -> None:
    """Speed is measured from here on: what came before is building and compiling."""
    self._start = self._last_step = step
    self._began = self._last = time.monotonic()

  def leave_out(self, seconds: float) -> None:
    """Time that passed but was no training (evaluation, saving)."""
    self._began += seconds
    self._last += seconds

  def _numbers(self, step: int, metrics: Mapping[str, float]) -> str:
    now = time.monotonic()
    values = '  '.join(f'{name} {value:.4g}' for name, value in metrics.items())
    if step == self._start:
      return values
    per_step = (now - self._began) / (step - self._start)
    if self._bar is None:  # plain lines: the speed since the last line
      per_step = (now - self._last) / max(step - self._last_step, 1)
      self._last, self._last_step = now, step
    left = duration(per_step * (self._steps - step))
    return (f'{values}  {1e3 * per_step:.0f} ms/step  '
            f'{self._batch_size / max(per_step, 1e-9):.0f} examples/s  ETA {left}')

  def _open_bar(self):
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar
    self._bar = Bar(
      BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn('{task.fields[numbers]}'),
      console=Console(file=self._stream))
    self._task = self._bar.add_task('train', total=self._steps, completed=self._start, numbers='')
    self._bar.start()


def duration(seconds: float) -> str:
  """'1:02:03' or '2:03'."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
