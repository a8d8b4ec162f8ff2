"""A run that is alive but stuck ends itself, and says where it stood.

A collective whose peer is gone, a file system that hangs, a deadlock: nothing of this raises an
error. So a thread of its own watches for progress. Without any for too long it writes the stacks of
all threads and ends the process with code 42; the same command continues from the last checkpoint.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import socket
import statistics
import sys
import threading
import time
from collections import deque

from ssl_jax.cli import AGAIN

STEP = 1800  # seconds: a step may take as long, or `TIMES` the median of the steps before it
TIMES = 20
SLOW = 8  # times longer may take what is no step: compiling, a first step, evaluating, saving
BEAT = 30  # seconds between two heartbeats
LAST = 20  # seconds for saying where it stood: the disk or the terminal may be what is stuck

COMPUTING, DATA = 'computing the step', 'waiting for data'


class Watchdog:
  """Ends the process after `limit` seconds without progress, which `doing` and `step` report.

  Time in which this whole process was stopped (Ctrl-Z, a machine that is moved) does not count.
  A limit of 0 never ends it.
  """

  def __init__(self, limit: float = STEP):
    self._base, self._progress, self._what, self._step = limit, 0, 'starting', 0
    self._times, self._last = deque(maxlen=100), None
    self._idle, self._over, self._workdir, self._heart = 0., threading.Event(), None, None

  def __enter__(self) -> 'Watchdog':
    if not faulthandler.is_enabled():
      faulthandler.enable(2)  # stacks, too, where JAX aborts because another process was lost
    threading.Thread(target=self._watch, daemon=True, name='watchdog').start()
    return self

  def __exit__(self, *exception) -> None:
    self._over.set()
    if self._heart is not None:
      self._heart.join(LAST)

  def doing(self, what: str) -> None:
    """Something new has begun, or goes on."""
    self._what = what
    self._progress += 1

  def step(self, done: int) -> None:
    """`done` steps are done."""
    now = time.monotonic()
    if self._last is not None:
      self._times.append(now - self._last)
    self._step, self._last = done, now
    self._progress += 1

  def write_to(self, workdir: pathlib.Path, first: bool) -> None:
    """From now on stacks go to this folder, too, and of the `first` process a heartbeat."""
    self._workdir = workdir
    if first:
      self._heart = threading.Thread(target=self._beat, daemon=True, name='heartbeat')
      self._heart.start()

  def limit(self) -> float:
    """Seconds that what goes on now may take."""
    if self._what not in (COMPUTING, DATA) or not self._times:
      return SLOW * self._base
    return max(self._base, TIMES * statistics.median(tuple(self._times)))

  def _watch(self) -> None:
    tick = min(5, self._base / 20) or 5
    seen, before = -1, time.monotonic()
    while not self._over.wait(tick):
      now = time.monotonic()
      # Of a longer pause this thread was part itself.
      self._idle = self._idle + min(now - before, 2 * tick) if seen == self._progress else 0.
      seen, before = self._progress, now
      if self._base and self._idle > self.limit():
        self._end()

  def _end(self) -> None:
    text = f'no progress for {self._idle:.0f} s at step {self._step}, {self._what}'
    speaker = threading.Thread(target=self._tell, args=(text,), daemon=True)
    speaker.start()
    speaker.join(LAST)
    os._exit(AGAIN)  # the main thread is stuck

  def _tell(self, text: str) -> None:
    print(f'error (start again): {text}; where every thread stands:', file=sys.stderr, flush=True)
    faulthandler.dump_traceback(2)
    if self._workdir is not None:
      name = f'stuck-{time.strftime("%Y%m%d-%H%M%S")}-{socket.gethostname()}-{os.getpid()}.txt'
      with (self._workdir / name).open('w') as file:
        file.write(f'{text}\n')
        file.flush()
        faulthandler.dump_traceback(file)
      print(f'this is in {self._workdir / name}, too; the same command continues from the last '
            f'checkpoint', file=sys.stderr, flush=True)

  def _beat(self) -> None:
    """In a thread apart: a file system that hangs must not stop the watch."""
    path = self._workdir / 'heartbeat.json'
    draft = path.with_suffix('.partial')
    over = False
    while True:
      beat = dict(step=self._step, doing=self._what, idle=round(self._idle), time=round(time.time()),
                  host=socket.gethostname())
      with contextlib.suppress(OSError):  # a full disk is told by who saves
        draft.write_text(json.dumps(beat) + '\n')
        draft.replace(path)
      if over:
        return
      over = self._over.wait(BEAT)
