"""DINO's multi-crop: BYOL's asymmetry on two large crops, and eight small ones.

Caron et al. (2021), "Emerging Properties in Self-Supervised Vision Transformers",
https://arxiv.org/abs/2104.14294; https://github.com/facebookresearch/dino (main_dino.py,
DataAugmentationDINO and its defaults; utils.py). Blur with probability 1, 0.1 and 0.5 (small),
solarization with 0.2 on the second large crop only; both are Pillow's.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import IMAGENET_MEAN, IMAGENET_STD, View, build_views


def build(
  *, size: int = 224, area: tuple[float, float] = (0.4, 1.), local_views: int = 8,
  local_size: int = 96, local_area: tuple[float, float] = (0.05, 0.4), dtype: Any = jnp.float32,
  mean: tuple[float, ...] | None = IMAGENET_MEAN, std: tuple[float, ...] | None = IMAGENET_STD,
) -> Views:
  """'views' [B, 2, size, size, C], 'local_views' [B, local_views, local_size, local_size, C].

  See `recipe.build_views`.

  Args:
    size, local_size: sides of the large and the small crops, pixels.
    area, local_area: ranges of the crops' share of the image; without small crops the reference
      recommends area=(0.14, 1.).
    local_views: number of small crops; with 0 there is no 'local_views'.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  if local_views < 0:
    raise ValueError(f'local_views must be at least 0, got {local_views}')
  first = View(
    size=size, area=area, flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2,
    hue=0.1, grayscale=0.2, blur=1., blur_form='pillow')
  second = first._replace(blur=0.1, solarize=0.2)
  local = first._replace(size=local_size, area=local_area, blur=0.5)
  return build_views((first, second), (local,) * local_views, mean=mean, std=std, dtype=dtype)
