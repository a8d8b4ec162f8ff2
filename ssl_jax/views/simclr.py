"""SimCLR's views: crop -> flip -> colour jitter -> grayscale -> blur, on the accelerator.

Chen et al. (2020), "A Simple Framework for Contrastive Learning of Visual Representations",
https://arxiv.org/abs/2002.05709, appendix A; https://github.com/google-research/simclr
(data_util.py). The reference's own forms of the colour operations are brightness='multiplicative'
(v2) or 'additive' (v1), contrast='channel', saturation='hsv'; the defaults are torchvision's, which
every later code base uses. Blur draws one sigma per image, the reference one per device batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.types import Batch, Views
from ssl_jax.views import blur as blurring
from ssl_jax.views import color, crops

# Share of the shorter side that evaluation keeps, e.g. 224 of 256 pixels (SimCLR, data_util.py).
CENTRE = 0.875

DRAWS = crops.BOX_DRAWS + color.JITTER_DRAWS + 5


class Recipe(NamedTuple):
  """Everything that shapes a view; the fields are the arguments of `build`."""

  size: int
  views: int
  area: tuple[float, float]
  aspect: tuple[float, float]
  resample: str
  flip: float
  strength: float
  jitter: float
  grayscale: float
  blur: float
  solarize: float
  brightness: str
  contrast: str
  saturation: str
  dtype: Any
  mean: tuple[float, ...] | None
  std: tuple[float, ...] | None


def build(
  *, size: int, views: int = 2, area: tuple[float, float] = (0.08, 1.),
  aspect: tuple[float, float] = (3 / 4, 4 / 3), resample: str = 'bicubic', flip: float = 0.5,
  strength: float = 1., jitter: float = 0.8, grayscale: float = 0.2, blur: float = 0.5,
  solarize: float = 0., brightness: str = 'multiplicative', contrast: str = 'grey',
  saturation: str = 'luma', dtype: Any = jnp.float32, mean: tuple[float, ...] | None = None,
  std: tuple[float, ...] | None = None,
) -> Views:
  """SimCLR's augmentation of batches whose 'image' is uint8 [B, H, W, C], C = 1 or 3.

  `prepare` replaces 'image' by 'views' [B, views, size, size, C]; view v of an example depends on
  fold_in(key, v) and nothing else. `inputs` gives [B, size, size, C]: the image itself when it has
  that size, else its resized central 87.5 %. Values are in [0, 1]; SimCLR does not normalise.

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
  recipe = Recipe(**locals())
  _validate(recipe)

  def prepare(keys: jax.Array, batch: Batch) -> Batch:
    image = _checked_image(batch, recipe)
    if keys.shape != image.shape[:1]:
      raise ValueError(f'expected one key per image, [{image.shape[0]}], got {keys.shape}')
    numbers = jnp.arange(recipe.views, dtype=jnp.uint32)
    keys = jax.vmap(lambda key: jax.vmap(jax.random.fold_in, (None, 0))(key, numbers))(keys)
    view = lambda key, image: _view(recipe, key, image)
    views = jax.vmap(jax.vmap(view, (0, None)))(keys, _unit(image))
    rest = {name: x for name, x in batch.items() if name != 'image'}
    return rest | {'views': _finish(recipe, views)}

  def inputs(batch: Batch) -> jax.Array:
    image = _unit(_checked_image(batch, recipe))
    return _finish(recipe, _centre(recipe, image))

  return Views(prepare, inputs)


def _view(recipe: Recipe, key: jax.Array, image: jax.Array) -> jax.Array:
  """One view [size, size, C] in [0, 1] of an image [H, W, C] in [0, 1]."""
  # One call of the generator instead of one per parameter; every parameter has its own place, so
  # that switching one operation off leaves the draws of the others as they were.
  u_box, u_jitter, u_blur, u_rest = jnp.split(
    jax.random.uniform(key, (DRAWS,), jnp.float32),
    np.cumsum([crops.BOX_DRAWS, color.JITTER_DRAWS, 2]).tolist(),
  )
  coloured = image.shape[-1] == 3
  height, width, _ = image.shape

  box = crops.draw_box(u_box, height, width, area=recipe.area, aspect=recipe.aspect)
  image = crops.crop_resize(
    image, box, recipe.size, resample=recipe.resample, flip=u_rest[0] < recipe.flip)
  image = jnp.clip(image, 0., 1.)
  if recipe.jitter and recipe.strength:
    params = color.draw_jitter(
      u_jitter, probability=recipe.jitter, brightness=0.8 * recipe.strength,
      contrast=0.8 * recipe.strength, saturation=0.8 * recipe.strength,
      hue=0.2 * recipe.strength, additive=recipe.brightness == 'additive')
    image = color.jitter(image, params, brightness=recipe.brightness, contrast=recipe.contrast,
                         saturation=recipe.saturation)
  if recipe.grayscale and coloured:
    image = color.grayscale(image, u_rest[1] < recipe.grayscale)
  radius = blurring.simclr_radius(recipe.size)
  if recipe.blur and radius:
    sigma = blurring.draw_sigma(u_blur, probability=recipe.blur)
    image = blurring.gaussian_blur(image, sigma, radius)
  if recipe.solarize:
    image = color.solarize(image, u_rest[2] < recipe.solarize)
  return jnp.clip(image, 0., 1.)


def _unit(image: jax.Array) -> jax.Array:
  return image.astype(jnp.float32) / 255.


def _centre(recipe: Recipe, images: jax.Array) -> jax.Array:
  """The resized central square [B, size, size, C] of images [B, H, W, C]."""
  size, (height, width) = recipe.size, images.shape[1:3]
  if (height, width) == (size, size):
    return images
  side = round(CENTRE * min(height, width))
  rows, columns = (
    crops.resize_matrix((n - side + 1) // 2, side, n, size, resample=recipe.resample)
    for n in (height, width))
  images = jax.vmap(crops.separable, (0, None, None))(images, rows, columns)
  return jnp.clip(images, 0., 1.)


def _finish(recipe: Recipe, images: jax.Array) -> jax.Array:
  """Normalises if the recipe says so, and casts."""
  if recipe.mean is not None:
    statistics = (jnp.asarray(x, jnp.float32) for x in (recipe.mean, recipe.std))
    mean, std = (x.reshape((1,) * (images.ndim - 1) + (-1,)) for x in statistics)
    images = (images - mean) / std
  return images.astype(recipe.dtype)


def _checked_image(batch: Batch, recipe: Recipe) -> jax.Array:
  if 'image' not in batch:
    raise ValueError(f"the batch has no 'image', only {sorted(batch)}")
  image = batch['image']
  if image.dtype != jnp.uint8 or image.ndim != 4 or image.shape[-1] not in (1, 3):
    raise ValueError(
      f"'image' must be uint8 [B, H, W, C] with C = 1 or 3, got {image.dtype} {image.shape}")
  if recipe.mean is not None and len(recipe.mean) != image.shape[-1]:
    raise ValueError(f'mean and std have {len(recipe.mean)} values, '
                     f'the images {image.shape[-1]} channels')
  return image


def _validate(recipe: Recipe) -> None:
  def require(condition: bool, name: str, expected: str) -> None:
    if not condition:
      raise ValueError(f'{name} must be {expected}, got {getattr(recipe, name)!r}')

  for name in ('size', 'views'):
    value = getattr(recipe, name)
    require(isinstance(value, int) and value >= 1, name, 'a positive integer')
  for name in ('flip', 'jitter', 'grayscale', 'blur', 'solarize'):
    require(0 <= getattr(recipe, name) <= 1, name, 'a probability in [0, 1]')
  low, high = recipe.area
  require(0 < low <= high <= 1, 'area', '(low, high) with 0 < low <= high <= 1')
  low, high = recipe.aspect
  require(0 < low <= high, 'aspect', '(low, high) with 0 < low <= high')
  require(0 <= recipe.strength <= 2.5, 'strength', 'in [0, 2.5] (2.5 is half a turn of hue)')
  for name, choices in (
    ('resample', crops.FILTERS), ('brightness', color.BRIGHTNESS),
    ('contrast', color.CONTRAST), ('saturation', color.SATURATION),
  ):
    require(getattr(recipe, name) in choices, name, ' or '.join(map(repr, choices)))
  require(jnp.issubdtype(recipe.dtype, jnp.floating), 'dtype', 'a floating-point type')
  require((recipe.mean is None) == (recipe.std is None), 'mean', 'given exactly when std is')
  if recipe.std is not None:
    require(len(recipe.std) == len(recipe.mean) and min(recipe.std) > 0,
            'std', f'{len(recipe.mean)} positive values, as many as mean')
