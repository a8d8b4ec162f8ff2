import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_jax import parallel
from ssl_jax.views import simclr

RNG = np.random.default_rng(0)
# Everything that is random in a view switched off.
STILL = dict(area=(1., 1.), aspect=(1., 1.), flip=0., jitter=0., grayscale=0., blur=0.)


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def images(n, size, channels=3):
  return RNG.integers(0, 256, (n, size, size, channels), np.uint8)


def prepared(recipe, key, image):
  return np.asarray(jax.jit(recipe.prepare)(key, {'image': image})['views'])


@pytest.mark.parametrize('channels, options', [
  (1, {}), (3, dict(solarize=0.2)),
  (3, dict(brightness='additive', contrast='channel', saturation='hsv', resample='bilinear')),
])
def test_views_of_a_batch(channels, options, strict_dtypes):
  recipe = simclr.build(size=20, views=3, **options)
  batch = {'image': images(8, 26, channels), 'label': np.arange(8)}
  got = jax.jit(recipe.prepare)(keys(8), batch)
  assert set(got) == {'views', 'label'}
  views = np.asarray(got['views'])
  assert views.shape == (8, 3, 20, 20, channels) and views.dtype == np.float32
  assert np.isfinite(views).all() and views.min() >= 0. and views.max() <= 1.
  flat = views.reshape(24, -1)
  assert len(np.unique(flat, axis=0)) == 24, 'views must differ'


def test_a_view_depends_on_its_key_alone():
  recipe = simclr.build(size=20)
  image, key = images(8, 20), keys(8)
  whole = prepared(recipe, key, image)
  order = np.array([5, 2, 7, 0, 1, 3, 6, 4])
  np.testing.assert_array_equal(prepared(recipe, key[order], image[order]), whole[order])
  # Another batch size is another program, which may round differently: 1.2e-6 was seen with jax 0.12.
  # A thousandth of a step of 8-bit images is 4e-6.
  np.testing.assert_allclose(prepared(recipe, key[:2], image[:2]), whole[:2], atol=4e-6)


def test_a_sharded_batch_needs_no_communication():
  recipe = simclr.build(size=20)
  image, key = images(8, 20, 1), keys(8)
  rows = parallel.batch_sharding(parallel.make_mesh())
  placed = jax.device_put((key, {'image': image}), rows)
  program = jax.jit(recipe.prepare, out_shardings=rows).lower(*placed).compile()
  assert not re.search(r'all-(reduce|gather|to-all)|collective-permute|reduce-scatter',
                       program.as_text())
  np.testing.assert_allclose(
    program(*placed)['views'], prepared(recipe, key, image), atol=1e-6)


def test_more_views_leave_the_first_ones_as_they_were():
  image, key = images(4, 20, 1), keys(4)
  two, three = (prepared(simclr.build(size=20, views=v), key, image) for v in (2, 3))
  np.testing.assert_allclose(three[:, :2], two, atol=1e-6)


def test_nothing_random_gives_the_image_and_flip_mirrors_it():
  image = images(4, 20)
  unit = np.repeat(image[:, None] / np.float32(255), 2, axis=1)
  got = prepared(simclr.build(size=20, **STILL), keys(4), image)
  np.testing.assert_allclose(got, unit, atol=1e-6)
  got = prepared(simclr.build(size=20, **STILL | dict(flip=1.)), keys(4), image)
  np.testing.assert_allclose(got, unit[:, :, :, ::-1], atol=1e-6)


def test_probabilities():
  """Which operation acted can be read off an image of two columns of colour."""
  image = np.zeros((1000, 4, 4, 3), np.uint8)
  image[:, :, :2, 0], image[:, :, 2:, 2] = 255, 255
  share = dict(flip=0.5, grayscale=0.2, solarize=0.3)
  views = prepared(simclr.build(size=4, **STILL | share), keys(1000), image)
  # Solarizing turns these colours black, but not their grey: red becomes 0.2989, blue 0.114.
  black = views.max((2, 3, 4)) < 1e-6
  grey = (np.ptp(views, axis=-1).max((2, 3)) < 1e-6) & ~black
  assert abs(grey.mean() - 0.2) < 0.03
  assert abs(black[~grey].mean() - 0.3) < 0.03
  red = views[..., 0][~black & ~grey]
  flipped = red[:, 0, 0] < red[:, 0, 3]
  assert abs(flipped.mean() - 0.5) < 0.04


def test_one_operation_off_leaves_the_others_draws_as_they_were():
  image, key = images(4, 20, 1), keys(4)
  sharp = prepared(simclr.build(size=20, jitter=0., blur=0.), key, image)
  blurred = prepared(simclr.build(size=20, jitter=0., blur=0.5), key, image)
  same = np.abs(sharp - blurred).max((2, 3, 4)) < 1e-6
  assert same.any() and not same.all()


def test_normalisation_and_dtype(strict_dtypes):
  image = images(2, 20)
  recipe = simclr.build(size=20, **STILL, mean=(.5, .4, .3), std=(.2, .2, .1), dtype=jnp.bfloat16)
  expected = (image / 255. - [.5, .4, .3]) / [.2, .2, .1]
  for got in (prepared(recipe, keys(2), image)[:, 0], recipe.inputs({'image': image})):
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('channels', [1, 3])
def test_inputs_are_the_image_or_its_resized_centre(channels, strict_dtypes):
  recipe = simclr.build(size=14)
  image = images(2, 14, channels)
  np.testing.assert_array_equal(recipe.inputs({'image': image}), image / np.float32(255))
  # The centre of 16 x 18 is 14 x 14; it needs no resizing.
  image = RNG.integers(0, 256, (2, 16, 18, channels), np.uint8)
  np.testing.assert_allclose(
    recipe.inputs({'image': image}), image[:, 1:15, 2:16] / np.float32(255), atol=1e-6)


def test_inputs_resize_as_pillow():
  image = images(1, 32, 1)
  got = simclr.build(size=10).inputs({'image': image})
  centre = Image.fromarray(image[0, 2:30, 2:30, 0].astype(np.float32))
  expected = np.asarray(centre.resize((10, 10), Image.Resampling.BICUBIC)) / 255
  np.testing.assert_allclose(got[0, ..., 0], expected, atol=1e-6)


@pytest.mark.parametrize('options, name', [
  (dict(size=0), 'size'), (dict(views=1.5), 'views'), (dict(area=(0., 1.)), 'area'),
  (dict(area=(0.5, 0.2)), 'area'), (dict(aspect=(2., 1.)), 'aspect'), (dict(flip=1.5), 'flip'),
  (dict(strength=-1.), 'strength'), (dict(resample='lanczos'), 'resample'),
  (dict(brightness='v2'), 'brightness'), (dict(contrast='mean'), 'contrast'),
  (dict(saturation='grey'), 'saturation'), (dict(dtype=jnp.int32), 'dtype'),
  (dict(mean=(0.5,)), 'mean'), (dict(mean=(0.5,), std=(0.,)), 'std'),
])
def test_wrong_arguments_are_named(options, name):
  with pytest.raises(ValueError, match=f'^{name} must be'):
    simclr.build(**{'size': 8} | options)


@pytest.mark.parametrize('batch, n, message', [
  ({'tokens': np.zeros(2)}, 2, "no 'image'"),
  ({'image': np.zeros((2, 8, 8, 3), np.float32)}, 2, 'uint8'),
  ({'image': np.zeros((2, 8, 8, 4), np.uint8)}, 2, 'C = 1 or 3'),
  ({'image': np.zeros((2, 8, 8, 3), np.uint8)}, 3, 'one key per image'),
])
def test_wrong_batches_are_described(batch, n, message):
  with pytest.raises(ValueError, match=message):
    simclr.build(size=8).prepare(keys(n), batch)


@pytest.mark.parametrize('channels', [1, 3])
def test_program_for_tpu_is_matrix_products_at_full_precision(channels):
  recipe = simclr.build(size=20, solarize=0.1)
  traced = jax.jit(recipe.prepare).trace(keys(4), {'image': images(4, 26, channels)})
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  for slow in ('gather', 'scatter', 'dynamic_slice', 'sort'):
    assert f'stablehlo.{slow}' not in text
  products = re.findall(r'stablehlo\.dot_general.*', text)
  # Crop and blur, two each for every channel.
  assert len(products) == 4 * channels
  assert all('precision = [HIGHEST, HIGHEST]' in line for line in products)
  # The one loop is that over the turns of colour jitter.
  assert text.count('stablehlo.while') == 1


COMPILE_FOR_TPU = """
import re, jax
from jax.experimental import topologies
from ssl_jax.views import simclr
devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
one = jax.sharding.SingleDeviceSharding(devices[0])
place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one)
keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
image = jax.ShapeDtypeStruct((8, 40, 40, 3), 'uint8')
prepare = simclr.build(size=32, solarize=0.1).prepare
text = jax.jit(prepare).lower(place(keys), {'image': place(image)}).compile().as_text()
print('compiled', sorted(set(re.findall(r' ([a-z][a-z-]*)[(]', text))))
"""


def test_no_gather_in_the_compiled_tpu_program(root):
  pytest.importorskip('libtpu')
  environment = os.environ | dict(
    JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1',
    PYTHONPATH=str(root))
  result = subprocess.run([sys.executable, '-c', COMPILE_FOR_TPU], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
  assert 'compiled [' in result.stdout, result.stderr[-2000:]
  assert "'convolution'" in result.stdout, 'a TPU multiplies matrices by the convolution op'
  assert "'gather'" not in result.stdout and "'scatter'" not in result.stdout
