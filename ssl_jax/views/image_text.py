"""Views of images with captions: one random crop and nothing else; the text stays as it is.

Radford et al. (2021), https://arxiv.org/abs/2103.00020, section 2.4: a random square crop of the
resized image. As a range of areas it is https://github.com/mlfoundations/open_clip's default; mean and
deviation are those of https://github.com/openai/CLIP (clip.py). A mirrored image may contradict
its caption ("left", writing), so that mirroring is off.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import View, build_views

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build(
  *, size: int = 224, area: tuple[float, float] = (0.9, 1.), flip: float = 0.,
  dtype: Any = jnp.float32, mean: tuple[float, ...] | None = CLIP_MEAN,
  std: tuple[float, ...] | None = CLIP_STD,
) -> Views:
  """'views' [B, 1, size, size, C], see `recipe.build_views`; 'tokens' and 'segments' pass through.

  Args:
    size: side of a view, pixels.
    area: range of the crop's share of the image.
    flip: probability of mirroring.
    dtype: of the views.
    mean, std: per channel, to normalise with.

  Raises:
    ValueError: an argument is out of its range.
  """
  return build_views((View(size=size, area=area, flip=flip),), mean=mean, std=std, dtype=dtype)
