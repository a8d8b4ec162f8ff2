"""The manifest of one checkpoint step: what was saved, with the size and SHA-256 of every file.

`<step>/manifest.json` is written last, by the first process, and is what makes a step complete. It
holds its own SHA-256 as well, so that a flipped bit in it does not go unnoticed either.
"""

import concurrent.futures
import hashlib
import json
import os
import re

import jax
import numpy as np

NAME = 'manifest.json'
DRAFT = NAME + '.tmp'
FORMAT = 1
STEP = re.compile(r'0|[1-9]\d*')


class CheckpointError(Exception):
  """A checkpoint could not be written, is missing, or is damaged (exit code 3)."""


def steps(directory) -> list[int]:
  """The complete steps in a folder, ascending."""
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir()
                if STEP.fullmatch(path.name) and (path / NAME).is_file())


def is_leftover(path) -> bool:
  """Whether a folder is what a killed process left of a step; empty and foreign ones are not."""
  if not STEP.fullmatch(path.name) or not path.is_dir():
    return False
  inside = [child.name for child in path.iterdir()]
  ours = [name for name in inside if name.startswith('state-') or name == DRAFT]
  return bool(inside) and len(ours) == len(inside)


def make(step: int, leaves: dict[str, list], metadata: dict) -> dict:
  """A manifest before anything is written.

  Args:
    step: the step.
    leaves: dtype and shape of every array by its name.
    metadata: the caller's.

  Raises:
    ValueError: `metadata` is not JSON.
  """
  manifest = dict(format=FORMAT, step=step, metadata=metadata, leaves=leaves)
  try:
    # Through JSON now: tuples and integer keys must hash as they will be read back.
    return json.loads(json.dumps(manifest))
  except (TypeError, ValueError) as error:
    raise ValueError(f'metadata must be what JSON can hold: {error}') from None


def commit(arrays, manifest: dict) -> None:
  """Writes the manifest beside the finished folder `arrays`: from then on the step is complete."""
  folder = arrays.parent
  files = _files(arrays)
  with _pool() as pool:
    sums = dict(zip(files, pool.map(_digest, files), strict=True))
  manifest = dict(manifest, arrays=arrays.name, files={
    str(path.relative_to(folder)): list(size_and_sum) for path, size_and_sum in sums.items()})
  text = json.dumps({'sha256': _sha256(manifest), 'manifest': manifest}, indent=1)
  (folder / DRAFT).write_text(text)
  (folder / DRAFT).replace(folder / NAME)


def load(folder) -> dict:
  """The manifest of a step folder.

  Raises:
    CheckpointError: it is damaged, or of a newer version of this project.
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
    raise CheckpointError(f'{path} has format {manifest["format"]}, this version of ssl_jax reads '
                          f'up to {FORMAT}; use a newer one')
  return manifest


def verify(folder, manifest: dict) -> None:
  """Reads all files of a step. Every process checks its share; all raise if one finds damage.

  Raises:
    CheckpointError: naming the first damaged file.
  """
  files = sorted(manifest['files'].items())[jax.process_index()::jax.process_count()]
  with _pool() as pool:
    faults = [fault for fault in pool.map(lambda item: _fault(folder, *item), files) if fault]
  anywhere = bool(faults)
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils
    anywhere = bool(np.any(multihost_utils.process_allgather(np.array(anywhere))))
  if anywhere:
    raise CheckpointError(f'step {manifest["step"]} is damaged: '
                          + (faults[0] if faults else f'another process found so in {folder}'))


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


def _sha256(manifest: dict) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _files(folder) -> list:
  found = []
  for path in folder.iterdir():
    found += _files(path) if path.is_dir() else [path]
  return sorted(found)


def _pool():
  return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
