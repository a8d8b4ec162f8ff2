"""Shapes of batches without their data."""

import pytest

from ssl_jax.cli.options import load_config
from ssl_jax.plan.stand_in import shape_of_data
from ssl_jax.schema import ConfigError


def shapes(name, examples=None):
  shape, words = shape_of_data(load_config(f'configs/{name}'), examples)
  return shape.length, {key: x.shape for key, x in shape.fields.items()}, words


@pytest.mark.parametrize('name, length, fields', [
  ('simclr_resnet50_imagenet.py', 1_281_167, {'image': (256, 256, 3), 'label': ()}),
  ('dino_vit_s16_imagenet.py', 1_281_167,
   {'crops': (2, 224, 224, 3), 'local_crops': (8, 96, 96, 3), 'label': ()}),
  ('simclr_cifar10.py', 50_000, {'image': (32, 32, 3), 'label': ()}),
  ('clip_vit_b32.py', 1_000_000,
   {'crops': (1, 224, 224, 3), 'tokens': (77,), 'segments': (77,), 'label': ()}),
  ('bert_base_wikipedia.py:phase2', 1_000_000,
   dict.fromkeys(('tokens', 'segments', 'positions', 'words'), (512,))),
])
def test_data_that_are_not_here(name, length, fields):
  """What `train` would see, by the code that crops and packs."""
  found = shapes(name)
  assert found[:2] == (length, fields)
  assert 'is not on this machine' in found[2] and f'{length:,}' in found[2]


def test_data_that_are_here():
  length, fields, words = shapes('simclr_fashion_mnist.py')
  assert (length, fields) == (10_000, {'image': (28, 28, 1), 'label': ()})
  assert words.startswith('read from config.data')


def test_the_number_of_examples():
  assert shapes('simclr_folder.py', 5000)[0] == 5000
  with pytest.raises(ConfigError, match='add --examples=NUMBER'):
    shapes('simclr_folder.py')
  assert shapes('simclr_fashion_mnist.py', 77)[0] == 77


@pytest.mark.parametrize('path', ['/data/imagenet100/{split}', '/data/imagenette', '/data/my_mnist_2'])
def test_a_name_that_only_looks_known_tells_nothing(path):
  config = load_config('configs/simclr_vit_s16_imagenet.py')
  config.data.path = path
  with pytest.raises(ConfigError, match='--examples'):
    shape_of_data(config)


def test_a_mistake_in_the_config_is_not_taken_for_missing_data():
  config = load_config('configs/simclr_vit_s16_imagenet.py')
  with config.unlocked():
    config.data.sizes = 3
  with pytest.raises(ConfigError, match='config.data.sizes is unknown'):
    shape_of_data(config)


