"""SwAV's codes and loss against NumPy in float64, step by step as the reference does it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.clustering import sinkhorn, swapped_prediction, swav
from ssl_jax.parallel import inside, make_mesh, over

pytestmark = pytest.mark.usefixtures('strict_dtypes')
ROWS, K, T = 16, 6, 0.1


def cosines(shape=(ROWS, K), seed=0):
  return np.random.default_rng(seed).uniform(-0.6, 0.6, shape).astype(np.float32)


def sinkhorn_without_logarithms(scores, epsilon, iterations):
  """Prototypes in rows, as the paper has it: everything first sums to 1, then rows, then columns."""
  q = np.exp(scores.astype(np.float64) / epsilon).T
  prototypes, samples = q.shape
  q /= q.sum()
  for _ in range(iterations):
    q /= q.sum(axis=1, keepdims=True)
    q /= prototypes
    q /= q.sum(axis=0, keepdims=True)
    q /= samples
  return (q * samples).T


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def prediction_by_loops(scores, codes, temperature):
  """Crop by crop, as the reference's training loop."""
  terms = []
  log_p = log_softmax(scores.astype(np.float64) / temperature)
  for s in range(codes.shape[1]):
    others = [v for v in range(scores.shape[1]) if v != s]
    terms.append(np.mean([-np.mean(np.sum(codes[:, s] * log_p[:, v], axis=1)) for v in others]))
  return np.mean(terms)


def swav_by_loops(scores1, scores2):
  codes = [sinkhorn_without_logarithms(s, 0.05, 3) for s in (scores1, scores2)]
  return prediction_by_loops(np.stack([scores1, scores2], 1), np.stack(codes, 1), T)


# --- codes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('iterations', [1, 2, 3, 10])
@pytest.mark.parametrize('epsilon', [0.05, 0.3])
def test_codes_are_the_references_at_every_iteration(iterations, epsilon):
  expected = sinkhorn_without_logarithms(cosines(), epsilon, iterations)
  np.testing.assert_allclose(
    sinkhorn(cosines(), epsilon=epsilon, iterations=iterations), expected, rtol=2e-5, atol=1e-7)


def test_rows_sum_to_one_and_columns_become_even():
  errors = []
  for iterations in (1, 3, 10, 100, 1000):
    codes = np.asarray(sinkhorn(cosines(), iterations=iterations))
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    errors.append(np.abs(codes.sum(0) - ROWS / K).max())
  assert all(b < a for a, b in zip(errors, errors[1:4])) and errors[-1] < 1e-3, errors


def test_scores_that_overflow_exp_stay_finite_and_right():
  scores = cosines() * 100  # exp(60 / 0.05) is far above what even float64 holds
  with np.errstate(over='ignore', invalid='ignore'):
    assert not np.isfinite(sinkhorn_without_logarithms(scores, 0.05, 3)).all()
  codes = np.asarray(sinkhorn(scores))
  # A common factor of exp(scores / epsilon) changes nothing; here a mantissa wide enough is needed.
  wide = np.exp(np.longdouble(scores) / 0.05 - np.longdouble(scores).max() / 0.05)
  for _ in range(3):
    wide = wide / wide.sum(0, keepdims=True)
    wide = wide / wide.sum(1, keepdims=True)
  assert np.isfinite(codes).all()
  np.testing.assert_allclose(codes, wide.astype(np.float64), atol=1e-3)


def test_subtracting_each_samples_maximum_first_is_another_number():
  scores = cosines()
  shifted = scores - scores.max(1, keepdims=True)
  assert np.abs(np.asarray(sinkhorn(scores)) - np.asarray(sinkhorn(shifted))).max() > 1e-3
  np.testing.assert_allclose(
    sinkhorn(scores), sinkhorn(scores - scores.max()), rtol=1e-4, atol=1e-6)  # the global one is not


def test_more_samples_count_as_if_they_stood_among_the_rows():
  scores, more = cosines(), cosines((10, K), 1)
  expected = sinkhorn(np.concatenate([more, scores]))[10:]
  codes = sinkhorn(scores, more=more)
  np.testing.assert_allclose(codes, expected, rtol=1e-5, atol=1e-7)
  assert np.abs(codes - sinkhorn(scores)).max() > 1e-2


def test_more_samples_count_once_on_8_devices():
  scores, more = cosines(), cosines((10, K), 1)
  head = partial(sinkhorn, axis_name='data')
  run = jax.shard_map(lambda s, m: head(s, more=m), mesh=make_mesh({'data': 8}),
                      in_specs=(P('data'), P()), out_specs=P('data'))
  np.testing.assert_allclose(
    jax.jit(run)(scores, more), sinkhorn(scores, more=more), rtol=1e-5, atol=1e-7)


def test_equal_scores_have_even_codes_and_the_loss_log_k():
  scores = np.full((ROWS, K), 0.3, np.float32)
  np.testing.assert_allclose(sinkhorn(scores), 1 / K, rtol=1e-5)
  np.testing.assert_allclose(swav(scores, scores), np.log(K), rtol=1e-5)


def test_codes_are_even_where_a_softmax_gives_everything_to_one_prototype():
  """What keeps SwAV from collapsing: the preferred prototype gets its share and no more."""
  scores = cosines() * 0.1
  scores[:, 2] += 0.5
  codes = np.asarray(sinkhorn(scores, iterations=100))
  plain = np.asarray(jax.nn.softmax(scores / np.float32(0.05)))
  assert plain[:, 2].mean() > 0.9
  np.testing.assert_allclose(codes[:, 2].mean(), 1 / K, rtol=1e-3)


# --- loss -----------------------------------------------------------------------------------------


def test_value_is_the_papers():
  one, two = cosines(seed=1), cosines(seed=2)
  np.testing.assert_allclose(swav(one, two), swav_by_loops(one, two), rtol=1e-5)


@pytest.mark.parametrize('crops, coded', [(2, 2), (8, 2), (5, 3), (3, 1)])
def test_every_code_is_predicted_from_all_crops_but_its_own(crops, coded):
  scores = cosines((ROWS, crops, K))
  codes = np.asarray(jax.nn.softmax(cosines((ROWS, coded, K), 5) * np.float32(9)))
  np.testing.assert_allclose(
    swapped_prediction(scores, codes), prediction_by_loops(scores, codes, T), rtol=1e-5)


def test_gradient_is_the_formulas_difference_quotient_with_codes_held_still():
  scores = cosines((4, 3, K)).astype(np.float64)
  codes = np.stack([sinkhorn_without_logarithms(scores[:, v], 0.05, 3) for v in (0, 1)], 1)

  def ours(s):
    found = jnp.stack([sinkhorn(s[:, v]) for v in (0, 1)], axis=1)
    return swapped_prediction(s, found)

  with jax.enable_x64(True):
    grad = np.asarray(jax.grad(ours)(jnp.array(scores)))
  for i in [(0, 0, 0), (1, 1, 2), (2, 2, 5), (3, 0, 4)]:
    d = np.zeros_like(scores)
    d[i] = 1e-6
    high, low = (prediction_by_loops(moved, codes, T) for moved in (scores + d, scores - d))
    slope = (high - low) / 2e-6
    np.testing.assert_allclose(grad[i], slope, rtol=1e-5, atol=1e-9)


def ways():
  """Every way to run the loss over 8 devices, as (scores1, scores2) -> scalar of global arrays."""
  flat, grid = make_mesh({'data': 8}), make_mesh({'data': 4, 'fsdp': 2})

  def manual(mesh, axes, check_vma):
    return jax.shard_map(partial(swav, axis_name=axes), mesh=mesh, in_specs=P(axes), out_specs=P(),
                         check_vma=check_vma)

  def by_vmap(a, b):
    split = lambda x: x.reshape(8, -1, K)
    return jnp.mean(jax.vmap(inside('i')(swav), axis_name='i')(split(a), split(b)))

  return {
    'global view': swav, 'over data': over(flat)(swav), 'over data x fsdp': over(grid)(swav),
    'shard_map, check_vma=True': manual(flat, 'data', True),
    'shard_map, check_vma=False': manual(flat, 'data', False), 'vmap': by_vmap}


@pytest.mark.parametrize('way', list(ways()))
def test_value_and_gradient_are_equal_on_8_devices(way):
  scores = [jax.device_put(cosines(seed=s), jax.NamedSharding(make_mesh({'data': 8}), P('data')))
            if way == 'global view' else cosines(seed=s) for s in (1, 2)]
  value, grads = jax.value_and_grad(swav, argnums=(0, 1))(cosines(seed=1), cosines(seed=2))
  got, got_grads = jax.jit(jax.value_and_grad(ways()[way], argnums=(0, 1)))(*scores)
  np.testing.assert_allclose(got, value, rtol=1e-5)
  for a, b in zip(got_grads, grads):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.linalg.norm(b)))


@pytest.mark.parametrize('door', ['check_vma', 'no check_vma'])
def test_a_whole_step_inside_an_axis_has_the_exact_gradient(door):
  z = np.random.default_rng(3).normal(size=(2, ROWS, 4)).astype(np.float32) / 4
  w = cosines((4, K), 4)
  step = lambda w, a, b, axis: jax.grad(lambda w: swav(a @ w, b @ w, axis_name=axis))(w)
  got = jax.jit(jax.shard_map(
    lambda w, a, b: lax.pmean(step(w, a, b, 'data'), 'data'), mesh=make_mesh({'data': 8}),
    in_specs=(P(), P('data'), P('data')), out_specs=P(), check_vma=door == 'check_vma'))(w, *z)
  expected = step(w, *z, None)
  np.testing.assert_allclose(got, expected, atol=1e-5 * np.linalg.norm(expected))


def test_codes_of_each_device_alone_are_another_loss():
  """The negative control: without the axis, prototypes are evened out within two rows."""
  split = lambda x: x.reshape(8, -1, K)
  alone = jnp.mean(jax.vmap(swav)(split(cosines(seed=1)), split(cosines(seed=2))))
  assert abs(alone - swav(cosines(seed=1), cosines(seed=2))) > 1e-2


@pytest.mark.parametrize('shapes, message', [
  (((4, 1, K), (4, 1, K)), 'at least two crops'), (((4, 2, K), (4, 3, K)), 'at least two crops')])
def test_impossible_numbers_of_crops_are_refused(shapes, message):
  with pytest.raises(ValueError, match=message):
    swapped_prediction(*map(cosines, shapes))


def test_no_iteration_is_refused():
  with pytest.raises(ValueError, match='at least 1'):
    sinkhorn(cosines(), iterations=0)
  with pytest.raises(AssertionError):
    sinkhorn(cosines((2, 3, 4)))
  with pytest.raises(AssertionError):
    swav(cosines((4, K)), cosines((5, K)))
