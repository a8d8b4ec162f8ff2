"""`python -m ssl_jax train`: from a config to a trained run in a folder."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from ssl_jax import __version__, build, runs
from ssl_jax.cli import AGAIN, agreement, devices, hosts, lock, memory
from ssl_jax.cli.meeting import MissingError
from ssl_jax.cli.monitor import Monitor
from ssl_jax.cli.options import Parser, fields
from ssl_jax.cli.process import StopOnSignal, Stopped, patiently, start
from ssl_jax.cli.setup import Profiler, use_compilation_cache
from ssl_jax.cli.watchdog import COMPUTING, DATA, STEP, Watchdog
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
  watchdog: float = STEP
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
  parser.add_argument('--watchdog', type=float, default=STEP, metavar='SECONDS', help='a run that '
                      'gets nowhere for so long, or for 20 times its median step, writes where it '
                      'stands and ends with code 42; 8 times as long for compiling, evaluating and '
                      'saving; 0: never')
  parser.add_argument('--debug_nans', action='store_true', help='stop with a traceback at the '
                      'operation that makes the first NaN (slow)')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache; default in the '
                      "user's cache folder, 'none' switches it off")
  hosts.add_options(parser)
  args, config = parser.read(argv)
  if config is None or not args.workdir:
    parser.error('needs --config=FILE.py and --workdir=FOLDER')
  options = Options(
    workdir=runs.folder_to_train(args.workdir), resume=_resume(parser, args.resume),
    init_from=args.init_from, allow_changes=args.allow_changes,
    profile=_profile(parser, args.profile), watchdog=_seconds(parser, args.watchdog),
    command=('train', *argv))
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
  return train(config, options, hosts.StopTogether())


def train(config, options: Options, stop=None) -> int:
  """Trains and returns the exit code. `stop` tells of signals; by default those of one process."""
  with Watchdog(options.watchdog) as watch, stop or StopOnSignal() as stop:
    try:
      return _train(config, options, stop, watch)
    except Stopped as error:
      print(f'{error}; the same command starts again', file=sys.stderr)
      return AGAIN


def _train(config, options: Options, stop, watch: Watchdog) -> int:
  began = time.monotonic()
  devices.check()
  experiment = build.experiment(config)
  if jax.process_count() > 1:
    agreement.agree('data and devices', _material(config, experiment))
  program = experiment.program(config)
  with memory.explained(config, program), lock.held(options.workdir) as place:
    return _fit(config, options, experiment, program, place, stop, watch, began)


def _fit(config, options: Options, experiment, program, place: lock.Lock, stop, watch: Watchdog,
         began: float) -> int:
  compiled_step = _start_compiling(program)
  writers = []

  def write(k, numbers):
    for writer in writers:
      writer(k, numbers)

  first = jax.process_index() == 0
  owed = []  # looks at the last state that a signal cut short: the next start makes up for them

  def going_on():
    """Between two batches of an evaluation."""
    watch.doing('evaluating')
    if stop():
      raise Stopped('during an evaluation')

  monitor = Monitor(config, experiment, write, lambda text: progress.say(text), going_on)
  checkpoints, step, ts = _start(config, options, experiment, program, place,
                                  stop.while_waiting)
  watch.write_to(options.workdir, first)
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
    watch.step(k + 1)
    profiler(k + 1)
    if not metrics.pop('finite'):
      progress.say(f'step {k + 1}: loss or gradient not finite; the step was undone')
    if metrics.get('spike'):
      progress.say(f'step {k + 1}: a spike (loss {metrics["loss"]:.4g}, gradient norm '
                   f'{metrics["grad_norm"]:.4g}); the step was undone')
    progress(k + 1, metrics)
    if (k + 1) % config.log_every == 0 or k + 1 == experiment.steps:
      write(k + 1, dict(metrics, learning_rate=float(experiment.schedule(k))))

  def save(k, ts, wait=False):
    for writer in writers:
      writer.sync()  # a checkpoint promises the metrics before it, also if the machine is lost
    checkpoints.save(k, ts, dict(_metadata(config, experiment), owed=owed),
                     wait=wait or k == experiment.steps)

  def apart(doing, run):
    """`run`, its time kept out of the speed that is shown."""
    def timed(k, ts):
      watch.doing(doing)
      before = time.monotonic()
      try:
        run(k, ts)
      except Stopped:
        owed.append(doing)
      progress.leave_out(time.monotonic() - before)
    return timed

  looks = {'health': Every(config.evaluate.health_every, apart('health', monitor.health)),
           'evaluation': Every(config.evaluate.every, apart('evaluation', monitor.evaluate))}
  feed = global_batches(config, experiment, program, step, stop.while_waiting, watch.doing)
  profiler(step)
  try:
    compiled = compiled_step(stop.while_waiting)
    stop.defer()
    if _make_up(looks, checkpoints.metadata(step) if step else {}, step, ts) and not owed:
      save(step, ts)
    # Of this thread, too: JAX switches the global look for NaNs off in it when it traces a softmax.
    with jax.debug_nans(jax.config.jax_debug_nans):
      ts = fit(compiled, ts, feed, steps=experiment.steps, report=report, stop=stop,
               patience=config.patience,
               callbacks=[*looks.values(), _Saves(checkpoints, config.checkpoint.every,
                                                  apart('saving', save))])
    if stop() and checkpoints.latest() != int(ts.step):
      save(int(ts.step), ts, wait=True)
  except NonFiniteError as error:
    _write_bad_ids(options.workdir / 'non_finite.json', error)
    save(int(error.state.step), error.state, wait=True)
    raise
  finally:
    feed.close()
    watch.doing('saving')
    checkpoints.wait()
    for thing in (profiler, progress, *writers):
      thing.close()
  return _finish(options.workdir, int(ts.step), experiment.steps, owed)


class _Saves:
  """Every so many steps, and as soon as a save has failed: the state that it had is gone by then,
  this one is not. Only in one process, as several learn of it at different steps."""

  def __init__(self, checkpoints: Checkpoints, steps: int | None, run: Callable):
    self._checkpoints, self._every, self.run = checkpoints, Every(steps, run), run

  def due(self, step: int, first: int, last: int) -> bool:
    again = self._checkpoints.failed and jax.process_count() == 1
    return again or self._every.due(step, first, last)


def _make_up(looks: dict[str, Every], saved: dict, step: int, ts) -> bool:
  """Looks at the state as the run before would have done, had no signal come; whether it did so."""
  owed = [looks[name] for name in saved.get('owed', ()) if looks[name].steps is not None]
  for look in owed:
    look.run(step, ts)
  return bool(owed)


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
  except (ValueError, TypeError, AssertionError, ArithmeticError) as error:
    raise ConfigError(f'the step cannot be built from this config: {error}') from error
  if jax.config.jax_debug_nans:  # a compiled program cannot be run again operation by operation
    return lambda told: program.step
  return start(lowered.compile)


# --- where to start -------------------------------------------------------------------------------


def _start(config, options: Options, experiment, program, place: lock.Lock, told):
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


# --- pieces of the loop ---------------------------------------------------------------------------


def global_batches(config, experiment, program, first: int, told=lambda: False,
                   doing=lambda what: None):
  """Global arrays, the rows of each device taken from the host it belongs to, from batch `first` on
  until `told()` during a wait. `doing` hears what is waited for."""
  sharding = program.batch['id'].sharding
  rows = local_rows(sharding, config.batch_size)
  host = batches(experiment.source, batch_size=config.batch_size, seed=config.seed, start=first,
                 rows=rows, workers=config.workers)
  doing(DATA)
  with contextlib.closing(patiently(host, told)) as waited:
    for k, batch in enumerate(waited):
      if k == 0 and jax.process_count() > 1:
        agreement.check_batch(batch, len(rows))
      doing(COMPUTING)
      yield to_global(batch, sharding, config.batch_size)
      doing(DATA)


def _writers(workdir: pathlib.Path, step: int) -> list:
  if jax.process_index() > 0:
    return []
  writers = [JsonLines(workdir / runs.METRICS, resume_step=step)]
  try:
    writers.append(TensorBoard(workdir / 'tensorboard', resume_step=step))
  except ModuleNotFoundError as error:
    print(f'note: nothing is written for TensorBoard: pip install {error.name}', file=sys.stderr)
  return writers


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


def _finish(workdir: pathlib.Path, step: int, steps: int, owed: list[str]) -> int:
  done = step == steps and not owed
  if jax.process_index() > 0:
    return 0 if done else AGAIN
  if not done:
    left = f' without its {" and ".join(owed)}' if owed else ''
    print(f'stopped at step {step} of {steps}{left}, saved; the same command continues',
          file=sys.stderr)
    return AGAIN
  print(f'done: {steps} steps in {workdir}')
  print(f'next: python -m ssl_jax evaluate --workdir={workdir}')
  return 0


def _resume(parser: Parser, text: str) -> str | int:
  if text not in ('auto', 'never') and not text.isdigit():
    parser.error(f'--resume takes auto, never or a step, got {text!r}')
  return int(text) if text.isdigit() else text


def _seconds(parser: Parser, value: float) -> float:
  if not 0 <= value < float('inf'):
    parser.error(f'--watchdog takes seconds, 0 for never; got {value}')
  return value


def _profile(parser: Parser, text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  first, _, last = text.partition(':')
  if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
    parser.error(f'--profile takes FIRST:LAST, such as 10:15, got {text!r}')
  return int(first), int(last)
