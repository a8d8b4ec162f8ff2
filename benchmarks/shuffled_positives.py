"""A control for the gate: SimCLR's views, but the second view is another image's.

What is left to learn is only what the views themselves give away. It is named by its module, as any
recipe of one's own: `--config.views.name=benchmarks.shuffled_positives`.
"""

import functools

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views import simclr


@functools.wraps(simclr.build)  # the options are SimCLR's: a config is checked against them
def build(**options) -> Views:
  recipe = simclr.build(**options)

  def prepare(keys, batch):
    batch = recipe.prepare(keys, batch)
    first, second = batch['views'][:, 0], batch['views'][:, 1]
    return dict(batch, views=jnp.stack([first, jnp.roll(second, 1, axis=0)], axis=1))

  return Views(prepare, recipe.inputs)
