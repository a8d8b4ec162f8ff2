"""SigLIP: each pair of an image and a text of the batch is asked whether they belong together.

  loss = - sum_i sum_j log sigmoid(y_ij (exp(s) cos(f(image_i), g(text_j)) + b)) / B
  y_ij = 1 for i = j and -1 otherwise; s learned from log 10, b from -10

No row needs the others' sum, so the loss is defined by pairs; f(image) before the projection is the
representation.

Reference: Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343.
"""

from ssl_jax.losses import contrastive
from ssl_jax.models.towers import image_text_method
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# Gathered projections and what their gradient sums; the sums of gradients.
COLLECTIVES = frozenset({'all-gather', 'all-reduce', 'reduce-scatter'})

SCALE, BIAS = 10., -10.


def build(net: Network, *, text: Network, implementation: str | None = None,
          on_batch: Placement = local) -> Method:
  """SigLIP over `batch['views']` [B, 1, ...] and the text of the same rows; arguments as `clip`.

  Args:
    net: image -> (representation, projection).
    text: tokens -> (representation, projection of the same width); in a config a transformer with a
      section `head`.
    implementation: of the loss, see `ssl_jax.losses.contrastive`.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.
  """
  def contrast(images, texts, scale, bias, *, axis_name):
    return contrastive.siglip(images, texts, scale=scale, bias=bias, axis_name=axis_name,
                              implementation=implementation)

  return image_text_method(net, text, contrast, dict(scale=SCALE, bias=BIAS), on_batch)
