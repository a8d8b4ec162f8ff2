"""CLIP: images and their captions find each other in the batch.

  loss = (CE over texts for each image + CE over images for each text) / 2 of the logits
  exp(s) cos(W_i f(image), W_t g(text)),   s learned from log(1 / 0.07), at most log 100

f(image) is the representation; W_i and W_t are linear, without a bias, and there is no augmentation
of images but a random square crop.

Reference: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
arXiv:2103.00020.
"""

import math

import jax.numpy as jnp

from ssl_jax.losses import contrastive
from ssl_jax.models.towers import image_text_method
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# Gathered projections and what their gradient sums; the sums of gradients.
COLLECTIVES = frozenset({'all-gather', 'all-reduce', 'reduce-scatter'})

SCALE, LARGEST_SCALE = 1 / 0.07, 100.


def build(net: Network, *, text: Network, implementation: str | None = None,
          on_batch: Placement = local) -> Method:
  """CLIP over `batch['views']` [B, 1, ...] and the text of the same rows.

  Args:
    net: image -> (representation, projection).
    text: tokens -> (representation, projection of the same width); in a config a transformer with a
      section `head`.
    implementation: of the loss, see `ssl_jax.losses.contrastive`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.
  """
  def contrast(images, texts, scale, *, axis_name):
    return contrastive.clip(images, texts, scale=scale, axis_name=axis_name,
                            implementation=implementation)

  def after(params, state, step):
    return {**params, 'scale': jnp.minimum(params['scale'], math.log(LARGEST_SCALE))}, state

  return image_text_method(net, text, contrast, dict(scale=SCALE), on_batch, after)
