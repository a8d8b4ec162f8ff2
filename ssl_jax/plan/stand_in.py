"""What a batch looks like where the data are not: a machine that plans has no ImageNet.

Blank examples go through the same host code as real ones, so that crops, rows and pairs have the
shapes that training sees.
"""

import re

import numpy as np

from ssl_jax import build
from ssl_jax.data import image_text, token_sources
from ssl_jax.data.images import EncodedImages
from ssl_jax.data.sources import ArraySource, DataError
from ssl_jax.schema import ConfigError, find, plain, signature

# Examples in the training split of data that configs name without having them.
EXAMPLES = dict(imagenet=1_281_167, imagenet2012=1_281_167, cifar10=50_000, cifar100=50_000,
                mnist=60_000, fashion_mnist=60_000, stl10=100_000, food101=75_750)


class Blank(EncodedImages):
  """Grey images of an example's size, with a label."""

  def __init__(self, count: int, options: dict):
    super().__init__(unreadable=0.0, **options)
    self._count = count
    self.labels = np.zeros(count, np.int32)

  def __len__(self) -> int:
    return self._count

  def name(self, index: int) -> str:
    return f'blank {index}'

  def read(self, index: int):
    pixels = np.zeros((self._size, self._size, self._channels), np.uint8)
    return pixels, {'label': self.labels[index]}


def shape_of_data(config, examples: int | None = None) -> tuple[build.Shape, str]:
  """Shapes of an example of `config.data`, and where they are from, in words.

  Args:
    config: complete.
    examples: replaces their number.

  Raises:
    ConfigError: the data are not here, and nothing tells how many examples an epoch has.
  """
  try:
    source = build.source(config, crops=build.image_views(config).crops, training=True)
    shape, where = build.shape_of(source), f'read from config.data, {len(source):,} examples'
  except (FileNotFoundError, DataError, ConfigError) as error:
    if isinstance(error, ConfigError) and not _names_absent_data(config, error):
      raise
    count = examples or _count(config)
    shape = _blank_shape(config, count)
    where = (f'config.data is not on this machine ({str(error).splitlines()[0]}); taken to be '
             f'{count:,} examples')
  shape = shape._replace(length=examples or shape.length)
  fields = ', '.join(f'{name} {x.dtype}{list(x.shape)}' for name, x in sorted(shape.fields.items()))
  return shape, f'{where}; an example is {fields}'


def _names_absent_data(config, error: ConfigError) -> bool:
  """A dataset that is not prepared, a tokenizer that is not there: faults of this machine."""
  return isinstance(error.__cause__, (FileNotFoundError, DataError))


def _count(config) -> int:
  text = ' '.join(str(value) for value in plain(config.data).values() if isinstance(value, str))
  for name, count in EXAMPLES.items():
    if re.search(rf'(?<![a-z0-9_]){name}(?![a-z0-9_])', text.lower()):
      return count
  if config.steps is not None:  # an epoch's length decides nothing
    return max(config.batch_size, 1_000_000)
  raise ConfigError('config.data is not on this machine, and config.epochs needs the number of its '
                    'examples; add --examples=NUMBER')


def _blank_shape(config, count: int) -> build.Shape:
  data = plain(config.data)
  name = data['name']
  if name in build.TEXT:
    taken = ('length', 'pack', 'pairs')
    rows = token_sources.wordnet_glosses(
      **{key: data[key] for key in taken if key in data}, training=True)
    fields = dict(build.shape_of(rows).fields)
    return build.Shape(count, fields)
  if name == 'array_files':
    blank = np.broadcast_to(np.zeros((), np.uint8), (count, 256, 256, 3))
    return build.shape_of(ArraySource({'image': blank, 'label': np.zeros(count, np.int32)}))
  known = signature(find('data', name, build.DATA))
  given = {key: data.get(key, known[key].default) for key in ('size', 'channels', 'crop')}
  crops = build.image_views(config).crops if given.pop('crop') == 'host' else None
  shape = build.shape_of(Blank(count, dict(given, crops=crops)))
  if name not in build.IMAGE_TEXT:
    return shape
  captions = build.shape_of(image_text.fashion_mnist_captions(length=data['length'])).fields
  texts = {key: x for key, x in captions.items() if key not in ('image', 'label')}
  return build.Shape(count, {**texts, **shape.fields})
