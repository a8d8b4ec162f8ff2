"""MoCo v1's views: crop -> grayscale -> colour jitter -> flip, the two colour steps this way round.

He et al. (2019), "Momentum Contrast for Unsupervised Visual Representation Learning",
https://arxiv.org/abs/1911.05722; https://github.com/facebookresearch/moco (main_moco.py, without
--aug-plus), which took them from Wu et al. (2018), https://arxiv.org/abs/1805.01978. Jitter is
applied to every image, four times 0.4, after grayscale: a grey image stays grey. No blur.
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
    size=size, area=area, resample='bilinear', flip=0.5,
    order=('grayscale', 'jitter', 'blur', 'solarize'), grayscale=0.2,
    jitter=1., brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
  return build_views((view, view), mean=mean, std=std, dtype=dtype)
