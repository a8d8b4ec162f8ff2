"""MoCo v1 and v2: a query finds its key, from a slow encoder, among a queue of earlier keys.

  loss = -log exp(q.k / T) / (exp(q.k / T) + sum_j exp(q.queue_j / T))
  key encoder <- m key encoder + (1 - m) query encoder, before keys are computed, which then enter
  the queue

v2 is a head of two layers, stronger views and T = 0.2. The reference gives each GPU its own
BatchNorm and shuffles keys over GPUs; here that is `batch_norm=dict(group_size=..., shuffle=True)`
of the network, whatever the hardware. Without a queue it is what the paper compares with as
"end-to-end": the negatives are the other keys of the batch, from the same encoder, and get their
gradient. The representation is the query encoder's.

Reference: He et al., Momentum Contrast, arXiv:1911.05722; Chen et al., arXiv:2003.04297;
https://github.com/facebookresearch/moco
"""

from functools import partial

import jax
import jax.numpy as jnp

from ssl_jax.losses.contrastive import info_nce, l2_normalize, queue_nce
from ssl_jax.memory.average import average
from ssl_jax.memory.queue import Queue, advanced, enqueue, random_queue
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import ROWS, Placement, axis_size, local
from ssl_jax.types import Method, Mode, Network

# Keys gathered into the queue; the sums of gradients, of BatchNorm statistics and of the loss.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})
SEPARATE_VIEWS = True


def build(
    net: Network, *, temperature: float = 0.07, queue: int | None = 65536, momentum: float = 0.999,
    symmetric: bool = False, queue_axis: str | None = None, on_batch: Placement = local,
) -> Method:
  """MoCo over `batch['views']` [B, 2, ...]: queries are of the first view, keys of the second.

  Args:
    net: x -> (representation, projection).
    temperature: 0.07 (v1) or 0.2 (v2).
    queue: rows of the queue, a multiple of the global batch (of twice that, if symmetric); None
      trains end to end, without a queue and a key encoder.
    momentum: of the key encoder.
    symmetric: also with the views swapped, the sum of both; all keys enter the queue.
    queue_axis: axis of the mesh over which the queue's rows are spread (with a rule such as
      ('queue/rows', 'data') in config.sharding); None keeps it whole on every device.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a number out of its range, a queue_axis without a queue; when the loss is traced, a
      queue_axis without a mesh that has it, or a queue that does not take whole batches.
  """
  if temperature <= 0 or not 0 <= momentum <= 1 or (queue is not None and queue < 1):
    raise ValueError('moco needs temperature > 0, momentum in [0, 1] and a queue of at least 1 row (or '
                     f'None), got {temperature}, {momentum} and {queue}')
  if queue_axis is not None and queue is None:
    raise ValueError(f'queue_axis is {queue_axis!r}, but there is no queue')
  if queue is None:
    return _end_to_end(net, temperature, symmetric, on_batch)
  train = on_batch.mode(train=True)
  contrast = on_batch(partial(queue_nce, temperature=temperature, queue_axis=queue_axis), shared=1,
                      shared_axis=queue_axis)
  put = partial(enqueue, axis_name=on_batch.axis_name)
  if queue_axis is not None:
    put = on_batch.manual(partial(enqueue, queue_axis=queue_axis), (queue_axis, ROWS, None), queue_axis)

  def init(key, batch):
    first, second = jax.random.split(key)
    view = batch['views'][:, 0]
    params, state = net.init(first, view)
    z = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1])
    rows = random_queue(second, queue, z.shape[1])
    return params, {'net': state, 'key': {'params': params, 'state': state}, 'queue': rows._asdict()}

  def loss(params, state, batch, *, key, step):
    del step
    # Not before: what was trained on one mesh may be used on another.
    if queue_axis is not None and queue_axis not in getattr(on_batch.mesh, 'axis_names', ()):
      raise ValueError(f'queue_axis is {queue_axis!r}, which is no axis of the mesh')
    keys, views = jax.random.split(key), batch['views']
    wanted = 2 if symmetric else 1
    slow = average(state['key']['params'], params, momentum)
    outputs, new = apply_views(net, params, state['net'], views[:, :wanted], train, key=keys[0],
                               separate=True)
    # The keys of view 2 (and 1): each query's partner.
    found, seen = apply_views(net, slow, state['key']['state'], views[:, ::-1][:, :wanted], train,
                              key=keys[1], separate=True)
    old = Queue(**state['queue'])
    value = sum(contrast(q, k, old.rows) for (_, q), (_, k) in zip(outputs, found))
    # Example-major: joining views along the rows would move rows between devices in the global view.
    fresh = jnp.stack([l2_normalize(k) for _, k in found], axis=1)
    fresh = jax.lax.stop_gradient(fresh.reshape(-1, fresh.shape[-1]))
    rows = put(old.rows, fresh, old.pointer)
    pointer = advanced(old.pointer, len(fresh) * axis_size(on_batch.axis_name), queue)
    return value, ({'net': new, 'key': {'params': slow, 'state': seen},
                    'queue': Queue(rows, pointer)._asdict()}, {})

  return Method(init, loss, **evaluated(net, train, state_in='net'))


def _end_to_end(net: Network, temperature: float, symmetric: bool, on_batch: Placement) -> Method:
  contrast = on_batch(partial(info_nce, temperature=temperature))
  train = on_batch.mode(train=True)

  def init(key, batch):
    params, state = net.init(key, batch['views'][:, 0])
    return params, {'net': state}

  def loss(params, state, batch, *, key, step):
    del step
    outputs, new = apply_views(net, params, state['net'], batch['views'], train, key=key,
                               separate=True)
    (_, q), (_, k) = outputs
    value = contrast(q, k) + (contrast(k, q) if symmetric else 0)
    return value, ({'net': new}, {})

  return Method(init, loss, **evaluated(net, train, state_in='net'))
