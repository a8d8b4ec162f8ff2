"""The library in other people's projects: our loss in theirs, their model in our train step.

  python examples/reuse.py        # on CPU it simulates 8 devices

Each function below stands on its own. The last lines check that all of them agree.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.contrastive import nt_xent
from ssl_jax.methods import simclr
from ssl_jax.parallel import make_mesh, over
from ssl_jax.train.step import init_state, make_program, make_train_step
from ssl_jax.types import Method, Network


# [pmap] Our loss in a project that trains with pmap: name the axis, average the gradients.
def pmap_project(w, views, steps=3):
  def loss(w, v):
    return nt_xent(v[:, 0] @ w, v[:, 1] @ w, temperature=0.1, axis_name='devices')

  def step(w, v):
    value, grad = jax.value_and_grad(loss)(w, v)
    return w - 0.1 * lax.pmean(grad, 'devices'), value

  split = views.reshape(jax.device_count(), -1, *views.shape[1:])
  for _ in range(steps):
    w, value = jax.pmap(step, 'devices', in_axes=(None, 0), out_axes=None)(w, split)
  return value


# [shard_map] The same in shard_map, on a mesh with two axes that both hold parts of the batch.
def shard_map_project(w, views, steps=3):
  mesh, axes = make_mesh({'data': -1, 'fsdp': 2}), ('data', 'fsdp')

  def step(w, v):
    value, grad = jax.value_and_grad(lambda w: nt_xent(
      v[:, 0] @ w, v[:, 1] @ w, temperature=0.1, axis_name=axes))(w)
    return w - 0.1 * lax.pmean(grad, axes), value

  step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P()))
  for _ in range(steps):
    w, value = step(w, views)
  return value


# [dict] Our train step with a model that is a dict of arrays and a method written on the spot.
def dict_of_arrays(w, views, steps=3):
  def loss(params, state, batch, *, key, step):
    z1, z2 = (batch['views'][:, v] @ params['w'] for v in (0, 1))
    return nt_xent(z1, z2, temperature=0.1), (state, {})

  method = Method(lambda key, batch: ({'w': w}, {}), loss, lambda p, s, x: x @ p['w'])
  batch = {'views': views}
  program = make_program(method, optax.sgd(0.1), batch, seed=0, mesh=make_mesh())
  state = program.init()
  for _ in range(steps):
    state, metrics = program.step(state, jax.device_put(batch, program.batch['views'].sharding))
  return metrics['loss']


# [equinox] Our SimCLR and train step with an Equinox model.
def equinox_model(w, views, steps=3):
  model = eqx.tree_at(lambda m: m.weight, eqx.nn.Linear(*w.shape, False, key=jax.random.key(0)), w.T)
  params, static = eqx.partition(model, eqx.is_array)

  def apply(params, state, x, mode, *, key=None):
    z = jax.vmap(eqx.combine(params, static))(x)
    return (z, z), state  # (representation, projection)

  net = Network(lambda key, x: (params, {}), apply)
  method, tx = simclr.build(net, temperature=0.1, on_batch=over(make_mesh())), optax.sgd(0.1)
  step = jax.jit(make_train_step(method, tx, key=jax.random.key(1)))
  state = jax.jit(lambda: init_state(method, tx, jax.random.key(0), {'views': views}))()
  for _ in range(steps):
    state, metrics = step(state, {'views': views})
  return metrics['loss']


def main() -> None:
  r = np.random.default_rng(0)
  w, views = jnp.asarray(r.normal(size=(12, 8)), 'float32'), r.normal(size=(16, 2, 12))
  views = jnp.asarray(views + 2 * views[:, :1], 'float32')
  losses = {f.__name__: float(f(w, views)) for f in (
    pmap_project, shard_map_project, dict_of_arrays, equinox_model)}
  for name, loss in losses.items():
    print(f'{name:20} loss after 3 steps {loss:.6f}')
  np.testing.assert_allclose(list(losses.values()), losses['dict_of_arrays'], rtol=1e-5)


if __name__ == '__main__':
  jax.config.update('jax_num_cpu_devices', 8)  # only matters where there is no accelerator
  main()
