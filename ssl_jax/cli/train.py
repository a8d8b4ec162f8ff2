"""`python -m ssl_jax train`: from a config to a trained run in a folder."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from ssl_jax import __version__, build, runs
from ssl_jax.cli import AGAIN, agreement, hosts
from ssl_jax.cli.meeting import MissingError
from ssl_jax.cli.monitor import Monitor
from ssl_jax.cli.options import Parser, fields
from ssl_jax.cli.setup import Profiler, StopOnSignal, use_compilation_cache
from ssl_jax.data.batches import batches, describe_change, fingerprint
from ssl_jax.parallel import local_rows, to_global
from ssl_jax.report import environment
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints, init_from
from ssl_jax.train.loop import Every, NonFiniteError, fit
from ssl_jax.train.metrics import JsonLines, Progress, TensorBoard

DESCRIPTION = '''Pretrains what a config describes. The same command again resumes where the run
stopped, bit for bit. Ctrl-C or SIGTERM saves and exits with code 42.'''

# Fields that may differ between the parts of one run: they do not change what is learned.
FREE = ('log_every', 'checkpoint', 'evaluate', 'workers', 'patience', 'mesh', 'sharding')


class Options(NamedTuple):
  """The command line of `train`, checked."""

  workdir: pathlib.Path
  resume: str | int = 'auto'
  init_from: str | None = None
  allow_changes: bool = False
  profile: tuple[int, int] | None = None
  command: tuple[str, ...] = ('train',)


def run(argv: list[str]) -> int:
  parser = Parser('train', DESCRIPTION, with_config=True)
  parser.add_argument('--workdir', metavar='FOLDER', help='where checkpoints and metrics go')
  parser.add_argument('--resume', default='auto', metavar='auto|never|STEP', help='auto: continue '
                      'from the newest checkpoint if there is one; never: start over, an earlier '
                      'run is moved aside; STEP: continue from that checkpoint')
  parser.add_argument('--init_from', metavar='RUN[:SUBTREE]', help='start from the weights of '
                      'another run, all or a subtree such as backbone; not a resume')
  parser.add_argument('--allow_changes', action='store_true', help='resume although the config or '
                      'the data changed')
  parser.add_argument('--profile', metavar='FIRST:LAST', help='trace these steps into '
                      'WORKDIR/profile, for TensorBoard or Perfetto')
  parser.add_argument('--debug_nans', action='store_true', help='stop with a traceback at the '
                      'operation that makes the first NaN (slow)')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache; default in the '
                      "user's cache folder, 'none' switches it off")
  hosts.add_options(parser)
  args, config = parser.read(argv)
  if config is None or not args.workdir:
    parser.error('needs --config=FILE.py and --workdir=FOLDER')
  options = Options(
    workdir=pathlib.Path(args.workdir).expanduser(), resume=_resume(parser, args.resume),
    init_from=args.init_from, allow_changes=args.allow_changes,
    profile=_profile(parser, args.profile), command=('train', *argv))
  use_compilation_cache(args.cache_dir)
  jax.config.update('jax_debug_nans', args.debug_nans)
  try:
    place = hosts.find(args.coordinator, args.processes, args.process, args.coordinator_port)
  except MissingError as error:
    return hosts.start_again(error)
  if place is None:
    return train(config, options)
  return hosts.run(place, lambda: _train_together(config, options))


def _train_together(config, options: Options) -> int:
  """`train` on several processes, once it is certain that all mean the same."""
  meant = {name: value for name, value in options._asdict().items()
           if name not in ('workdir', 'command')}
  agreement.agree('run', agreement.facts(config, meant))
  agreement.check_workdir(options.workdir)
  return train(config, options)


def train(config, options: Options) -> int:
  """Trains and returns the exit code."""
  began = time.monotonic()
  experiment = build.experiment(config)
  if jax.process_count() > 1:
    agreement.agree('data and devices', _material(config, experiment))
  program = experiment.program(config)
  compiled_step = _start_compiling(program)
  writers = []

  def write(k, numbers):
    for writer in writers:
      writer(k, numbers)

  first = jax.process_index() == 0
  monitor = Monitor(config, experiment, write, lambda text: progress.say(text))
  checkpoints, step, ts = _start(config, options, experiment, program)
  progress = Progress(experiment.steps, start=step, batch_size=config.batch_size,
                      every=config.log_every, stream=None if first else open(os.devnull, 'w'))
  progress.say(_headline(config, experiment, step, ts))
  if hasattr(experiment.source, 'report'):
    progress.say(experiment.source.report())
  writers += _writers(options.workdir, step)
  profiler = Profiler(options.profile if first else None, options.workdir / 'profile')

  def report(k, metrics):
    if k == step:
      progress.say(f'first step after {time.monotonic() - began:.1f} s of building and compiling')
      progress.start_clock(k + 1)
    profiler(k + 1)
    if not metrics.pop('finite'):
      progress.say(f'step {k + 1}: loss or gradient not finite; the step was undone')
    progress(k + 1, metrics)
    if (k + 1) % config.log_every == 0 or k + 1 == experiment.steps:
      write(k + 1, dict(metrics, learning_rate=float(experiment.schedule(k))))

  def save(k, ts):
    checkpoints.save(k, ts, _metadata(config, experiment))

  def apart(run):
    """`run`, its time kept out of the speed that is shown."""
    def timed(k, ts):
      before = time.monotonic()
      run(k, ts)
      progress.leave_out(time.monotonic() - before)
    return timed

  profiler(step)
  with (StopOnSignal if jax.process_count() == 1 else hosts.StopTogether)(progress.say) as stop:
    try:
      ts = fit(compiled_step(), ts, global_batches(config, experiment, program, step),
               steps=experiment.steps, report=report, stop=stop, patience=config.patience,
               callbacks=[Every(config.evaluate.health_every, apart(monitor.health)),
                          Every(config.evaluate.every, apart(monitor.evaluate)),
                          Every(config.checkpoint.every, apart(save))])
      if stop() and checkpoints.latest() != int(ts.step):
        save(int(ts.step), ts)
    except NonFiniteError as error:
      save(int(error.state.step), error.state)
      _write_bad_ids(options.workdir / 'non_finite.json', error)
      raise
    finally:
      checkpoints.wait()
      for thing in (profiler, progress, *writers):
        thing.close()
  return _finish(options.workdir, int(ts.step), experiment.steps)


def _material(config, experiment) -> dict[str, str]:
  """What must be equal on all hosts once the data are open."""
  kinds = [device.device_kind for device in jax.local_devices()]
  return {'devices': f'{len(kinds)} x {kinds[0]}',
          **fingerprint(experiment.source, batch_size=config.batch_size, seed=config.seed),
          **{f'field {name!r}': f'{x.dtype}{list(x.shape)}'
             for name, x in experiment.batch.items()}}


def _start_compiling(program) -> Callable:
  """Traces the step now, so that faults of the config are found before any work, and compiles it
  while the state is made or restored. Returns a function that waits for the step."""
  try:
    lowered = program.step.lower(program.state, program.batch)
  except (ValueError, TypeError, AssertionError) as error:
    raise ConfigError(f'the step cannot be built from this config: {error}') from error
  if jax.config.jax_debug_nans:  # a compiled program cannot be run again operation by operation
    return lambda: program.step
  return ThreadPoolExecutor(1).submit(lowered.compile).result


# --- where to start -------------------------------------------------------------------------------


def _start(config, options: Options, experiment, program):
  """(checkpoints, step, state): a fresh start, other weights, or a resume."""
  workdir = options.workdir
  if options.resume == 'never':
    _move_aside(workdir)
    multihost_utils.sync_global_devices('moved aside')
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(workdir / runs.CHECKPOINTS, keep_last=config.checkpoint.keep)
  if checkpoints.latest() is None:
    if isinstance(options.resume, int):
      raise ConfigError(f'--resume={options.resume}: {workdir} has no checkpoints')
    _write_start(options, config, experiment)
    ts = program.init()
    if options.init_from:
      ts = ts._replace(params=_other_weights(options.init_from, program, ts))
    return checkpoints, 0, ts
  if options.init_from:
    raise ConfigError(f'--init_from starts a new run, but {workdir} has checkpoints; choose another '
                      f'--workdir or add --resume=never')
  try:
    step, ts = (checkpoints.restore_latest(program.state) if options.resume == 'auto' else
                (options.resume, checkpoints.restore(options.resume, program.state)))
  except ValueError as error:  # leaves do not match: most likely the config changed, which says more
    _refuse_changes(config, options, experiment, checkpoints.metadata(checkpoints.latest()))
    raise ConfigError(str(error)) from error
  _refuse_changes(config, options, experiment, checkpoints.metadata(step))
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


def _refuse_changes(config, options: Options, experiment, saved: dict) -> None:
  """Continuing with other data or another config would not be the run that was started."""
  now = _metadata(config, experiment)
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


def _metadata(config, experiment) -> dict:
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


def _move_aside(workdir: pathlib.Path) -> None:
  """An earlier run in the folder is kept under another name."""
  if jax.process_index() == 0 and (workdir / runs.CONFIG).exists():
    aside = workdir.with_name(f'{workdir.name}.before-{time.strftime("%Y%m%d-%H%M%S")}')
    workdir.rename(aside)
    print(f'the earlier run is now in {aside}', file=sys.stderr)


# --- pieces of the loop ---------------------------------------------------------------------------


def global_batches(config, experiment, program, start: int):
  """Global arrays, the rows of each device taken from the host it belongs to."""
  sharding = program.batch['id'].sharding
  rows = local_rows(sharding, config.batch_size)
  for k, batch in enumerate(batches(experiment.source, batch_size=config.batch_size,
                                    seed=config.seed, start=start, rows=rows,
                                    workers=config.workers)):
    if k == 0 and jax.process_count() > 1:
      agreement.check_batch(batch, len(rows))
    yield to_global(batch, sharding, config.batch_size)


def _writers(workdir: pathlib.Path, step: int) -> list:
  if jax.process_index() > 0:
    return []
  return [JsonLines(workdir / runs.METRICS, resume_step=step),
          TensorBoard(workdir / 'tensorboard', resume_step=step)]


def _headline(config, experiment, step: int, ts) -> str:
  count = sum(x.size for x in jax.tree.leaves(ts.params))
  mesh = ' x '.join(f'{name} {size}' for name, size in experiment.mesh.shape.items())
  where = f'resuming at step {step}' if step else f'{experiment.steps} steps'
  return (f'{config.method.name} on {config.data.name}: {len(experiment.source)} examples, '
          f'batch {config.batch_size}, {count / 1e6:.2f} M parameters, '
          f'{jax.devices()[0].platform} mesh {mesh}, {where}')


def _write_bad_ids(path: pathlib.Path, error: NonFiniteError) -> None:
  ids = [multihost_utils.process_allgather(batch, tiled=True).tolist() for batch in error.ids]
  if jax.process_index() == 0:
    path.write_text(json.dumps({'step': error.step, 'example_ids': ids}) + '\n')


def _finish(workdir: pathlib.Path, step: int, steps: int) -> int:
  if jax.process_index() > 0:
    return 0 if step == steps else AGAIN
  if step < steps:
    print(f'stopped at step {step} of {steps}, saved; the same command continues', file=sys.stderr)
    return AGAIN
  print(f'done: {steps} steps in {workdir}')
  print(f'next: python -m ssl_jax evaluate --workdir={workdir}')
  return 0


def _resume(parser: Parser, text: str) -> str | int:
  if text not in ('auto', 'never') and not text.isdigit():
    parser.error(f'--resume takes auto, never or a step, got {text!r}')
  return int(text) if text.isdigit() else text


def _profile(parser: Parser, text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  first, _, last = text.partition(':')
  if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
    parser.error(f'--profile takes FIRST:LAST, such as 10:15, got {text!r}')
  return int(first), int(last)
