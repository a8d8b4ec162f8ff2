"""The least time of a step: the busiest of arithmetic, memory and links.

A bound, not a prediction: it knows peaks and totals, and nothing of latencies, of units that wait for
each other, of layouts that fill a matrix unit badly, of the host that reads data. docs/plan.md has it
beside published times.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ssl_jax.plan.hardware import Target

ASSUMPTIONS = (
  'peak bfloat16 arithmetic, whatever the dtypes of the products',
  'every array outside the on-chip memory is read or written once by each operation that uses it',
  'a collective moves the bytes of a ring over all links of the axes it spans, both directions; '
  'axes too short to close count half',
  'arithmetic, memory and links overlap completely',
)


class Collective(NamedTuple):
  """One kind of collective in a program.

  kind: 'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all' or 'collective-permute'.
  size: bytes, of the gathered side for gathers and scatters, per device.
  group: devices that take part together.
  islands: slices (of GPUs: hosts) that a group spans.
  times: how often it runs in a step.
  """

  kind: str
  size: float
  group: int
  islands: int = 1
  times: float = 1


class Roofline(NamedTuple):
  """Seconds of a step that each resource needs by itself; `seconds` is the largest."""

  arithmetic: float
  memory: float
  links: float
  network: float

  @property
  def seconds(self) -> float:
    return max(self)

  @property
  def bound(self) -> str:
    return max(zip(self, ('arithmetic', 'memory (HBM)', 'links (ICI or NVLink)',
                          'network between slices or hosts')))[1]


def roofline(flops: float, moved: float, collectives: Sequence[Collective],
             target: Target) -> Roofline:
  """Bounds of a step from what one device does in it.

  Args:
    flops: of products and convolutions.
    moved: bytes read from and written to the device's memory.
    collectives: see `Collective`.
    target: the machine.
  """
  chip = target.chip
  links = sum(c.times * _link_seconds(c, target) for c in collectives)
  network = sum(c.times * _network_seconds(c, target) for c in collectives)
  return Roofline(flops / chip.flops, moved / chip.hbm, links, network)


def moved_bytes(c: Collective) -> float:
  """What arrives at a device in one collective."""
  if c.kind == 'collective-permute':
    return c.size
  return c.size * (c.group - 1) / c.group * (2 if c.kind == 'all-reduce' else 1)


def _link_seconds(c: Collective, target: Target) -> float:
  if c.kind == 'collective-permute':
    return c.size / target.chip.link if c.islands == 1 else 0.0
  # Devices of one chip share its links, and what is gathered or summed crosses them once for all.
  group = c.group // c.islands // target.chip.devices
  if group < 2:
    return 0.0
  return moved_bytes(c._replace(group=group)) / _bandwidth(group, target)


def _bandwidth(chips: int, target: Target) -> float:
  """Bytes per second into a chip from a group of chips of its island."""
  chip = target.chip
  if not target.is_tpu:
    return chip.link
  lengths = [n for n in target.shape if n > 1] or [1]
  spanned = lengths if chips == math.prod(lengths) else _axes_of(chips, lengths)
  return sum(2 * chip.link * (1 if n >= chip.ring and n % chip.ring == 0 else 1 / 2)
             for n in spanned)


def _axes_of(chips: int, lengths: list[int]) -> list[int]:
  """The axes that a part of the slice lies along: one if its size fits one, else all."""
  fitting = [n for n in lengths if n == chips] or [n for n in lengths if n % chips == 0]
  return [chips] if fitting else lengths


def _network_seconds(c: Collective, target: Target) -> float:
  """Between islands each device carries the share of its island that is its own."""
  if c.islands == 1:
    return 0.0
  if c.kind == 'collective-permute':
    return c.size / target.chip.network
  share = c._replace(size=c.size / (c.group / c.islands), group=c.islands)
  return moved_bytes(share) / target.chip.network
