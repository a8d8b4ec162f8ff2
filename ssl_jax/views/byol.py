"""BYOL's views: the first always blurred, the second rarely, but at times solarized.

Grill et al. (2020), "Bootstrap Your Own Latent", https://arxiv.org/abs/2006.07733, appendix B;
https://github.com/google-deepmind/deepmind-research (byol/utils/augmentations.py, dataset.py).
Brightness is added, contrast is about each channel's mean, saturation is that of HSV; a box that
does not fit is cut, not drawn anew. The bicubic filter is
antialiased, TensorFlow's is not.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import IMAGENET_MEAN, IMAGENET_STD, View, build_views


def build(
  *, size: int = 224, area: tuple[float, float] = (0.08, 1.), dtype: Any = jnp.float32,
  mean: tuple[float, ...] | None = IMAGENET_MEAN, std: tuple[float, ...] | None = IMAGENET_STD,
) -> Views:
  """'views' [B, 2, size, size, C], see `recipe.build_views`.

  Args:
    size: side of a view, pixels.
    area: range of the crop's share of the image.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  first = View(
    size=size, area=area, misfit='cut', flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4,
    saturation=0.2, hue=0.1, brightness_form='additive', contrast_pivot='channel',
    saturation_form='hsv', grayscale=0.2, blur=1.)
  second = first._replace(blur=0.1, solarize=0.2)
  return build_views((first, second), mean=mean, std=std, dtype=dtype)
