"""Barlow Twins against NumPy loops in float64, on one device and on eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.redundancy import barlow_twins
from ssl_jax.parallel import inside, make_mesh, over

pytestmark = pytest.mark.usefixtures('strict_dtypes')
ROWS, DIM = 32, 6


def pair(rows=ROWS, dtype=np.float32):
  r = np.random.default_rng(0)
  mix = r.normal(size=(DIM, DIM))
  z1 = r.normal(size=(rows, DIM)) @ mix + 2
  return z1.astype(dtype), (z1 + 0.7 * r.normal(size=(rows, DIM))).astype(dtype)


def by_loops(z1, z2, off_diagonal=0.0051):
  """Algorithm 1 of arXiv:2103.03230, entry by entry."""
  a, b = ((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in map(np.float64, (z1, z2)))
  total = 0.
  for d in range(a.shape[1]):
    for e in range(b.shape[1]):
      c = np.mean(a[:, d] * b[:, e])
      total += (1 - c) ** 2 if d == e else off_diagonal * c ** 2
  return total


@pytest.mark.parametrize('off_diagonal', [0.0051, 0.5, 0.])
def test_value_is_the_papers(off_diagonal):
  np.testing.assert_allclose(barlow_twins(*pair(), off_diagonal=off_diagonal),
                             by_loops(*pair(), off_diagonal), rtol=1e-5)


def test_gradient_is_the_formulas_difference_quotient():
  z = pair(5, np.float64)
  with jax.enable_x64(True):
    grads = jax.grad(partial(barlow_twins, off_diagonal=0.5), argnums=(0, 1))(*map(jnp.array, z))
  for which in (0, 1):
    for i in np.ndindex(2, 3):
      d = np.zeros_like(z[0])
      d[i] = 1e-6
      high, low = ([x + sign * d * (v == which) for v, x in enumerate(z)] for sign in (1, -1))
      slope = (by_loops(*high, 0.5) - by_loops(*low, 0.5)) / 2e-6
      np.testing.assert_allclose(grads[which][i], slope, rtol=1e-5, atol=1e-8)


def test_limits():
  """Equal views of independent dimensions have no loss; a collapsed view has D; scale has no part."""
  eye = np.repeat(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][:, :4], 1, 1)
  z = (eye - eye.mean(0)).astype(np.float32)
  z = np.linalg.qr(z)[0].astype(np.float32) * 100
  np.testing.assert_allclose(barlow_twins(z, z), 0, atol=1e-4)
  np.testing.assert_allclose(barlow_twins(z, np.ones_like(z)), 4, rtol=1e-5)
  z1, z2 = pair()
  np.testing.assert_allclose(barlow_twins(7 * z1 + 3, z2), barlow_twins(z1, z2), rtol=1e-4)
  with_copies = np.concatenate([z1[:, :1]] * 3, 1)
  np.testing.assert_allclose(barlow_twins(with_copies, with_copies, off_diagonal=0.1), 0.6, rtol=1e-4)


def ways():
  """Every way to run the loss over 8 devices, as (z1, z2) -> scalar of global arrays."""
  flat, grid = make_mesh({'data': 8}), make_mesh({'data': 4, 'fsdp': 2})

  def manual(mesh, axes, check_vma):
    return jax.shard_map(partial(barlow_twins, axis_name=axes), mesh=mesh, in_specs=P(axes),
                         out_specs=P(), check_vma=check_vma)

  def by_vmap(a, b):
    split = lambda x: x.reshape(8, -1, DIM)
    return jnp.mean(jax.vmap(inside('i')(barlow_twins), axis_name='i')(split(a), split(b)))

  return {
    'global view': barlow_twins, 'over data': over(flat)(barlow_twins),
    'over data x fsdp': over(grid)(barlow_twins),
    'shard_map, check_vma=True': manual(flat, 'data', True),
    'shard_map, check_vma=False': manual(flat, 'data', False), 'vmap': by_vmap}


@pytest.mark.parametrize('way', list(ways()))
def test_value_and_gradient_are_equal_on_8_devices(way):
  z = pair()
  value, grads = jax.value_and_grad(barlow_twins, argnums=(0, 1))(*z)
  placed = [jax.device_put(x, jax.NamedSharding(make_mesh({'data': 8}), P('data')))
            if way == 'global view' else x for x in z]
  got, got_grads = jax.jit(jax.value_and_grad(ways()[way], argnums=(0, 1)))(*placed)
  np.testing.assert_allclose(got, value, rtol=1e-5)
  for a, b in zip(got_grads, grads):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.linalg.norm(b)))


@pytest.mark.parametrize('door', ['check_vma', 'no check_vma'])
def test_a_whole_step_inside_an_axis_has_the_exact_gradient(door):
  w = np.random.default_rng(1).normal(size=(DIM, DIM)).astype(np.float32)
  step = lambda w, a, b, axis: jax.grad(lambda w: barlow_twins(a @ w, b @ w, axis_name=axis))(w)
  got = jax.jit(jax.shard_map(
    lambda w, a, b: lax.pmean(step(w, a, b, 'data'), 'data'), mesh=make_mesh({'data': 8}),
    in_specs=(P(), P('data'), P('data')), out_specs=P(), check_vma=door == 'check_vma'))(w, *pair())
  expected = step(w, *pair(), None)
  np.testing.assert_allclose(got, expected, atol=1e-5 * np.linalg.norm(expected))


def test_statistics_of_each_device_alone_are_another_loss():
  """The negative control, and what lightly and solo-learn compute: means of devices' correlations."""
  split = lambda x: x.reshape(8, -1, DIM)
  alone = jnp.mean(jax.vmap(barlow_twins)(*map(split, pair())))
  assert abs(alone - barlow_twins(*pair())) > 0.01


def test_views_of_different_shape_are_refused():
  z1, z2 = pair()
  with pytest.raises(AssertionError):
    barlow_twins(z1, z2[:, :3])
  with pytest.raises(AssertionError):
    barlow_twins(z1[None], z2[None])
