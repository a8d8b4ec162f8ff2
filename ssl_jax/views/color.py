"""Colour operations on one image [H, W, C] in [0, 1], C = 1 (grey) or 3 (RGB), clipped to [0, 1].

Definitions are torchvision's (transforms/functional) and TensorFlow's (tf.image); where the two
differ, both are here by name. On a grey image saturation, hue and grayscale are the identity.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# ITU-R 601, in the four digits that both torchvision and TensorFlow use (they sum to 0.9999).
LUMA = (0.2989, 0.587, 0.114)

JITTER_DRAWS = 9

# Red, green, blue (or grey alone), each [H, W]. Inside of an operation the channels are separate
# arrays: element-wise code then fuses and vectorises, which a last axis of 3 prevents.
Planes = tuple[jax.Array, ...]
# gain and one shift per channel: x -> gain x + shift. Everything but hue has this form.
Affine = tuple[jax.Array, Planes]


class Jitter(NamedTuple):
  """Parameters of one image's colour jitter: float32 scalars, and the order.

  brightness: a factor (or, in the additive form, an offset).
  contrast, saturation: factors.
  hue: a shift in turns.
  order: [4] operations (brightness, contrast, saturation, hue) are applied in ascending order of
    these numbers, which need only differ from each other.
  """

  brightness: jax.Array
  contrast: jax.Array
  saturation: jax.Array
  hue: jax.Array
  order: jax.Array


def draw_jitter(
  uniforms: jax.Array, *, probability: float, brightness: float, contrast: float,
  saturation: float, hue: float, additive: bool = False,
) -> Jitter:
  """Factors uniform in [max(0, 1 - x), 1 + x), the hue shift in [-hue, hue), any order.

  The additive form's offset is uniform in [-brightness, brightness). With 1 - `probability` the
  parameters are those of the identity.

  Args:
    uniforms: [JITTER_DRAWS] float32 in [0, 1).
  """
  apply = uniforms[0] < probability

  def offset(u, x):
    return jnp.where(apply, x * (2. * u - 1.), 0.)

  def factor(u, x):
    low = max(0., 1. - x)
    return jnp.where(apply, low + (1. + x - low) * u, 1.)

  return Jitter(
    brightness=(offset if additive else factor)(uniforms[1], brightness),
    contrast=factor(uniforms[2], contrast),
    saturation=factor(uniforms[3], saturation),
    hue=offset(uniforms[4], hue),
    order=uniforms[5:9],
  )


def split(image: jax.Array) -> Planes:
  """[H, W, C] -> C arrays [H, W]."""
  return tuple(image[..., c] for c in range(image.shape[-1]))


def merge(planes: Planes) -> jax.Array:
  """The inverse of `split`."""
  return jnp.stack(planes, axis=-1)


def clip(image: jax.Array) -> jax.Array:
  """To [0, 1], channel by channel, so that a `merge` before and a `split` after cancel."""
  return merge(tuple(map(_clip, split(image))))


def adjust_brightness(
  image: jax.Array, amount: jax.Array, form: str = 'multiplicative',
) -> jax.Array:
  """image * amount, or with 'additive' image + amount.

  'multiplicative' is torchvision and SimCLR v2; 'additive' is tf.image.adjust_brightness, SimCLR v1
  and BYOL's JAX code.
  """
  return _apply(BRIGHTNESS[form], image, amount)


def adjust_contrast(image: jax.Array, factor: jax.Array, pivot: str = 'grey') -> jax.Array:
  """Scales the distance to the mean of the grey image, or with 'channel' to each channel's mean.

  'grey' is torchvision's (and Pillow's, which rounds the mean), 'channel' is
  tf.image.adjust_contrast.
  """
  return _apply(CONTRAST[pivot], image, factor)


def adjust_saturation(image: jax.Array, factor: jax.Array, form: str = 'luma') -> jax.Array:
  """Scales the distance to each pixel's grey value, or with 'hsv' the S of HSV, at most to 1.

  'luma' is torchvision's, 'hsv' is tf.image.adjust_saturation (SimCLR's own code).
  """
  return image if image.shape[-1] == 1 else _apply(SATURATION[form], image, factor)


def adjust_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
  """Adds `shift` turns, |shift| <= 1, to the H of HSV: torchvision and tf.image.adjust_hue."""
  return image if image.shape[-1] == 1 else merge(_rotate_hue(split(image), shift))


def grayscale(image: jax.Array, apply: bool | jax.Array = True) -> jax.Array:
  """The grey image in all channels where `apply` holds, else the image."""
  planes = split(image)
  grey = _grey(planes)
  return merge(tuple(jnp.where(apply, grey, x) for x in planes))


def solarize(
  image: jax.Array, apply: bool | jax.Array = True, threshold: float = 0.5,
) -> jax.Array:
  """Inverts the pixels that are at or above `threshold` where `apply` holds."""
  return jnp.where(apply & (image >= threshold), 1. - image, image)


def jitter(
  image: jax.Array, params: Jitter, *,
  brightness: str = 'multiplicative', contrast: str = 'grey', saturation: str = 'luma',
) -> jax.Array:
  """Brightness, contrast, saturation and hue in the order of `params`, clipping after each.

  Every image has its own order without a gather: each turn evaluates all operations and selects.
  The turns are a loop because XLA, given them in a row, fuses across turns and computes earlier
  ones again for every use: on CPU up to 1000 times slower, on TPU six times longer to compile.
  """
  coloured = image.shape[-1] == 3
  affine = [(BRIGHTNESS[brightness], params.brightness), (CONTRAST[contrast], params.contrast)]
  if coloured:
    affine.append((SATURATION[saturation], params.saturation))
  turns = _ranks([params.order[i] for i in range(4 if coloured else 2)])

  def turn(now: jax.Array, planes: Planes) -> Planes:
    gain, shifts = affine[0][0](planes, affine[0][1])
    for (form, amount), its_turn in zip(affine[1:], turns[1:]):
      other_gain, other_shifts = form(planes, amount)
      gain = jnp.where(its_turn == now, other_gain, gain)
      shifts = [jnp.where(its_turn == now, *pair) for pair in zip(other_shifts, shifts)]
    result = tuple(_clip(gain * x + shift) for x, shift in zip(planes, shifts))
    if coloured:
      rotated = _rotate_hue(planes, params.hue)
      result = tuple(jnp.where(turns[3] == now, *pair) for pair in zip(rotated, result))
    return result

  return merge(jax.lax.fori_loop(0, len(turns), turn, split(image)))


def _ranks(values: list[jax.Array]) -> list[jax.Array]:
  """How many values come before each one; equal values keep the order of the list."""
  def before(i, j):
    return values[i] <= values[j] if i < j else values[i] < values[j]

  n = range(len(values))
  return [sum(before(i, j).astype(jnp.int32) for i in n if i != j) for j in n]


def _clip(x: jax.Array) -> jax.Array:
  return jnp.clip(x, 0., 1.)


def _apply(form: Callable[..., Affine], image: jax.Array, amount: jax.Array) -> jax.Array:
  planes = split(image)
  gain, shifts = form(planes, jnp.asarray(amount, image.dtype))
  return merge(tuple(_clip(gain * x + shift) for x, shift in zip(planes, shifts)))


def _grey(planes: Planes) -> jax.Array:
  if len(planes) == 1:
    return planes[0]
  return sum(weight * x for weight, x in zip(LUMA, planes, strict=True))


def _brightness_multiplicative(planes: Planes, factor: jax.Array) -> Affine:
  return factor, (jnp.zeros_like(factor),) * len(planes)


def _brightness_additive(planes: Planes, offset: jax.Array) -> Affine:
  return jnp.ones_like(offset), (offset,) * len(planes)


def _contrast_grey(planes: Planes, factor: jax.Array) -> Affine:
  return factor, ((1. - factor) * jnp.mean(_grey(planes)),) * len(planes)


def _contrast_channel(planes: Planes, factor: jax.Array) -> Affine:
  return factor, tuple((1. - factor) * jnp.mean(x) for x in planes)


def _saturation_luma(planes: Planes, factor: jax.Array) -> Affine:
  return factor, ((1. - factor) * _grey(planes),) * 3


def _saturation_hsv(planes: Planes, factor: jax.Array) -> Affine:
  """With V = max and S = chroma / V, scaling S by g moves every channel to V + g (x - V)."""
  value, chroma = _value_and_chroma(planes)
  # g S <= 1 bounds g by 1 / S. A pixel without chroma is V in all channels, whatever g.
  gain = jnp.minimum(factor, jnp.where(chroma > 0, value / _nonzero(chroma), 1.))
  return gain, ((1. - gain) * value,) * 3


def _rotate_hue(planes: Planes, shift: jax.Array) -> Planes:
  """The rotation of H in closed form, without branches.

  With V = max, C = max - min and the hue H in sixths of a turn, a channel is
  V - C clip(2 - d, 0, 1), d the distance on the circle of 6 between H and the hue at which the
  channel is lowest: 3 (red), 5 (green), 1 (blue).
  """
  red, green, blue = planes
  value, chroma = _value_and_chroma(planes)
  by_red, by_green = red == value, green == value
  difference = jnp.where(by_red, green - blue, jnp.where(by_green, blue - red, red - green))
  sector = jnp.where(by_red, 0., jnp.where(by_green, 2., 4.))
  angle = sector + difference / _nonzero(chroma) + 6. * shift

  def channel(lowest):
    turn = angle - lowest
    distance = jnp.abs(turn - 6. * jnp.round(turn / 6.))
    return value - chroma * _clip(2. - distance)

  return channel(3.), channel(5.), channel(1.)


def _value_and_chroma(planes: Planes) -> tuple[jax.Array, jax.Array]:
  red, green, blue = planes
  value = jnp.maximum(jnp.maximum(red, green), blue)
  return value, value - jnp.minimum(jnp.minimum(red, green), blue)


def _nonzero(x: jax.Array) -> jax.Array:
  return jnp.where(x > 0, x, 1.)


BRIGHTNESS = {'multiplicative': _brightness_multiplicative, 'additive': _brightness_additive}
CONTRAST = {'grey': _contrast_grey, 'channel': _contrast_channel}
SATURATION = {'luma': _saturation_luma, 'hsv': _saturation_hsv}
