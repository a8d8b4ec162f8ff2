"""Positions of patches in an image: the fixed table, and tables for images of other sizes."""

import jax
import jax.numpy as jnp
import numpy as np


def sincos_table(side: int, width: int) -> np.ndarray:
  """Fixed 2-D positions [side^2, width], float32, of tokens in row-major order (MoCo v3).

  The quarters of a row are sin(row f), cos(row f), sin(column f), cos(column f) with the
  frequencies f_i = 10000^(-4i / width). MAE and big_vision put the column first.

  Raises:
    ValueError: `width` is not a multiple of 4.
  """
  if width % 4:
    raise ValueError(f'sin-cos positions need a width that is a multiple of 4, not {width}')
  frequency = 10000. ** (-np.arange(width // 4) / (width // 4))
  row, column = np.indices((side, side)).reshape(2, -1, 1) * frequency
  waves = [np.sin(row), np.cos(row), np.sin(column), np.cos(column)]
  return np.concatenate(waves, 1).astype(np.float32)


def interpolate(table: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Positions [h, w, D] for another grid, [*shape, D]: bicubic and antialiased, as timm resamples.

  DINO's code does not antialias: its local crops of 96 pixels see a slightly rougher table.
  """
  if table.shape[:2] == tuple(shape):
    return jnp.asarray(table)
  return jax.image.resize(table, (*shape, table.shape[-1]), 'cubic', antialias=True)
