"""Fine-tuning of a text encoder with a new head (`text_heads`): classes, numbers, tags, spans.

The recipe is BERT's (Devlin et al. 2019, arXiv:1810.04805, sections 4 and A.3; google-research/bert
run_classifier.py, run_squad.py): AdamW with weight decay 0.01, gradients clipped to norm 1, the
learning rate warmed up over the first tenth of the steps and then falling by a line to 0, batches
of 32, 3 epochs, dropout 0.1 before the head, rates of 2e-5 to 5e-5 of which the best on the
validation data is taken. Not as there: Adam has bias correction (without it small data sets often
fail, Mosbach et al. 2021, arXiv:2006.04884), its epsilon is 1e-8, and the line starts at the end of
the warm-up.

Everything follows from the seed: head, order, dropout. The last batch of an epoch is filled up with
rows of weight 0. Batches are cut to 16, 32, 64, ... tokens where no row is longer, which saves work
and changes only what dropout draws. On a mesh, numbers are those of one device.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from ssl_jax.data.order import permuted
from ssl_jax.evals.text_heads import (
  KINDS,
  Encode,
  Head,
  inputs_of,
  losses_of,
  outputs_of,
  start_head,
)
from ssl_jax.evals.text_rows import IGNORED, STEP, Measure, Rows
from ssl_jax.models.transformer import POOLS
from ssl_jax.parallel import batch_axes, batch_sharding, replicated
from ssl_jax.train.optimizers import adamw
from ssl_jax.train.schedules import warmup_linear
from ssl_jax.types import PyTree

LEARNING_RATES = (2e-5, 3e-5, 5e-5)
HELD_OUT = 0.1
MEASURED = 64  # rows at a time


class Recipe(NamedTuple):
  """How to train. warmup: share of the steps; bias_correction: of Adam."""

  batch_size: int = 32
  epochs: int = 3
  warmup: float = 0.1
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  bias_correction: bool = True


BERT = Recipe()


class Epoch(NamedTuple):
  """What is known after an epoch (from 1).

  loss: the mean over the epoch's examples, as they were trained on.
  scores: of the part that is selected on; {} after the epoch in which training diverged.
  """

  learning_rate: float
  seed: int
  epoch: int
  loss: float
  scores: dict[str, float]


class Trial(NamedTuple):
  """One training.

  score: the mean of the metrics on the part that is selected on; -inf where it diverged.
  scores: {split: {metric: value}} after the last epoch; {} where it diverged.
  """

  learning_rate: float
  seed: int
  score: float
  scores: dict[str, dict[str, float]]


class Finetuned(NamedTuple):
  """What was found.

  params: dict(encoder=..., head=...) at the chosen rate, of the first seed.
  learning_rate: the chosen one.
  selection: one sentence on where it was chosen.
  trials: at the chosen rate, one per seed.
  others: at the other rates.
  """

  params: PyTree
  learning_rate: float
  selection: str
  trials: tuple[Trial, ...]
  others: tuple[Trial, ...]


class DivergedError(ArithmeticError):
  """Losses or outputs were not finite at every learning rate."""


# --- steps ----------------------------------------------------------------------------------------


class _Program(NamedTuple):
  """All that is static in jit, by value: a second seed or rate compiles nothing."""

  encode: Encode
  head: Head
  recipe: Recipe
  steps: int

  def optimizer(self, rate: jax.Array) -> optax.GradientTransformation:
    recipe = self.recipe
    schedule = warmup_linear(rate, steps=self.steps, warmup_steps=int(recipe.warmup * self.steps))
    return adamw(schedule, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm,
                 bias_correction=recipe.bias_correction)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(program: _Program, width: int, params, pooler, key):
  params = dict(encoder=params, head=start_head(program.head, width, key, pooler))
  # Copies: the steps overwrite what they are given, and the caller still needs these arrays.
  params = jax.tree.map(jnp.copy, params)
  return params, program.optimizer(jnp.float32(0)).init(params)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(program: _Program, params, opt, rate, key, step, batch):
  def loss(params):
    outputs = outputs_of(program.encode, program.head, params, inputs_of(batch),
                       jax.random.fold_in(key, step))
    losses, counts = losses_of(program.head, outputs, batch['label'])
    weights = counts * batch['weight'].reshape(-1, *[1] * (counts.ndim - 1))
    total, weight = jnp.sum(losses * weights), jnp.sum(weights)
    return total / jnp.maximum(weight, 1), (total, weight)

  grads, sums = jax.grad(loss, has_aux=True)(params)
  updates, opt = program.optimizer(rate).update(grads, opt, params)
  return optax.apply_updates(params, updates), opt, sums


@functools.partial(jax.jit, static_argnums=(0, 1))
def _measured(encode, head, params, inputs):
  return outputs_of(encode, head, params, inputs, None)


# --- batches --------------------------------------------------------------------------------------


def _batch(rows: Rows, chosen: np.ndarray, size: int, names: Sequence[str],
           ) -> dict[str, np.ndarray]:
  """`size` rows, filled up with copies of the first that have weight 0; no longer than needed."""
  filled = np.concatenate([chosen, np.full(size - len(chosen), chosen[0])])
  batch = {name: rows[name][filled] for name in names}
  batch['weight'] = (np.arange(size) < len(chosen)).astype(np.float32)
  if 'segments' not in batch:
    return batch
  length = batch['segments'].shape[1]
  longest = 1 + int(np.flatnonzero(batch['segments'].any(0))[-1])
  cut = STEP
  while cut < longest:
    cut *= 2
  wide = [name for name in batch if batch[name].shape[1:] == (length,)]
  return batch | {name: batch[name][:, :cut] for name in wide}


def _train_batches(rows: Rows, epoch: int, seed: int, size: int) -> Iterator[dict[str, np.ndarray]]:
  count, names = len(rows['label']), [*inputs_of(rows), 'label']
  order = permuted(np.arange(count), length=count, seed=seed, epoch=epoch)
  for begin in range(0, count, size):
    yield _batch(rows, order[begin:begin + size], size, names)


def predict(encode: Encode, head: Head, params: PyTree, rows: Rows, *,
            mesh: Mesh | None = None) -> np.ndarray:
  """Outputs of all rows, float32: [N, C], [N] (number), [N, L, C] (tags) or [N, L, 2] (spans).

  Tokens that every row of a batch has as padding were not computed and are -1e9.
  """
  shards = _shards(mesh)
  count, size = len(rows['tokens']), -(-MEASURED // shards) * shards
  by_length = np.arange(count)
  if 'segments' in rows:
    by_length = np.argsort((np.asarray(rows['segments']) > 0).sum(1), kind='stable')
  found = None
  for begin in range(0, count, size):
    chosen = by_length[begin:begin + size]
    batch = _batch(rows, chosen, size, list(inputs_of(rows)))
    outputs = np.asarray(_measured(encode, head, params, _place(inputs_of(batch), mesh)))
    if found is None:
      full = rows['tokens'].shape[1:] if outputs.ndim == 3 else ()
      found = np.full((count, *full, *outputs.shape[1 + len(full):]), -1e9, np.float32)
    if outputs.ndim == 3:
      found[chosen, :outputs.shape[1]] = outputs[:len(chosen)]
    else:
      found[chosen] = outputs[:len(chosen)]
  return found


def _shards(mesh: Mesh | None) -> int:
  return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))


def _place(batch: Mapping[str, np.ndarray], mesh: Mesh | None):
  return batch if mesh is None else jax.device_put(batch, batch_sharding(mesh))


# --- the whole ------------------------------------------------------------------------------------


def finetune(encode: Encode, params: PyTree, train: Rows, evaluation: Mapping[str, Rows], *,
             head: Head, measure: Measure, learning_rates: Sequence[float] = LEARNING_RATES,
             seeds: Sequence[int] = (0,), recipe: Recipe = BERT, select: str = 'held_out',
             pooler: PyTree | None = None, mesh: Mesh | None = None,
             report: Callable[[Epoch], None] = lambda epoch: None) -> Finetuned:
  """Trains once for every rate and seed, measures after the last epoch, and chooses the rate.

  Args:
    encode: see `Encode`; a pure function, the same object every time (it is a static argument).
    params: of the encoder; they are not modified.
    train: rows, see `evals.text_rows`; with 'label'.
    evaluation: {split: rows}, at least one.
    head, recipe: see there.
    measure: (outputs, rows) -> {metric: value}; a rate's score is the mean of metrics and seeds.
    learning_rates: peaks to try; small encoders want larger ones than BERT's.
    seeds: each has a head, an order and dropout of its own.
    select: a split of `evaluation`, or 'held_out': a tenth of `train` (of its groups, where it has
      them), which then is not trained on. With one rate nothing is chosen, and nothing held out.
    pooler: dict(kernel [D, D], bias [D]) to start from, where pretraining had one.
    mesh: rows are spread over its devices.
    report: called after every epoch.

  Raises:
    ValueError: an unknown kind, pool or split; labels that do not fit the head; a batch that does
      not split over the mesh.
    DivergedError: training diverged at every rate.
  """
  _check(train, evaluation, head, learning_rates, seeds, recipe, select, mesh)
  train, watched, selection = _selection(train, evaluation, select, len(learning_rates))
  if mesh is not None:
    params, pooler = jax.device_put((params, pooler), replicated(mesh))
  steps = recipe.epochs * -(-len(train['label']) // recipe.batch_size)
  run = functools.partial(
    _run, _Program(encode, head, recipe, steps), params, pooler, train, evaluation, watched,
    measure, mesh, report)
  best, trials = None, []
  for rate in learning_rates:
    tuned, first = run(rate, seeds[0])
    own = [first, *(run(rate, seed)[1] for seed in seeds[1:])]
    trials += own
    score = float(np.mean([trial.score for trial in own]))
    if np.isfinite(score) and (best is None or score > best[0]):
      best = score, rate, tuned
  if best is None:
    raise DivergedError(f'fine-tuning diverged at every learning rate ({_listed(learning_rates)}); '
                        'try smaller ones')
  return Finetuned(best[2], best[1], selection,
                   tuple(trial for trial in trials if trial.learning_rate == best[1]),
                   tuple(trial for trial in trials if trial.learning_rate != best[1]))


def _run(program: _Program, params, pooler, train: Rows, evaluation: Mapping[str, Rows],
         watched: Rows, measure: Measure, mesh, report, rate: float, seed: int,
         ) -> tuple[PyTree, Trial]:
  key, steps = jax.random.key(seed), 0
  width = _width(program.encode, params, train)
  tuned, opt = _start(program, width, params, pooler, jax.random.fold_in(key, 0))
  for epoch in range(program.recipe.epochs):
    sums = []
    for batch in _train_batches(train, epoch, seed, program.recipe.batch_size):
      tuned, opt, both = _step(program, tuned, opt, jnp.float32(rate), jax.random.fold_in(key, 1),
                               steps, _place(batch, mesh))
      sums.append(both)
      steps += 1
    loss, weight = np.sum(jax.device_get(sums), axis=0)
    scores = _scores(program, tuned, watched, measure, mesh) if np.isfinite(loss) else {}
    report(Epoch(rate, seed, epoch + 1, float(loss / max(weight, 1)), scores))
    if not scores:
      return tuned, Trial(rate, seed, -np.inf, {})
  found = {name: scores if rows is watched else _scores(program, tuned, rows, measure, mesh)
           for name, rows in evaluation.items()}
  return tuned, Trial(rate, seed, float(np.mean(list(scores.values()))), found)


def _scores(program: _Program, params, rows: Rows, measure: Measure, mesh) -> dict[str, float]:
  """{} where the network diverged."""
  outputs = predict(program.encode, program.head, params, rows, mesh=mesh)
  return measure(outputs, rows) if np.isfinite(outputs).all() else {}


def _width(encode: Encode, params, rows: Rows) -> int:
  some = {name: x[:1] for name, x in inputs_of(rows).items()}
  return jax.eval_shape(functools.partial(encode, key=None), params, some).shape[-1]


# --- what is selected on, and checks --------------------------------------------------------------


def _selection(train: Rows, evaluation: Mapping[str, Rows], select: str, rates: int,
               ) -> tuple[Rows, Rows, str]:
  """(what is trained on, what is watched, a sentence)."""
  if rates == 1:
    watched = evaluation.get(select, next(iter(evaluation.values())))
    return train, watched, 'none: one learning rate, last epoch'
  chosen = f'learning rate, one of {rates}, chosen on'
  if select != 'held_out':
    return train, evaluation[select], f'{chosen} {select}, whose own score is too good by that'
  groups, group = np.unique(train.get('group', np.arange(len(train['label']))), return_inverse=True)
  order = permuted(np.arange(len(groups)), length=len(groups), seed=0, epoch=0)
  held = max(1, round(HELD_OUT * len(groups)))
  place = np.argsort(order)[group]
  rows, count = np.argsort(place, kind='stable'), int((place < held).sum())
  parts = ({name: x[part] for name, x in train.items()} for part in (rows[count:], rows[:count]))
  return *parts, f'{chosen} {held:,} examples of the training set that were not trained on'


def _check(train, evaluation, head, learning_rates, seeds, recipe, select, mesh) -> None:
  known = dict(kind=(head.kind, KINDS), pool=(head.pool, POOLS),
               select=(select, ('held_out', *evaluation)))
  for name, (value, choices) in known.items():
    if value not in choices:
      raise ValueError(f'{name} must be one of {", ".join(choices)}, not {value!r}')
  if not evaluation or not learning_rates or not seeds:
    raise ValueError('there must be a split to evaluate on, a learning rate and a seed')
  if min(learning_rates) <= 0 or recipe.epochs < 1 or recipe.batch_size < 1:
    raise ValueError(f'learning rates must be above 0, epochs and batch_size at least 1; got '
                     f'{_listed(learning_rates)}, {recipe.epochs} and {recipe.batch_size}')
  if recipe.batch_size % _shards(mesh):
    raise ValueError(f'a batch of {recipe.batch_size} rows does not split over {_shards(mesh)} '
                     'devices')
  for name, rows in dict(train=train, **evaluation).items():
    _check_labels(name, rows, head)


def _check_labels(name: str, rows: Rows, head: Head) -> None:
  labels, shape = np.asarray(rows['label']), np.shape(rows['tokens'])
  wanted = dict(classes=shape[:1], number=shape[:1], tags=shape, spans=(*shape[:1], 2))[head.kind]
  if labels.shape != wanted or not labels.size:
    raise ValueError(f'{name}: labels of {head.kind} must be {list(wanted)}, got '
                     f'{list(labels.shape)}')
  most = shape[1] if head.kind == 'spans' else head.outputs
  least = 0 if head.kind == 'classes' else IGNORED
  if head.kind != 'number' and not least <= labels.min() <= labels.max() < most:
    raise ValueError(f'{name}: labels of {head.kind} must be from {least} to {most - 1}, got '
                     f'{labels.min()} to {labels.max()}')


def _listed(numbers: Sequence[float]) -> str:
  return ', '.join(f'{number:g}' for number in numbers)
