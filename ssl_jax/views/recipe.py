"""A recipe of views as data: crop and flip, then colour, grey, blur and solarization in any order.

  view = normalise(operation_4(... operation_1(flip(resize(crop(image))))))

`View` has one field for everything in which the references differ; a recipe (the other modules of
this folder) is two tuples of Views, and `build_views` makes them a function of (keys, batch).
Mirroring commutes with all four operations, so that it is part of the crop, wherever a reference
has it (MoCo: last).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.types import Batch, Views
from ssl_jax.views import blur as blurring
from ssl_jax.views import color, crops

# Share of the shorter side that evaluation keeps, e.g. 224 of 256 pixels.
CENTRE = 0.875
DRAWS = crops.BOX_DRAWS + color.JITTER_DRAWS + 5

OPERATIONS = ('jitter', 'grayscale', 'blur', 'solarize')
PROBABILITIES = ('flip', *OPERATIONS)
JITTER_ORDERS = ('random', 'fixed')

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class View(NamedTuple):
  """Everything that shapes one view of an image; by default a crop of it and nothing else.

  size: side of the view, pixels.
  area, aspect: ranges of the crop's share of the image and of its width / height.
  misfit: 'redraw' or 'cut', what happens to a box that does not fit (crops.draw_box).
  resample: 'bicubic' or 'bilinear', both antialiased.
  flip, jitter, grayscale, blur, solarize: probabilities.
  order: of jitter, grayscale, blur and solarize.
  brightness, contrast, saturation: largest change of a factor (or offset); hue: in turns.
  brightness_form: 'multiplicative' or 'additive'.
  contrast_pivot: 'grey' (mean of the grey image) or 'channel' (mean of each channel).
  saturation_form: 'luma' (blend with grey) or 'hsv'.
  jitter_order: 'random' for every image, or 'fixed': brightness, contrast, saturation, hue.
  sigma: range of the blur, pixels.
  blur_form: 'simclr', 'pillow' or 'opencv', see blur.FORMS.
  threshold: solarize inverts values from here on, in [0, 1]. For 8-bit images 0.5 is Pillow's 128.
  """

  size: int
  area: tuple[float, float] = (0.08, 1.)
  aspect: tuple[float, float] = (3 / 4, 4 / 3)
  misfit: str = 'redraw'
  resample: str = 'bicubic'
  flip: float = 0.
  order: tuple[str, ...] = OPERATIONS
  jitter: float = 0.
  brightness: float = 0.
  contrast: float = 0.
  saturation: float = 0.
  hue: float = 0.
  brightness_form: str = 'multiplicative'
  contrast_pivot: str = 'grey'
  saturation_form: str = 'luma'
  jitter_order: str = 'random'
  grayscale: float = 0.
  blur: float = 0.
  sigma: tuple[float, float] = (0.1, 2.)
  blur_form: str = 'simclr'
  solarize: float = 0.
  threshold: float = 0.5


class _Field(NamedTuple):
  """One output of a recipe: its name, that of the host's crops, the views and their numbers."""

  name: str
  cropped: str
  views: tuple[View, ...]
  first: int


def build_views(
  views: tuple[View, ...], local: tuple[View, ...] = (), *,
  mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
  dtype: Any = jnp.float32,
) -> Views:
  """The recipe for batches with 'image', uint8 [B, H, W, C], C = 1 or 3.

  `prepare` replaces 'image' by 'views' [B, V, S, S, C] and, if there are local views, 'local_views'
  [B, L, s, s, C]. Instead of 'image' the batch may have what a host has cropped: 'crops', uint8
  [B, V, S, S, C] (and 'local_crops'); everything but the crop then happens as it would have. View v
  (local views are numbered after the others) depends on fold_in(key, v) and nothing else, and
  operations that are switched off leave the draws of the others as they were. `inputs` gives
  [B, S, S, C]: the image itself when it has that size, else its resized central 87.5 %.

  Views that differ in probabilities alone are one program. Grey images have no saturation, no hue
  and no grayscale; statistics of three channels become those of their luma.

  Args:
    views: at least one, all of one size.
    local: smaller crops for multi-crop methods, all of one size.
    mean, std: per channel, to normalise with at the end; or None, then values are in [0, 1].
    dtype: of the views; the augmentation itself is computed in float32.

  Raises:
    ValueError: an argument is out of its range; at tracing, the batch is not as described.
  """
  views, local = (tuple(map(_hashable, some)) for some in (views, local))
  _validate(views, local, mean, std, dtype)
  fields = [_Field('views', 'crops', views, 0)]
  if local:
    fields.append(_Field('local_views', 'local_crops', local, len(views)))
  names = {'image', *(field.cropped for field in fields)}

  def finish(images):
    return _normalised(images, mean, std).astype(dtype)

  def prepare(keys: jax.Array, batch: Batch) -> Batch:
    rest = {name: x for name, x in batch.items() if name not in names}
    by_host = 'crops' in batch
    for field in fields:
      images = _checked_crops(batch, field) if by_host else _checked_image(batch)
      _check_channels(images, mean)
      if keys.shape != images.shape[:1]:
        raise ValueError(f'expected one key per image, [{images.shape[0]}], got {keys.shape}')
      rest[field.name] = finish(_render(field, keys, _unit(images), by_host))
    return rest

  def inputs(batch: Batch) -> jax.Array:
    images = _checked_image(batch)
    _check_channels(images, mean)
    return finish(_centre(views[0], _unit(images)))

  wishes = ('size', 'area', 'aspect', 'resample', 'misfit')
  by_host = {field.cropped: tuple({name: getattr(view, name) for name in wishes}
                                  for view in field.views) for field in fields}
  return Views(prepare, inputs, by_host)


def _hashable(view: View) -> View:
  return View(*(tuple(x) if isinstance(x, list) else x for x in view))


def _render(field: _Field, keys: jax.Array, images: jax.Array, cropped: bool) -> jax.Array:
  """The views [B, V, S, S, C] of images [B, H, W, C], or of crops [B, V, S, S, C]."""
  groups, done = _groups(field.views), {}
  for group in groups:
    members = [field.views[v] for v in group]
    active = frozenset(name for name in PROBABILITIES if any(getattr(m, name) for m in members))
    varying = {name: jnp.array([getattr(m, name) for m in members], jnp.float32)
               for name in PROBABILITIES if len({getattr(m, name) for m in members}) > 1}
    numbers = jnp.array([field.first + v for v in group], jnp.uint32)

    def one(key, number, image, probabilities, view=members[0], active=active):
      uniforms = jax.random.uniform(jax.random.fold_in(key, number), (DRAWS,), jnp.float32)
      return _view(view._replace(**probabilities), active, uniforms, image, cropped)

    source = _columns(images, group) if cropped else images
    over_views = jax.vmap(one, (None, 0, 0 if cropped else None, 0))
    rendered = jax.vmap(over_views, (0, None, 0, None))(keys, numbers, source, varying)
    if len(groups) == 1:
      return rendered
    done |= {v: _columns(rendered, (i,)) for i, v in enumerate(group)}
  return jnp.concatenate([done[v] for v in range(len(field.views))], axis=1)


def _groups(views: tuple[View, ...]) -> list[tuple[int, ...]]:
  """The numbers of the views that differ in probabilities alone, together."""
  groups = {}
  for v, view in enumerate(views):
    groups.setdefault(view._replace(**dict.fromkeys(PROBABILITIES, 0.)), []).append(v)
  return [tuple(group) for group in groups.values()]


def _columns(x: jax.Array, numbers: tuple[int, ...]) -> jax.Array:
  """x[:, numbers] without a gather."""
  if numbers == tuple(range(x.shape[1])):
    return x
  return jnp.concatenate([jax.lax.slice_in_dim(x, n, n + 1, axis=1) for n in numbers], axis=1)


def _view(
  view: View, active: frozenset[str], uniforms: jax.Array, image: jax.Array, cropped: bool,
) -> jax.Array:
  """One view [S, S, C] in [0, 1] of an image [H, W, C], or of its crop [S, S, C], in [0, 1].

  Args:
    view: the probabilities may be traced.
    active: the operations whose probability is not zero.
    uniforms: [DRAWS]; every parameter has its own place.
  """
  u_box, u_jitter, u_blur, u_rest = jnp.split(
    uniforms, np.cumsum([crops.BOX_DRAWS, color.JITTER_DRAWS, 2]).tolist())
  flip = u_rest[0] < view.flip
  if not cropped:
    box = crops.draw_box(u_box, *image.shape[:2], area=view.area, aspect=view.aspect,
                         misfit=view.misfit)
    image = crops.crop_resize(image, box, view.size, resample=view.resample, flip=flip)
    image = color.clip(image)
  elif 'flip' in active:
    image = jnp.where(flip, image[:, ::-1], image)

  def jitter(image):
    if not (view.brightness or view.contrast or view.saturation or view.hue):
      return image
    return color.jitter(
      image, _draw_jitter(view, u_jitter), brightness=view.brightness_form,
      contrast=view.contrast_pivot, saturation=view.saturation_form)

  def grayscale(image):
    coloured = image.shape[-1] == 3
    return color.grayscale(image, u_rest[1] < view.grayscale) if coloured else image

  def blur(image):
    if view.blur_form == 'simclr' and not blurring.simclr_radius(view.size):
      return image
    low, high = view.sigma
    sigma = blurring.draw_sigma(u_blur, probability=view.blur, low=low, high=high)
    return blurring.gaussian_blur(image, sigma, form=view.blur_form, largest=high)

  def solarize(image):
    return color.solarize(image, u_rest[2] < view.solarize, view.threshold)

  operations = dict(jitter=jitter, grayscale=grayscale, blur=blur, solarize=solarize)
  for name in view.order:
    if name in active:
      image = operations[name](image)
  return jnp.clip(image, 0., 1.)


def _draw_jitter(view: View, uniforms: jax.Array) -> color.Jitter:
  params = color.draw_jitter(
    uniforms, probability=view.jitter, brightness=view.brightness, contrast=view.contrast,
    saturation=view.saturation, hue=view.hue, additive=view.brightness_form == 'additive')
  if view.jitter_order == 'fixed':
    return params._replace(order=jnp.arange(4, dtype=jnp.float32))
  return params


def _unit(image: jax.Array) -> jax.Array:
  return image.astype(jnp.float32) / 255.


def _centre(view: View, images: jax.Array) -> jax.Array:
  """The resized central square [B, S, S, C] of images [B, H, W, C]."""
  size, (height, width) = view.size, images.shape[1:3]
  if (height, width) == (size, size):
    return images
  side = round(CENTRE * min(height, width))
  rows, columns = (
    crops.resize_matrix((n - side + 1) // 2, side, n, size, resample=view.resample)
    for n in (height, width))
  images = jax.vmap(crops.separable, (0, None, None))(images, rows, columns)
  return jnp.clip(images, 0., 1.)


def _normalised(images: jax.Array, mean, std) -> jax.Array:
  if mean is None:
    return images
  if images.shape[-1] == 1 and len(mean) == 3:
    mean, std = ((np.dot(color.LUMA, x) / sum(color.LUMA),) for x in (mean, std))
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean, std = (jnp.asarray(x, jnp.float32).reshape(shape) for x in (mean, std))
  return (images - mean) / std


def _checked_image(batch: Batch) -> jax.Array:
  if 'image' not in batch:
    raise ValueError(f"the batch has no 'image', only {sorted(batch)}")
  image = batch['image']
  if image.dtype != jnp.uint8 or image.ndim != 4 or image.shape[-1] not in (1, 3):
    raise ValueError(
      f"'image' must be uint8 [B, H, W, C] with C = 1 or 3, got {image.dtype} {image.shape}")
  return image


def _checked_crops(batch: Batch, field: _Field) -> jax.Array:
  if field.cropped not in batch:
    raise ValueError(f"the batch has 'crops' but no {field.cropped!r}, only {sorted(batch)}")
  images = batch[field.cropped]
  size, views = field.views[0].size, len(field.views)
  if (images.dtype != jnp.uint8 or images.ndim != 5 or images.shape[-1] not in (1, 3)
      or images.shape[1:4] != (views, size, size)):
    raise ValueError(f'{field.cropped!r} must be uint8 [B, {views}, {size}, {size}, C] with '
                     f'C = 1 or 3, got {images.dtype} {images.shape}')
  return images


def _check_channels(images: jax.Array, mean) -> None:
  if mean is not None and (len(mean), images.shape[-1]) not in ((1, 1), (3, 1), (3, 3)):
    raise ValueError(f'mean and std have {len(mean)} values, '
                     f'the images {images.shape[-1]} channels')


def _validate(views, local, mean, std, dtype) -> None:
  if not views:
    raise ValueError('views must be at least one View, got none')
  for name, some in (('views', views), ('local', local)):
    for view in some:
      check(view)
    sizes = sorted({view.size for view in some})
    if len(sizes) > 1:
      raise ValueError(f'{name} must be of one size, they become one array; got {sizes}')
  if not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(f'dtype must be a floating-point type, got {dtype!r}')
  if (mean is None) != (std is None):
    raise ValueError(f'mean must be given exactly when std is, got {mean!r} and {std!r}')
  if std is not None and (len(std) != len(mean) or min(std) <= 0):
    raise ValueError(f'std must be {len(mean)} positive values, as many as mean, got {std!r}')


def check(view: View) -> None:
  """Raises ValueError, naming the field, where a value is out of its range."""
  def require(condition: bool, name: str, expected: str) -> None:
    if not condition:
      raise ValueError(f'{name} must be {expected}, got {getattr(view, name)!r}')

  def is_range(name: str) -> bool:
    pair = getattr(view, name)
    return isinstance(pair, tuple) and len(pair) == 2 and 0 < pair[0] <= pair[1]

  require(isinstance(view.size, int) and view.size >= 1, 'size', 'a positive integer')
  for name in PROBABILITIES:
    require(0 <= getattr(view, name) <= 1, name, 'a probability in [0, 1]')
  require(is_range('area') and view.area[1] <= 1, 'area', '(low, high) with 0 < low <= high <= 1')
  for name in ('aspect', 'sigma'):
    require(is_range(name), name, '(low, high) with 0 < low <= high')
  for name in ('brightness', 'contrast', 'saturation'):
    require(getattr(view, name) >= 0, name, 'at least 0')
  require(0 <= view.hue <= 0.5, 'hue', 'in [0, 0.5] turns')
  require(0 <= view.threshold <= 1, 'threshold', 'in [0, 1]')
  require(sorted(view.order) == sorted(OPERATIONS), 'order',
          f'each of {", ".join(OPERATIONS)} once')
  for name, choices in CHOICES.items():
    require(getattr(view, name) in choices, name, ' or '.join(map(repr, choices)))


CHOICES = dict(
  resample=crops.FILTERS, misfit=crops.MISFITS, brightness_form=color.BRIGHTNESS,
  contrast_pivot=color.CONTRAST, saturation_form=color.SATURATION, jitter_order=JITTER_ORDERS,
  blur_form=blurring.FORMS,
)
