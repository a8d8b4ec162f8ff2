"""Many linear classifiers on the same frozen features, trained together by SGD.

  z_h = n(x) W_h + b_h,    g_h = grad of mean CE(z_h, y) + decay_h (W_h, b_h)
  v_h <- mu v_h + g_h,     (W_h, b_h) <- (W_h, b_h) - lr_h s(t) (g_h + mu v_h if Nesterov else v_h)

Heads differ in learning rate and decay. They see the same batches and start at the same weights, so
that a head's result does not depend on which others are trained beside it. One product
'bd,hcd->bhc' serves all, so that the features, most of the bytes, are read once. Where reading them
is the cost (an accelerator, and H * C of a few hundred) more heads are almost free; where the
products are (a CPU, or 1000 classes) a head costs what its multiplications cost. 32 heads of ten
classes beside one, batch 1024 of 2048 features: 1.6 times the bytes in libtpu's program for a v5e,
8.5 times the seconds on two AVX2 cores (`benchmarks/evals.py`).

n is the identity, x / |x|, or batch normalisation without parameters: the mean and variance of the
batch in training, running ones (momentum 0.1, epsilon 1e-6) afterwards, as in facebookresearch/mae
main_linprobe.py (He et al. 2021, arXiv:2111.06377, appendix A.1).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

MILESTONES = (0.6, 0.8)  # 'step' divides the rate by ten there: MoCo's epochs 60 and 80 of 100
BATCHNORM_MOMENTUM, BATCHNORM_EPSILON = 0.1, 1e-6
# Of the logits [rows, H, C] held at a time while measuring: 2^24 floats are 64 MB.
LOGITS = 2**24

Normalise = Literal['none', 'l2', 'batchnorm']


class Probes(NamedTuple):
  """H trained heads: weights [H, C, D], bias [H, C]; mean and variance [D], what n divides out
  ('batchnorm' only, else zeros and ones); loss [H], mean over the last epoch; all float32."""

  weights: jax.Array
  bias: jax.Array
  mean: jax.Array
  variance: jax.Array
  loss: jax.Array


class _Carry(NamedTuple):
  weights: tuple[jax.Array, jax.Array]  # [H, C, D] and [H, C]
  momentum: tuple[jax.Array, jax.Array]
  mean: jax.Array
  variance: jax.Array


def _moments(x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and (biased) variance of the rows that are real."""
  share = (real / jnp.sum(real))[:, None]
  mean = jnp.sum(share * x, axis=0)
  return mean, jnp.sum(share * (x - mean[None]) ** 2, axis=0)


def _batchnorm(x: jax.Array, mean: jax.Array, variance: jax.Array) -> jax.Array:
  return (x - mean[None]) * lax.rsqrt(variance + BATCHNORM_EPSILON)[None]


def _l2(x: jax.Array) -> jax.Array:
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.where(norm == 0, 1, norm)


def _step(carry: _Carry, features, labels, batch, *, rates, decays, momentum, nesterov, normalise):
  """One update; batch = (rows [B], real [B], factor of the rates). Gives loss sums [H]."""
  rows, real, factor = batch
  x, count = features[rows], jnp.sum(real)
  mean, variance = carry.mean, carry.variance
  if normalise == 'batchnorm':
    centre, spread = _moments(x, real)
    x = _batchnorm(x, centre, spread)
    keep = 1 - BATCHNORM_MOMENTUM
    mean = keep * mean + BATCHNORM_MOMENTUM * centre
    # torch keeps the unbiased variance.
    variance = keep * variance + BATCHNORM_MOMENTUM * spread * count / jnp.maximum(count - 1, 1)
  elif normalise == 'l2':
    x = _l2(x)
  weights, bias = carry.weights
  # On a TPU 'high' is three passes and exact to 2^-21, far below the noise of a batch. With D last
  # XLA's CPU product for ten columns takes 1.6 ms instead of 12 (gradient, 1024 x 2048).
  logits = jnp.einsum('bd,hcd->bhc', x, weights, precision='high') + bias[None]
  target = jax.nn.one_hot(labels[rows], bias.shape[-1])[:, None]
  losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(target * logits, axis=-1)
  error = (jax.nn.softmax(logits, axis=-1) - target) * (real / count)[:, None, None]
  grads = (jnp.einsum('bhc,bd->hcd', error, x, precision='high')
           + decays[:, None, None] * weights,
           jnp.sum(error, axis=0) + decays[:, None] * bias)
  trace = jax.tree.map(lambda v, g: momentum * v + g, carry.momentum, grads)
  turn = jax.tree.map(lambda v, g: g + momentum * v, trace, grads) if nesterov else trace
  rate = (factor * rates)[:, None]
  new = weights - rate[..., None] * turn[0], bias - rate * turn[1]
  return _Carry(new, trace, mean, variance), jnp.sum(losses * real[:, None], axis=0)


@partial(jax.jit, static_argnames=('momentum', 'nesterov', 'normalise'), donate_argnums=0)
def _epoch(carry, features, labels, order, factors, rates, decays, *, momentum, nesterov,
           normalise):
  """order: [steps, B], row numbers, -1 for none; factors: [steps]. -> (carry, loss [H])."""
  step = partial(_step, rates=rates, decays=decays, momentum=momentum, nesterov=nesterov,
                 normalise=normalise)
  real = (order >= 0).astype(jnp.float32)
  carry, sums = lax.scan(lambda carry, batch: step(carry, features, labels, batch), carry,
                         (jnp.maximum(order, 0), real, factors))
  return carry, jnp.sum(sums, axis=0) / jnp.sum(real)


def batch_shape(rows: int, batch_size: int) -> tuple[int, int]:
  """(steps, batch) of an epoch: every row once, in the nearest whole number of equal batches.

  1,281,167 rows by 256 are 5005 batches of 256, the last one not full; 50,000 by 4096 are 12 of
  4167. A small remainder would otherwise be a batch of its own, and its noise a full step.
  """
  steps = max(1, round(rows / batch_size))
  return steps, -(-rows // steps)


def epoch_order(rows: int, batch_size: int, *, seed: int, epoch: int) -> np.ndarray:
  """int32 [steps, B]: a permutation of the rows drawn from (seed, epoch); -1 for no row."""
  steps, batch = batch_shape(rows, batch_size)
  order = np.random.default_rng((seed, epoch)).permutation(rows).astype(np.int32)
  return np.pad(order, (0, steps * batch - rows), constant_values=-1).reshape(batch, steps).T


def rate_factors(schedule: str, steps: int, epochs: int) -> np.ndarray:
  """float32 [epochs, steps]: what the learning rates are multiplied with.

  'cosine' falls to 0 with every step; 'step' is divided by ten after 60 % and 80 % of the epochs.
  """
  if schedule == 'cosine':
    done = np.arange(steps * epochs).reshape(epochs, steps) / (steps * epochs)
    return ((1 + np.cos(np.pi * done)) / 2).astype(np.float32)
  passed = (np.arange(epochs)[:, None] >= np.array(MILESTONES) * epochs).sum(axis=1)
  return np.repeat(10.0 ** -passed[:, None], steps, axis=1).astype(np.float32)


def _heads(learning_rates, weight_decays) -> tuple[np.ndarray, np.ndarray]:
  rates = np.atleast_1d(np.asarray(learning_rates, np.float32))
  decays = np.asarray(weight_decays, np.float32)
  if rates.ndim != 1 or not rates.size or not (rates > 0).all():
    raise ValueError(f'expected positive learning rates, one per head, got {learning_rates}')
  if decays.shape not in ((), rates.shape) or not (decays >= 0).all():
    raise ValueError(f'expected a weight decay >= 0, or one for each of the {len(rates)} heads, '
                     f'got {weight_decays}')
  return rates, np.broadcast_to(decays, rates.shape)


def train_probes(features, labels, *, classes: int, learning_rates: Sequence[float],
                 weight_decays: float | Sequence[float] = 0.0, batch_size: int = 256,
                 epochs: int = 100, momentum: float = 0.9, nesterov: bool = False,
                 schedule: Literal['cosine', 'step'] = 'cosine', normalise: Normalise = 'none',
                 initial_std: float = 0.0, seed: int = 0) -> Probes:
  """Trains one head per learning rate on cached features, all in the same pass.

  Args:
    features: [N, D] float32; or a function of the epoch that gives (features [N, D], labels [N])
      with the same N every time, for features of augmented images (`labels` is then None).
    labels: [N], integers in [0, classes).
    classes: C.
    learning_rates: [H], at the start of the schedule.
    weight_decays: one for all heads or [H]; of weights and bias, inside of the momentum (torch).
    batch_size: nominal; see `batch_shape`.
    epochs: passes over the rows, in an order drawn from (seed, epoch).
    momentum, nesterov: as in torch.optim.SGD.
    schedule: see `rate_factors`.
    normalise: n; the first lines of this file.
    initial_std: of the normal weights that all heads start from; the bias starts at 0.
    seed: of the weights and the order.

  Raises:
    ValueError: rates, decays, sizes or names that do not make sense; features that change N.
  """
  rates, decays = _heads(learning_rates, weight_decays)
  if batch_size < 1 or epochs < 1:
    raise ValueError(f'expected batch_size and epochs >= 1, got {batch_size} and {epochs}')
  if schedule not in ('cosine', 'step') or normalise not in ('none', 'l2', 'batchnorm'):
    raise ValueError(f"schedule is 'cosine' or 'step', normalise is 'none', 'l2' or 'batchnorm'; "
                     f'got {schedule!r} and {normalise!r}')
  source = features if callable(features) else _cached(features, labels)
  first = source(0)
  rows, width = first[0].shape
  factors = rate_factors(schedule, batch_shape(rows, batch_size)[0], epochs)
  carry = _start(width, len(rates), classes, initial_std, seed)
  rates, decays = jax.device_put((rates, decays))
  for epoch in range(epochs):
    data = first if epoch == 0 else source(epoch)
    if data[0].shape != (rows, width):
      raise ValueError(f'epoch 0 had features {(rows, width)}, epoch {epoch} {data[0].shape}')
    order = epoch_order(rows, batch_size, seed=seed, epoch=epoch)
    carry, loss = _epoch(carry, *jax.device_put((*data, order, factors[epoch])), rates, decays,
                         momentum=momentum, nesterov=nesterov, normalise=normalise)
  return Probes(*carry.weights, carry.mean, carry.variance, loss)


def _cached(features, labels) -> Callable:
  data = jax.device_put((np.asarray(features, np.float32), np.asarray(labels, np.int32)))
  return lambda epoch: data


def _start(width: int, heads: int, classes: int, std: float, seed: int) -> _Carry:
  # 2^31 is no epoch: the weights do not share their random numbers with an order.
  one = std * np.random.default_rng((seed, 2**31)).normal(size=(classes, width))
  zeros = lambda: (np.zeros((heads, classes, width), np.float32),
                   np.zeros((heads, classes), np.float32))
  weights = zeros()
  weights[0][:] = one[None]
  return jax.device_put(_Carry(weights, zeros(), np.zeros(width, np.float32),
                               np.ones(width, np.float32)))


@partial(jax.jit, static_argnames=('normalise',))
def _ranks(probes: Probes, x, labels, *, normalise):
  """int32 [H, rows]: how many classes come before the right one; C where logits are not finite."""
  if normalise == 'batchnorm':
    x = _batchnorm(x, probes.mean, probes.variance)
  elif normalise == 'l2':
    x = _l2(x)
  logits = jnp.einsum('bd,hcd->hbc', x, probes.weights, precision='highest')
  logits += probes.bias[:, None]
  classes = jnp.arange(logits.shape[-1])[None, None]
  right = labels[None, :, None]
  own = jnp.sum(jnp.where(classes == right, logits, 0), axis=-1, keepdims=True)
  before = (logits > own) | ((logits == own) & (classes < right))
  finite = jnp.all(jnp.isfinite(logits), axis=-1)
  # A head that diverged compares false with everything, and would look always right.
  return jnp.where(finite, jnp.sum(before, axis=-1), logits.shape[-1])


def probe_accuracies(probes: Probes, features, labels, *, top: int = 1,
                     normalise: Normalise = 'none') -> np.ndarray:
  """float64 [H]: the share of rows whose class is among the `top` first; ties to the lowest class.

  A head that diverged (logits that are not finite) is never right.
  """
  features, labels = np.asarray(features, np.float32), np.asarray(labels, np.int32)
  heads, classes, _ = probes.weights.shape
  chunk = max(1, min(len(features), LOGITS // (heads * classes)))
  ranks = []
  for start in range(0, len(features), chunk):
    piece = features[start:start + chunk], labels[start:start + chunk]
    padding = chunk - len(piece[0])  # one shape, one compilation
    arrays = np.pad(piece[0], ((0, padding), (0, 0))), np.pad(piece[1], (0, padding))
    ranked = jax.device_get(_ranks(probes, *jax.device_put(arrays), normalise=normalise))
    ranks.append(ranked[:, :len(piece[0])])
  return np.mean(np.concatenate(ranks, axis=1) < top, axis=1)
