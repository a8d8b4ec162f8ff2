"""Does a run train as it should? Its curve beside that of runs known to be right, within a band.

A reference is made of several seeds. At every step of a multiple of `EVERY` it holds the mean over
seeds of each number and its band: `WIDTH` standard deviations over seeds (pooled over steps, since
three seeds tell little of one step), at least `FLOOR` of the mean. Numbers of training, which are of
one batch, are means over the lines since the step before; held-out numbers are as they were measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

NAMES = ('loss', 'accuracy', 'heldout_loss', 'heldout_accuracy')
WIDTH, FLOOR, EVERY = 4., .02, 200
# Fields in which a run may differ from its reference: they do not change what is learned.
FREE = ('seed', 'log_every', 'checkpoint', 'evaluate', 'workers', 'patience', 'mesh', 'sharding',
        'microbatch')

Lines = Sequence[Mapping[str, Any]]


class Point(NamedTuple):
  """A number of a run beside the reference's."""

  step: int
  name: str
  value: float
  mean: float
  band: float

  @property
  def inside(self) -> bool:
    return bool(abs(self.value - self.mean) <= self.band)


def sampled(lines: Lines, every: int) -> dict[str, dict[int, float]]:
  """{name: {step: number}} at multiples of `every`, from the lines of a metrics.jsonl."""
  found: dict[str, dict[int, list[float]]] = {}
  for line in lines:
    for name in set(NAMES) & set(line):
      held_out = name.startswith('heldout')
      if held_out and line['step'] % every:
        continue
      step = -(-line['step'] // every) * every
      found.setdefault(name, {}).setdefault(step, []).append(float(line[name]))
  last = max((line['step'] for line in lines), default=0)
  return {name: {step: float(np.mean(values)) for step, values in sorted(points.items())
                 if step <= last} for name, points in found.items()}


def make(runs: Sequence[Lines], *, config: Mapping[str, Any], every: int,
         about: Mapping[str, Any]) -> dict[str, Any]:
  """A reference as plain values, from the lines of several seeds.

  Args:
    runs: metrics.jsonl of each seed.
    config: {field: value} of the runs.
    every: steps between points.
    about: who measured it, when, on what.

  Raises:
    ValueError: fewer than two runs, or no number that all have.
  """
  if len(runs) < 2:
    raise ValueError(f'a reference needs at least two seeds, got {len(runs)}')
  tables = [sampled(lines, every) for lines in runs]
  curves = {}
  for name in NAMES:
    steps = sorted(set.intersection(*(set(table.get(name, ())) for table in tables)))
    if not steps:
      continue
    values = np.array([[table[name][step] for step in steps] for table in tables])
    spread = float(np.sqrt(np.mean(values.var(axis=0, ddof=1))))
    mean = values.mean(axis=0)
    curves[name] = dict(steps=steps, mean=[round(float(x), 5) for x in mean],
                        band=[round(max(WIDTH * spread, FLOOR * abs(float(x))), 5) for x in mean])
  if not curves:
    raise ValueError(f'the runs have none of {", ".join(NAMES)} at multiples of {every} steps')
  kept = {key: value for key, value in config.items() if key.split('.')[0] not in FREE}
  return dict(about=dict(about), seeds=len(runs), every=every, config=kept, curves=curves)


def judge(lines: Lines, reference: Mapping[str, Any]) -> list[Point]:
  """Every number of a run that the reference knows, in the order of steps."""
  table = sampled(lines, reference['every'])
  points = []
  for name, curve in reference['curves'].items():
    for step, mean, band in zip(curve['steps'], curve['mean'], curve['band']):
      if step in table.get(name, {}):
        points.append(Point(step, name, table[name][step], mean, band))
  return sorted(points, key=lambda point: (point.step, NAMES.index(point.name)))


def differences(config: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
  """Fields in which a run's config is not that of the reference, in words."""
  old = reference['config']
  new = {key: value for key, value in config.items() if key.split('.')[0] not in FREE}
  return [f'config.{key} is {new.get(key)!r}, in the reference {old.get(key)!r}'
          for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
