"""The manifest of one checkpoint step: what was saved, with the size and SHA-256 of every file.

`<step>/manifest.json` is written last, by the first process, and is what makes a step complete. It
holds its own SHA-256 as well, so that a flipped bit in it does not go unnoticed either; that sum is
made the same way in all formats, so that a newer one is not taken for a damaged one. A draft of it
lies in the folder from the first moment on: arrays beside neither have lost their manifest.
"""

import concurrent.futures
import hashlib
import json
import os
import re

import jax
import numpy as np

from ssl_jax import __version__

NAME = 'manifest.json'
DRAFT = NAME + '.tmp'
FORMAT = 1
STEP = re.compile(r'0|[1-9]\d*')
ARRAYS = re.compile(r'state-(\d+)')  # of the folder that Orbax has finished


class CheckpointError(Exception):
  """A checkpoint could not be written, is missing, or is damaged (exit code 3)."""


class NewerError(CheckpointError):
  """A checkpoint of a later release: not damaged, but not for this one to read."""


def steps(directory) -> list[int]:
  """The steps in a folder that have been complete, ascending.

  A step that has lost its manifest is one, so that it is found damaged and not forgotten.
  """
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir() if _is_step(path))


def _is_step(path) -> bool:
  if not STEP.fullmatch(path.name) or not path.is_dir():
    return False
  if (path / NAME).is_file():
    return True
  inside = [child.name for child in path.iterdir()]
  return DRAFT not in inside and any(map(ARRAYS.fullmatch, inside))


def is_leftover(path) -> bool:
  """Whether a folder is what a killed process left of a step; empty and foreign ones are not."""
  if not STEP.fullmatch(path.name) or not path.is_dir() or _is_step(path):
    return False
  inside = [child.name for child in path.iterdir()]
  return bool(inside) and all(map(_is_ours, inside))


def _is_ours(name: str) -> bool:
  return name.startswith('state-') or name == DRAFT


def make(step: int, leaves: dict[str, list], metadata: dict) -> dict:
  """A manifest before anything is written.

  Args:
    step: the step.
    leaves: dtype and shape of every array by its name.
    metadata: the caller's.

  Raises:
    ValueError: `metadata` is not JSON.
  """
  manifest = dict(format=FORMAT, version=__version__, step=step, metadata=metadata, leaves=leaves)
  try:
    # Through JSON now: tuples and integer keys must hash as they will be read back.
    return json.loads(json.dumps(manifest))
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be what JSON can hold: {error}') from None


def begin(folder, manifest: dict) -> None:
  """Marks a step folder as one that is being written, before any array is."""
  (folder / DRAFT).write_text(json.dumps(manifest))


def commit(arrays, manifest: dict) -> None:
  """Writes the manifest beside the finished folder `arrays`: from then on the step is complete.

  All is on the disk by then, a power failure included: older steps may be deleted.
  """
  folder = arrays.parent
  files = _files(arrays)
  with _pool() as pool:
    for _ in pool.map(_sync, [*files, *{path.parent for path in files}, folder]):
      pass
    sums = dict(zip(files, pool.map(_digest, files), strict=True))
  manifest = dict(manifest, arrays=arrays.name, files={
    str(path.relative_to(folder)): list(size_and_sum) for path, size_and_sum in sums.items()})
  text = json.dumps({'sha256': _sha256(manifest), 'manifest': manifest}, indent=1)
  (folder / DRAFT).write_text(text)
  _sync(folder / DRAFT)
  (folder / DRAFT).replace(folder / NAME)
  _sync(folder)


def discard(folder) -> None:
  """Deletes a step. Interrupted anywhere it leaves a leftover, no step; foreign files stay.

  Raises:
    OSError: something could not be deleted, or is not ours.
  """
  if (folder / NAME).exists():
    (folder / NAME).replace(folder / DRAFT)
  for child in folder.iterdir():
    if child.name.startswith('state-'):
      child.rmtree()
  (folder / DRAFT).unlink(missing_ok=True)
  folder.rmdir()


def load(folder) -> dict:
  """The manifest of a step folder.

  Raises:
    NewerError: it is of a later release that saves in another way.
    CheckpointError: it is damaged.
  """
  path = folder / NAME
  try:
    content = json.loads(path.read_text())
    manifest = content['manifest']
    intact = content['sha256'] == _sha256(manifest)
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise CheckpointError(f'{path} is damaged: {error}') from error
  if not intact:
    raise CheckpointError(f'{path} is damaged: it does not match its SHA-256')
  if manifest['format'] > FORMAT:
    raise NewerError(
      f'{path} was written by ssl_jax {manifest.get("version", "of unknown version")} in format '
      f'{manifest["format"]}; this is ssl_jax {__version__}, which reads up to format {FORMAT}: '
      f'install that version or a later one. Nothing was changed.')
  return manifest


def verify(folder) -> dict:
  """Reads all files of a step and returns its manifest.

  Every process checks its share; all raise if one finds damage.

  Raises:
    NewerError: as `load`.
    CheckpointError: naming the first damaged file.
  """
  manifest = found = None
  try:
    manifest = load(folder)
    _check(folder, manifest)
  except CheckpointError as error:
    found = error
  anywhere = found is not None
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    anywhere = bool(np.any(multihost_utils.process_allgather(np.array(anywhere))))
  if anywhere:
    raise found or CheckpointError(f'{folder} is damaged: another process found so')
  return manifest


def _check(folder, manifest: dict) -> None:
  files = sorted(manifest['files'].items())[jax.process_index()::jax.process_count()]
  with _pool() as pool:
    faults = [fault for fault in pool.map(lambda item: _fault(folder, *item), files) if fault]
  if faults:
    raise CheckpointError(f'step {manifest["step"]} is damaged: {faults[0]}')


def _fault(folder, name: str, expected: list) -> str | None:
  path = folder / name
  try:
    size, digest = _digest(path)
  except OSError as error:
    return f'{path} cannot be read: {error}'
  if size != expected[0]:
    return f'{path} has {size} bytes, {expected[0]} were written'
  return None if digest == expected[1] else f'{path} does not match its SHA-256'


def _digest(path) -> tuple[int, str]:
  digest, size = hashlib.sha256(), 0
  with path.open('rb') as file:
    while block := file.read(1 << 20):
      digest.update(block)
      size += len(block)
  return size, digest.hexdigest()


def _sync(path) -> None:
  """Waits until a file or folder is on the disk; other stores are there once they are written."""
  if '://' in str(path):
    return
  file = os.open(path, os.O_RDONLY)
  try:
    os.fsync(file)
  except OSError:
    if not path.is_dir():  # not all file systems can do this with folders
      raise
  finally:
    os.close(file)


def _sha256(manifest: dict) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder) -> list:
  found = []
  for path in folder.iterdir():
    found += _files(path) if path.is_dir() else [path]
  return sorted(found)


def _pool():
  return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
