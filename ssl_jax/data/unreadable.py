"""Images that cannot be read: replaced, counted, named, and too many of them refused.

Example i is replaced by the next readable one (i + 1, i + 2, ...), so that batch k stays a function
of (seed, k). Whoever reads, a worker or this process, adds a field to the batch that lists what it
met; the process that trains takes it out again and keeps the count.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ssl_jax.data.sources import DataError, UnreadableImage

FIELD = 'unreadable'
IN_A_ROW = 100
NAMED = 10

# Number of an example, what to call it, why it cannot be read.
Fault = tuple[int, str, str]

# Names of the images that stderr was told of. Training and its evaluation, or the passes of one
# evaluation, read the same images through sources of their own.
_TOLD: set[str] = set()


def forget() -> None:
  """A new command begins: images are named again."""
  _TOLD.clear()


def replace(read, index: int, length: int) -> tuple[Any, list[Fault]]:
  """read(index), or of the next index that can be read, and the faults met on the way.

  Raises:
    DataError: a hundred examples in a row cannot be read.
  """
  faults = []
  for step in range(min(IN_A_ROW, length)):
    number = (index + step) % length
    try:
      return read(number), faults
    except UnreadableImage as error:
      faults.append((number, error.name, error.reason))
  raise DataError(f'{len(faults)} images in a row cannot be read:\n' + _listed(faults))


def packed(faults: Iterable[Fault]) -> np.ndarray:
  """Faults as an array that travels with a batch."""
  return np.frombuffer(json.dumps(list(faults)).encode(), np.uint8)


class Unreadable:
  """The unreadable examples of a source, as this process learns of them."""

  def __init__(self, share: float, length: int):
    self._share, self._length = share, length
    self.seen: dict[int, tuple[str, str]] = {}

  def taken_out(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """`batches` without the field; closes them when it ends.

    Raises:
      DataError: more than the share is unreadable; names the first ten.
    """
    try:
      for batch in batches:
        self.add(json.loads(bytes(batch.pop(FIELD, np.frombuffer(b'[]', np.uint8)))))
        yield batch
    finally:
      batches.close()

  def add(self, faults: Iterable[Fault]) -> None:
    """Counts each example once, and names it on stderr if this command has not done so yet.

    Raises:
      DataError: more than the share is unreadable; names the first ten.
    """
    for index, name, reason in faults:
      if index in self.seen:
        continue
      self.seen[index] = name, reason
      if name in _TOLD:
        continue
      _TOLD.add(name)
      count = len(self.seen)
      print(f'skipped unreadable image {count} ({count / self._length:.2%} of {self._length:,}): '
            f'{name}: {reason}', file=sys.stderr, flush=True)
    if len(self.seen) > self._share * self._length:
      faults = [(index, *rest) for index, rest in self.seen.items()]
      raise DataError(
        f'{len(faults)} of {self._length:,} images cannot be read, more than the share of '
        f'{self._share:.2%} that config.data.unreadable allows:\n{_listed(faults)}')


def _listed(faults: list[Fault]) -> str:
  lines = [f'  example {index}, {name}: {reason}' for index, name, reason in faults[:NAMED]]
  more = len(faults) - NAMED
  return '\n'.join(lines + ([f'  and {more} more'] if more > 0 else []))


def allowed(source: Any) -> float:
  """The share of its examples that may be unreadable; 0 for a source that does not say."""
  return getattr(source, 'unreadable', 0.0)


def reported(fields: Mapping[str, np.ndarray], faults: list) -> dict[str, np.ndarray]:
  """`fields` with the list of faults, if there are any."""
  return {**fields, FIELD: packed(faults)} if faults else dict(fields)
