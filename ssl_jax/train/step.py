"""One train step for every method, and the state it starts from.

  make_train_step(method, tx, key=key) -> (TrainState, batch) -> (TrainState, metrics)

The step is a pure function: jit it over global arrays (what `python -m ssl_jax train` does), or give
it `axis_name` and run it inside pmap, shard_map or vmap.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ssl_jax.parallel import batch_sharding, infer_sharding, pmean, replicated
from ssl_jax.train import spikes
from ssl_jax.types import AxisName, Batch, Method, TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, jax.Array]]]


def make_train_step(
    method: Method, tx: optax.GradientTransformation, *, key: jax.Array,
    prepare: Callable | None = None, axis_name: AxisName = None,
) -> TrainStep:
  """The train step of any method.

  Args:
    method: built with `on_batch=inside(axis_name)` when `axis_name` is given.
    tx: the optimizer, perhaps with a guard (`ssl_jax.train.spikes.skip_spikes`).
    key: the run's key. Views draw from (key, epoch, example id), all else from (key, step).
    prepare: (keys [B], batch) -> batch, the views or masks; needs batch['id'] and batch['epoch'].
    axis_name: set it inside pmap, shard_map or vmap; gradients are then averaged over it.

  Returns:
    (state, batch) -> (state, metrics). Metrics are scalars: loss, grad_norm, finite and the
    method's own. A step whose loss, gradient or result is not finite leaves parameters, optimizer
    and method state as they were (finite = False); only the step count advances. With a guard the
    same happens to a spike (spike = True), which the guard remembers.
  """
  views_key, step_key = jax.random.split(key)

  def train_step(ts, batch):
    if prepare is not None:
      batch = prepare(example_keys(views_key, batch['epoch'], batch['id']), batch)
    value_and_grad = jax.value_and_grad(method.loss, has_aux=True)
    (loss, (state, metrics)), grads = value_and_grad(
      ts.params, ts.state, batch, key=jax.random.fold_in(step_key, ts.step), step=ts.step)
    grads = pmean(grads, axis_name)
    grad_norm = optax.tree.norm(grads)
    new = _update(method, tx, ts, state, grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & _all_finite(new)
    # Devices must agree: of a state that is spread over the axis only one may have met the NaN.
    finite = pmean(finite.astype(jnp.float32), axis_name) == 1
    metrics = dict(metrics, loss=loss, grad_norm=grad_norm, finite=finite)
    good = finite
    if isinstance(tx, spikes.SkipSpikes):
      metrics['spike'] = finite & spikes.is_spike(ts.opt, loss, grad_norm, tx.deviations)
      good = finite & ~metrics['spike']
    kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, ts)
    if isinstance(tx, spikes.SkipSpikes):
      kept = kept._replace(opt=spikes.noted(kept.opt, loss, grad_norm, finite))
    return kept._replace(step=ts.step + 1), metrics

  return train_step


def _update(method, tx, ts, state, grads):
  """The optimizer, with frozen leaves held still, then what the method does after it."""
  frozen = method.frozen and method.frozen(ts.params, ts.step)
  grads = _still(grads, frozen)
  updates, opt = tx.update(grads, ts.opt, ts.params)
  params = optax.apply_updates(ts.params, _still(updates, frozen))
  params, state = method.after(params, state, ts.step)
  return TrainState(ts.step, params, state, opt)


def _all_finite(tree):
  """A finite gradient can still overflow what it is added to."""
  leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))


def _still(updates, frozen):
  if frozen is None:
    return updates
  return jax.tree.map(lambda u, f: jnp.where(f, jnp.zeros_like(u), u), updates, frozen)


def example_keys(key: jax.Array, epoch: jax.Array, ids: jax.Array) -> jax.Array:
  """One key per example from (key, epoch, id), whatever device or host holds it.

  Args:
    key: the run's key for views.
    epoch, ids: unsigned int [B].

  Returns:
    Keys [B].
  """
  return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))(epoch, ids)


def init_state(
    method: Method, tx: optax.GradientTransformation, key: jax.Array, batch: Batch,
) -> TrainState:
  """A fresh TrainState for a prepared batch. Run it under jit: then no two leaves share a buffer,
  which donation needs (an EMA target starts as a copy of the parameters)."""
  params, state = method.init(key, batch)
  return TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params))


class Program(NamedTuple):
  """A method on a mesh, ready to run.

  init: () -> TrainState, sharded.
  step: (TrainState, global batch) -> (TrainState, metrics); the TrainState passed in is donated.
  state: TrainState of jax.ShapeDtypeStruct with shardings; what a checkpoint restores to.
  batch: the same for a raw global batch.
  """

  init: Callable[[], TrainState]
  step: TrainStep
  state: TrainState
  batch: Batch


def make_program(
    method: Method, tx: optax.GradientTransformation, batch: Batch, *, seed: int, mesh: Mesh,
    prepare: Callable | None = None, rules: Sequence[tuple[str, str]] = (),
) -> Program:
  """Puts the train step of `method` on `mesh` as one jit over global arrays.

  Args:
    method: built with `on_batch=over(mesh)`.
    tx: the optimizer.
    batch: an example of a raw global batch; only shapes and dtypes are read.
    seed: determines parameters, views and everything drawn in a step.
    mesh: from `ssl_jax.parallel.make_mesh`.
    prepare: the views or masks, run inside the step.
    rules: (pattern, axis) pairs for `ssl_jax.parallel.infer_sharding`; none replicates the state.
  """
  init_key, key = jax.random.split(jax.random.key(seed))
  rows = batch_sharding(mesh)
  raw = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), dict(batch))
  prepared = raw
  if prepare is not None:
    keys = jax.eval_shape(lambda b: example_keys(key, b['epoch'], b['id']), raw)
    prepared = jax.eval_shape(prepare, keys, raw)

  def init():
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), prepared)
    return init_state(method, tx, init_key, zeros)

  shapes = jax.eval_shape(init)
  shardings = infer_sharding(shapes, rules, mesh)
  step = jax.jit(
    make_train_step(method, tx, key=key, prepare=prepare), donate_argnums=0,
    in_shardings=(shardings, rows), out_shardings=(shardings, replicated(mesh)))
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
  return Program(jax.jit(init, out_shardings=shardings), step, state, raw)
