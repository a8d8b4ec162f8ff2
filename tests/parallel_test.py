"""Meshes, shardings by name, host rows to global arrays, and the traps that stand behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax import parallel


def test_make_mesh_is_auto_and_fills_the_free_axis():
  mesh = parallel.make_mesh({'data': -1, 'fsdp': 2})
  assert dict(mesh.shape) == {'data': 4, 'fsdp': 2}
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert parallel.batch_axes(mesh) == ('data', 'fsdp')
  assert parallel.batch_axes(parallel.make_mesh({'data': 4, 'tensor': 2})) == ('data',)


@pytest.mark.parametrize('shape', [{'data': 3}, {'data': 4}, {'data': -1, 'fsdp': -1}, {'data': 0}])
def test_a_mesh_that_does_not_fit_is_refused(shape):
  with pytest.raises(ValueError, match='devices'):
    parallel.make_mesh(shape)


def test_fold_is_example_major_and_unfold_its_inverse():
  views = jnp.arange(24).reshape(4, 2, 3)
  folded = parallel.fold(views)
  np.testing.assert_array_equal(folded[:2], views[0])
  for v, rows in enumerate(parallel.unfold(folded, 2)):
    np.testing.assert_array_equal(rows, views[:, v])


def compiled(f, *shapes):
  rows = parallel.batch_sharding(parallel.make_mesh())
  args = [jax.ShapeDtypeStruct(s, jnp.float32, sharding=rows) for s in shapes]
  return jax.jit(f).lower(*args).compile().as_text()


def test_fold_moves_nothing_between_devices_and_concatenation_would():
  f = lambda fold: lambda v: jnp.tanh(fold(v))
  assert 'all-to-all' not in compiled(f(parallel.fold), (16, 2, 4))
  assert 'collective' not in compiled(f(parallel.fold), (16, 2, 4))
  along_batch = lambda v: jax.lax.with_sharding_constraint(
    jnp.concatenate([v[:, 0], v[:, 1]]), parallel.batch_sharding(parallel.make_mesh()))
  assert any(op in compiled(f(along_batch), (16, 2, 4))
             for op in ('all-to-all', 'collective-permute', 'all-gather'))


def test_sharding_rules_also_cover_the_optimizer():
  mesh = parallel.make_mesh({'data': 4, 'fsdp': 2})
  params = {'conv': {'kernel': jnp.zeros((3, 6, 8)), 'bias': jnp.zeros(8)}, 'odd': jnp.zeros(7)}
  tree = {'params': params, 'opt': optax.sgd(0.1, momentum=0.9).init(params)}
  shardings = parallel.infer_sharding(tree, [('kernel$', 'fsdp'), ('odd', 'fsdp')], mesh)
  assert shardings['params']['conv']['kernel'].spec == P(None, None, 'fsdp')
  assert shardings['params']['conv']['bias'].spec == P()
  assert shardings['params']['odd'].spec == P()  # 7 rows cannot be split in two
  assert shardings['opt'][0].trace['conv']['kernel'].spec == P(None, None, 'fsdp')


def test_a_rule_for_an_axis_the_mesh_lacks_is_refused():
  with pytest.raises(ValueError, match='tensor'):
    parallel.infer_sharding({}, [('kernel', 'tensor')], parallel.make_mesh())


def permuted_mesh():
  devices = np.array(jax.devices())[[0, 5, 2, 7, 4, 1, 6, 3]]
  return Mesh(devices, ('data',), axis_types=(AxisType.Auto,))


def test_to_global_puts_rows_where_a_permuted_mesh_wants_them():
  sharding = NamedSharding(permuted_mesh(), P('data'))
  batch = {'x': np.arange(16 * 3).reshape(16, 3)}
  np.testing.assert_array_equal(parallel.local_rows(sharding, 16), np.arange(16))
  got = parallel.to_global(batch, sharding, 16)['x']
  np.testing.assert_array_equal(got, batch['x'])
  assert got.sharding == sharding


def test_ragged_rows_are_refused():
  with pytest.raises(ValueError, match="'x' has 8 rows on this process, expected 16"):
    parallel.to_global({'x': np.zeros((8, 3))}, parallel.batch_sharding(parallel.make_mesh()), 16)


def test_weighted_mean_is_not_a_mean_of_means():
  r = np.random.default_rng(0)
  values, weights = r.normal(size=16).astype(np.float32), r.uniform(size=16).astype(np.float32)
  weights[:4] = 0
  split = lambda x: x.reshape(8, 2)
  mean = jax.vmap(lambda v, w: parallel.weighted_mean(v, w, 'i'), axis_name='i')
  got = mean(split(values), split(weights))
  np.testing.assert_allclose(got, np.full(8, np.average(values, weights=weights)), rtol=1e-5)
  assert parallel.weighted_mean(values, np.zeros_like(weights)) == 0


@pytest.mark.parametrize('check_vma', [True, False])
def test_as_varying_sums_the_gradients_of_a_custom_rule(check_vma):
  """What a rule returns is the part of this device: declared so, shard_map adds them up."""
  @jax.custom_vjp
  def product(w, x):
    return w * x

  product.defvjp(lambda w, x: (w * x, (w, x)),
                 lambda saved, g: (jnp.sum(g * saved[1], keepdims=True), g * saved[0]))

  def gradient(w, x, door):
    total = lambda w: parallel.psum(product(parallel.as_varying(w, door), x).sum(), door)
    grad = jax.grad(total)(w)
    # Unchecked, each device has its own part, times the number of devices.
    return grad if check_vma or door is None else parallel.pmean(grad, door)

  w, x = jnp.ones(1), jnp.arange(8.)
  spread = jax.shard_map(lambda w, x: gradient(w, x, 'data'), mesh=parallel.make_mesh(),
                         in_specs=(P(), P('data')), out_specs=P(), check_vma=check_vma)
  np.testing.assert_allclose(jax.jit(spread)(w, x), gradient(w, x, None))


def test_as_varying_changes_no_value_and_no_dtype():
  tree = {'a': jnp.arange(3), 'b': jnp.ones(2, jnp.bfloat16)}
  assert parallel.as_varying(tree, None) is tree
  got = jax.vmap(lambda _: parallel.as_varying(tree, 'i'), axis_name='i')(jnp.zeros(4))
  for name, x in tree.items():
    assert got[name].dtype == x.dtype
    np.testing.assert_array_equal(got[name][3], x)


class _Chip:
  """As the devices of several TPU slices look."""

  platform, device_kind, process_index = 'tpu', 'TPU v5 lite', 0

  def __init__(self, number: int, slice_index: int):
    self.id, self.slice_index, self.core_on_chip = number, slice_index, 0
    self.coords = (number % 2, number % 4 // 2, 0)


@pytest.mark.parametrize('shape, along', [({'data': -1}, 0), ({'data': 2, 'fsdp': 4}, 0),
                                          ({'fsdp': 1, 'data': 8}, 1),
                                          ({'tensor': 2, 'data': 4}, 1)])
def test_slices_lie_next_to_each_other_along_one_axis(shape, along):
  """jax.make_mesh knows no several slices."""
  chips = [_Chip(n, n // 4) for n in range(8)]
  mesh = parallel.make_mesh(shape, chips)
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  assert (np.moveaxis(slices, along, 0).reshape(2, 4) == [[0] * 4, [1] * 4]).all()


def test_slices_that_no_axis_divides():
  with pytest.raises(ValueError, match='no axis that 3 slices divide'):
    parallel.make_mesh({'data': 4}, [_Chip(n, n // 2 if n < 2 else n - 1) for n in range(4)])
