"""Several compilations: the largest batch that fits, the cheapest setting that fits, weak scaling."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.parallel import batch_axes, make_mesh
from ssl_jax.plan import compiler, report
from ssl_jax.plan.hardware import Target
from ssl_jax.plan.measure import Plan, measure
from ssl_jax.schema import ConfigError, find, signature

SETTINGS: Mapping[str, str] = dict(
  remat='recomputing blocks in the backward pass',
  chunk='running the encoder on parts of the batch (config.microbatch)',
  fsdp='spreading parameters and optimizer state over the devices')
COMPILATIONS = 6  # of a search for the batch
CLOSE = 0.05  # it ends when the answer is known to this share


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
  known: dict[int, Plan] = {}
  guess = max(1, config.batch_size // unit)
  while guess is not None and len(known) < COMPILATIONS:
    changed = _with(config, batch_size=guess * unit)
    known[guess] = measure(changed, shape, target)
    say(f'batch {guess * unit:,}: {_row(known[guess])}')
    guess = next_guess({n: plan.target.chip.memory - plan.free for n, plan in known.items()},
                       target.chip.memory)
  tried = [(f'config.batch_size={n * unit}', plan) for n, plan in sorted(known.items())]
  fitting = [i for i, (_, plan) in enumerate(tried) if plan.fits]
  return Found(tuple(tried), max(fitting, default=None))


def next_guess(used: Mapping[int, float], room: float) -> int | None:
  """The next batch to try, in units, or None when the largest that fits is known well enough.

  Args:
    used: bytes for each batch that was tried; infinite where the compiler did not tell.
    room: bytes there are.
  """
  low = max((n for n in used if used[n] <= room), default=0)
  high = min((n for n in used if used[n] > room), default=None)
  if high is not None and high - low <= max(1, CLOSE * low):
    return None
  points = sorted((n, size) for n, size in used.items() if not math.isinf(size))
  if len(points) < 2:
    guess = low * 2 if high is None else max(1, (low + high) // 2)
  else:
    (a, size_a), (b, size_b) = points[-2:]
    slope = max((size_b - size_a) / (b - a), 1.0)
    guess = math.floor(b + (room - size_b) / slope)
  guess = max(guess, low + 1)
  if high is not None:
    guess = min(guess, high - 1)
  # Whole tiles of 8 rows, where that loses little.
  rounded = guess // 8 * 8
  guess = rounded if guess >= 16 and rounded > low else guess
  return None if guess in used or guess <= low else guess


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
      rows //= 4
  if kind == 'fsdp' and target.devices > 1:
    mesh = {'fsdp': target.devices}
    yield (f"--config.mesh={mesh} --config.sharding=(('.', 'fsdp'),)",
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
    yield measure(_with(config, batch_size=int(rows)), shape, target)
