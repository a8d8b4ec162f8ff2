"""Batch k is a pure function of (seed, k).

  epoch, i = divmod(k, N // B);   ids of batch k = order(seed, epoch)[i B ... (i + 1) B - 1]
so that the state of training's input is one integer, whatever the hosts, devices and workers. The
N mod B examples at the end of an epoch's order are left out, others in each epoch.

Example i is `source[i]`, or `source.draw(i, seed, epoch)` of a source that crops while it decodes. An
image that cannot be read is replaced by the next one; see `ssl_jax.data.unreadable`.
"""

import multiprocessing
import operator
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ssl_jax.data.order import ORDER_VERSION, permuted
from ssl_jax.data.sources import RESERVED, DataError, Source
from ssl_jax.data.unreadable import Fault, Unreadable, allowed, replace, reported

# How the names of the parts of a source begin in a fingerprint.
PART = 'source: '


def example_ids(k: int, *, seed: int, length: int, batch_size: int) -> tuple[np.ndarray, int]:
  """Which examples are in batch k.

  Returns:
    (ids int64 [batch_size], epoch).

  Raises:
    ValueError: a negative number, or a batch larger than the data.
  """
  k, seed = _natural('k', k), _natural('seed', seed)
  per_epoch = _batches_per_epoch(length, batch_size)
  epoch, i = divmod(k, per_epoch)
  positions = np.arange(i * batch_size, (i + 1) * batch_size)
  return permuted(positions, length=length, seed=seed, epoch=epoch), epoch


def batches(source: Source, *, batch_size: int, seed: int, start: int = 0,
            rows: Sequence[int] | np.ndarray | None = None, workers: int = 0,
            prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
  """The endless stream of batches start, start + 1, ...

  With `workers=0` a batch is read when it is asked for. That is right for arrays: 256 images of
  28 x 28 take 1 ms, during which the device still is busy with the step dispatched before, and
  Grain, which imports JAX, is not even imported. Workers would only add copies (256 images of
  224 x 224 on two cores: 0.03 s here, 0.2 s through two workers). A source that decodes wants them:
  Grain reads whole batches, the k-th of this stream in worker k mod `workers`.

  Args:
    source: the examples.
    batch_size: of the global batch, over all processes.
    seed: names the order; see `example_ids`.
    start: number of the first batch, the number of batches already consumed when resuming.
    rows: ascending positions in the global batch that this process feeds, all by default; on real
      slices the rows of a process are not contiguous, see `ssl_jax.parallel.local_rows`.
    workers: how many processes read; the batches are the same for any number. Scripts that use them
      must be importable (`if __name__ == '__main__'`), since they are spawned.
    prefetch: batches that each worker reads ahead.

  Returns:
    An iterator of {field: [rows, ...], 'id': uint32 [rows], 'epoch': uint32 [rows]}; its `close()`
    stops the workers, as does dropping it.

  Raises:
    ValueError: an argument that makes no sense, such as a batch larger than the data.
    DataError: while iterating; names the example that cannot be read, or the images, if they are
      more than the source allows.
  """
  _natural('workers', workers)
  if prefetch < 1:
    raise ValueError(f'prefetch must be at least 1, got {prefetch}')
  start = _natural('start', start)
  return _read_all(_Shuffled(source, batch_size, seed, rows), source, start, workers, prefetch)


def in_order(source: Source, *, batch_size: int, workers: int = 0,
             prefetch: int = 2) -> Iterator[dict[str, np.ndarray]]:
  """Every example once, in the order of the source: one pass for evaluation.

  Yields:
    {field: [batch_size, ...], 'id': uint32 [batch_size], 'weight': float32 [batch_size]}. The last
    batch is filled up with its last example at weight 0, so that all have one shape; an image that
    cannot be read has weight 0 and the pixels of another. So sum(weight) is the number of examples
    that can be read. `workers` and errors as `batches`.
  """
  if batch_size < 1:
    raise ValueError(f'batch_size must be at least 1, got {batch_size}')
  return _read_all(_Ordered(source, batch_size), source, 0, _natural('workers', workers), prefetch)


def fingerprint(source: Source, *, batch_size: int, seed: int,
                version: int = ORDER_VERSION) -> dict[str, str | int]:
  """All that shaped the stream of `batches`, as JSON can hold it; hosts and workers do not.

  The `parts` of a source only tell what of it changed.
  """
  parts = source.parts() if hasattr(source, 'parts') else {}
  return dict(source=source.fingerprint(), length=len(source), batch_size=int(batch_size),
              seed=int(seed), order=version, **{PART + name: value for name, value in parts.items()})


def describe_change(old: Mapping[str, str | int], new: Mapping[str, str | int]) -> str | None:
  """What differs between two fingerprints, in words; None if nothing does."""
  names = dict(length='the number of examples', batch_size='the batch size', seed='the data seed',
               order='the version of the shuffling')
  parts = [key for key in {**old, **new} if key.startswith(PART)]
  changes = [f'{names.get(key, key)} was {old.get(key)}, is {new.get(key)}'
             for key in (*names, *sorted({*old, *new} - {*names, *parts, 'source'}))
             if old.get(key) != new.get(key)]
  if old.get('source') != new.get('source'):
    known = [key.removeprefix(PART) for key in parts
             if key in old and key in new and old[key] != new[key]]
    changes.insert(0, 'the contents of the data changed '
                      f'({str(old.get("source"))[:12]}... to {str(new.get("source"))[:12]}...)'
                      + (f': {", ".join(known)}' if known else ''))
  return '; '.join(changes) or None


# --- reading --------------------------------------------------------------------------------------


class _Shuffled:
  """Batches of training by number. Picklable, with a length, as Grain wants its sources."""

  def __init__(self, source: Source, batch_size: int, seed: int, rows):
    self._source, self._batch_size, self._seed = source, batch_size, _natural('seed', seed)
    _batches_per_epoch(len(source), batch_size)
    self._rows = _checked_rows(rows, batch_size)

  def __len__(self) -> int:
    return 1 << 62

  def __getitem__(self, k: int) -> dict[str, np.ndarray]:
    ids, epoch = example_ids(
      k, seed=self._seed, length=len(self._source), batch_size=self._batch_size)
    ids = ids[self._rows]
    one = self._source.__getitem__
    if hasattr(self._source, 'draw'):
      one = partial(self._source.draw, seed=self._seed, epoch=epoch)
    fields, faults = _read(self._source, ids, one)
    batch = fields | dict(id=ids.astype(np.uint32), epoch=np.full(len(ids), epoch, np.uint32))
    return dict(sorted(reported(batch, faults).items()))  # As Grain's workers hand it over.


class _Ordered:
  """Batches of one pass by number."""

  def __init__(self, source: Source, batch_size: int):
    self._source, self._batch_size = source, batch_size

  def __len__(self) -> int:
    return -(-len(self._source) // self._batch_size)

  def __getitem__(self, k: int) -> dict[str, np.ndarray]:
    positions = np.arange(k * self._batch_size, (k + 1) * self._batch_size)
    ids = np.minimum(positions, len(self._source) - 1)
    fields, faults = _read(self._source, ids, self._source.__getitem__)
    unreadable = np.isin(ids, [index for index, *_ in faults])
    weight = (positions < len(self._source)) & ~unreadable
    batch = fields | dict(id=ids.astype(np.uint32), weight=weight.astype(np.float32))
    return reported(batch, faults)


def _read_all(numbered, source: Source, start: int, workers: int, prefetch: int):
  """The batches start, start + 1, ... of `numbered`; unreadable images are counted."""
  batches = _in_workers(numbered, start, workers, prefetch) if workers else _here(numbered, start)
  return Unreadable(allowed(source), len(source)).taken_out(batches)


def _here(numbered, start: int) -> Iterator[dict[str, np.ndarray]]:
  for k in range(start, len(numbered)):
    yield numbered[k]


def _read(source: Source, ids: np.ndarray, one: Callable) -> tuple[dict[str, np.ndarray], list[Fault]]:
  """(fields of `ids`, stacked; faults of images); any other error names the example.

  `one` reads a single example.
  """
  faults = []
  try:
    fields = source.take(ids) if hasattr(source, 'take') else _stack(one, ids, len(source), faults)
  except DataError:
    raise
  except Exception as error:
    _stack(one, ids, len(source), faults)  # Names the example, if it is one example that fails.
    raise DataError(f'cannot read the examples {ids.tolist()}: {_words(error)}') from error
  if taken := [name for name in RESERVED if name in fields]:
    raise DataError(f'the source has a field {taken[0]!r}, which batches use themselves')
  return dict(fields), faults


def _stack(one: Callable, ids: np.ndarray, length: int,
           faults: list[Fault]) -> dict[str, np.ndarray]:
  """Adds to `faults` the images that were replaced."""
  examples, kinds = [], []
  for i in ids.tolist():
    try:
      fields, met = replace(one, i, length)
      example = {name: np.asarray(value) for name, value in fields.items()}
      faults += met
    except DataError:
      raise
    except Exception as error:
      raise DataError(f'cannot read example {i}: {_words(error)}') from error
    kind = {name: (value.shape, str(value.dtype)) for name, value in example.items()}
    kinds.append(kind)
    if kind != kinds[0]:
      raise DataError(f'example {i} has {kind}, but example {ids[0]} has {kinds[0]}')
    examples.append(example)
  return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _words(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'


# --- workers --------------------------------------------------------------------------------------


def _in_workers(numbered, start: int, workers: int, prefetch: int):
  """Grain's processes read whole batches, so that their number cannot change a batch.

  The state of a prefetching Grain iterator is no integer, and restoring it with another number of
  workers gives other data: nothing is restored here, the sequence is sliced at `start`.
  """
  import grain  # Imports JAX, which takes seconds: only who has workers pays for it.
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads its flags, which raises outside absl's app.run.
  dataset = grain.MapDataset.source(numbered)[start:].to_iter_dataset(
    grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
  iterator = iter(dataset.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
    worker_init_fn=_start_worker))
  try:
    for batch in _named_deaths(iterator):
      # Copied out of shared memory (10 ms for 256 images of 224 x 224): an array of Grain's class
      # that outlives the interpreter's modules leaks its segment and complains.
      yield {name: np.array(array) for name, array in batch.items()}
  finally:
    iterator.close()


def _named_deaths(iterator: Iterator) -> Iterator:
  """The same; a worker that was killed is a DataError, which Grain notices within seconds."""
  try:
    yield from iterator
  except RuntimeError as error:
    if 'terminated unexpectedly' not in str(error):
      raise
    code = re.search(r'exit code (-?\d+)', str(error))
    how = f'exit code {code[1]}' if code else 'no exit code'
    if code and -int(code[1]) in signal.valid_signals():
      how = signal.Signals(-int(code[1])).name
    raise DataError(
      f'a process that reads data was killed ({how}). If the machine ran out of memory (see dmesg), '
      f'use fewer config.workers; the same command continues from the last checkpoint') from error


def _start_worker(index: int, count: int) -> None:
  """Runs first in each worker.

  Ctrl-C and a cluster's SIGTERM reach the whole process group: the parent decides what to do, and
  needs its batches to reach a checkpoint. A parent that was killed cannot stop its workers, which
  would wait for ever: they watch for that themselves.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


# --- checks ---------------------------------------------------------------------------------------


def _natural(name: str, value: Any) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    number = -1
  if number < 0:
    raise ValueError(f'{name} must be an integer >= 0, got {value!r}')
  return number


def _batches_per_epoch(length: int, batch_size: int) -> int:
  if not 1 <= batch_size <= length:
    raise ValueError(f'batch_size must be between 1 and the number of examples; got {batch_size} '
                     f'for {length} examples')
  if length >= 1 << 32:
    raise ValueError(f'{length} examples: ids are uint32, at most {(1 << 32) - 1}')
  return length // batch_size


def _checked_rows(rows, batch_size: int) -> np.ndarray:
  rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if (rows.ndim != 1 or rows.dtype.kind not in 'iu' or not rows.size or rows[0] < 0
      or rows[-1] >= batch_size or np.any(np.diff(rows.astype(np.int64)) <= 0)):
    raise ValueError(f'rows must be ascending positions in [0, {batch_size}), got {rows}')
  return rows
