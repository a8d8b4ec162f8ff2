"""`python -m ssl_jax train`: from a config to a trained run in a folder."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from ssl_jax import build, runs
from ssl_jax.cli import AGAIN, agreement, devices, hosts, lock, memory
from ssl_jax.cli.meeting import MissingError
from ssl_jax.cli.monitor import Monitor
from ssl_jax.cli.options import Parser
from ssl_jax.cli.process import StopOnSignal, Stopped, patiently, start
from ssl_jax.cli.recorder import Recorder
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.cli.starting import Options, begin
from ssl_jax.cli.watchdog import COMPUTING, DATA, STEP, Watchdog
from ssl_jax.data.batches import batches, fingerprint
from ssl_jax.parallel import local_rows, to_global
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.loop import Every, NonFiniteError, fit

DESCRIPTION = '''Pretrains what a config describes. The same command again resumes where the run
stopped, bit for bit. Ctrl-C or SIGTERM saves and exits with code 42.'''


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
  record = Recorder(config, options, experiment, watch)

  def going_on():
    """Between two batches of an evaluation."""
    watch.doing('evaluating')
    if stop():
      raise Stopped('during an evaluation')

  monitor = Monitor(config, experiment, record.write, record.say, going_on)
  checkpoints, step, ts = begin(config, options, experiment, program, place, stop.while_waiting)
  record.open(checkpoints, step, began)
  record.say(_headline(config, experiment, step, ts))
  if hasattr(experiment.source, 'report'):
    record.say(experiment.source.report())
  looks = {
    'health': Every(config.evaluate.health_every, record.apart('health', monitor.health)),
    'evaluation': Every(config.evaluate.every, record.apart('evaluation', monitor.evaluate))}
  saves = _Saves(checkpoints, config.checkpoint.every, record.apart('saving', record.save))
  feed = global_batches(config, experiment, program, step, stop.while_waiting, watch.doing)
  try:
    compiled = compiled_step(stop.while_waiting)
    stop.defer()
    if _make_up(looks, checkpoints.metadata(step) if step else {}, step, ts) and not record.owed:
      record.save(step, ts)
    # Of this thread, too: JAX switches the global look for NaNs off in it when it traces a softmax.
    with jax.debug_nans(jax.config.jax_debug_nans):
      ts = fit(compiled, ts, feed, steps=experiment.steps, report=record.step, stop=stop,
               patience=config.patience, callbacks=[*looks.values(), saves])
    if stop() and checkpoints.latest() != int(ts.step):
      record.save(int(ts.step), ts, wait=True)
  except NonFiniteError as error:
    _write_bad_ids(options.workdir / 'non_finite.json', error)
    record.save(int(error.state.step), error.state, wait=True)
    raise
  finally:
    feed.close()
    record.close()
  return _finish(options.workdir, int(ts.step), experiment.steps, record.owed)


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
