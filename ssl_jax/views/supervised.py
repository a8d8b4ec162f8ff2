"""The classifier's view: one random crop, mirrored half the time, normalised.

He et al. (2015), "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385,
section 3.4, with the crops of Szegedy et al. (2014), https://arxiv.org/abs/1409.4842, section 6, as
in https://github.com/pytorch/examples (imagenet/main.py).
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import IMAGENET_MEAN, IMAGENET_STD, View, build_views


def build(
  *, size: int = 224, area: tuple[float, float] = (0.08, 1.), flip: float = 0.5, color: float = 0.,
  dtype: Any = jnp.float32, mean: tuple[float, ...] | None = IMAGENET_MEAN,
  std: tuple[float, ...] | None = IMAGENET_STD,
) -> Views:
  """'views' [B, 1, size, size, C], see `recipe.build_views`.

  Args:
    size: side of a view, pixels.
    area: range of the crop's share of the image.
    flip: probability of mirroring.
    color: largest change of brightness, contrast and saturation; 0.4 is usual, 0 is none.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  if color < 0:
    raise ValueError(f'color must be at least 0, got {color}')
  view = View(
    size=size, area=area, resample='bilinear', flip=flip, jitter=1. if color else 0.,
    brightness=color, contrast=color, saturation=color)
  return build_views((view,), mean=mean, std=std, dtype=dtype)
