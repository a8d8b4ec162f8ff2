"""Two towers, one of images and one of texts, into a space in which cosines compare them.

Parameters and state are {'net': the image tower's, 'text': the text tower's, ...}.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.network import evaluated
from ssl_jax.models.transformer import Transformer, pooled
from ssl_jax.parallel import Placement
from ssl_jax.types import TEXT_INPUTS, Batch, Method, Mode, Network, PyTree, unchanged


class TextTower(nn.Module):
  """{'tokens': [B, T], ...} -> (representation [B, width], projection head(representation)).

  The representation is of the row as `backbone.pool` says.
  """

  backbone: Transformer
  head: nn.Module

  def __call__(self, x: Mapping[str, jax.Array], mode: Mode) -> tuple[jax.Array, jax.Array]:
    h = pooled(self.backbone(x, mode), x, self.backbone.pool)
    z = self.head(h, mode)
    self.sow('intermediates', 'representation', h)
    self.sow('intermediates', 'projection', z)
    return h, z


class Towers(NamedTuple):
  """What compares images and texts: (params, state, inputs [B, ...]) -> unit rows [B, P], each."""

  image: Callable[..., jax.Array]
  text: Callable[..., jax.Array]


def towers(net: Network, text: Network, *, mesh: jax.sharding.Mesh | None = None) -> Towers:
  """The towers of a method of images and texts, outside training; `mesh` as in `Mode`."""
  def embed(network: Network, name: str, params: PyTree, state: PyTree, inputs: Any) -> jax.Array:
    (_, z), _ = network.apply(params[name], state[name], inputs, Mode(mesh=mesh))
    return z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)

  def image(params, state, inputs):
    return embed(net, 'net', params, state, inputs)

  def words(params, state, inputs):
    return embed(text, 'text', params, state, text_inputs(inputs))

  return Towers(image, words)


def text_inputs(batch: Batch) -> dict[str, jax.Array]:
  """The fields of a batch that a network for text reads."""
  return {name: batch[name] for name in TEXT_INPUTS if name in batch}


def image_text_method(net: Network, text: Network, contrast: Callable, scalars: Mapping[str, float],
                      on_batch: Placement, after: Callable = unchanged) -> Method:
  """The method that trains both towers by a loss over their projections.

  Args:
    net: image -> (representation, projection).
    text: inputs of text -> (representation, projection of the same width).
    contrast: (projections of images, of texts, *scalars, axis_name=...) -> loss.
    scalars: {name: initial value} of the numbers that are learned beside the towers. Optimizers know
      the names 'scale', which is learned as its logarithm, and 'bias': they do not decay them.
    on_batch: how the loss runs.
    after: see `Method`.
  """
  head = on_batch(contrast, shared=len(scalars))
  train = on_batch.mode(train=True)

  def init(key, batch):
    keys = jax.random.split(key)
    made = dict(net=net.init(keys[0], batch['views'][:, 0]),
                text=text.init(keys[1], text_inputs(batch)))
    params, state = ({name: pair[i] for name, pair in made.items()} for i in (0, 1))
    learned = {name: jnp.float32(math.log(value) if name == 'scale' else value)
               for name, value in scalars.items()}
    return params | learned, state

  def loss(params, state, batch, *, key, step):
    del step
    keys = jax.random.split(key)
    inputs = dict(net=batch['views'][:, 0], text=text_inputs(batch))
    projections, new = [], {}
    for name, network, one in (('net', net, keys[0]), ('text', text, keys[1])):
      (_, z), new[name] = network.apply(params[name], state[name], inputs[name], train, key=one)
      projections.append(z)
    _check_widths(*projections)
    learned = {name: jnp.exp(params[name]) if name == 'scale' else params[name]
               for name in scalars}
    return head(*projections, *learned.values()), (new, learned)

  return Method(init, loss, after=after, **evaluated(net, train, params_in='net', state_in='net'))


def _check_widths(images: jax.Array, texts: jax.Array) -> None:
  if images.shape[1] != texts.shape[1]:
    raise ValueError(f'images are projected to {images.shape[1]} numbers and texts to '
                     f'{texts.shape[1]}; the heads of both towers must give as many')
