"""Supervised classification, the baseline: the same step, network and views, with labels.

  loss = cross-entropy(g(f(t(x))), label);  the representation is f(x), g the classifier.

Reference: ResNet training as in He et al., arXiv:1512.03385, and Goyal et al., arXiv:1706.02677; the
objective that every table of self-supervised methods lists as its upper line.
"""

from functools import partial

from ssl_jax.losses.classification import accuracy, cross_entropy
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import Placement, local
from ssl_jax.types import Method, Network

# The sums of gradients, of BatchNorm statistics and of the loss.
COLLECTIVES = frozenset({'all-reduce'})


def build(net: Network, *, smoothing: float = 0.0, on_batch: Placement = local) -> Method:
  """Classification of `batch['views']` [B, V, ...] by `batch['label']` [B], the mean over views.

  Args:
    net: x -> (representation, logits [B, C]): a head `linear` with `out` classes.
    smoothing: of labels, the share spread evenly over all classes.
    on_batch: how the loss head runs; see `ssl_jax.parallel`.

  Raises:
    ValueError: `smoothing` is outside [0, 1); at tracing, the batch has no labels.
  """
  if not 0 <= smoothing < 1:
    raise ValueError(f'smoothing must be in [0, 1), got {smoothing}')
  classify = on_batch(partial(cross_entropy, smoothing=smoothing))
  correct = on_batch(accuracy)
  train = on_batch.mode(train=True)

  def init(key, batch):
    return net.init(key, batch['views'][:, 0])

  def loss(params, state, batch, *, key, step):
    del step
    if 'label' not in batch:
      raise ValueError(f"supervised training needs a field 'label'; the batch has {sorted(batch)}")
    outputs, state = apply_views(net, params, state, batch['views'], train, key=key)
    losses = [classify(logits, batch['label']) for _, logits in outputs]
    hits = [correct(logits, batch['label']) for _, logits in outputs]
    return sum(losses) / len(losses), (state, {'accuracy': sum(hits) / len(hits)})

  return Method(init, loss, **evaluated(net, train))
