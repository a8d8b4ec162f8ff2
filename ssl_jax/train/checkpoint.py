"""Asynchronous checkpoints that know when they are damaged.

  <directory>/<step>/state-<n>/...    the arrays, written by Orbax (OCDBT)
  <directory>/<step>/manifest.json    what was saved, with the size and SHA-256 of every file

The manifest is written last and is the commit marker: without it a step does not exist. Orbax alone
restores flipped bits without an error, takes an empty folder named like a step for the newest one,
and skips a save older than the newest step without a word. So steps are listed, pruned and set
aside here, and Orbax is only asked to write and to read arrays.

The arrays are stored under their paths ('params/encoder/conv/kernel'): no checkpoint depends on how
containers (named tuples, optimizer states) are written down.
"""

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.parallel import path_name
from ssl_jax.train import manifest as manifests
from ssl_jax.train.manifest import CheckpointError
from ssl_jax.types import PyTree

# Orbax (0.7 s) is imported where it is used: the first step of a run does not wait for it.

FOLDER = 'checkpoints'  # the folder of steps inside a run folder
SHOWN = 5  # leaves named in a message
log = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one run: a folder of steps.

  Everything but `metadata` and `steps` is called by all processes, which share the folder. A save
  goes on in the background; its errors surface at the next `save` or `wait`, and a run that ends
  without `wait` may lose it. No process may end before that.
  """

  def __init__(self, directory: str | os.PathLike, *, keep_last: int | None = 3):
    """`directory` holds the steps (made at the first save); None keeps all of them.

    Raises:
      ValueError: `directory` is a step, or the run folder around the steps; or keep_last < 1.
    """
    self.directory = _path(directory)
    if keep_last is not None and keep_last < 1:
      raise ValueError(f'keep_last must be at least 1, or None for all, got {keep_last}')
    if (self.directory / manifests.NAME).exists():
      raise ValueError(f'{self.directory} is one step; give the folder around it')
    if (self.directory / FOLDER).is_dir():
      raise ValueError(f'{self.directory} is a run folder; its steps are in '
                       f'{self.directory / FOLDER}')
    self._keep_last = keep_last
    self._thread: threading.Thread | None = None
    self._error: tuple[int, BaseException] | None = None

  # --- what there is ------------------------------------------------------------------------------

  def steps(self) -> list[int]:
    """The complete steps, ascending. Folders without a manifest are none, whatever their name."""
    return manifests.steps(self.directory)

  def latest(self, *, verify: bool = False) -> int | None:
    """The newest complete step, or None where there is none.

    verify: check every file; where the newest steps are damaged they are moved aside, to
      '<step>.damaged-<time>', and the newest good one is the answer.

    Raises:
      CheckpointError: with `verify`, there are steps but all are damaged. They stay where they are,
        so that the next attempt does not take the run for a new one.
    """
    self.wait()
    faults = {}
    while True:
      left = [step for step in self.steps() if step not in faults]
      step = _from_first_process(left[-1] if left else -1)
      if step < 0 and faults:
        raise CheckpointError(f'no step in {self.directory} is intact:\n'
                              + '\n'.join(map(str, faults.values())))
      if step < 0 or not verify:
        break
      try:
        self.verify(step)
        break
      except CheckpointError as error:
        faults[step] = error
    for bad, error in faults.items():
      moved = self._set_aside(bad, 'damaged')
      log.error('%s. Moved it to %s; going on from step %d.', error, moved, step)
    return None if step < 0 else step

  def metadata(self, step: int) -> dict[str, Any]:
    """What was given to `save` (after a round trip through JSON).

    Raises:
      CheckpointError: there is no such step, or its manifest is damaged.
    """
    return self._manifest(step)['metadata']

  def verify(self, step: int) -> None:
    """Reads every file of a step and compares size and SHA-256 with the manifest.

    Raises:
      CheckpointError: naming the damaged file.
    """
    manifests.verify(self.directory / str(step), self._manifest(step))

  # --- save ---------------------------------------------------------------------------------------

  def save(self, step: int, state: PyTree, metadata: Mapping[str, Any] | None = None) -> None:
    """Saves a tree of jax.Arrays; returns once they are copied off the devices.

    The arrays may be donated as soon as this returns. Steps newer than `step`, left from before a
    rollback, are moved to '<step>.superseded-<time>'. A step that exists already is replaced, and
    stays valid until the new one is complete.

    Args:
      step: 0 or more.
      state: named tuples, dicts, lists, optimizer states of arrays of any dtype but PRNG keys.
      metadata: anything JSON can hold.

    Raises:
      CheckpointError: this save cannot start, or the save before it failed.
      ValueError: a leaf is not a jax.Array, or `metadata` is not JSON.
    """
    self.wait()
    leaves = _named(state)
    forms = {name: _form(leaf) for name, leaf in leaves.items()}
    manifest = manifests.make(_valid(step), forms, dict(metadata or {}))
    try:
      self.roll_back(step)
      arrays = self._new_folder(step)
      # Orbax refuses arrays without elements; the manifest says all about them.
      self._writer.save(arrays, args=_orbax().args.PyTreeSave(
        {name: leaf for name, leaf in leaves.items() if leaf.size}))
    except (OSError, ValueError, RuntimeError) as error:
      raise CheckpointError(f'cannot save step {step} in {self.directory}: {error}') from error
    self._thread = threading.Thread(
      target=self._finish, args=(arrays, manifest), name='checkpoint_finish')
    self._thread.start()

  def roll_back(self, step: int) -> None:
    """Moves steps newer than `step` to '<step>.superseded-<time>': the run goes on from `step`."""
    while (newest := self.latest()) is not None and newest > step:
      moved = self._set_aside(newest, 'superseded')
      log.warning('Going back to step %d: moved step %d to %s.', step, newest, moved)

  def wait(self) -> None:
    """Waits for the save under way.

    Raises:
      CheckpointError: it failed.
    """
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._error is not None:
      (step, error), self._error = self._error, None
      raise CheckpointError(
        f'saving step {step} in {self.directory} failed: {error}') from error

  def _finish(self, arrays, manifest):
    """In the background: waits for Orbax, then commits. Every process comes here."""
    step = manifest['step']
    try:
      self._writer.wait_until_finished()
      if jax.process_index() == 0:
        manifests.commit(arrays, manifest)
        self._prune(arrays)
      if jax.process_count() > 1:
        # The coordination service and not a collective: the main thread is running those.
        sync = _orbax().multihost.get_barrier_sync_fn()
        sync(key=f'manifest/{step}/{arrays.name}', timeout_ms=1_200_000)
    except BaseException as error:  # surfaces in wait()
      self._error = step, error

  def _new_folder(self, step: int):
    """The path for the arrays, beside what an earlier save of this step may have left."""
    folder = self.directory / str(step)
    used = [-1]
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      used += [int(m[1]) for m in (re.match(r'state-(\d+)', p.name) for p in folder.iterdir()) if m]
    return folder / f'state-{_from_first_process(max(used) + 1)}'

  def _prune(self, arrays):
    """Deletes what the step just committed makes superfluous; failing at that is no failure."""
    stale = [path for path in arrays.parent.iterdir()
             if path.name.startswith('state-') and path != arrays]
    complete = self.steps()
    if self._keep_last is not None:
      stale += [self.directory / str(step) for step in complete[:-self._keep_last]]
    stale += [path for path in self.directory.iterdir() if manifests.is_leftover(path)]
    for path in stale:
      try:
        (path / manifests.NAME).unlink(missing_ok=True)  # first: half a step must not look complete
        path.rmtree()
      except OSError as error:
        log.warning('Could not delete %s: %s', path, error)

  def _set_aside(self, step: int, why: str):
    """Renames a step so that it no longer is one. Every process comes here."""
    stamp = _from_first_process(int(time.time()))
    when = time.strftime('%Y%m%dT%H%M%S', time.gmtime(stamp))
    target = self.directory / f'{step}.{why}-{when}'
    if jax.process_index() == 0:
      while target.exists():
        target = target.with_name(target.name + '+')
      (self.directory / str(step)).rename(target)
    _from_first_process(0)  # nobody goes on before it is done
    return target

  @functools.cached_property
  def _writer(self):
    ocp = _orbax()
    # Compression saves 8 % of the bytes of random float32 and makes restoring six times slower.
    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))

  # --- restore ------------------------------------------------------------------------------------

  def restore(self, step: int, abstract: PyTree) -> PyTree:
    """The state of a step, onto any devices; checks every file before reading it.

    Args:
      step: a complete step.
      abstract: jax.ShapeDtypeStructs (or arrays) with shardings, in the tree that was saved. Leaves
        without a sharding go to the first device.

    Raises:
      ValueError: leaves are missing, superfluous, or have another shape or dtype; names them.
      CheckpointError: there is no such step, or it is damaged; names the file.
    """
    self.wait()
    manifest = self._manifest(step)
    folder = self.directory / str(step)
    found = _matching(manifest, abstract, f'step {step} in {self.directory}')
    manifests.verify(folder, manifest)
    return _read(folder, manifest, abstract, found)

  def restore_latest(self, abstract: PyTree) -> tuple[int, PyTree] | None:
    """(step, state) of the newest step that is intact, or None where there are no steps.

    Damaged newer steps are moved aside, see `latest`. Raises as `latest` and `restore` do.
    """
    step = self.latest(verify=True)
    if step is None:
      return None
    manifest = self._manifest(step)
    found = _matching(manifest, abstract, f'step {step} in {self.directory}')
    return step, _read(self.directory / str(step), manifest, abstract, found)

  def _manifest(self, step: int) -> dict[str, Any]:
    folder = self.directory / str(step)
    if not (folder / manifests.NAME).exists():
      raise CheckpointError(f'there is no step {step} in {self.directory}; '
                            f'there are {self.steps() or "none"}')
    return manifests.load(folder)


def init_from(
    path: str | os.PathLike, abstract: PyTree, *, part: str = 'params', subtree: str | None = None
) -> PyTree:
  """Weights of another run, for a new one. Not a resume: no optimizer, no step, no data position.

  Args:
    path: a run folder or a folder of steps (its newest step is used), or one step.
    abstract: the tree wanted, as in `Checkpoints.restore`.
    part: 'params', or 'state' for running statistics and the like.
    subtree: a path inside the part, such as 'encoder'; `abstract` then is that subtree.

  Raises:
    ValueError: `path` is none of these, or leaves differ; says what is there instead.
    CheckpointError: the step is damaged. The run it belongs to is left as it is.
  """
  folder = _step_folder(_path(path))
  manifest = manifests.load(folder)
  prefix = '/'.join([part] + ([subtree.strip('/')] if subtree else []))
  found = _matching(manifest, abstract, str(folder), prefix)
  manifests.verify(folder, manifest)
  return _read(folder, manifest, abstract, found)


def _step_folder(path):
  wanted = 'give a run folder, a folder of steps, or one step'
  if (path / manifests.NAME).exists():
    return path
  steps = path / FOLDER if (path / FOLDER).is_dir() else path
  if path.is_dir() and manifests.steps(steps):
    return steps / str(manifests.steps(steps)[-1])
  if (path.parent / manifests.NAME).exists():
    raise ValueError(f'{path} is inside a step; give the step: {path.parent}')
  if not path.is_dir():
    raise ValueError(f'{path} is a file; {wanted}' if path.exists() else f'{path} does not exist')
  raise ValueError(f'{path} has no complete step; {wanted}')


# --- leaves ---------------------------------------------------------------------------------------


def _form(leaf) -> list:
  return [str(leaf.dtype), list(leaf.shape)]


def _named(state: PyTree) -> dict[str, jax.Array]:
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
    name = path_name(path)
    if not isinstance(leaf, jax.Array):
      raise ValueError(f'{name} is a {type(leaf).__name__}; a checkpoint holds jax.Arrays')
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise ValueError(f'{name} is a PRNG key; keep its seed, or jax.random.key_data of it')
    if name in leaves:
      raise ValueError(f'two leaves have the name {name}')
    leaves[name] = leaf
  return leaves


def _matching(manifest: dict, abstract: PyTree, where: str, prefix: str = '') -> list[str]:
  """The stored names of the leaves of `abstract`, in order; ValueError unless all leaves agree."""
  prefix = prefix and prefix + '/'
  stored = {name: form for name, form in manifest['leaves'].items() if name.startswith(prefix)}
  paths = jax.tree_util.tree_flatten_with_path(abstract)[0]
  wanted = {prefix + path_name(path): _form(leaf) for path, leaf in paths}
  text = lambda form: f'{form[0]}{form[1]}'
  faults = [f'{name}: expected {text(form)}, found none'
            for name, form in wanted.items() if name not in stored]
  faults += [f'{name}: expected none, found {text(form)}'
             for name, form in stored.items() if name not in wanted]
  faults += [f'{name}: expected {text(form)}, found {text(stored[name])}'
             for name, form in wanted.items() if stored.get(name, form) != form]
  if faults:
    more = f'\nand {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
    raise ValueError(f'{where} holds another tree than this configuration makes:\n'
                     + '\n'.join(faults[:SHOWN]) + more)
  return list(wanted)


def _read(folder, manifest: dict, abstract: PyTree, names: list[str]) -> PyTree:
  ocp = _orbax()
  leaves, structure = jax.tree.flatten(abstract)
  first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or first)
    for name, x in zip(names, leaves, strict=True)}
  stored = {name: x for name, x in target.items() if np.prod(x.shape)}
  args = {name: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype, global_shape=x.shape)
          for name, x in stored.items()}
  restored = {name: jnp.zeros(x.shape, x.dtype, device=x.sharding) for name, x in target.items()
              if name not in stored}
  try:
    if stored:
      restored |= ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(
        folder / manifest['arrays'],
        args=ocp.args.PyTreeRestore(stored, restore_args=args, partial_restore=True))
  except (OSError, ValueError, KeyError, RuntimeError) as error:
    raise CheckpointError(f'cannot read {folder}: {error}') from error
  return structure.unflatten(restored[name] for name in names)


# --- paths and processes --------------------------------------------------------------------------


def _path(path: str | os.PathLike):
  from etils import epath
  path = epath.Path(path).expanduser()
  return path if '://' in str(path) else path.absolute()


def _orbax():
  import orbax.checkpoint
  return orbax.checkpoint


def _valid(step: int) -> int:
  if step < 0:
    raise ValueError(f'a step is 0 or more, got {step}')
  return int(step)


def _from_first_process(value: int) -> int:
  """The first process's value, everywhere; also a barrier."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils
  return int(multihost_utils.broadcast_one_to_all(np.int64(value)))
