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
import itertools
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import __version__
from ssl_jax.parallel import path_name
from ssl_jax.train import manifest as manifests
from ssl_jax.train.manifest import CheckpointError, NewerError
from ssl_jax.types import PyTree

# Orbax (0.7 s) is imported where it is used: the first step of a run does not wait for it.

FOLDER = 'checkpoints'  # the folder of steps inside a run folder
SHOWN = 5  # leaves named in a message
PAUSES = 10, 60, 300  # seconds before a save that failed is tried again
SHORT = 2  # seconds that training waits without a word for the save before
LIMIT = 1800  # seconds that a save may take
log = logging.getLogger(__name__)
_numbers = itertools.count()  # of saves; all processes make them in the same order


class Checkpoints:
  """The checkpoints of one run: a folder of steps.

  Everything but `metadata` and `steps` is called by all processes, which share the folder. A save
  goes on in the background, and a run that ends without `wait` may lose it. No process may end
  before that. A save that fails is said at once; the next one is tried several times.

  Attributes:
    failed: whether the last save failed. Several processes learn it at different moments.
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
    self.failed = False
    self._thread: threading.Thread | None = None
    self._saving = -1, 0.0  # the step that is saved, or was, and since when
    self._error: CheckpointError | None = None

  # --- what there is ------------------------------------------------------------------------------

  def steps(self) -> list[int]:
    """The steps that were completed, ascending; of what a killed save left and of foreign files
    there are none, whatever their name."""
    return manifests.steps(self.directory)

  def latest(self, *, verify: bool = False, set_aside: bool = True) -> int | None:
    """The newest step, or None where there is none.

    Args:
      verify: check every file; the newest step without damage is the answer.
      set_aside: move the damaged steps newer than that to '<step>.damaged-<time>', as only the run
        itself should. Someone who reads the run leaves them where they are.

    Raises:
      NewerError: the newest step is of a later release. It stays where it is.
      CheckpointError: with `verify`, there are steps but all are damaged. They stay where they are,
        so that the next attempt does not take the run for a new one.
    """
    self._join()
    faults = {}
    while True:
      left = [step for step in self.steps() if step not in faults]
      step = _from_first_process(left[-1] if left else -1)
      if step < 0 and faults:
        raise CheckpointError(
          f'no step in {self.directory} is intact:\n' + '\n'.join(map(str, faults.values()))
          + '\nput back a copy of one of them, or start over (train --resume=never)')
      if step < 0 or not verify:
        break
      try:
        self.verify(step)
        break
      except NewerError:
        raise
      except CheckpointError as error:
        faults[step] = error
    for bad, error in faults.items():
      moved = f' Moved it to {self._set_aside(bad, "damaged")};' if set_aside else ''
      log.error('%s.%s going on from step %d.', error, moved, step)
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
    manifests.verify(self.directory / str(step))

  # --- save ---------------------------------------------------------------------------------------

  def prepare(self, abstract: PyTree) -> None:
    """Before a run: deletes what killed saves left, and tries whether a step can be saved.

    Args:
      abstract: the tree that will be saved, as in `restore`.

    Raises:
      CheckpointError: the folder cannot be written, or has no room for one step; on all processes.
    """
    needed = sum(x.dtype.itemsize * x.size for x in jax.tree.leaves(abstract))
    _first_process_does(lambda: self._probe(needed),
                        f'checkpoints cannot be written to {self.directory}')

  def _probe(self, needed: int) -> None:
    self.directory.mkdir(parents=True, exist_ok=True)
    for path in filter(manifests.is_leftover, self.directory.iterdir()):
      log.warning('Deleting what an interrupted save left of step %s.', path.name)
      self._delete([path])
    probe = self.directory / f'.probe-{secrets.token_hex(8)}'
    probe.write_bytes(bytes(1 << 16))
    probe.unlink()
    if '://' not in str(probe) and (free := shutil.disk_usage(self.directory).free) < needed:
      raise OSError(f'one takes {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free: make '
                    'room, or save elsewhere')

  def save(self, step: int, state: PyTree, metadata: Mapping[str, Any] | None = None, *,
           wait: bool = False) -> None:
    """Saves a tree of jax.Arrays; returns once they are copied off the devices.

    The arrays may be donated as soon as this returns. Steps newer than `step`, left from before a
    rollback, are moved to '<step>.superseded-<time>'. A step that exists already is replaced, and
    stays valid until the new one is complete.

    Args:
      step: 0 or more.
      state: named tuples, dicts, lists, optimizer states of arrays of any dtype but PRNG keys.
      metadata: anything JSON can hold.
      wait: return only when the step is complete. Should that fail it is tried again, after each of
        `PAUSES`; so it is when the save before failed.

    Raises:
      CheckpointError: all of that failed, or the save before has not ended in `LIMIT` seconds.
      ValueError: a leaf is not a jax.Array, or `metadata` is not JSON.
    """
    leaves = _named(state)
    forms = {name: _form(leaf) for name, leaf in leaves.items()}
    manifest = manifests.make(_valid(step), forms, dict(metadata or {}))
    self._let_end()
    careful, self._error = wait or self._error is not None, None
    for pause in (*PAUSES, None):
      try:
        self._begin(manifest, leaves)
        if careful:
          self.wait()
        return
      except CheckpointError as error:
        if pause is None:
          raise
        log.error('%s. Trying again in %d s.', error, pause)
        time.sleep(pause)

  def _begin(self, manifest: dict, leaves: dict[str, jax.Array]) -> None:
    self.roll_back(manifest['step'])
    arrays, fault = self._new_folder(manifest), None
    try:
      # Orbax refuses arrays without elements; the manifest says all about them.
      self._writer.save(arrays, args=_orbax().args.PyTreeSave(
        {name: leaf for name, leaf in leaves.items() if leaf.size}))
    except (OSError, ValueError, RuntimeError) as error:
      fault = error  # of this process, perhaps of no other: raised when all know
    self._saving = manifest['step'], time.monotonic()
    # A file system that hangs must not keep the process: cli.process knows threads of this name.
    self._thread = threading.Thread(
      target=self._finish, args=(arrays, manifest, fault, next(_numbers)),
      name='ssl_jax_background', daemon=True)
    self._thread.start()

  def roll_back(self, step: int) -> None:
    """Moves steps newer than `step` to '<step>.superseded-<time>': the run goes on from `step`."""
    while (newest := self.latest()) is not None and newest > step:
      moved = self._set_aside(newest, 'superseded')
      log.warning('Going back to step %d: moved step %d to %s.', step, newest, moved)

  def wait(self) -> None:
    """Waits for the save under way.

    Raises:
      CheckpointError: it failed, or has not ended `LIMIT` seconds after it began.
    """
    self._join()
    if self._error is not None:
      error, self._error = self._error, None
      raise error

  def _let_end(self) -> None:
    """Before the next save: there is never more than one."""
    step, began = self._saving
    if self._thread is not None:
      self._thread.join(SHORT)
      if self._thread.is_alive():
        log.warning('Training waits for the save of step %d, which began %.0f s ago: save less '
                    'often, or to a faster disk.', step, time.monotonic() - began)
    self._join()

  def _join(self) -> None:
    if self._thread is None:
      return
    step, began = self._saving
    self._thread.join(max(0., began + LIMIT - time.monotonic()))
    if self._thread.is_alive():
      raise CheckpointError(f'the save of step {step} in {self.directory} has not ended in {LIMIT} '
                            's: does the file system hang?')
    self._thread = None

  def _finish(self, arrays, manifest, fault: Exception | None, number: int):
    """In the background: waits for Orbax, then commits. Every process comes here."""
    try:
      if fault is None:
        self._writer.wait_until_finished()
        if jax.process_index() == 0:
          manifests.commit(arrays, manifest)
    except BaseException as error:  # surfaces in wait()
      fault = error
    why = _of_all(None if fault is None else f'{fault}', number)
    if jax.process_index() == 0:
      self._prune(arrays) if why is None else self._withdraw(arrays)
    self.failed = why is not None
    if why is not None:
      self._error = CheckpointError(
        f'saving step {manifest["step"]} in {self.directory} failed: {why}')
      self._error.__cause__ = fault
      log.error('%s. The next save will be tried several times.', self._error)

  def _new_folder(self, manifest: dict):
    """The path for the arrays, beside what an earlier save of this step may have left."""
    folder, numbers = self.directory / str(manifest['step']), [-1]

    def make():
      folder.mkdir(parents=True, exist_ok=True)
      manifests.begin(folder, manifest)
      numbers.extend(
        int(m[1]) for m in map(manifests.ARRAYS.match, os.listdir(folder)) if m)

    _first_process_does(make, f'cannot save step {folder.name} in {self.directory}')
    return folder / f'state-{_from_first_process(max(numbers) + 1)}'

  def _prune(self, arrays) -> None:
    """Deletes what the step just committed makes superfluous; failing at that is no failure."""
    try:
      for path in arrays.parent.iterdir():
        if path.name.startswith('state-') and path != arrays:
          path.rmtree()
      stale = [path for path in self.directory.iterdir() if manifests.is_leftover(path)]
      if self._keep_last is not None:
        stale += [self.directory / str(step) for step in self.steps()[:-self._keep_last]]
      self._delete(stale)
    except OSError as error:
      log.warning('Could not delete what step %s replaces: %s', arrays.parent.name, error)

  def _withdraw(self, arrays) -> None:
    """Deletes what a failed save has written: a full disk has no room for it."""
    try:
      for path in arrays.parent.iterdir():
        if path.name.startswith(arrays.name):
          path.rmtree()
      (arrays.parent / manifests.DRAFT).unlink(missing_ok=True)
      if not any(arrays.parent.iterdir()):
        arrays.parent.rmdir()
    except OSError as error:
      log.warning('Could not delete what was written to %s: %s', arrays, error)

  def _delete(self, folders) -> None:
    for folder in folders:
      try:
        manifests.discard(folder)
      except OSError as error:
        log.warning('Could not delete all of %s: %s', folder, error)

  def _set_aside(self, step: int, why: str):
    """Renames a step so that it no longer is one. Every process comes here."""
    stamp = _from_first_process(int(time.time()))
    when = time.strftime('%Y%m%dT%H%M%S', time.gmtime(stamp))
    target = self.directory / f'{step}.{why}-{when}'

    def move():
      nonlocal target
      while target.exists():
        target = target.with_name(target.name + '+')
      (self.directory / str(step)).rename(target)

    _first_process_does(move, f'cannot move step {step} aside in {self.directory}')
    return target

  @functools.cached_property
  def _writer(self):
    ocp = _orbax()
    # Compression saves 8 % of the bytes of random float32 and makes restoring six times slower.
    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))

  # --- restore ------------------------------------------------------------------------------------

  def restore(self, step: int, abstract: PyTree, *, cast: bool = False) -> PyTree:
    """The state of a step, onto any devices; checks every file before reading it.

    Args:
      step: a complete step.
      abstract: jax.ShapeDtypeStructs (or arrays) with shardings, in the tree that was saved. Leaves
        without a sharding go to the first device.
      cast: convert leaves of another floating-point dtype.

    Raises:
      ValueError: leaves are missing, superfluous, or have another shape or dtype; names them.
      CheckpointError: there is no such step, or it is damaged; names the file.
    """
    self.wait()
    folder = self.directory / str(step)
    found = _matching(self._manifest(step), abstract, f'step {step} in {self.directory}', cast=cast)
    return _read(folder, manifests.verify(folder), abstract, found)

  def restore_latest(self, abstract: PyTree, *, cast: bool = False, set_aside: bool = True
                     ) -> tuple[int, PyTree] | None:
    """(step, state) of the newest step that is intact, or None where there are no steps.

    Damaged newer steps are moved aside, see `latest`. Raises as `latest` and `restore` do.
    """
    while (step := self.latest(verify=True, set_aside=set_aside)) is not None:
      try:
        manifest = self._manifest(step)
        found = _matching(manifest, abstract, f'step {step} in {self.directory}', cast=cast)
        return step, _read(self.directory / str(step), manifest, abstract, found)
      except CheckpointError:
        if step in self.steps():
          raise
        # The run that is being read has deleted it meanwhile, for a newer one.
    return None

  def _manifest(self, step: int) -> dict[str, Any]:
    folder = self.directory / str(step)
    if step not in (there := self.steps()):
      raise CheckpointError(f'there is no step {step} in {self.directory}; '
                            f'there are {there or "none"}')
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
  return _read(folder, manifests.verify(folder), abstract, found)


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


def _matching(manifest: dict, abstract: PyTree, where: str, prefix: str = '', *,
              cast: bool = False) -> list[str]:
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
             for name, form in wanted.items()
             if name in stored and not _fits(form, stored[name], cast)]
  if faults:
    more = f'\nand {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
    writer = manifest.get('version', __version__)
    casts = all(name in stored and _fits(form, stored[name], True) for name, form in wanted.items())
    if casts and len(wanted) == len(stored):
      more += '\nonly floating-point dtypes differ: train --allow_changes converts them'
    other = f' (it is of ssl_jax {writer}, this is {__version__})' if writer != __version__ else ''
    raise ValueError(f'{where} holds another tree than this configuration makes{other}:\n'
                     + '\n'.join(faults[:SHOWN]) + more)
  return list(wanted)


def _fits(wanted: list, stored: list, cast: bool) -> bool:
  floats = all(jnp.issubdtype(form[0], jnp.floating) for form in (wanted, stored))
  return wanted == stored or (cast and floats and wanted[1] == stored[1])


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


def _first_process_does(work: Callable[[], None], what: str) -> None:
  """Nobody goes on before it is done; where it fails, all raise CheckpointError."""
  fault = None
  if jax.process_index() == 0:
    try:
      work()
    except OSError as error:
      fault = error
  if _from_first_process(fault is not None):
    raise CheckpointError(f'{what}: {fault or "the first process says why"}') from fault


def _of_all(fault: str | None, number: int) -> str | None:
  """What went wrong in any process with a save, or None; all are told the same."""
  if jax.process_count() == 1:
    return fault
  # The coordination service and not a collective: the main thread is running those.
  from jax._src import distributed
  client, name = distributed.global_state.client, f'ssl_jax/save/{number}'
  client.key_value_set(f'{name}/{jax.process_index()}', json.dumps(fault))
  client.wait_at_barrier(name, 1_200_000)
  texts = {key: json.loads(text) for key, text in client.key_value_dir_get(f'{name}/')}
  faults = [f'{text} (process {key.rpartition("/")[2]})' for key, text in sorted(texts.items())
            if text is not None]
  return faults[0] if faults else None


def _from_first_process(value: int) -> int:
  """The first process's value, everywhere; also a barrier."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils
  return int(multihost_utils.broadcast_one_to_all(np.int64(value)))
