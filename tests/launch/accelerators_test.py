"""What names stand for; numbers from the tables of Cloud TPU's documentation."""

import pytest

from launch.accelerators import FAMILIES, parse
from launch.errors import LaunchError


@pytest.mark.parametrize('name, chips, hosts, devices, runtime', [
  ('v2-8', 4, 1, 8, 'tpu-ubuntu2204-base'),
  ('v3-8', 4, 1, 8, 'tpu-ubuntu2204-base'),
  ('v3-32', 16, 4, 32, 'tpu-ubuntu2204-base'),
  ('v4-8', 4, 1, 4, 'tpu-ubuntu2204-base'),
  ('v4-64', 32, 8, 32, 'tpu-ubuntu2204-base'),
  ('v5litepod-1', 1, 1, 1, 'v2-alpha-tpuv5-lite'),
  ('v5litepod-8', 8, 1, 8, 'v2-alpha-tpuv5-lite'),
  ('v5litepod-16', 16, 4, 16, 'v2-alpha-tpuv5-lite'),
  ('v5e-16', 16, 4, 16, 'v2-alpha-tpuv5-lite'),
  ('v5litepod-256', 256, 64, 256, 'v2-alpha-tpuv5-lite'),
  ('v5p-8', 4, 1, 4, 'v2-alpha-tpuv5'),
  ('v5p-24', 12, 3, 12, 'v2-alpha-tpuv5'),
  ('v6e-8', 8, 1, 8, 'v2-alpha-tpuv6e'),
  ('v6e-256', 256, 64, 256, 'v2-alpha-tpuv6e'),
])
def test_names(name, chips, hosts, devices, runtime):
  slice_ = parse(name)
  assert slice_[1:] == (chips, hosts, devices, runtime)


def test_every_size_fills_its_hosts():
  for family, facts in FAMILIES.items():
    for size in facts.sizes:
      slice_ = parse(f'{family}-{size}')
      assert slice_.chips * facts.counts == size
      assert slice_.hosts == 1 or slice_.chips == 4 * slice_.hosts


def test_what_is_printed():
  assert parse('v5e-16').describe() == (
    'v5litepod-16: 16 chips on 4 hosts, 4 processes (one per host), 16 JAX devices; '
    'image v2-alpha-tpuv5-lite')
  assert parse('v4-8').describe(2).startswith('2 slices of v4-8: 8 chips on 2 hosts, 2 processes')
  assert '1 chip on 1 host, 1 process (' in parse('v6e-1').describe()


@pytest.mark.parametrize('name, says', [
  ('v5e:4x4', 'v5litepod-16'), ('v4:2x2x2', 'v4-16'), ('v5e-12', 'v5litepod-8, v5litepod-16'),
  ('v5p-9', 'cores'), ('v5f-8', 'did you mean v5'), ('tpu7x-8', 'GKE'), ('ironwood', 'GKE'),
  ('v7x-8', 'GKE'), ('H100', 'families'), ('', 'families'), ('v4', 'v4-8'), ('v4-0', 'v4-8'),
  ('v4-8 ', 'not known')])
def test_mistakes_are_answered(name, says):
  with pytest.raises(LaunchError, match=says):
    parse(name)
