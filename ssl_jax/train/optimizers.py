"""LARS, LAMB, AdamW and SGD that leave biases and norms alone, as optax transformations.

LARS (You et al. 2017, arXiv:1708.03888) gives every parameter tensor w, with gradient g, a rate q:

  u = q (g + beta w)
  q = eta |w| / |g + beta w|      (joint)        v <- mu v + lr u,  w <- w - v      (lr inside)
  q = eta |w| / (|g| + beta |w|)  (split)        v <- mu v + u,     w <- w - lr v   (lr outside)

lr inside or outside of the momentum is the same until lr changes; then `inside` still moves at the
rates of earlier steps. google-research/simclr is joint and inside; BYOL, MoCo-v3, Barlow Twins,
VICReg and MAE are joint and outside; apex's LARC (SwAV) and lightly are split and outside.

LAMB (You et al. 2020, arXiv:1904.00962) does the same to Adam's step. At update t = 1, 2, ...:

  m <- b1 m + (1 - b1) g                  m' = m / (1 - b1^t)
  v <- b2 v + (1 - b2) g^2                v' = v / (1 - b2^t)
  u = m' / (sqrt(v') + eps) + beta w      w <- w - lr (|w| / |u|) u

Without bias correction m' = m and v' = v (BERT's AdamW, ALBERT's LAMB).

A tensor is a leaf of the parameters, but where layers are scanned, and so stacked along the first
axis, it is one layer of the leaf: those are the leaves below a module called 'scanned'. A run with
`scan` is then the same run as without.

Every optimizer here computes and keeps its state in float32 or better, works on any pytree, and
keeps state whose paths end in the parameter's path, so that one sharding rule covers both.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.parallel import path_name
from ssl_jax.train import schedules
from ssl_jax.types import PyTree

LearningRate = float | schedules.Schedule
# (name of the leaf such as 'encoder/conv/bias', leaf) -> whether the leaf is left alone
Predicate = Callable[[str, jax.Array], bool]


# --- which leaves are left alone ------------------------------------------------------------------


def _stacked(name: str) -> bool:
  """Whether the first axis of the leaf counts the layers of a scan."""
  return 'scanned' in name.split('/')


def bias_and_norm(name: str, leaf: jax.Array) -> bool:
  """Biases and gains of norms, by name: in a stack of scanned layers they have two dimensions."""
  return name.rsplit('/', 1)[-1] in ('bias', 'scale')


def one_dimensional(name: str, leaf: jax.Array) -> bool:
  """Vectors and scalars whatever their name, as in MoCo-v3, Barlow Twins and VICReg."""
  return jnp.ndim(leaf) - _stacked(name) <= 1


def nothing(name: str, leaf: jax.Array) -> bool:
  return False


EXCLUDE = {'bias_and_norm': bias_and_norm, 'one_dimensional': one_dimensional, 'nothing': nothing}


def _predicate(exclude: str | Predicate) -> Predicate:
  if callable(exclude):
    return exclude
  if exclude not in EXCLUDE:
    raise ValueError(f'unknown exclude {exclude!r}; choose from {sorted(EXCLUDE)}, or give a '
                     f'function (name, leaf) -> bool')
  return EXCLUDE[exclude]


def excluded(tree: PyTree, exclude: str | Predicate = 'bias_and_norm') -> PyTree:
  """A tree of bool in the shape of `tree`: which leaves get no weight decay (and no rate)."""
  predicate = _predicate(exclude)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: bool(predicate(path_name(path), leaf)), tree)


# --- what all of them share -----------------------------------------------------------------------


def _at_least_float32(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def _composed(clip_norm: float | None, *transforms) -> optax.GradientTransformation:
  """Clips, then applies `transforms`; bfloat16 gradients and parameters are raised first.

  The updates stay float32: `optax.apply_updates` adds them before it rounds to the parameter's
  dtype.
  """
  clip = () if clip_norm is None else (optax.clip_by_global_norm(clip_norm),)
  chain = optax.chain(*clip, *transforms)

  def update(grads, state, params):
    return chain.update(_at_least_float32(grads), state, _at_least_float32(params))

  return optax.GradientTransformation(lambda params: chain.init(_at_least_float32(params)), update)


def _decay(
    weight_decay: float | schedules.Schedule, exclude: str | Predicate
) -> optax.GradientTransformation:
  _predicate(exclude)  # a wrong name is an error now, not at the first step
  return optax.add_decayed_weights(
    weight_decay, lambda tree: jax.tree.map(lambda left_alone: not left_alone,
                                            excluded(tree, exclude)))


def _clip_each(largest: float) -> optax.GradientTransformation:
  """Every tensor of a gradient shortened by itself where it is longer than `largest`, as in DINO's
  code; `clip_norm` keeps the direction of the whole."""
  def clipped(path, g):
    norm = _norm(g, _stacked(path_name(path)))
    return jnp.minimum(1, largest / (norm + 1e-6)).astype(g.dtype) * g

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(clipped, updates))


def _norm(x: jax.Array, stacked: bool) -> jax.Array:
  """|x| with as many axes as x, all of size 1; of a stack one norm per layer, [layers, 1, ...]."""
  # No ravel, as jnp.linalg.norm does: reshaping a sharded array would gather it on every device.
  axes = tuple(range(int(stacked), x.ndim))
  return jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True))


def _norms(x: jax.Array, name: str, split_qkv: bool) -> jax.Array:
  """`_norm` of the leaf of this name; of a fused q, k and v three norms, each where its third is."""
  if not (split_qkv and 'qkv' in name.split('/')):
    return _norm(x, _stacked(name))
  thirds = jnp.split(x, 3, axis=-1)
  parts = [jnp.broadcast_to(_norm(third, _stacked(name)), third.shape) for third in thirds]
  return jnp.concatenate(parts, axis=-1)


def _schedule(learning_rate: LearningRate) -> schedules.Schedule:
  return learning_rate if callable(learning_rate) else schedules.constant(learning_rate)


# --- LARS -----------------------------------------------------------------------------------------


class LarsState(NamedTuple):
  """count: updates made, int32 []; momentum: like the parameters, float32 or better."""

  count: jax.Array
  momentum: PyTree


def _adapt(g, w, *, stacked, weight_decay, trust_coefficient, denominator, epsilon):
  """q (g + beta w); where a norm is 0 there is no rate to compute, and the references use q = 1."""
  decayed = g + weight_decay * w
  w_norm = _norm(w, stacked)
  if denominator == 'joint':
    g_norm = below = _norm(decayed, stacked)
    fallback = decayed
  else:
    g_norm = _norm(g, stacked)
    below = g_norm + weight_decay * w_norm
    fallback = g  # LARC and lightly then leave out the decay as well
  defined = (w_norm > 0) & (g_norm > 0)
  ratio = trust_coefficient * w_norm / jnp.where(defined, below + epsilon, 1)
  return jnp.where(defined, ratio * decayed, fallback)


def lars(
    learning_rate: LearningRate,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-6,
    trust_coefficient: float = 0.001,
    exclude: str | Predicate = 'bias_and_norm',
    nesterov: bool = False,
    learning_rate_inside: bool = True,
    denominator: str = 'joint',
    epsilon: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """Layer-wise adaptive rates; the equations stand at the top of this file.

  Leaves that `exclude` names get neither decay nor a rate of their own: plain momentum.
  A stack of scanned layers has one rate per layer. (`optax.lars` excludes nothing by default, and
  a stack has one rate.)

  Args:
    learning_rate: a number, or a schedule of the number of updates made so far.
    exclude: 'bias_and_norm', 'one_dimensional', 'nothing', or (name, leaf) -> bool.
    learning_rate_inside: whether the momentum sums rates times gradients (simclr) or gradients.
    denominator: 'joint', |g + beta w|, or 'split', |g| + beta |w|.
    epsilon: added to the denominator; 0 in simclr and its followers, 1e-8 in LARC and lightly.
    clip_norm: largest global norm of the gradient, before everything else; None does not clip.

  Raises:
    ValueError: an unknown `exclude` or `denominator`.
  """
  predicate = _predicate(exclude)
  if denominator not in ('joint', 'split'):
    raise ValueError(f"unknown denominator {denominator!r}; choose from ('joint', 'split')")
  schedule = _schedule(learning_rate)

  def init(params):
    return LarsState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def direction(path, g, w):
    name = path_name(path)
    if predicate(name, w):
      return g
    return _adapt(
      g, w, stacked=_stacked(name), weight_decay=weight_decay,
      trust_coefficient=trust_coefficient, denominator=denominator, epsilon=epsilon)

  def update(grads, state, params):
    rate = schedule(state.count)
    inside, outside = (rate, 1) if learning_rate_inside else (1, rate)
    steps = jax.tree_util.tree_map_with_path(direction, grads, params)
    steps = jax.tree.map(lambda u: (inside * u).astype(u.dtype), steps)
    trace = jax.tree.map(lambda v, u: momentum * v + u, state.momentum, steps)
    ahead = jax.tree.map(lambda v, u: momentum * v + u, trace, steps) if nesterov else trace
    updates = jax.tree.map(lambda v: (-outside * v).astype(v.dtype), ahead)
    return updates, LarsState(optax.safe_increment(state.count), trace)

  return _composed(clip_norm, optax.GradientTransformation(init, update))


# --- Adam and LAMB --------------------------------------------------------------------------------


def _scale_by_adam(
    b1: float, b2: float, epsilon: float, bias_correction: bool
) -> optax.GradientTransformation:
  """m' / (sqrt(v') + eps); the state is the same with and without bias correction."""
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon)
  if bias_correction:
    return adam

  def update(grads, state, params=None):
    _, state = adam.update(grads, state, params)  # XLA drops the step, of which nothing is used
    return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), state.mu, state.nu), state

  return optax.GradientTransformation(adam.init, update)


def _scale_to_parameters(exclude: str | Predicate, split_qkv: bool) -> optax.GradientTransformation:
  """u -> (|w| / |u|) u; excluded leaves, and tensors where one of the two norms is 0, keep u."""
  predicate = _predicate(exclude)

  def scaled(path, u, w):
    name = path_name(path)
    if predicate(name, w):
      return u
    w_norm, u_norm = (_norms(x, name, split_qkv) for x in (w, u))
    defined = (w_norm > 0) & (u_norm > 0)
    return jnp.where(defined, w_norm / jnp.where(defined, u_norm, 1), 1) * u

  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(scaled, updates, params))


def adamw(
    learning_rate: LearningRate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    exclude: str | Predicate = 'bias_and_norm',
    bias_correction: bool = True,
    clip_norm: float | None = None,
    clip_per_tensor: float | None = None,
    final_weight_decay: float | None = None,
    steps: int | None = None,
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay, w <- w - lr (m' / (sqrt(v') + eps) + beta w), as in torch.

  References: Loshchilov and Hutter 2019 (arXiv:1711.05101); the decay is multiplied by the rate.
  MAE's are b2=0.95, weight_decay=0.05. BERT's (google-research/bert, `optimization.py`) and
  ELECTRA's are bias_correction=False, epsilon=1e-6, clip_norm=1; embeddings are decayed. RoBERTa's
  (fairseq) are b2=0.98, epsilon=1e-6, exclude='nothing'. DINO's are clip_per_tensor=3,
  weight_decay=0.04, final_weight_decay=0.4, exclude='one_dimensional'.

  Args:
    bias_correction: whether m and v are divided by 1 - b^t; without it the first steps are longer,
      by (1 - b1^t) / sqrt(1 - b2^t): 3.2 times at t = 1 and 6.5 at t = 10.
    clip_per_tensor: largest norm of each tensor of the gradient; None does not clip.
    final_weight_decay: where the decay goes, along half a cosine, by the end of the run; None keeps it.
    steps: of the run, for `final_weight_decay`.
    learning_rate, exclude, clip_norm: as in `lars`.

  Raises:
    ValueError: an unknown `exclude`, or a `final_weight_decay` without `steps`.
  """
  if final_weight_decay is not None:
    if steps is None:
      raise ValueError('final_weight_decay needs the number of steps of the run')
    weight_decay = schedules.warmup_cosine(weight_decay, steps=steps, final=final_weight_decay)
  return _composed(
    clip_norm,
    *(() if clip_per_tensor is None else (_clip_each(clip_per_tensor),)),
    _scale_by_adam(b1, b2, epsilon, bias_correction),
    _decay(weight_decay, exclude),
    optax.scale_by_learning_rate(_schedule(learning_rate)))


def lamb(
    learning_rate: LearningRate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-6,
    weight_decay: float = 0.01,
    exclude: str | Predicate = 'bias_and_norm',
    bias_correction: bool = True,
    split_qkv: bool = False,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW with steps as long as their tensor; the equations stand at the top of this file.

  The defaults are those of the MLPerf reference (`lamb_optimizer_v1.py`), which also has
  clip_norm=1; ALBERT's are the same with bias_correction=False. As there, leaves that `exclude`
  names get neither decay nor a ratio (`optax.lamb(mask=...)` spares them the decay only), a tensor
  or step of zeros has ratio 1, and a stack of scanned layers has one ratio per layer.

  Args:
    split_qkv: leaves below a module called 'qkv' hold three tensors side by side, queries, keys and
      values, with a ratio each, as BERT, ALBERT and the MLPerf reference keep them apart; where False
      the fused kernel of our Transformer has one ratio.
    bias_correction: as in `adamw`.
    learning_rate, exclude, clip_norm: as in `lars`.

  Raises:
    ValueError: an unknown `exclude`.
  """
  return _composed(
    clip_norm,
    _scale_by_adam(b1, b2, epsilon, bias_correction),
    _decay(weight_decay, exclude),
    _scale_to_parameters(exclude, split_qkv),
    optax.scale_by_learning_rate(_schedule(learning_rate)))


# --- SGD ------------------------------------------------------------------------------------------


def sgd(
    learning_rate: LearningRate,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    exclude: str | Predicate = 'bias_and_norm',
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """v <- mu v + g + beta w, w <- w - lr v: the decay enters the momentum, as in torch.

  Arguments as in `lars`. MoCo v1, v2 and SimSiam decay everything: exclude='nothing'.
  """
  return _composed(
    clip_norm,
    _decay(weight_decay, exclude),
    optax.trace(decay=momentum, nesterov=nesterov),
    optax.scale_by_learning_rate(_schedule(learning_rate)))


OPTIMIZERS = {'lars': lars, 'lamb': lamb, 'adamw': adamw, 'sgd': sgd}
