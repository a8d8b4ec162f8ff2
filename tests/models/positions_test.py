"""The sin-cos table from its definition; resampled tables against Pillow."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_jax.models.positions import interpolate, sincos_table


def test_sincos_positions():
  """From the definition, one number after the other."""
  table, side, width = sincos_table(3, 8), 3, 8
  for row in range(side):
    for column in range(side):
      expected = []
      for place in (row, column):
        angles = [place / 10000**(4 * i / width) for i in range(width // 4)]
        expected += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
      np.testing.assert_allclose(table[row * side + column], expected, atol=1e-6)
  assert table.dtype == np.float32
  with pytest.raises(ValueError, match='multiple of 4'):
    sincos_table(3, 6)


def test_interpolation_keeps_constants_and_its_own_grid():
  table = jnp.arange(16.).reshape(4, 4, 1)
  np.testing.assert_array_equal(interpolate(table, (4, 4)), table)
  np.testing.assert_allclose(interpolate(jnp.full((4, 4, 2), 3.), (2, 7)), 3., rtol=1e-6)


@pytest.mark.parametrize('shape', [(6, 6), (3, 9), (20, 14)])
def test_interpolation_equals_pillow(shape):
  """Pillow's bicubic filter is antialiased, too."""
  table = np.random.default_rng(0).normal(size=(14, 14)).astype(np.float32)
  expected = Image.fromarray(table).resize(shape[::-1], Image.Resampling.BICUBIC)
  got = interpolate(jnp.asarray(table)[..., None], shape)[..., 0]
  np.testing.assert_allclose(got, np.asarray(expected), atol=1e-5)
