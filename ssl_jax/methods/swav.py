"""SwAV: the code of a view, an even assignment to prototypes, is predicted from its other crops.

  z = g(f(x)) / |.|,   codes q = sinkhorn(z C) of the large crops over the whole batch, no gradient
  loss = -mean over (large crop s, other crop t) of sum_k q_sk log softmax(z_t C / T)_k

The prototypes C are unit columns, frozen at the start. Codes of small batches are evened out with a
queue of earlier embeddings. Crops of one size go through the network together; the reference then puts
those of both sizes through the head together, whose BatchNorm here sees one size at a time. The
representation is f(x).

Reference: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments,
arXiv:2006.09882; https://github.com/facebookresearch/swav
"""

from functools import partial

import jax
import jax.numpy as jnp

from ssl_jax.losses.all_pairs import product
from ssl_jax.losses.clustering import sinkhorn, swapped_prediction
from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.memory.queue import advanced, enqueue
from ssl_jax.models.network import apply_crops, evaluated
from ssl_jax.parallel import Placement, axis_size, local
from ssl_jax.types import Method, Mode, Network

# Embeddings gathered into the queue; the sums of gradients, of BatchNorm statistics and of codes.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})


def build(
    net: Network, *, prototypes: int = 3000, temperature: float = 0.1, epsilon: float = 0.05,
    iterations: int = 3, queue: int = 0, queue_from_epoch: float = 15.,
    freeze_prototypes_steps: int = 313, steps_per_epoch: int | None = None,
    on_batch: Placement = local,
) -> Method:
  """SwAV over `batch['views']` [B, C, ...] and, if there are any, `batch['local_views']` [B, L, ...].

  Args:
    net: x -> (representation, projection of norm 1).
    prototypes: their number, K.
    temperature: of the prediction.
    epsilon, iterations: of `losses.clustering.sinkhorn`.
    queue: embeddings kept for each of the C views, a multiple of the global batch; 0 is without. The
      paper: 3840 for batches of 256.
    queue_from_epoch: when it starts to count, if it is full by then.
    freeze_prototypes_steps: the paper's are 313 for batches of 4096 and 5005 for 256.
    steps_per_epoch: of the run; needed with a queue.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a number out of its range, a queue without `steps_per_epoch`; at tracing, a queue that
      does not take whole batches.
  """
  _check(prototypes, temperature, epsilon, queue)
  if queue and steps_per_epoch is None:
    raise ValueError('a queue needs steps_per_epoch, to know when it starts to count')
  train = on_batch.mode(train=True)
  code = partial(sinkhorn, epsilon=epsilon, iterations=iterations, axis_name=on_batch.axis_name)
  put = jax.vmap(partial(enqueue, axis_name=on_batch.axis_name), (0, 0, None))

  def init(key, batch):
    first, second = jax.random.split(key)
    view = batch['views'][:, 0]
    params, state = net.init(first, view)
    width = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1]).shape[1]
    columns = l2_normalize(jax.random.normal(second, (prototypes, width))).T
    state = {'net': state}
    if queue:
      rows = jnp.zeros((batch['views'].shape[1], queue, width), columns.dtype)
      state |= {'queue': {'rows': rows, 'pointer': jnp.zeros((), jnp.int32)}}
    return {'net': params, 'prototypes': columns}, state

  def codes(state, scores, columns, step):
    """[B, C, K] of scores [B, C, K]."""
    alone = jax.vmap(code, 1, 1)(scores)
    if not queue:
      return alone
    rows = state['queue']['rows']
    more = product('cqd,dk->cqk', rows, columns)
    beside = jax.vmap(lambda s, m: code(s, more=m), (1, 0), 1)(scores, more)
    # Rows that were written have norm 1, and the last one is written last.
    full = jnp.any(rows[:, -1] != 0)
    return jnp.where(full & (step >= queue_from_epoch * steps_per_epoch), beside, alone)

  def queued(old, z):
    """The queue after the embeddings z [B, C, D]."""
    pointer, new = old['pointer'], len(z) * axis_size(on_batch.axis_name)
    rows = put(old['rows'], jnp.moveaxis(z, 1, 0), pointer)
    return {'rows': rows, 'pointer': advanced(pointer, new, queue)}

  def loss(params, state, batch, *, key, step):
    outputs, new = apply_crops(net, params['net'], state['net'], batch, train, key=key)
    z = jnp.stack([z for _, z in outputs], axis=1)
    scores = product('bvd,dk->bvk', z, params['prototypes'])
    coded = batch['views'].shape[1]
    found = codes(state, scores[:, :coded], params['prototypes'], step)
    value = swapped_prediction(scores, found, temperature=temperature, axis_name=on_batch.axis_name)
    state = {**state, 'net': new}
    if queue:
      state['queue'] = queued(state['queue'], z[:, :coded])
    return value, (state, {})

  def after(params, state, step):
    return {**params, 'prototypes': l2_normalize(params['prototypes'].T).T}, state

  def frozen(params, step):
    still = jax.tree.map(lambda _: False, params)
    return {**still, 'prototypes': step < freeze_prototypes_steps}

  return Method(init, loss, after=after, frozen=frozen,
                **evaluated(net, train, params_in='net', state_in='net'))


def _check(prototypes, temperature, epsilon, queue):
  if prototypes < 2 or temperature <= 0 or epsilon <= 0 or queue < 0:
    raise ValueError('swav needs at least 2 prototypes, temperature and epsilon > 0 and a queue of at '
                     f'least 0 rows, got {prototypes}, {temperature}, {epsilon} and {queue}')
