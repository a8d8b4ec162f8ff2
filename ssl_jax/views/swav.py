"""SwAV's multi-crop: two large and six small crops, SimCLR's colours, OpenCV's blur.

Caron et al. (2020), "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
https://arxiv.org/abs/2006.09882; https://github.com/facebookresearch/swav
(src/multicropdataset.py; crops of scripts/swav_800ep_pretrain.sh). The blur has 23 taps at both
sizes. The standard deviation of red is 0.228 there, not ImageNet's usual 0.229.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import IMAGENET_MEAN, View, build_views
from ssl_jax.views.simclr import distortion

STD = (0.228, 0.224, 0.225)


def build(
  *, size: int = 224, area: tuple[float, float] = (0.14, 1.), local_views: int = 6,
  local_size: int = 96, local_area: tuple[float, float] = (0.05, 0.14), dtype: Any = jnp.float32,
  mean: tuple[float, ...] | None = IMAGENET_MEAN, std: tuple[float, ...] | None = STD,
) -> Views:
  """'views' [B, 2, size, size, C], 'local_views' [B, local_views, local_size, local_size, C].

  See `recipe.build_views`.

  Args:
    size, local_size: sides of the large and the small crops, pixels.
    area, local_area: ranges of the crops' share of the image.
    local_views: number of small crops; with 0 there is no 'local_views'.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  if local_views < 0:
    raise ValueError(f'local_views must be at least 0, got {local_views}')
  view = View(
    size=size, area=area, resample='bilinear', flip=0.5, jitter=0.8, **distortion(1.),
    grayscale=0.2, blur=0.5, blur_form='opencv')
  local = view._replace(size=local_size, area=local_area)
  return build_views((view, view), (local,) * local_views, mean=mean, std=std, dtype=dtype)
