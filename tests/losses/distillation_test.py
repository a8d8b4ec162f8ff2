"""BYOL's and DINO's losses against NumPy loops in float64, on one device and on eight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.distillation import byol, dino
from ssl_jax.parallel import inside, make_mesh, over

pytestmark = pytest.mark.usefixtures('strict_dtypes')
ROWS, K = 16, 6
CENTER = np.linspace(-1, 1, K).astype(np.float32)
HEAT = dict(student_temperature=0.1, teacher_temperature=0.04)


def logits(*shape, seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def byol_by_rows(online, target):
  unit = lambda x: x / np.linalg.norm(x)
  return np.mean([np.sum((unit(p) - unit(z)) ** 2) for p, z in zip(*map(np.float64, (online, target)))])


def dino_by_pairs(student, teacher, center=CENTER, student_temperature=0.1, teacher_temperature=0.04):
  """Pair by pair, row by row: softmax of the teacher, log softmax of the student."""
  student, teacher = map(np.float64, (student, teacher))
  terms = []
  for s in range(teacher.shape[1]):
    for v in range(student.shape[1]):
      if v == s:
        continue
      for row in range(len(student)):
        target = np.exp((teacher[row, s] - center) / teacher_temperature)
        guess = np.exp(student[row, v] / student_temperature)
        terms.append(-np.sum(target / target.sum() * np.log(guess / guess.sum())))
  return np.mean(terms)


def centred(student, teacher, axis_name=None):
  return dino(student, teacher, center=CENTER, axis_name=axis_name, **HEAT)


LOSSES = {'byol': (byol, byol_by_rows, (ROWS, K), (ROWS, K)),
          'dino': (centred, dino_by_pairs, (ROWS, 5, K), (ROWS, 2, K))}
each_loss = pytest.mark.parametrize('name', LOSSES)


def inputs(name, rows=ROWS):
  *_, first, second = LOSSES[name]
  return logits(rows, *first[1:], seed=1), logits(rows, *second[1:], seed=2)


@each_loss
def test_value_is_the_papers(name):
  loss, formula, *_ = LOSSES[name]
  np.testing.assert_allclose(loss(*inputs(name)), formula(*inputs(name)), rtol=1e-5)


@pytest.mark.parametrize('crops, seen', [(2, 2), (10, 2), (4, 3), (3, 1)])
def test_dino_is_the_mean_over_pairs_of_different_crops(crops, seen):
  student, teacher = logits(4, crops, K), logits(4, seen, K, seed=1)
  np.testing.assert_allclose(centred(student, teacher), dino_by_pairs(student, teacher), rtol=1e-5)


@each_loss
def test_gradient_is_the_formulas_difference_quotient_and_the_teacher_has_none(name):
  loss, formula, *_ = LOSSES[name]
  x, y = (a.astype(np.float64) for a in inputs(name, 4))
  with jax.enable_x64(True):
    grad, none = jax.grad(loss, argnums=(0, 1))(jnp.array(x), jnp.array(y))
  np.testing.assert_array_equal(none, 0)
  for i in [i for i in np.ndindex(*x.shape)][::7]:
    d = np.zeros_like(x)
    d[i] = 1e-6
    slope = (formula(x + d, y) - formula(x - d, y)) / 2e-6
    np.testing.assert_allclose(grad[i], slope, rtol=1e-5, atol=1e-8)


def ways(loss):
  """Every way to run a loss over 8 devices, as (student, teacher) -> scalar of global arrays."""
  flat, grid = make_mesh({'data': 8}), make_mesh({'data': 4, 'fsdp': 2})

  def manual(check_vma):
    return jax.shard_map(partial(loss, axis_name='data'), mesh=flat, in_specs=P('data'), out_specs=P(),
                         check_vma=check_vma)

  def by_vmap(a, b):
    split = lambda x: x.reshape(8, -1, *x.shape[1:])
    return jnp.mean(jax.vmap(inside('i')(loss), axis_name='i')(split(a), split(b)))

  return {'global view': loss, 'over data x fsdp': over(grid)(loss),
          'shard_map, check_vma=True': manual(True), 'shard_map, check_vma=False': manual(False),
          'vmap': by_vmap}


@each_loss
@pytest.mark.parametrize('way', list(ways(byol)))
def test_value_and_gradient_are_equal_on_8_devices(name, way):
  loss, x = LOSSES[name][0], inputs(name)
  value, grad = jax.value_and_grad(loss)(*x)
  placed = [jax.device_put(a, jax.NamedSharding(make_mesh({'data': 8}), P('data')))
            if way == 'global view' else a for a in x]
  got, got_grad = jax.jit(jax.value_and_grad(ways(loss)[way]))(*placed)
  np.testing.assert_allclose(got, value, rtol=1e-5)
  np.testing.assert_allclose(got_grad, grad, atol=1e-5 * float(jnp.linalg.norm(grad)))


@each_loss
def test_a_device_alone_has_another_loss(name):
  """The negative control: without the axis each device would report its own rows."""
  loss, x = LOSSES[name][0], inputs(name)
  alone = jax.vmap(loss)(*(a.reshape(8, -1, *a.shape[1:]) for a in x))
  assert jnp.abs(alone - loss(*x)).max() > 0.01


def test_byol_counts_directions_alone():
  p = logits(ROWS, K)
  np.testing.assert_allclose(byol(p, 3 * p), 0, atol=1e-6)
  np.testing.assert_allclose(byol(p, -p), 4, rtol=1e-6)


def test_dino_limits():
  """Equal logits: log K. A teacher at its centre asks for an even answer, whatever its temperature."""
  same = np.zeros((ROWS, 3, K), np.float32)
  np.testing.assert_allclose(
    dino(same, same[:, :2], center=np.zeros(K, np.float32), **HEAT), np.log(K), rtol=1e-5)
  teacher = np.broadcast_to(CENTER, (ROWS, 2, K))
  np.testing.assert_allclose(centred(same, teacher), np.log(K), rtol=1e-5)
  # A sharp teacher of a clear mind is a class: the student's log softmax of it.
  clear = np.zeros((ROWS, 2, K), np.float32)
  clear[:, :, 3] = 9
  student = logits(ROWS, 2, K)
  value = dino(student, clear, center=np.zeros(K, np.float32), **HEAT)
  np.testing.assert_allclose(
    value, -np.mean(jax.nn.log_softmax(student / np.float32(0.1))[:, :, 3]), rtol=1e-5)


def test_impossible_numbers_of_crops_are_refused():
  for student, teacher in (((4, 1, K), (4, 1, K)), ((4, 2, K), (4, 3, K))):
    with pytest.raises(ValueError, match='at least two crops'):
      centred(logits(*student), logits(*teacher))
  with pytest.raises(AssertionError):
    byol(logits(4, 3), logits(4, 2))
