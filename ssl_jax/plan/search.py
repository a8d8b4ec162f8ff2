"""Several compilations: the largest batch that fits, the cheapest setting that fits, weak scaling."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.parallel import BATCH_AXES, batch_axes, make_mesh
from ssl_jax.plan import compiler, report
from ssl_jax.plan.hardware import Target
from ssl_jax.plan.measure import Plan, measure
from ssl_jax.schema import ConfigError, find, signature

SETTINGS: Mapping[str, str] = dict(
  remat='recomputing blocks in the backward pass (networks that can)',
  chunk='running the encoder on parts of the batch (config.microbatch)',
  fsdp='spreading parameters and optimizer state over the devices')
COMPILATIONS = 10  # of a search for the batch
CLOSE = 0.05  # it ends when the answer is known to this share
GROWTH = 8  # a guess is at most that many times what is known to fit: far away memory is no line


class Found(NamedTuple):
  """What a search tried, in order; `best` indexes it, None if nothing fits."""

  tried: tuple[tuple[str, Plan], ...]
  best: int | None

  def text(self, config_name: str, data: str) -> str:
    rows = [f'  {label:<44} {_row(plan)}' for label, plan in self.tried]
    head = ['tried', *rows, '']
    if self.best is None:
      return '\n'.join([*head, 'nothing that was tried fits'])
    label, plan = self.tried[self.best]
    return '\n'.join([*head, f'use {label}', '', report.text(plan, config_name, data)])

  def as_json(self, config_name: str, data: str) -> dict[str, Any]:
    return dict(
      best=None if self.best is None else self.tried[self.best][0],
      tried={label: report.as_json(plan, config_name, data) for label, plan in self.tried})


def _row(plan: Plan) -> str:
  if not plan.fits:
    short = '' if math.isinf(plan.free) else f' by {-plan.free / report.GIB:.2f} GiB'
    return f'does not fit{short}'
  return (f'fits, {plan.free / report.GIB:6.2f} GiB left, at least {plan.bound.seconds * 1e3:9.2f} ms, '
          f'at most {plan.examples_per_second:10,.0f} examples/s')


def fit(config: ConfigDict, shape: build.Shape, target: Target, kinds: Sequence[str],
        say: Callable[[str], None]) -> Found:
  """The largest batch per device, or with `kinds` the cheapest setting for the batch that is given.

  Args:
    config, shape, target: as `measure`.
    kinds: keys of SETTINGS that may be changed.
    say: is told of each compilation as it ends.
  """
  if not kinds:
    return _largest_batch(config, shape, target, say)
  for kind in kinds:
    if not list(_options(config, target, kind)):
      say(f'--{kind}: nothing to try for {config.network.name} with batch {config.batch_size} on '
          f'{target.devices} devices')
  tried = []
  for label, changed in _settings(config, target, kinds):
    try:
      plan = measure(changed, shape, target)
    except ConfigError as error:
      say(f'{label}: not possible: {error}')
      continue
    tried.append((label, plan))
    say(f'{label}: {_row(plan)}')
  fitting = [i for i, (_, plan) in enumerate(tried) if plan.fits]
  return Found(tuple(tried), min(fitting, key=lambda i: tried[i][1].bound.seconds, default=None))


def _largest_batch(config, shape, target, say) -> Found:
  """Memory grows about linearly with the batch: a line through what is known gives the next guess."""
  mesh = make_mesh(config.mesh.to_dict(), compiler.devices(target))
  shards = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
  unit = config.microbatch or shards
  most = shape.length // unit  # an epoch of one batch
  known: dict[int, Plan] = {}
  guess = min(max(1, config.batch_size // unit), most)
  while guess and len(known) < COMPILATIONS:
    known[guess] = measure(_with(config, batch_size=guess * unit), shape, target)
    say(f'batch {guess * unit:,}: {_row(known[guess])}')
    guess = next_guess({n: _used(plan) for n, plan in known.items()}, target.chip.memory, most)
  tried = [(f'config.batch_size={n * unit}', plan) for n, plan in sorted(known.items())]
  fitting = [i for i, (_, plan) in enumerate(tried) if plan.fits]
  return Found(tuple(tried), max(fitting, default=None))


def _used(plan: Plan) -> float:
  """Bytes of HBM; infinite where it does not fit and the compiler did not tell."""
  return plan.target.chip.memory - plan.free


def next_guess(used: Mapping[int, float], room: float, most: int) -> int | None:
  """The next batch to try, in units, or None when the largest that fits is known well enough.

  Args:
    used: bytes for each batch that was tried, above `room` or infinite where it does not fit.
    room: bytes there are.
    most: the largest batch that makes sense.
  """
  low = max((n for n in used if used[n] <= room), default=0)
  high = min((n for n in used if used[n] > room), default=most + 1)
  if high - low <= max(1, CLOSE * low):
    return None
  guess = _on_the_line(used, room, low, high)
  if guess is None:
    guess = (low + high) // 2 if high <= most else 2 * low
  # At least a tenth of the way from either end, or the search would creep.
  step = max(1, (high - low) // 10)
  guess = min(max(guess, low + step), high - step, max(GROWTH * low, 1), most) if low else (
    min(max(guess, 1), high - step))
  rounded = guess // 8 * 8  # whole tiles of 8 rows, where that loses little
  return rounded if guess >= 16 and low < rounded else guess


def _on_the_line(used: Mapping[int, float], room: float, low: int, high: int) -> int | None:
  """Where memory would be full, a little less, if it grew in a line; None without two points of it."""
  below = sorted(n for n in used if n <= low)[-2:]
  points = [*below, high] if math.isfinite(used.get(high, math.inf)) else below
  if len(points) < 2:
    return None
  a, b = points[-2:]
  slope = (used[b] - used[a]) / (b - a)
  if slope <= 0:
    return None
  return math.floor((a + (room - used[a]) / slope) * (1 - CLOSE / 4))


def _settings(config: ConfigDict, target: Target, kinds: Sequence[str]
              ) -> Iterator[tuple[str, ConfigDict]]:
  """As it is, each kind by itself from cheap to thorough, then the most thorough of all together."""
  yield 'as it is', config
  strongest: dict[str, Any] = {}
  labels = []
  for kind in kinds:
    options = list(_options(config, target, kind))
    for label, change in options:
      yield label, _with(config, **change)
    if options:
      labels.append(options[-1][0])
      strongest |= options[-1][1]
  if len(labels) > 1:
    yield ' '.join(labels), _with(config, **strongest)


def _options(config: ConfigDict, target: Target, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
  if kind == 'remat' and 'remat' in signature(find('network', config.network.name, build.NETWORKS)):
    for value in ('dots', 'full'):
      yield f'--config.network.remat={value}', {'network.remat': value}
  if kind == 'chunk':
    rows = config.batch_size // 2
    while rows >= target.devices and config.batch_size % rows == 0:
      yield f'--config.microbatch={rows}', {'microbatch': rows}
      rows //= 2
  if kind == 'fsdp' and target.devices > 1:
    others = {axis: n for axis, n in config.mesh.to_dict().items() if axis not in BATCH_AXES}
    mesh = {**others, 'fsdp': -1}
    yield (f'--config.mesh="{mesh}" --config.sharding="((\'.\', \'fsdp\'),)"',
           {'mesh': ConfigDict(mesh), 'sharding': (('.', 'fsdp'),)})


def _with(config: ConfigDict, **changes) -> ConfigDict:
  changed = config.copy_and_resolve_references()
  with changed.unlocked(), changed.ignore_type():
    for key, value in changes.items():
      *parents, leaf = key.split('.')
      section = changed
      for name in parents:
        section = section[name]
      section[leaf] = value
  return changed


def sweep(config: ConfigDict, shape: build.Shape, targets: Sequence[Target],
          say: Callable[[str], None]) -> Iterator[Plan]:
  """Plans for several machines, each device with as many examples as on the first."""
  each = config.batch_size / targets[0].devices
  for target in targets:
    rows = each * target.devices
    if rows != int(rows):
      raise ConfigError(f'config.batch_size {config.batch_size} does not split over the '
                        f'{targets[0].devices} devices of {targets[0].name}')
    say(f'compiling for {target.name}, batch {int(rows):,} ...')
    changes = {'batch_size': int(rows)}
    if config.microbatch:
      changes['microbatch'] = config.microbatch * target.devices // targets[0].devices
    yield measure(_with(config, **changes), shape, target)
