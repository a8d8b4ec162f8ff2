"""A control for the gate: any method's config, but what should belong together does not.

Every view but the first is another image's, labels and ids are those of a third. What is left to
learn is what the views themselves give away. Used as a config:
`--config=benchmarks/shuffled_positives.py:byol` is configs/byol_fashion_mnist.py so broken
(`byol-smoke` its variant).
"""

import pathlib
import runpy

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import views
from ssl_jax.schema import call, modules
from ssl_jax.types import Views

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'


def get_config(arg: str = 'simclr') -> ConfigDict:
  name, _, variant = arg.partition('-')
  config = runpy.run_path(str(CONFIGS / f'{name}_fashion_mnist.py'))['get_config'](variant)
  recipe = config.views.to_dict()
  with config.ignore_type():
    config.views = ConfigDict(dict(name='benchmarks.shuffled_positives', recipe=recipe))
  return config


def build(*, recipe: dict) -> Views:
  """The views of `recipe`, a section like config.views, of images that do not belong together."""
  whole = call('views.recipe', recipe, modules(views))

  def prepare(keys, batch):
    batch = dict(whole.prepare(keys, batch))
    for name, rows in (('views', 1), ('local_views', 1), ('tokens', 1), ('label', 2), ('id', 2)):
      if name in batch:
        batch[name] = jnp.roll(batch[name], rows, axis=0)
    if 'views' in batch:
      first = jnp.roll(batch['views'][:, :1], -1, axis=0)
      batch['views'] = jnp.concatenate([first, batch['views'][:, 1:]], axis=1)
    return batch

  return Views(prepare, whole.inputs)
