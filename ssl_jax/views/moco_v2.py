"""MoCo v2's views: crop -> colour jitter -> grayscale -> blur -> flip, milder than SimCLR's.

Chen et al. (2020), "Improved Baselines with Momentum Contrastive Learning",
https://arxiv.org/abs/2003.04297; https://github.com/facebookresearch/moco (main_moco.py,
--aug-plus; moco/loader.py). Brightness, contrast and saturation 0.4, hue 0.1; the blur is Pillow's.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import IMAGENET_MEAN, IMAGENET_STD, View, build_views


def build(
  *, size: int = 224, area: tuple[float, float] = (0.2, 1.), dtype: Any = jnp.float32,
  mean: tuple[float, ...] | None = IMAGENET_MEAN, std: tuple[float, ...] | None = IMAGENET_STD,
) -> Views:
  """'views' [B, 2, size, size, C] of queries and keys, see `recipe.build_views`.

  Args:
    size: side of a view, pixels.
    area: range of the crop's share of the image.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  view = View(
    size=size, area=area, resample='bilinear', flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4,
    saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5, blur_form='pillow')
  return build_views((view, view), mean=mean, std=std, dtype=dtype)
