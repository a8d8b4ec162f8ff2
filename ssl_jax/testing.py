"""The contract every method keeps, as checks that any project can run on its own method.

    check_method(make, batch)          # make: (on_batch: Placement) -> Method

`batch` is a prepared batch (what `Method.loss` takes) with different rows; its first axis must be a
multiple of the number of devices. Every check is also a function of its own, listed in CHECKS.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from ssl_jax.parallel import Placement, batch_sharding, inside, local, make_mesh, over, path_name
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.step import init_state, make_program, make_train_step
from ssl_jax.types import TEXT_INPUTS, Batch, Method, PyTree, TrainState

Make = Callable[[Placement], Method]
COLLECTIVE = re.compile(
  r' (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(')


def check_method(make: Make, batch: Batch, *, collectives: set[str] | None = None) -> None:
  """Runs all checks; raises AssertionError with what differs.

  Args:
    make: builds the method for a placement.
    batch: a prepared batch of arrays [B, ...] with different rows.
    collectives: exactly those that the compiled step on several devices may contain, by HLO name;
      None does not look.
  """
  for check in CHECKS.values():
    check(make, batch)
  if collectives is not None:
    check_collectives(make, batch, collectives)


# --- one device -----------------------------------------------------------------------------------


def check_loss_is_a_finite_scalar(make: Make, batch: Batch) -> None:
  loss, _, metrics = _first_step(make(local), batch)
  assert loss.shape == () and loss.dtype == jnp.float32, f'loss is {loss.dtype}{list(loss.shape)}'
  chex.assert_tree_all_finite(loss)
  for name, value in metrics.items():
    assert jnp.shape(value) == (), f'metric {name!r} has shape {jnp.shape(value)}, expected a scalar'


def check_every_parameter_gets_a_gradient(make: Make, batch: Batch) -> None:
  """At a perturbed point: a scale that starts at zero hides everything behind it."""
  method = make(local)
  ts = _state(method, batch)
  params = _perturb(ts.params)
  _, grads, _ = _first_step(method, batch, ts._replace(params=params))
  _assert_gradients(method, grads)


def check_one_trace_and_donation(make: Make, batch: Batch) -> None:
  tx = _optimizer()
  program = make_program(make(local), tx, batch, seed=0, mesh=_mesh(1))
  one_step, traces = make_train_step(make(local), tx, key=jax.random.key(1)), []

  def counted(ts, batch):
    traces.append(None)
    return one_step(ts, batch)

  step = jax.jit(counted, donate_argnums=0)
  ts, b = program.init(), _place(batch, 1)
  for _ in range(2):
    before = ts
    ts, _ = step(ts, b)
    kept = [path_name(p) for p, x in jax.tree_util.tree_leaves_with_path(before.params)
            if not x.is_deleted()]
    assert not kept, f'not donated: {kept}'
  assert len(traces) == 1, f'two equal steps were traced {len(traces)} times'


def check_embed_is_pure(make: Make, batch: Batch) -> None:
  """One row in, one row out, the same each time, and calibration keeps the state's shape."""
  method = make(local)
  ts = _state(method, batch)
  inputs = _inputs(batch)
  embed = jax.jit(method.embed)
  z = embed(ts.params, ts.state, inputs)
  rows = len(jax.tree.leaves(inputs)[0])
  assert z.ndim == 2 and len(z) == rows, f'embed gave {z.shape} for {rows} rows'
  np.testing.assert_array_equal(z, embed(ts.params, ts.state, inputs))
  if method.calibrate is not None:
    chex.assert_trees_all_equal_shapes_and_dtypes(
      jax.jit(method.calibrate)(ts.params, ts.state, inputs), ts.state)


def check_resume_is_bit_equal(make: Make, batch: Batch) -> None:
  """Save, forget everything, restore, continue: the same bits as without."""
  program = make_program(make(local), _optimizer(), batch, seed=0, mesh=_mesh(1))
  b = _place(batch, 1)

  def advance(ts, steps):
    for _ in range(steps):
      ts, _ = program.step(ts, b)
    return ts

  undisturbed = jax.device_get(advance(program.init(), 4))
  with tempfile.TemporaryDirectory() as folder:
    saved = Checkpoints(folder)
    saved.save(2, advance(program.init(), 2), {})
    saved.wait()
    restored = Checkpoints(folder).restore(2, program.state)
  chex.assert_trees_all_equal(jax.device_get(advance(restored, 2)), undisturbed)


# --- several devices ------------------------------------------------------------------------------


def check_same_on_any_device_count(make: Make, batch: Batch, devices: tuple[int, ...] = (8,)) -> None:
  """float32: the first step's loss, gradient and new method state, to 1e-5. Nothing to compare is an
  error: the loss is finite, every parameter has a gradient."""
  expected = _first_step_on(make, batch, None)
  assert np.isfinite(expected[0]), f'the loss is {expected[0]}'
  _assert_gradients(make(local), expected[1])
  for n in devices:
    _assert_close(_first_step_on(make, batch, n), expected, 1e-5, f'{n} devices')


def check_curve_in_float64(
    make: Make, batch: Batch, devices: tuple[int, ...] = (8,), steps: int = 20,
) -> None:
  """float64: whole curves, to 1e-9. (float32 curves drift apart in correct code.)"""
  with jax.enable_x64(True):
    batch = jax.tree.map(_to_float64, dict(batch))
    expected = _curve(make, batch, None, steps)
    for n in devices:
      np.testing.assert_allclose(
        _curve(make, batch, n, steps), expected, rtol=1e-9, err_msg=f'{n} devices')


def check_vmap_equals_local(make: Make, batch: Batch) -> None:
  """`vmap(axis_name=...)` simulates devices on one: the step of `inside(axis)` is the local one."""
  _check_inside(make, batch, lambda step, n: jax.vmap(step, in_axes=(None, 0), axis_name='i'))


def check_pmap_equals_local(make: Make, batch: Batch) -> None:
  """The door for projects that still use pmap."""
  _check_inside(make, batch, lambda step, n: jax.pmap(
    step, 'i', in_axes=(None, 0), devices=jax.devices()[:n]))


def check_shard_map_equals_local(make: Make, batch: Batch) -> None:
  """The whole step inside shard_map, with and without the check of varying axes."""
  for check_vma in (True, False):
    _check_inside(make, batch, partial(_by_shard_map, check_vma=check_vma))


def check_sharded_state(make: Make, batch: Batch, pattern: str = '.') -> None:
  """Parameters and states whose path matches, split over an axis: the step of one device."""
  mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}, jax.devices()[:8])
  steps = []
  for on_batch, over_mesh, rules in ((local, _mesh(1), ()), (over(mesh), mesh, ((pattern, 'fsdp'),))):
    program = make_program(make(on_batch), _optimizer(), batch, seed=0, mesh=over_mesh, rules=rules)
    ts = program.init()
    split = [path_name(path) for path, x in jax.tree_util.tree_leaves_with_path(ts)
             if not x.sharding.is_fully_replicated]
    placed = {name: jax.device_put(x, batch_sharding(over_mesh)) for name, x in batch.items()}
    ts, metrics = program.step(ts, placed)
    steps.append(jax.device_get((metrics['loss'], ts.params, ts.state)))
  assert split, f'no leaf matches {pattern!r} and divides by 2'
  _assert_close(steps[1], steps[0], 1e-5, f'a mesh that splits {len(split)} leaves')


def check_collectives(make: Make, batch: Batch, expected: set[str], devices: int = 8) -> None:
  """Exactly these collectives stand in the compiled step."""
  program = make_program(make(over(_mesh(devices))), _optimizer(), batch, seed=0, mesh=_mesh(devices))
  text = program.step.lower(program.state, program.batch).compile().as_text()
  found = set(COLLECTIVE.findall(text))
  assert found == set(expected), f'the step contains {sorted(found)}, declared {sorted(expected)}'


def check_docstring_names_a_reference(module) -> None:
  assert re.search(r'arXiv:\d{4}\.\d{4,5}|https?://|doi:', module.__doc__ or ''), (
    f'the docstring of {module.__name__} names no reference (arXiv:..., doi:..., https://...)')


CHECKS: Mapping[str, Callable[[Make, Batch], None]] = {
  check.__name__.removeprefix('check_'): check for check in (
    check_loss_is_a_finite_scalar, check_every_parameter_gets_a_gradient,
    check_one_trace_and_donation, check_embed_is_pure, check_resume_is_bit_equal,
    check_same_on_any_device_count, check_curve_in_float64, check_vmap_equals_local,
    check_pmap_equals_local, check_shard_map_equals_local, check_sharded_state)
}


# --- pieces ---------------------------------------------------------------------------------------


def _optimizer() -> optax.GradientTransformation:
  # Small enough that training does not diverge, where rounding errors would grow at each step.
  return optax.sgd(0.01, momentum=0.9)


def _mesh(devices: int):
  return make_mesh({'data': devices}, jax.devices()[:devices])


def _named_mesh(devices: int, axis: str):
  return make_mesh({axis: devices}, jax.devices()[:devices])


def _place(batch: Batch, devices: int) -> Batch:
  sharding = jax.sharding.NamedSharding(_mesh(devices), PartitionSpec('data'))
  return {name: jax.device_put(x, sharding) for name, x in batch.items()}


def _inputs(batch: Batch) -> jax.Array:
  """Inputs of `embed`: the first view where a batch has views, the tokens of text, else the first
  field."""
  if 'views' in batch:
    return batch['views'][:, 0]
  if 'tokens' in batch:
    return {name: batch[name] for name in TEXT_INPUTS if name in batch}
  return next(iter(batch.values()))


def _to_float64(x):
  return jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.asarray(x)


def _state(method: Method, batch: Batch) -> TrainState:
  return jax.jit(lambda: init_state(method, _optimizer(), jax.random.key(0), batch))()


def _perturb(params: PyTree) -> PyTree:
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  return treedef.unflatten(
    [x + 0.05 * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)])


def _first_step(method: Method, batch: Batch, ts: TrainState | None = None):
  """(loss, gradient, metrics) where training starts, or at `ts`."""
  ts = _state(method, batch) if ts is None else ts
  grad = jax.jit(jax.value_and_grad(partial(method.loss, key=jax.random.key(1), step=ts.step),
                                    has_aux=True))
  (loss, (_, metrics)), grads = grad(ts.params, ts.state, batch)
  return loss, grads, metrics


def _spread(make: Make, batch: Batch, devices: int | None) -> tuple[Method, Batch]:
  """The method and its batch over `devices` devices; None is one device without any mesh."""
  if devices is None:
    return make(local), batch
  return make(over(_mesh(devices))), _place(batch, devices)


def _first_step_on(make: Make, batch: Batch, devices: int | None):
  """(loss, gradient, new method state) of a step over `devices` devices, from a perturbed start."""
  method, placed = _spread(make, batch, devices)
  ts = _state(make(local), batch)
  params = jax.device_get(_perturb(ts.params))
  grad = jax.jit(jax.value_and_grad(
    partial(method.loss, key=jax.random.key(1), step=jax.device_get(ts.step)), has_aux=True))
  (loss, (state, _)), grads = grad(params, jax.device_get(ts.state), placed)
  return loss, grads, state


def _assert_gradients(method: Method, grads: PyTree) -> None:
  """Every leaf that is not frozen at the first step has a gradient somewhere."""
  frozen = jax.tree.map(lambda _: False, grads)
  if method.frozen is not None:
    frozen = method.frozen(grads, jnp.zeros((), jnp.int32))  # of parameters it reads the names
  for (path, g), f in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(frozen)):
    assert bool(f) or bool(jnp.any(g != 0)), f'{path_name(path)} receives no gradient'


def _assert_close(got, expected, tolerance: float, where: str) -> None:
  """Losses relatively, gradients and states relative to their global norm."""
  np.testing.assert_allclose(got[0], expected[0], rtol=tolerance, err_msg=f'loss on {where}')
  for name, a, b in (('gradient', got[1], expected[1]), ('state', got[2], expected[2])):
    norm = float(optax.tree.norm(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), b)))
    difference = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x, np.float64) - y).max()), a, b)
    for path, d in jax.tree_util.tree_leaves_with_path(difference):
      assert d <= tolerance * norm, (
        f'{name} {path_name(path)} on {where} differs by {d:.2e}, global norm {norm:.2e}')


def _curve(make: Make, batch: Batch, devices: int | None, steps: int) -> np.ndarray:
  (method, placed), tx = _spread(make, batch, devices), _optimizer()
  start = jax.device_get(_state(make(local), batch))
  float64 = lambda tree: jax.tree.map(_to_float64, tree)
  start = TrainState(*float64((start.step, start.params, start.state)), opt=None)
  start = start._replace(opt=tx.init(start.params))
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(1)))
  ts, losses = start, []
  for _ in range(steps):
    ts, metrics = step(ts, placed)
    losses.append(float(metrics['loss']))
  return np.array(losses)


def _by_shard_map(step: Callable, devices: int, *, check_vma: bool) -> Callable:
  """(state, batch [devices, ...]) -> what `step` returns on each device, stacked."""
  def one(ts, batch):
    result = step(ts, jax.tree.map(lambda x: x[0], batch))
    return jax.tree.map(lambda x: x[None], result)

  spec = PartitionSpec('i')
  return jax.jit(jax.shard_map(one, mesh=_named_mesh(devices, 'i'), check_vma=check_vma,
                               in_specs=(PartitionSpec(), spec), out_specs=spec))


def _check_inside(make: Make, batch: Batch, run: Callable, devices: int = 4) -> None:
  """One step of `inside('i')` run by `run(step, n)` equals one local step, on every device."""
  tx, key = _optimizer(), jax.random.key(1)
  ts = _state(make(local), batch)
  ts = jax.device_get(ts._replace(params=_perturb(ts.params)))
  expected = jax.device_get(jax.jit(make_train_step(make(local), tx, key=key))(ts, batch))
  split = jax.tree.map(lambda x: np.reshape(x, (devices, -1, *x.shape[1:])), dict(batch))
  step = make_train_step(make(inside('i')), tx, key=key, axis_name='i')
  new, metrics = jax.device_get(run(step, devices)(ts, split))
  for n in range(devices):
    one = jax.tree.map(lambda x, n=n: x[n], (new, metrics))
    _assert_close((one[1]['loss'], one[0].params, one[0].state),
                  (expected[1]['loss'], expected[0].params, expected[0].state), 1e-5, f'device {n}')
