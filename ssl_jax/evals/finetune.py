"""Fine-tuning: encoder and a new linear classifier trained together on labelled images.

  loss = mean over real rows of CE(W f(x) + b, y),   W = b = 0 at the start

f runs in training mode: its normalisation uses, and updates, the statistics of the batches. The
recipe is SimCLR's (Chen et al. 2020, arXiv:2002.05709, appendix B.5): SGD with Nesterov momentum
0.9, learning rate 0.05 * batch / 256 without warm-up, no weight decay, random crops and flips only;
the rate falls by a cosine and the classifier starts at zero as in google-research/simclr
(model_util.py, --zero_init_logits_layer).

Batches are mappings with rows first, 'label' and, where rows are padding, 'weight' (1 real, 0 not).
They may be sharded over any mesh: the step is one jit over global arrays.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ssl_jax.train.optimizers import sgd
from ssl_jax.train.schedules import scale_learning_rate, warmup_cosine
from ssl_jax.types import Batch, PyTree

BASE_LEARNING_RATE = 0.05

# (params, state, inputs [B, ...], *, train) -> (representation [B, D], state)
Encode = Callable[..., tuple[jax.Array, PyTree]]
# batch -> inputs [B, ...]; may draw crops from fields of the batch such as its example ids
Inputs = Callable[[Batch], jax.Array]


class Finetuned(NamedTuple):
  """params: dict(encoder=..., head=dict(kernel [D, C], bias [C])); state: of the encoder; loss:
  float32 [], of the last batch."""

  params: PyTree
  state: PyTree
  loss: jax.Array


class _Recipe(NamedTuple):
  """Static in jit by value, so that a second run of the same length compiles nothing."""

  rate: float
  steps: int

  def optimizer(self) -> optax.GradientTransformation:
    return sgd(warmup_cosine(self.rate, steps=self.steps), nesterov=True)


def _logits(encode: Encode, params: PyTree, state: PyTree, inputs: jax.Array, *, train: bool):
  features, state = encode(params['encoder'], state, inputs, train=train)
  head = params['head']
  logits = jnp.matmul(features.astype(jnp.float32), head['kernel'], precision='highest')
  return logits + head['bias'][None], state


def _weight(batch: Batch) -> jax.Array:
  return batch.get('weight', jnp.ones(batch['label'].shape, jnp.float32))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _step(encode, inputs, recipe, params, state, opt, batch):
  def loss(params):
    logits, new = _logits(encode, params, state, inputs(batch), train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    weight = _weight(batch)
    return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1), new

  (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
  updates, opt = recipe.optimizer().update(grads, opt, params)
  return optax.apply_updates(params, updates), state, opt, value


@partial(jax.jit, static_argnums=(0, 1))
def _correct(encode, inputs, params, state, batch):
  logits, _ = _logits(encode, params, state, inputs(batch), train=False)
  # What is not finite compares false with everything, and would look right.
  right = (jnp.argmax(logits, axis=-1) == batch['label']) & jnp.isfinite(logits).all(axis=-1)
  weight = _weight(batch)
  return jnp.sum(right * weight), jnp.sum(weight)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _start(encode, inputs, recipe, classes, params, state, batch):
  width = jax.eval_shape(partial(encode, train=False), params, state, inputs(batch))[0].shape[-1]
  params = dict(encoder=params, head=dict(kernel=jnp.zeros((width, classes), jnp.float32),
                                          bias=jnp.zeros(classes, jnp.float32)))
  return params, recipe.optimizer().init(params)


def finetune(encode: Encode, params: PyTree, state: PyTree, batches: Iterable[Batch], *,
             inputs: Inputs, classes: int, steps: int, batch_size: int) -> Finetuned:
  """Trains `steps` steps, one per batch, from the given weights; they are not modified.

  Args:
    encode: see `Encode`; a pure function, the same object every time (it is a static argument).
    params, state: of the encoder; any pytrees, sharded or not.
    batches: at least `steps`, with 'label' [B].
    inputs: see `Inputs`; runs inside the jitted step.
    classes: C.
    steps: the length of the cosine.
    batch_size: the learning rate is 0.05 * batch_size / 256.

  Raises:
    ValueError: fewer batches than steps.
  """
  rate = scale_learning_rate(BASE_LEARNING_RATE, batch_size=batch_size)
  recipe = _Recipe(rate, steps)
  opt = loss = None
  done = 0
  for batch in batches:
    batch = dict(batch)
    if opt is None:
      params, opt = _start(encode, inputs, recipe, classes, params, state, batch)
    params, state, opt, loss = _step(encode, inputs, recipe, params, state, opt, batch)
    done += 1
    if done == steps:
      return Finetuned(params, state, loss)
  raise ValueError(f'fine-tuning for {steps} steps needs as many batches, got {done}')


def finetuned_accuracy(encode: Encode, tuned: Finetuned, batches: Iterable[Batch], *,
                       inputs: Inputs) -> float:
  """The share of real rows that are classified right, in [0, 1].

  Raises:
    ValueError: there are no rows.
  """
  sums = [_correct(encode, inputs, tuned.params, tuned.state, dict(batch)) for batch in batches]
  right, total = (sum(map(float, column)) for column in zip(*jax.device_get(sums))) if sums else (
    0, 0)
  if not total:
    raise ValueError('there are no rows to measure the accuracy on')
  return right / total
