"""Instance discrimination: every example is a class of its own, its weights a row of a memory bank.

  P(i | v) = exp(v.row_i / T) / Z,   v = g(f(t(x))) / |.|
  nce:     -log P(i | v) / (P(i | v) + K/n) - sum_k log (K/n) / (P(j_k | v) + K/n)
           with K rows j_k drawn of n; Z is a constant, n times the mean of exp(v.row / T) in the
           first batch
  softmax: -log P(i | v), with Z over the whole bank, or over one's own row and K drawn ones
  row_i <- m row_i + (1 - m) v, to unit length, after the loss

Optionally plus lambda |v - row_i|^2, the paper's proximal term. The softmax over drawn rows is what
the authors' later release and MoCo's comparison ("memory bank") use. The representation is f(x).

Reference: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
arXiv:1805.01978; https://github.com/zhirongw/lemniscate.pytorch
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.memory.bank import bank_lse, bank_scores, random_bank, write_bank
from ssl_jax.models.network import apply_views, evaluated
from ssl_jax.parallel import ROWS, Placement, axis_index, local, pmean
from ssl_jax.types import AxisName, Method, Mode, Network

# New rows gathered into the bank; the sums of gradients, of BatchNorm statistics and of the loss.
COLLECTIVES = frozenset({'all-gather', 'all-reduce'})
SEPARATE_VIEWS = True
OBJECTIVES = ('nce', 'softmax')


def build(
    net: Network, *, examples: int, objective: str = 'nce', negatives: int | None = 4096,
    temperature: float = 0.07, momentum: float = 0.5, proximal: float = 0.0,
    bank_axis: str | None = None, on_batch: Placement = local,
) -> Method:
  """Instance discrimination over the first of `batch['views']` [B, V, ...] and `batch['id']` [B].

  Args:
    net: x -> (representation, projection).
    examples: n, of the training data; ids are below it.
    objective: 'nce' (the paper) or 'softmax'.
    negatives: K, rows drawn uniformly for each example, perhaps its own too; None is the whole
      bank, for the softmax.
    temperature: T.
    momentum: m, of a row of the bank.
    proximal: lambda.
    bank_axis: axis of the batch over which the bank's rows are spread (with a rule such as
      ('bank', 'data') in config.sharding); None keeps it whole on every device.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: an argument out of its range; when the loss is traced, a bank_axis over which there
      are no batches, or whose devices do not divide n.
  """
  _check(examples, objective, negatives, temperature, momentum, proximal)
  train = on_batch.mode(train=True)
  draw = partial(_scores, draws=negatives or 0, examples=examples, bank_axis=bank_axis)
  score = on_batch.manual(draw, (bank_axis, ROWS, ROWS, None), ROWS)
  lse = on_batch.manual(partial(bank_lse, bank_axis=bank_axis), (bank_axis, ROWS), ROWS)
  put = partial(write_bank, momentum=momentum, axis_name=on_batch.axis_name)
  if bank_axis is not None:
    put = on_batch.manual(partial(write_bank, momentum=momentum, bank_axis=bank_axis),
                          (bank_axis, ROWS, ROWS), bank_axis)
  mean = lambda x: pmean(jnp.mean(x), on_batch.axis_name)

  def init(key, batch):
    first, second = jax.random.split(key)
    view = batch['views'][:, 0]
    params, state = net.init(first, view)
    z = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1])
    state = {'net': state, 'bank': random_bank(second, examples, z.shape[1])}
    # 0: not known before the first batch.
    return params, state | ({'z': jnp.zeros(())} if objective == 'nce' else {})

  def loss(params, state, batch, *, key, step):
    del step
    _check_axis(bank_axis, examples, on_batch)
    keys, ids = jax.random.split(key), batch['id']
    outputs, new = apply_views(net, params, state['net'], batch['views'][:, :1], train, key=keys[0],
                               separate=True)
    v = l2_normalize(outputs[0][1])
    scores = score(state['bank'], v, ids, keys[1])
    logits, new = scores / temperature, {'net': new, 'bank': put(state['bank'], ids, v)}
    if objective == 'nce':
      fresh = jax.lax.stop_gradient(examples * mean(jnp.exp(logits)))
      new['z'] = jnp.where(state['z'] > 0, state['z'], fresh.astype(state['z'].dtype))
      losses = nce(logits - jnp.log(new['z']), math.log(negatives / examples))
    elif negatives is None:
      losses = lse(state['bank'], v / temperature) - logits[:, 0]
    else:
      losses = jax.nn.logsumexp(logits, axis=1) - logits[:, 0]
    # The square of the distance of unit vectors.
    return mean(losses + proximal * (2 - 2 * scores[:, 0])), (new, {})

  return Method(init, loss, **evaluated(net, train, state_in='net'))


def nce(log_p: jax.Array, log_noise: float) -> jax.Array:
  """Noise-contrastive estimation, [B]: the first column is data, the others are noise.

  Args:
    log_p: [B, 1 + K], logarithms of the model's probabilities.
    log_noise: log (K/n), of K draws of a uniform distribution over n.
  """
  # -log p / (p + c) = log(1 + c / p), and -log c / (p + c) = log(1 + p / c).
  data, noise = log_noise - log_p[:, 0], log_p[:, 1:] - log_noise
  return jax.nn.softplus(data) + jnp.sum(jax.nn.softplus(noise), axis=1)


def _scores(bank, v, ids, key, *, draws: int, examples: int, bank_axis: AxisName,
            axis_name: AxisName):
  """[B, 1 + draws]: v times its own row and drawn ones, by the row of the global batch."""
  rows = ids[:, None].astype(jnp.int32)
  if draws:
    place = jnp.arange(len(ids)) + axis_index(axis_name) * len(ids)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(place)
    drawn = jax.vmap(lambda k: jax.random.randint(k, (draws,), 0, examples, jnp.int32))(keys)
    rows = jnp.concatenate([rows, drawn], axis=1)
  return bank_scores(bank, v, rows, bank_axis=bank_axis)


def _check(examples, objective, negatives, temperature, momentum, proximal) -> None:
  if objective not in OBJECTIVES:
    raise ValueError(f'objective must be one of {OBJECTIVES}, got {objective!r}')
  if objective == 'nce' and negatives is None:
    raise ValueError("objective='nce' needs a number of negatives; the whole bank is for 'softmax'")
  if examples < 1 or (negatives is not None and negatives < 1):
    raise ValueError(f'expected at least 1 example and 1 negative, got {examples} and {negatives}')
  if temperature <= 0 or not 0 <= momentum <= 1 or proximal < 0:
    raise ValueError('instance_discrimination needs temperature > 0, momentum in [0, 1] and proximal '
                     f'>= 0, got {temperature}, {momentum} and {proximal}')


def _check_axis(bank_axis: str | None, examples: int, on_batch: Placement) -> None:
  """When the loss is traced: what was trained on one mesh may be used on another."""
  if bank_axis is None:
    return
  if on_batch.mesh is None or bank_axis not in on_batch.axes:
    raise ValueError(f'bank_axis is {bank_axis!r}, over which no batch is spread')
  devices = on_batch.mesh.shape[bank_axis]
  if examples % devices:
    raise ValueError(f'a bank of {examples} rows does not spread over the {devices} devices of '
                     f'{bank_axis!r}; use bank_axis=None')
