"""SimCLR's views with the forms of SimCLR v2's own code, which are TensorFlow's.

Chen et al. (2020), "Big Self-Supervised Models are Strong Semi-Supervised Learners",
https://arxiv.org/abs/2006.10029; https://github.com/google-research/simclr (tf2/data_util.py,
impl='simclrv2'): multiplicative brightness ('simclrv1' adds), contrast about each channel's mean,
saturation in HSV, no normalisation. Its sampler of boxes rejects areas below 0.1 by
`min_object_covered`, though it is asked for 0.08. Ours differs in three ways: boxes are
torchvision's, the bicubic filter is antialiased, and blur draws one sigma per image rather than
one per device batch.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import View, build_views
from ssl_jax.views.simclr import distortion


def build(
  *, size: int = 224, views: int = 2, area: tuple[float, float] = (0.1, 1.), strength: float = 1.,
  dtype: Any = jnp.float32, mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> Views:
  """'views' [B, views, size, size, C] in [0, 1], see `recipe.build_views`.

  Args:
    size: side of a view, pixels.
    views: number of views of an example.
    area: range of the crop's share of the image.
    strength: s; brightness, contrast and saturation change by 0.8 s, hue by 0.2 s turns.
    dtype: of the views.
    mean, std: per channel, for networks that expect normalised inputs.

  Raises:
    ValueError: an argument is out of its range.
  """
  if views < 1:
    raise ValueError(f'views must be a positive integer, got {views!r}')
  view = View(
    size=size, area=area, flip=0.5, jitter=0.8, **distortion(strength), contrast_pivot='channel',
    saturation_form='hsv', grayscale=0.2, blur=0.5)
  return build_views((view,) * views, mean=mean, std=std, dtype=dtype)
