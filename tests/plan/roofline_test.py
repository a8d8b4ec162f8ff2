"""Bounds by hand."""

import numpy as np

from ssl_jax.plan.hardware import parse
from ssl_jax.plan.roofline import Collective, moved_bytes, roofline

GB = 1e9


def test_the_busiest_resource_is_the_bound():
  target = parse('v5e-16')
  bound = roofline(197e12, 819e9 / 2, [], target)
  assert (bound.arithmetic, bound.memory, bound.seconds, bound.bound) == (1, .5, 1, 'arithmetic')
  assert roofline(1, 819e9, [], target).bound == 'memory (HBM)'


def test_what_arrives():
  assert moved_bytes(Collective('all-gather', 16 * GB, 16)) == 15 * GB
  assert moved_bytes(Collective('reduce-scatter', 16 * GB, 16)) == 15 * GB
  assert moved_bytes(Collective('all-reduce', 16 * GB, 16)) == 30 * GB
  assert moved_bytes(Collective('collective-permute', 16 * GB, 2)) == 16 * GB


def test_axes_too_short_to_close_count_half():
  gather = [Collective('all-gather', 16 * GB, 16)]
  # 4x4 has no rings: two axes, each two directions at half of 45 GB/s.
  assert np.isclose(roofline(0, 0, gather, parse('v5e:4x4')).links, 15 / 90)
  # 16x16: a group of 16 lies along one closed axis.
  assert np.isclose(roofline(0, 0, gather, parse('v5e:16x16')).links, 15 / 90)
  whole = [Collective('all-gather', 256 * GB, 256)]
  assert np.isclose(roofline(0, 0, whole, parse('v5e:16x16')).links, 255 / 180)
  # Three closed axes of v4.
  cube = [Collective('all-reduce', 64 * GB, 64)]
  assert np.isclose(roofline(0, 0, cube, parse('v4:4x4x4')).links, 126 / 270)


def test_cores_of_a_chip_share_its_links():
  """32 cores on 16 chips of v3:4x4, two open axes: each chip takes 30 of 32 GB in at 200 GB/s."""
  gather = [Collective('all-gather', 32 * GB, 32)]
  assert np.isclose(roofline(0, 0, gather, parse('v3:4x4')).links, 30 / 200)
  # 1 GB summed over 8x8 chips.
  whole = [Collective('all-reduce', GB, 128)]
  assert np.isclose(roofline(0, 0, whole, parse('v3:8x8')).links, 2 * 63 / 64 / 200)
  within = [Collective('all-reduce', GB, 2)]
  assert roofline(0, 0, within, parse('v3:8x8')).links == 0


def test_repetition_and_slices():
  target = parse('v5e-16', slices=2)
  twice = roofline(0, 0, [Collective('all-gather', GB, 16, times=2)], target)
  once = roofline(0, 0, [Collective('all-gather', GB, 16)], target)
  assert np.isclose(twice.links, 2 * once.links) and twice.network == 0
  # Between two slices a device carries a sixteenth, there and back.
  across = roofline(0, 0, [Collective('all-reduce', 32 * GB, 32, islands=2)], target)
  assert np.isclose(across.network, 2 * .5 * 2 * GB / target.chip.network)


def test_gpus_of_a_host_share_a_switch():
  gather = [Collective('all-gather', 8 * GB, 8)]
  assert np.isclose(roofline(0, 0, gather, parse('8xH100')).links, 7 / 450)
