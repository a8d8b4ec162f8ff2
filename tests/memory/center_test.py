"""DINO's centre: a running mean of logits over all views, rows and devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.memory.center import follow

LOGITS = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32) + 3


def test_it_is_the_running_mean_of_all_rows_and_views():
  center = expected = np.arange(5, dtype=np.float32)
  for n in range(1, 4):
    center = follow(center, n * LOGITS, momentum=0.9)
    expected = 0.9 * expected + 0.1 * n * LOGITS.astype(np.float64).mean((0, 1))
  np.testing.assert_allclose(center, expected, rtol=1e-6)


def test_it_converges_to_a_constant_mean():
  center = np.zeros(5, np.float32)
  for _ in range(200):
    center = follow(center, LOGITS, momentum=0.9)
  np.testing.assert_allclose(center, LOGITS.mean((0, 1)), rtol=1e-5)


def test_devices_share_it_and_without_the_axis_they_do_not():
  parts = LOGITS.reshape(4, 2, 2, 5)
  over = lambda axis_name: jax.vmap(
    partial(follow, momentum=0.9, axis_name=axis_name), (None, 0), axis_name='i')(np.zeros(5), parts)
  whole = follow(np.zeros(5), LOGITS, momentum=0.9)
  np.testing.assert_allclose(over('i'), np.tile(whole, (4, 1)), rtol=1e-6)
  assert np.abs(over(None) - whole[None]).max() > 1e-2


def test_no_gradient_reaches_the_logits():
  grad = jax.grad(lambda x: jnp.sum(follow(np.ones(5, np.float32), x, momentum=0.9)))(LOGITS)
  np.testing.assert_array_equal(grad, 0)
