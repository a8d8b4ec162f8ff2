"""SimCLR's views: crop -> flip -> colour jitter -> grayscale -> blur, on the accelerator.

Chen et al. (2020), "A Simple Framework for Contrastive Learning of Visual Representations",
https://arxiv.org/abs/2002.05709, appendix A; https://github.com/google-research/simclr
(data_util.py). The reference's own forms of the colour operations are brightness='multiplicative'
(v2) or 'additive' (v1), contrast='channel', saturation='hsv'; the defaults are torchvision's, which
every later code base uses. Blur draws one sigma per image, the reference one per device batch.
"""

from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views import color
from ssl_jax.views.recipe import View, build_views


def build(
  *, size: int, views: int = 2, area: tuple[float, float] = (0.08, 1.),
  aspect: tuple[float, float] = (3 / 4, 4 / 3), resample: str = 'bicubic', flip: float = 0.5,
  strength: float = 1., jitter: float = 0.8, grayscale: float = 0.2, blur: float = 0.5,
  solarize: float = 0., brightness: str = 'multiplicative', contrast: str = 'grey',
  saturation: str = 'luma', dtype: Any = jnp.float32, mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> Views:
  """SimCLR's augmentation of batches whose 'image' is uint8 [B, H, W, C], C = 1 or 3.

  `prepare` replaces 'image' (or a host's 'crops') by 'views' [B, views, size, size, C]; see
  `recipe.build_views`. Values are in [0, 1]; SimCLR does not normalise.

  Args:
    size: side of a view, pixels.
    views: number of views of an example.
    area, aspect: ranges of the crop's share of the image and of its width / height.
    resample: 'bicubic' or 'bilinear', both antialiased.
    flip, jitter, grayscale, blur, solarize: probabilities.
    strength: s; brightness, contrast and saturation change by 0.8 s, hue by 0.2 s turns.
    brightness: 'multiplicative' or 'additive'.
    contrast: pivot, 'grey' (mean of the grey image) or 'channel' (mean of each channel).
    saturation: 'luma' (blend with grey) or 'hsv'.
    dtype: of the views; the augmentation itself is computed in float32.
    mean, std: per channel, for networks that expect normalised inputs.

  Raises:
    ValueError: an argument is out of its range; at tracing, the batch is not as described.
  """
  if not isinstance(views, int) or views < 1:
    raise ValueError(f'views must be a positive integer, got {views!r}')
  forms = dict(brightness=(brightness, color.BRIGHTNESS), contrast=(contrast, color.CONTRAST),
               saturation=(saturation, color.SATURATION))
  for name, (form, choices) in forms.items():
    if form not in choices:
      raise ValueError(f'{name} must be {" or ".join(map(repr, choices))}, got {form!r}')
  view = View(
    size=size, area=area, aspect=aspect, resample=resample, flip=flip, jitter=jitter,
    grayscale=grayscale, blur=blur, solarize=solarize, **distortion(strength),
    brightness_form=brightness, contrast_pivot=contrast, saturation_form=saturation)
  return build_views((view,) * views, mean=mean, std=std, dtype=dtype)


def distortion(strength: float) -> dict[str, float]:
  """SimCLR's colour distortion of strength s (paper, appendix A), also SwAV's with s = 1."""
  if not 0 <= strength <= 2.5:
    raise ValueError(f'strength must be in [0, 2.5] (2.5 is half a turn of hue), got {strength!r}')
  return dict(brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength,
              hue=0.2 * strength)
