"""DINO: a student predicts from all crops what its slow average, the teacher, says of the large ones.

  loss = -mean over (large crop s, other crop t) of sum_k p_sk log softmax(g(t) / T_s)_k
  p_s = softmax((g'(s) - c) / T_t), no gradient
  c <- m c + (1 - m) mean of g' over the batch, after the loss;   T_t grows along a line at first
  teacher <- tau teacher + (1 - tau) student after the optimizer, tau from tau_0 to 1 along a cosine

Crops of one size go through the network together. The last layer is frozen at first. The teacher's
BatchNorm, if there is any, sees its own batches; a teacher without BatchNorm runs without dropout. The
representation is the teacher's f'(x), as in the reference's evaluation.

Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, arXiv:2104.14294;
https://github.com/facebookresearch/dino
"""

import jax
import jax.numpy as jnp

from ssl_jax.losses import distillation
from ssl_jax.memory.average import average
from ssl_jax.memory.center import follow
from ssl_jax.memory.schedules import schedule
from ssl_jax.models.network import apply_crops, apply_views, evaluated
from ssl_jax.parallel import Placement, local, path_name
from ssl_jax.types import Method, Mode, Network

# The sums of gradients, of BatchNorm statistics, of the loss and of the centre.
COLLECTIVES = frozenset({'all-reduce'})

# Parameters of `heads.dino` that are its last layer.
LAST_LAYER = ('head/prototypes', 'head/g')


def build(
    net: Network, *, momentum: float = 0.996, momentum_schedule: str = 'cosine',
    student_temperature: float = 0.1, teacher_temperature: float = 0.07,
    warmup_teacher_temperature: float = 0.04, warmup_teacher_epochs: float = 30.,
    center_momentum: float = 0.9, freeze_last_layer_epochs: float = 1., steps: int | None = None,
    steps_per_epoch: int | None = None, on_batch: Placement = local,
) -> Method:
  """DINO over `batch['views']` [B, C, ...] and, if there are any, `batch['local_views']` [B, L, ...].

  Args:
    net: x -> (representation, logits); with the head `dino` its last layer is known.
    momentum: tau_0, of the teacher.
    momentum_schedule: 'cosine' to 1 at the end of the run, 'linear', or 'constant'.
    student_temperature: T_s.
    teacher_temperature: T_t after its warm-up.
    warmup_teacher_temperature: T_t at the start.
    warmup_teacher_epochs: length of the warm-up; the reference takes its steps once per epoch.
    center_momentum: m.
    freeze_last_layer_epochs: for how long the last layer keeps its initial values.
    steps: of the run. steps_per_epoch: of the run.
    on_batch: see `ssl_jax.parallel`.

  Raises:
    ValueError: a number out of its range, or no `steps` or `steps_per_epoch` where one is needed.
  """
  _check(momentum, center_momentum, student_temperature, teacher_temperature,
         warmup_teacher_temperature)
  if steps_per_epoch is None and (warmup_teacher_epochs or freeze_last_layer_epochs):
    raise ValueError('a warm-up or a frozen last layer in epochs needs steps_per_epoch')
  epoch = steps_per_epoch or 0
  tau = schedule(momentum_schedule, momentum, 1., steps)
  warmup = max(1, round(warmup_teacher_epochs * epoch))
  start = warmup_teacher_temperature if warmup_teacher_epochs else teacher_temperature
  sharpness = schedule('linear', start, teacher_temperature, warmup)
  train = on_batch.mode(train=True)

  def init(key, batch):
    view = batch['views'][:, 0]
    params, state = net.init(key, view)
    z = jax.eval_shape(lambda: net.apply(params, state, view, Mode())[0][1])
    return params, {'net': state, 'teacher': {'params': params, 'state': state},
                    'center': jnp.zeros(z.shape[1:], z.dtype)}

  def teach(teacher, views, key):
    """(logits [B, C, K], the teacher's new state) without gradient."""
    mode = train if jax.tree.leaves(teacher['state']) else on_batch.mode()
    outputs, seen = apply_views(net, teacher['params'], teacher['state'], views, mode, key=key)
    return jax.lax.stop_gradient(jnp.stack([z for _, z in outputs], axis=1)), seen

  def loss(params, state, batch, *, key, step):
    first, second = jax.random.split(key)
    said, seen = teach(state['teacher'], batch['views'], first)
    outputs, new = apply_crops(net, params, state['net'], batch, train, key=second)
    guessed = jnp.stack([z for _, z in outputs], axis=1)
    value = distillation.dino(
      guessed, said, student_temperature=student_temperature, teacher_temperature=sharpness(step),
      center=state['center'], axis_name=on_batch.axis_name)
    center = follow(state['center'], said, momentum=center_momentum, axis_name=on_batch.axis_name)
    return value, ({'net': new, 'teacher': {**state['teacher'], 'state': seen}, 'center': center}, {})

  def after(params, state, step):
    slow = average(state['teacher']['params'], params, tau(step))
    return params, {**state, 'teacher': {**state['teacher'], 'params': slow}}

  def frozen(params, step):
    now = step < freeze_last_layer_epochs * epoch
    return jax.tree_util.tree_map_with_path(
      lambda path, _: now if path_name(path).endswith(LAST_LAYER) else False, params)

  return Method(init, loss, after=after, frozen=frozen, **_of_teacher(evaluated(net, train)))


def _of_teacher(of):
  """`evaluated` for the network that lies in the state."""
  def encoder(params, state):
    return state['teacher']['params'], state['teacher']['state']

  def embed(params, state, inputs):
    return of['embed'](*encoder(params, state), inputs)

  def calibrate(params, state, inputs):
    seen = of['calibrate'](*encoder(params, state), inputs)
    return {**state, 'teacher': {**state['teacher'], 'state': seen}}

  return dict(embed=embed, calibrate=calibrate, encoder=encoder)


def _check(momentum, center_momentum, *temperatures):
  if not (0 <= momentum <= 1 and 0 <= center_momentum <= 1 and min(temperatures) > 0):
    raise ValueError('dino needs momenta in [0, 1] and temperatures above 0, got '
                     f'{momentum}, {center_momentum} and {temperatures}')
