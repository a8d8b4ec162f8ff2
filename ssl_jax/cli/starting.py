"""Where a run starts: afresh, from other weights, or where it stopped, if it still is the same run."""

import json
import os
import pathlib
import sys
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from ssl_jax import __version__, build, runs
from ssl_jax.cli import lock
from ssl_jax.cli.options import fields
from ssl_jax.cli.process import start
from ssl_jax.cli.watchdog import STEP
from ssl_jax.data.batches import describe_change, fingerprint
from ssl_jax.report import environment
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints, init_from

# Fields that may differ between the parts of one run: they do not change what is learned.
FREE = ('log_every', 'checkpoint', 'evaluate', 'workers', 'patience', 'mesh', 'sharding')


class Options(NamedTuple):
  """The command line of `train`, checked."""

  workdir: pathlib.Path
  resume: str | int = 'auto'
  init_from: str | None = None
  allow_changes: bool = False
  profile: tuple[int, int] | None = None
  watchdog: float = STEP
  command: tuple[str, ...] = ('train',)


def begin(config, options: Options, experiment, program, place: lock.Lock, told):
  """(checkpoints, step, state): a fresh start, other weights, or a resume. Ends once `told()`."""
  workdir = options.workdir
  if options.resume == 'never':
    if jax.process_index() == 0 and (aside := place.move_aside()) is not None:
      print(f'the earlier run is now in {aside}', file=sys.stderr)
    multihost_utils.sync_global_devices('moved aside')
  checkpoints = Checkpoints(workdir / runs.CHECKPOINTS, keep_last=config.checkpoint.keep)
  checkpoints.prepare(program.state)
  if checkpoints.latest() is None:
    if isinstance(options.resume, int):
      raise ConfigError(f'--resume={options.resume}: {workdir} has no checkpoints')
    if (workdir / runs.METRICS).exists() and jax.process_index() == 0:
      print(f'note: the run in {workdir} has no complete checkpoint; it starts from the beginning',
            file=sys.stderr)
    _write_start(options, config, experiment)
    ts = start(program.init)(told)  # the main thread would not hear signals while it compiles
    if options.init_from:
      ts = ts._replace(params=_other_weights(options.init_from, program, ts))
    return checkpoints, 0, ts
  if options.init_from:
    raise ConfigError(f'--init_from starts a new run, but {workdir} has checkpoints; choose another '
                      f'--workdir or add --resume=never')
  cast = options.allow_changes
  try:
    step, ts = (checkpoints.restore_latest(program.state, cast=cast) if options.resume == 'auto' else
                (options.resume, checkpoints.restore(options.resume, program.state, cast=cast)))
  except ValueError as error:  # leaves do not match: most likely the config changed, which says more
    refuse_changes(config, options, experiment, checkpoints.metadata(checkpoints.latest()))
    raise ConfigError(str(error)) from error
  refuse_changes(config, options, experiment, checkpoints.metadata(step))
  checkpoints.roll_back(step)
  _write_start(options, config, experiment)
  return checkpoints, step, ts


def _other_weights(spec: str, program, ts):
  """The parameters of `ts` with those of 'RUN[:SUBTREE]' put in."""
  path, _, subtree = spec.partition(':')
  abstract = program.state.params
  if not subtree:
    return _initial(path, abstract)
  names = subtree.strip('/').split('/')
  for name in names:
    if not isinstance(abstract, dict) or name not in abstract:
      raise ConfigError(f'--init_from: the parameters have no subtree {subtree!r}; there are '
                        f'{", ".join(program.state.params)}')
    abstract = abstract[name]
  new = _initial(path, abstract, subtree=subtree)

  def put(tree, names):
    return {**tree, names[0]: put(tree[names[0]], names[1:])} if names else new

  return put(ts.params, names)


def _initial(path: str, abstract, **options):
  try:
    return init_from(path, abstract, **options)
  except ValueError as error:
    raise ConfigError(f'--init_from: {error}') from error


def refuse_changes(config, options: Options, experiment, saved: dict) -> None:
  """Continuing with other data or another config would not be the run that was started."""
  now = metadata(config, experiment)
  changed = [describe_change(saved['data'], now['data'])]
  old, new = saved['config'], now['config']
  changed += [f'config.{key} was {old.get(key)!r}, is {new.get(key)!r}'
              for key in sorted({*old, *new}) if old.get(key) != new.get(key)
              and key.split('.')[0] not in FREE]
  changed = [text for text in changed if text]
  for key, what in (('cores', 'visible cores'), ('jax', 'version of jax')):
    if saved[key] != now[key] and jax.process_index() == 0:
      print(f'note: the {what} changed from {saved[key]} to {now[key]}; results continue, but not '
            f'bit for bit', file=sys.stderr)
  if changed and not options.allow_changes:
    raise ConfigError('this is not the run in ' + str(options.workdir) + ':\n  '
                      + '\n  '.join(changed)
                      + '\nuse another --workdir, --resume=never, or --allow_changes')


def metadata(config, experiment) -> dict:
  """What a checkpoint says of where it comes from."""
  plain = json.loads(json.dumps(dict(fields(config))))
  return dict(
    version=__version__, jax=jax.__version__, cores=_cores(), config=plain,
    mesh={name: int(size) for name, size in experiment.mesh.shape.items()},
    data=fingerprint(experiment.source, batch_size=config.batch_size, seed=config.seed))


def _cores() -> int:
  """What this process may use; on CPUs arithmetic depends on it in the last bits."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _write_start(options: Options, config, experiment) -> None:
  """The config, and what it runs with: command, revision, versions, devices."""
  if jax.process_index() == 0:
    runs.write_config(options.workdir, config, build.shape_of(experiment.source))
    environment.record(options.workdir, options.command,
                       [device.device_kind for device in jax.devices()])
