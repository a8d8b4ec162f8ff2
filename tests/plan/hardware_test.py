"""Names of machines, as people write them."""

import pytest

from ssl_jax.plan.hardware import CHIPS, PLANE, SPACE, parse
from ssl_jax.schema import ConfigError


@pytest.mark.parametrize('name, kind, shape, chips, devices', [
  ('v5e-128', 'v5e', (8, 16), 128, 128),
  ('v5litepod-16', 'v5e', (4, 4), 16, 16),
  ('V5E:1x1', 'v5e', (1, 1), 1, 1),
  ('v6e:4x8', 'v6e', (4, 8), 32, 32),
  ('v4-64', 'v4', (2, 4, 4), 32, 32),  # cores; a chip of two is one device
  ('v5p-8', 'v5p', (2, 2, 1), 4, 4),
  ('v3-32', 'v3', (4, 4), 16, 32),  # cores; each is a device
  ('v2-8', 'v2', (2, 2), 4, 8),
  ('tpu7x:2x2x1', 'tpu7x', (2, 2, 1), 4, 8),
  ('v6e-1', 'v6e', (1, 1), 1, 1),
  (' trillium-16', 'v6e', (4, 4), 16, 16),
  ('8xH100', 'h100', (1, 8), 8, 8),
  ('H100', 'h100', (1, 1), 1, 1),
  ('h100x8', 'h100', (1, 8), 8, 8),
  ('8xA100-80GB', 'a100', (1, 8), 8, 8),
  ('4x8xH100', 'h100', (4, 8), 32, 32),
])
def test_names(name, kind, shape, chips, devices):
  target = parse(name)
  assert (target.kind, target.shape, target.chips, target.devices) == (kind, shape, chips, devices)
  assert target.note


def test_names_of_gpus():
  assert [parse(name).name for name in ('h100', '1x8xA100', '4x8xH200')] == [
    '1xH100', '8xA100', '4x8xH200']


def test_several_slices():
  target = parse('v5e-16', slices=2)
  assert (target.chips, target.name) == (32, '2 slices of v5e:4x4')


@pytest.mark.parametrize('name, says', [
  ('v5e-100', 'v5e-128'), ('v5e', 'is no size'), ('v5e:16', 'is no size'), ('v5e:0x4', 'no chips'),
  ('v9-8', 'is unknown'), ('v5a-8', 'did you mean v5'),
  ('8xb100', 'no GPU b100; did you mean'),
  ('9xH100', '1 to 8 GPUs'), ('8xh10', 'did you mean h100'), ('v4:4x4', '3 dimensions'),
  ('v5e:32x32', 'has 256 chips'), ('v4-9', 'no size of a v4'), ('', 'is unknown'),
])
def test_a_wrong_name_is_answered(name, says):
  with pytest.raises(ConfigError, match=says):
    parse(name)


def test_slices_are_for_tpus():
  with pytest.raises(ConfigError, match='4x8xH100'):
    parse('8xH100', slices=2)
  with pytest.raises(ConfigError, match='at least 1'):
    parse('v5e-4', slices=0)


def test_tables_agree_with_themselves():
  for shapes in (PLANE, SPACE):
    for chips, shape in shapes.items():
      product = 1
      for n in shape.split('x'):
        product *= int(n)
      assert product == chips
  # The makers' figures per chip: Cloud TPU's pages of v3, v4, v5e, v5p, v6e and TPU7x.
  per_chip = {kind: chip.flops * chip.devices / 1e12 for kind, chip in CHIPS.items()}
  assert per_chip['v3'] == 123 and per_chip['v4'] == 275 and per_chip['tpu7x'] == 2307
