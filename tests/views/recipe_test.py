"""The engine, and every paper's recipe computed once more in NumPy, colorsys and SciPy."""

import colorsys
import functools
import importlib
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import ndimage

from ssl_jax.views import color, crops, recipe
from ssl_jax.views.recipe import View, build_views

RNG = np.random.default_rng(0)
LUMA = np.array([0.2989, 0.587, 0.114])
PAPERS = ('simclr', 'simclr_v2', 'moco_v1', 'moco_v2', 'byol', 'swav', 'dino', 'supervised')
# Small sizes; what a recipe does not know it is not told.
SMALL = dict(size=32, local_size=20, local_views=3)


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def images(n, size, channels=3):
  return RNG.integers(0, 256, (n, size, size, channels), np.uint8)


def build(name, **options):
  function = importlib.import_module(f'ssl_jax.views.{name}').build
  known = function.__kwdefaults__.keys() | {'size'}
  return function(**{key: x for key, x in options.items() if key in known})


def described(name, **options):
  """What a recipe hands to the engine: its views, local views, mean and std."""
  module = f'ssl_jax.views.{name}'
  importlib.import_module(module)
  with mock.patch(f'{module}.build_views') as engine:
    build(name, **options)
  args, named = engine.call_args
  return args[0], args[1] if len(args) > 1 else (), named['mean'], named['std']


# --- the facts in which the references differ -----------------------------------------------------

RGB = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
SIMCLR_COLOUR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
BYOL_COLOUR = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
AFTER_JITTER = ('jitter', 'grayscale', 'blur', 'solarize')
TENSORFLOW = dict(contrast_pivot='channel', saturation_form='hsv')
TORCHVISION = dict(
  brightness_form='multiplicative', contrast_pivot='grey', saturation_form='luma')
# Recipe, which of its views (-1 is a small one), what is so, and where the reference says it.
FACTS = [
  ('simclr', 0, dict(order=AFTER_JITTER), 'paper, appendix A'),
  ('simclr', 0, dict(area=(0.08, 1.), aspect=(3 / 4, 4 / 3), flip=0.5), 'paper, appendix A'),
  ('simclr', 0, dict(jitter=0.8, grayscale=0.2, **SIMCLR_COLOUR), 'paper, appendix A'),
  ('simclr', 0, dict(blur=0.5, sigma=(0.1, 2.), blur_form='simclr'), 'paper, appendix A'),
  ('simclr', 0, dict(resample='bicubic', **TORCHVISION), 'ours; bicubic as the reference'),
  ('simclr_v2', 0, dict(SIMCLR_COLOUR, brightness_form='multiplicative'), 'tf2/data_util.py'),
  ('simclr_v2', 1, dict(TENSORFLOW, jitter_order='random'), 'tf.image in tf2/data_util.py'),
  ('simclr_v2', 0, dict(area=(0.1, 1.), resample='bicubic'), 'min_object_covered=0.1'),
  ('simclr_v2', 0, dict(jitter=0.8, grayscale=0.2, order=AFTER_JITTER), 'tf2/data_util.py'),
  ('simclr_v2', 0, dict(blur=0.5, blur_form='simclr', solarize=0.), 'tf2/data_util.py'),
  ('moco_v1', 0, dict(order=('grayscale', 'jitter', 'blur', 'solarize')), 'main_moco.py'),
  ('moco_v1', 1, dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4), 'main_moco.py'),
  ('moco_v1', 0, dict(jitter=1., grayscale=0.2, blur=0., solarize=0.), 'main_moco.py'),
  ('moco_v1', 0, dict(area=(0.2, 1.), resample='bilinear', **TORCHVISION), 'main_moco.py'),
  ('moco_v2', 0, dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1), '--aug-plus'),
  ('moco_v2', 1, dict(jitter=0.8, grayscale=0.2, blur=0.5, solarize=0.), '--aug-plus'),
  ('moco_v2', 0, dict(area=(0.2, 1.), resample='bilinear', order=AFTER_JITTER), '--aug-plus'),
  ('moco_v2', 0, dict(sigma=(0.1, 2.), blur_form='pillow', **TORCHVISION), 'moco/loader.py'),
  ('byol', 0, dict(BYOL_COLOUR, jitter=0.8, grayscale=0.2), 'augmentations.py, augment_config'),
  ('byol', 0, dict(blur=1., solarize=0.), 'augmentations.py, view1'),
  ('byol', 1, dict(blur=0.1, solarize=0.2, threshold=0.5), 'augmentations.py, view2'),
  ('byol', 0, dict(TENSORFLOW, brightness_form='additive'), 'augmentations.py, adjust_*'),
  ('byol', 1, dict(sigma=(0.1, 2.), blur_form='simclr', jitter_order='random'), 'blur_divider=10'),
  ('byol', 0, dict(area=(0.08, 1.), misfit='cut', resample='bicubic'), 'dataset.py'),
  ('swav', 0, dict(size=224, area=(0.14, 1.)), 'scripts/swav_800ep_pretrain.sh'),
  ('swav', -1, dict(size=96, area=(0.05, 0.14)), 'scripts/swav_800ep_pretrain.sh'),
  ('swav', -1, dict(jitter=0.8, grayscale=0.2, order=AFTER_JITTER), 'multicropdataset.py'),
  ('swav', 0, dict(SIMCLR_COLOUR, resample='bilinear', **TORCHVISION), 'multicropdataset.py'),
  ('swav', 0, dict(blur=0.5, sigma=(0.1, 2.), blur_form='opencv'), 'cv2.GaussianBlur, 23 taps'),
  ('dino', 0, dict(size=224, area=(0.4, 1.), blur=1., solarize=0.), 'main_dino.py'),
  ('dino', 1, dict(size=224, area=(0.4, 1.), blur=0.1, solarize=0.2), 'main_dino.py'),
  ('dino', -1, dict(size=96, area=(0.05, 0.4), blur=0.5, solarize=0.), 'main_dino.py'),
  ('dino', 0, dict(BYOL_COLOUR, jitter=0.8, grayscale=0.2, **TORCHVISION), 'main_dino.py'),
  ('dino', -1, dict(resample='bicubic', sigma=(0.1, 2.), blur_form='pillow'), 'utils.py'),
  ('supervised', 0, dict(area=(0.08, 1.), flip=0.5, jitter=0., blur=0.), 'imagenet/main.py'),
]


@pytest.mark.parametrize('name, which, fact, source', FACTS)
def test_a_recipe_is_what_its_reference_does(name, which, fact, source):
  views, local, _, _ = described(name, size=224)
  view = (views + local)[which]._asdict()
  assert {field: view[field] for field in fact} == fact, source


@pytest.mark.parametrize('name, counts, statistics', [
  ('simclr', (2, 0), (None, None)), ('simclr_v2', (2, 0), (None, None)),
  ('moco_v1', (2, 0), (RGB, DEVIATION)), ('moco_v2', (2, 0), (RGB, DEVIATION)),
  ('byol', (2, 0), (RGB, DEVIATION)), ('swav', (2, 6), (RGB, (0.228, 0.224, 0.225))),
  ('dino', (2, 8), (RGB, DEVIATION)), ('supervised', (1, 0), (RGB, DEVIATION)),
])
def test_numbers_of_views_and_normalisation(name, counts, statistics):
  views, local, mean, std = described(name, size=224)
  assert (len(views), len(local)) == counts
  assert (mean, std) == statistics


# --- the definition, computed independently -------------------------------------------------------


def blend(image, pivot, factor):
  return np.clip(factor * image + (1 - factor) * pivot, 0, 1)


def in_hsv(image, change):
  pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.reshape(-1, 3)]
  return np.reshape(pixels, image.shape)


def grey(image):
  return np.broadcast_to((image @ LUMA)[..., None], image.shape)


def jittered(view, uniforms, image):
  apply, *u = uniforms[:5].astype(float)
  if apply >= view.jitter:
    return image
  strengths = (view.brightness, view.contrast, view.saturation, view.hue)
  low = [max(0, 1 - s) for s in strengths]
  factors = [a + (1 + s - a) * x for a, s, x in zip(low, strengths, u)]
  offsets = [s * (2 * x - 1) for s, x in zip(strengths, u)]
  operations = [
    (lambda x: np.clip(x + offsets[0], 0, 1)) if view.brightness_form == 'additive'
    else (lambda x: np.clip(x * factors[0], 0, 1)),
    lambda x: blend(
      x, x.mean((0, 1)) if view.contrast_pivot == 'channel' else grey(x).mean(), factors[1]),
    (lambda x: in_hsv(x, lambda h, s, v: (h, min(1, s * factors[2]), v)))
    if view.saturation_form == 'hsv' else (lambda x: blend(x, grey(x), factors[2])),
    lambda x: in_hsv(x, lambda h, s, v: ((h + offsets[3]) % 1, s, v)),
  ]
  for i in np.argsort(uniforms[5:9]) if view.jitter_order == 'random' else range(4):
    image = operations[i](image)
  return image


def blurred(view, uniforms, image):
  if uniforms[0] >= view.blur:
    return image
  sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * float(uniforms[1])
  if view.blur_form == 'pillow':
    taps = [box_taps(sigma)] * 3
    mode = 'nearest'
  else:
    radius = 11 if view.blur_form == 'opencv' else view.size // 10 // 2
    taps = np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2))
    taps, mode = [taps / taps.sum()], 'mirror' if view.blur_form == 'opencv' else 'constant'
  for axis in (0, 1):
    for kernel in taps:
      image = ndimage.convolve1d(image, kernel, axis=axis, mode=mode)
  return image


def box_taps(sigma):
  """A box of fractional width with a third of the variance, by solving for its two outer taps."""
  variance, inner = sigma ** 2 / 3, 0
  moment = lambda n: n * (n + 1) * (2 * n + 1) / 3
  while moment(inner + 1) / (2 * inner + 3) <= variance:
    inner += 1
  edge = (variance * (2 * inner + 1) - moment(inner)) / (2 * ((inner + 1) ** 2 - variance))
  taps = np.array([edge, *[1] * (2 * inner + 1), edge])
  return taps / taps.sum()


def solarized(view, uniform, image):
  return np.where(image >= view.threshold, 1 - image, image) if uniform < view.solarize else image


def expected_view(view, key, number, crop):
  """A view of an 8-bit crop [S, S, 3], mirrored last as MoCo does."""
  uniforms = np.asarray(jax.random.uniform(jax.random.fold_in(key, number), (recipe.DRAWS,)))
  u_jitter, u_blur, u_rest = np.split(uniforms[crops.BOX_DRAWS:], [color.JITTER_DRAWS,
                                                                    color.JITTER_DRAWS + 2])
  operations = dict(
    jitter=functools.partial(jittered, view, u_jitter),
    grayscale=lambda x: grey(x) if u_rest[1] < view.grayscale else x,
    blur=functools.partial(blurred, view, u_blur),
    solarize=functools.partial(solarized, view, u_rest[2]))
  image = crop / 255
  for name in view.order:
    image = operations[name](image)
  return image[:, ::-1] if u_rest[0] < view.flip else image


SLOW = [pytest.param(name, marks=pytest.mark.slow)
        for name in PAPERS if name not in ('byol', 'moco_v1')]


@pytest.mark.parametrize('name', ['byol', 'moco_v1', *SLOW])
def test_views_equal_their_definition(name):
  views, local, mean, std = described(name, **SMALL)
  n, key = 8, keys(8, 3)
  batch = {'crops': RNG.integers(0, 256, (n, len(views), 32, 32, 3), np.uint8)}
  if local:
    batch['local_crops'] = RNG.integers(0, 256, (n, len(local), 20, 20, 3), np.uint8)
  got = jax.jit(build(name, **SMALL).prepare)(key, batch)
  assert set(got) == {'views', 'local_views'} if local else {'views'}
  mean, std = (0., 1.) if mean is None else map(np.asarray, (mean, std))
  number = 0
  for field, some, cropped in (('views', views, 'crops'), ('local_views', local, 'local_crops')):
    for v, view in enumerate(some):
      expected = np.stack([expected_view(view, key[b], number, batch[cropped][b, v])
                           for b in range(n)])
      # Solarization inverts what is at the threshold up to rounding: a handful of pixels may differ.
      close = np.isclose(got[field][:, v], (expected - mean) / std, atol=1e-4)
      assert close.mean() > (0.9999 if view.solarize else 0.999999)
      number += 1


def test_solarization_inverts_the_values_that_pillow_inverts():
  values = np.arange(256, dtype=np.uint8)[None]
  expected = np.asarray(ImageOps.solarize(Image.fromarray(values)))
  got = color.solarize(jnp.asarray(values / np.float32(255)), True, View(size=1).threshold)
  np.testing.assert_allclose(got, expected / 255, atol=1e-6)


# --- the engine -----------------------------------------------------------------------------------


def test_a_host_that_crops_leaves_the_other_draws_as_they_were():
  view = View(size=20, area=(1., 1.), aspect=(1., 1.), resample='bilinear', flip=0.5, jitter=0.8,
              brightness=0.4, contrast=0.4)
  views = build_views((view, view))
  image = images(16, 20, 1)
  whole = jax.jit(views.prepare)(keys(16), {'image': image})
  batch = {'crops': np.stack([image, image], 1), 'label': np.arange(16)}
  parts = jax.jit(views.prepare)(keys(16), batch)
  assert set(parts) == {'views', 'label'}
  np.testing.assert_allclose(parts['views'], whole['views'], atol=1e-5)


def test_views_that_differ_keep_their_places_and_numbers():
  plain = View(size=8, flip=0.5, solarize=0.5)
  other = plain._replace(threshold=0.2)
  views, local, key = (plain, other, plain), (other,), keys(6)
  batch = {'crops': RNG.integers(0, 256, (6, 3, 8, 8, 3), np.uint8),
           'local_crops': RNG.integers(0, 256, (6, 1, 8, 8, 3), np.uint8)}
  got = jax.jit(build_views(views, local).prepare)(key, batch)
  crops = np.concatenate([batch['crops'], batch['local_crops']], axis=1)
  got = np.concatenate([got['views'], got['local_views']], axis=1)
  for b in range(6):
    for v, view in enumerate(views + local):
      np.testing.assert_allclose(got[b, v], expected_view(view, key[b], v, crops[b, v]), atol=1e-6)


@pytest.mark.parametrize('name, products, turns', [
  # Crop and blur are two products per channel, Pillow's blur two more for the matrix of each side.
  ('byol', 12, 1), ('moco_v1', 6, 1), ('swav', 24, 2), ('dino', 32, 2), ('supervised', 6, 0),
])
def test_views_that_differ_in_probabilities_are_one_program(name, products, turns):
  prepare = jax.jit(build(name, **SMALL).prepare)
  text = prepare.trace(keys(2), {'image': images(2, 36)}).lower(
    lowering_platforms=('tpu',)).as_text()
  for slow in ('gather', 'scatter', 'dynamic_slice', 'sort'):
    assert f'stablehlo.{slow}' not in text
  found = re.findall(r'stablehlo\.dot_general.*', text)
  assert len(found) == products
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in found)
  assert text.count('stablehlo.while') == turns


# Colour images of the others are traced elsewhere in this file and in simclr_test.py.
@pytest.mark.parametrize('name, channels', [
  *((name, 1) for name in PAPERS), ('simclr_v2', 3), ('moco_v2', 3)])
def test_every_recipe_takes_grey_and_small_images(name, channels, strict_dtypes):
  made = build(name, **SMALL, dtype=jnp.bfloat16)
  image = jax.ShapeDtypeStruct((4, 28, 28, channels), jnp.uint8)
  got = jax.eval_shape(made.prepare, jax.eval_shape(lambda: keys(4)), {'image': image})
  views, local, _, _ = described(name, **SMALL)
  expected = {'views': (4, len(views), 32, 32, channels)}
  if local:
    expected['local_views'] = (4, len(local), 20, 20, channels)
  assert {field: x.shape for field, x in got.items()} == expected
  assert {x.dtype for x in got.values()} == {jnp.dtype(jnp.bfloat16)}
  assert jax.eval_shape(made.inputs, {'image': image}).shape == (4, 32, 32, channels)


def test_a_host_is_told_the_crops():
  made = build('swav', size=32, local_size=16, local_views=1)
  large = dict(size=32, area=(0.14, 1.), aspect=(3 / 4, 4 / 3), resample='bilinear',
               misfit='redraw')
  assert made.crops == {'crops': (large, large),
                        'local_crops': (dict(large, size=16, area=(0.05, 0.14)),)}
  assert set(build('swav', size=32, local_views=0).crops) == {'crops'}


def test_statistics_of_colours_become_those_of_grey():
  image = images(2, 8, 1)
  made = build_views((View(size=8),), mean=RGB, std=DEVIATION)
  weights = LUMA / LUMA.sum()
  expected = (image / 255 - weights @ RGB) / (weights @ DEVIATION)
  np.testing.assert_allclose(made.inputs({'image': image}), expected, atol=1e-5)


@pytest.mark.parametrize('changes, message', [
  (dict(sigma=(2., 0.1)), 'sigma must be'), (dict(hue=0.6), 'hue must be'),
  (dict(contrast=-0.1), 'contrast must be at least 0'), (dict(threshold=2.), 'threshold must be'),
  (dict(order=('blur', 'jitter')), 'order must be each of'), (dict(area=0.5), 'area must be'),
  (dict(blur_form='box'), "blur_form must be 'simclr' or"), (dict(misfit='pad'), 'misfit must be'),
])
def test_wrong_fields_are_named(changes, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    build_views((View(size=8)._replace(**changes),))


def test_views_of_one_field_have_one_size():
  with pytest.raises(ValueError, match=r'local must be of one size.*\[8, 9\]'):
    build_views((View(size=16),), (View(size=8), View(size=9)))
  with pytest.raises(ValueError, match='at least one'):
    build_views(())


@pytest.mark.parametrize('batch, message', [
  ({'crops': np.zeros((2, 1, 8, 8, 3), np.uint8)}, "no 'local_crops'"),
  ({'crops': np.zeros((2, 2, 8, 8, 3), np.uint8)}, r'uint8 \[B, 1, 8, 8, C\]'),
  ({'crops': np.zeros((2, 1, 8, 8, 3), np.float32)}, 'float32'),
  ({'image': np.zeros((2, 8, 8, 1), np.uint8)}, '2 values'),
])
def test_wrong_batches_are_described(batch, message):
  made = build_views((View(size=8),), (View(size=4),), mean=(0.5, 0.5), std=(1., 1.))
  if 'crops' in batch:
    made = build_views((View(size=8),), (View(size=4),))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(made.prepare, keys(2), batch)
