"""Accelerators by the names that people use, and what one chip can do.

  parse('v5e-128')  parse('v4-64')  parse('v5e:8x16', slices=2)  parse('8xH100')  parse('4x8xH100')

Peaks are the makers': Cloud TPU's pages of v3 to v6e and TPU7x (read in November 2026); for v2 and for
the links of v3 and v4 the book How to Scale Your Model; NVIDIA's data sheets of the SXM modules. A
TPU's memory is what libtpu 0.0.52 says it has for programs.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from ssl_jax.schema import ConfigError

GIB = 1 << 30


class Chip(NamedTuple):
  """One chip, or the part of it that JAX sees as a device.

  flops: bfloat16 products and sums per second, of a device.
  hbm, memory: bytes per second, and bytes, of a device.
  link: bytes per second of one link of a chip in one direction. A GPU has one, to the switch of its
    host.
  network: bytes per second out of the slice (of a GPU: out of its host), per device.
  devices: that JAX sees per chip.
  dimensions: of the torus of links; 0 for GPUs behind a switch.
  ring: length of an axis from which on its ends are linked.
  """

  flops: float
  hbm: float
  memory: float
  link: float
  network: float
  devices: int = 1
  dimensions: int = 2
  ring: int = 16


CHIPS: Mapping[str, Chip] = {
  'v2': Chip(22.5e12, 350e9, 7.48 * GIB, 62e9, 3.1e9, devices=2),
  'v3': Chip(61.5e12, 450e9, 15.48 * GIB, 100e9, 3.1e9, devices=2),
  'v4': Chip(275e12, 1200e9, 30.75 * GIB, 45e9, 6.2e9, dimensions=3, ring=4),
  'v5e': Chip(197e12, 819e9, 15.75 * GIB, 45e9, 3.1e9),
  'v5p': Chip(459e12, 2765e9, 95.73 * GIB, 90e9, 6.2e9, dimensions=3, ring=4),
  'v6e': Chip(918e12, 1638e9, 31.24 * GIB, 90e9, 12.5e9),
  'tpu7x': Chip(1153.5e12, 3690e9, 94.74 * GIB, 100e9, 6.2e9, devices=2, dimensions=3, ring=4),
  'a100': Chip(312e12, 2039e9, 79.1 * GIB, 300e9, 25e9, dimensions=0),
  'h100': Chip(989e12, 3352e9, 79.1 * GIB, 450e9, 50e9, dimensions=0),
  'h200': Chip(989e12, 4800e9, 139.8 * GIB, 450e9, 50e9, dimensions=0),
}
# What the number in a Cloud TPU name such as v4-64 counts.
COUNTS_CORES = ('v2', 'v3', 'v4', 'v5p')
ALIASES = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v5': 'v5p', 'trillium': 'v6e', 'v7x': 'tpu7x',
           'ironwood': 'tpu7x'}
# Chips -> shape of a slice of such a name, where the chips lie in a plane, and in space.
PLANE = {1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16', 256: '16x16',
         512: '16x32', 1024: '32x32'}
SPACE = {4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8', 256: '4x8x8',
         512: '8x8x8', 1024: '8x8x16', 2048: '8x16x16', 4096: '16x16x16'}
LARGEST = dict(v2=256, v3=1024, v4=4096, v5e=256, v5p=6144, v6e=256, tpu7x=9216)


class Target(NamedTuple):
  """A machine to plan for.

  kind: key of CHIPS.
  shape: chips along each axis of a slice; for GPUs (hosts, GPUs of a host).
  slices: how many such slices, linked by the data centre's network.
  note: how the user's name was read.
  """

  kind: str
  shape: tuple[int, ...]
  slices: int = 1
  note: str = ''

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def is_tpu(self) -> bool:
    return self.chip.dimensions > 0

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    return self.chips * self.chip.devices

  @property
  def name(self) -> str:
    shape = 'x'.join(map(str, self.shape[self.shape[0] == 1 and not self.is_tpu:]))
    many = f'{self.slices} slices of ' if self.slices > 1 else ''
    return f'{many}{self.kind}:{shape}' if self.is_tpu else f'{shape}x{self.kind.upper()}'


def parse(name: str, slices: int = 1) -> Target:
  """The machine of a name.

  Raises:
    ConfigError: no such machine; the message says which there are.
  """
  if slices < 1:
    raise ConfigError(f'--slices must be at least 1, got {slices}')
  plain = name.strip().lower().removeprefix('tpu-')
  gpus = re.fullmatch(r'(?:(\d+)x)?(?:(\d+)x)?([a-z]\d+)(?:x(\d+))?(?:-\d+gb)?', plain)
  if gpus and gpus[3] not in LARGEST:
    hosts, each, kind, after = gpus.groups()
    if after and not hosts:
      each = after
    if hosts and not each:
      hosts, each = None, hosts
    return _gpus(name, int(hosts or 1), int(each or 1), kind, slices)
  kind, mark, rest = re.fullmatch(r'([^:-]*)([:-]?)(.*)', plain).groups()
  kind = ALIASES.get(kind, kind)
  if kind not in LARGEST:
    raise ConfigError(f'--topology={name} is unknown{_near(kind)}; {_examples()}')
  if mark == '-' and rest.isdigit():
    return _sized(name, kind, int(rest), slices)
  if mark == ':' and re.fullmatch(r'\d+(x\d+)+', rest):
    return _shaped(name, kind, tuple(map(int, rest.split('x'))), slices)
  raise ConfigError(f'--topology={name}: what follows {kind} is no size; {_examples()}')


def _gpus(name: str, hosts: int, each: int, kind: str, slices: int) -> Target:
  if kind not in CHIPS or kind in LARGEST:
    raise ConfigError(f'--topology={name}: no GPU {kind}{_near(kind)}; {_examples()}')
  if slices > 1:
    raise ConfigError('--slices is for TPUs; several GPU hosts are HOSTSxGPUSxKIND: 4x8xH100')
  if not 1 <= each <= 8 or hosts < 1:
    raise ConfigError(f'--topology={name}: a host has 1 to 8 GPUs; 16 of them are 2x8x{kind.upper()}')
  note = f'{hosts} host{"s" * (hosts > 1)} with {each} GPU{"s" * (each > 1)}'
  return Target(kind, (hosts, each), 1, note)


def _sized(name: str, kind: str, size: int, slices: int) -> Target:
  """v4-64, v5e-128: the number counts cores on some generations and chips on others."""
  per_chip = 2 if kind in COUNTS_CORES else 1
  shapes = SPACE if CHIPS[kind].dimensions == 3 else PLANE
  sizes = [chips for chips in shapes if chips <= LARGEST[kind] and (chips > 1 or per_chip == 1)]
  if size // per_chip not in sizes or size % per_chip:
    known = ', '.join(f'{kind}-{chips * per_chip}' for chips in sizes)
    raise ConfigError(f'--topology={name} is no size of a {kind} slice; there are {known}, or give '
                      f'the shape of another one: {kind}:{shapes[sizes[-1]]}')
  shape = tuple(map(int, shapes[size // per_chip].split('x')))
  return _shaped(name, kind, shape, slices,
                 f'the number of {name} counts {"cores, two to a chip" if per_chip == 2 else "chips"}')


def _shaped(name: str, kind: str, shape: tuple[int, ...], slices: int, note: str = '') -> Target:
  dimensions = CHIPS[kind].dimensions
  if len(shape) != dimensions:
    raise ConfigError(f'--topology={name}: a {kind} slice has {dimensions} dimensions, such as '
                      f'{kind}:{PLANE[16] if dimensions == 2 else SPACE[16]}')
  if 0 in shape:
    raise ConfigError(f'--topology={name} has no chips')
  if math.prod(shape) > LARGEST[kind]:
    raise ConfigError(f'--topology={name}: a {kind} pod has {LARGEST[kind]} chips')
  seen = CHIPS[kind].devices
  how = {'v4': 'both cores of a chip are one device (megacore)',
         'v5p': 'both cores of a chip are one device (megacore)'}.get(
           kind, 'each core is a device' if seen == 2 else '')
  chips = math.prod(shape)
  note = '; '.join(filter(None, [
    note, f'{chips} chip{"s" * (chips > 1)} {"x".join(map(str, shape))}', how]))
  return Target(kind, shape, slices, note)


def _near(kind: str) -> str:
  close = difflib.get_close_matches(kind, [*CHIPS, *ALIASES], n=1)
  return f'; did you mean {close[0]}?' if close else ''


def _examples() -> str:
  return ('TPUs are named by size or shape (v5e-128, v4-64, v3-32, v6e:4x8, v5p:4x4x4, tpu7x:2x2x1), '
          'GPUs by number (8xH100, 4x8xH100, 8xA100)')
