"""What a TPU's name stands for: chips, hosts, runtime image.

Names of v2, v3, v4 and v5p count cores, of which a chip has two; those of v5e and v6e count chips.
A slice of one host may have up to 8 chips (v5e, v6e); in larger slices a host has 4.
"""

import difflib
import re
from typing import NamedTuple

from launch.errors import LaunchError


class Family(NamedTuple):
  counts: int                # what the name counts, per chip
  sizes: tuple[int, ...]     # numbers that follow the name
  runtime: str               # image of the VMs
  devices: int = 1           # JAX devices per chip; later chips join their cores into one
  single: int = 4            # the most chips on one host alone


def _doubled(first: int, last: int) -> tuple[int, ...]:
  return (first, *_doubled(2 * first, last)) if first <= last else ()


FAMILIES = {
  'v2': Family(2, (8, *_doubled(32, 512)), 'tpu-ubuntu2204-base', devices=2),
  'v3': Family(2, (8, *_doubled(32, 2048)), 'tpu-ubuntu2204-base', devices=2),
  'v4': Family(2, _doubled(8, 4096), 'tpu-ubuntu2204-base'),
  'v5litepod': Family(1, (1, *_doubled(4, 256)), 'v2-alpha-tpuv5-lite', single=8),
  'v5p': Family(2, tuple(range(8, 12289, 8)), 'v2-alpha-tpuv5'),
  'v6e': Family(1, (1, *_doubled(4, 256)), 'v2-alpha-tpuv6e', single=8),
}
ALIASES = {'v5e': 'v5litepod', 'v5lite': 'v5litepod'}


class Accelerator(NamedTuple):
  """One slice."""

  name: str
  chips: int
  hosts: int
  devices: int
  runtime: str

  def describe(self, slices: int = 1) -> str:
    def count(number, what, ending='s'):
      return f'{number} {what}{"" if number == 1 else ending}'
    each = f'{count(slices, "slice")} of {self.name}: ' if slices > 1 else f'{self.name}: '
    hosts = self.hosts * slices
    return (each + f'{count(self.chips * slices, "chip")} on {count(hosts, "host")}, '
            f'{count(hosts, "process", "es")} (one per host), '
            f'{count(self.devices * slices, "JAX device")}; image {self.runtime}')


def parse(name: str) -> Accelerator:
  """The slice that Cloud TPU rents under this name.

  Raises:
    LaunchError: there is none; the message says which there are.
  """
  if re.match(r'(tpu)?v?7x?\b|ironwood', name, re.I):
    raise LaunchError(f'{name}: TPU7x (Ironwood) is rented through GKE alone, not as a Cloud TPU '
                      'VM; make a GKE cluster and start `python -m ssl_jax train` in its pods')
  if topology := re.fullmatch(r'(\w+):(\d+(?:x\d+)+)', name):
    raise LaunchError(f'{name} is a topology, as `python -m ssl_jax plan` takes it; here the slice '
                      f'is called by its accelerator type, {_of_topology(*topology.groups())}')
  match = re.fullmatch(r'(\w+)-(\d+)', name)
  family = ALIASES.get(match[1], match[1]) if match else ''
  if family not in FAMILIES:
    near = difflib.get_close_matches(name.split('-')[0], [*FAMILIES, *ALIASES], 1, 0.4)
    hint = f'; did you mean {near[0]}-...?' if near else ''
    raise LaunchError(f'--accelerator={name} is not known, expected a type such as v5litepod-16, '
                      f'v4-8 or v6e-8; families: {", ".join(FAMILIES)}{hint}')
  number, facts = int(match[2]), FAMILIES[family]
  if number not in facts.sizes:
    near = sorted(sorted(facts.sizes, key=lambda size: abs(size - number))[:4])
    what = 'cores, two per chip' if facts.counts == 2 else 'chips'
    raise LaunchError(f'--accelerator={name}: {family} has no such size (it counts {what}); near '
                      f'it are {", ".join(f"{family}-{size}" for size in near)}')
  chips = number // facts.counts
  hosts = 1 if chips <= facts.single else chips // 4
  return Accelerator(f'{family}-{number}', chips, hosts, chips * facts.devices, facts.runtime)


def _of_topology(family: str, shape: str) -> str:
  family = ALIASES.get(family, family)
  chips = 1
  for side in shape.split('x'):
    chips *= int(side)
  facts = FAMILIES.get(family)
  number = chips * facts.counts if facts else None
  return f'{family}-{number}' if facts and number in facts.sizes else 'such as v5litepod-16'
