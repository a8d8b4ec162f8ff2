"""The moving average of parameters: its formula, its dtype, and that no gradient passes through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.memory.average import average

r = np.random.default_rng(0)
SLOW = {'a': r.normal(size=(3, 2)).astype(np.float32), 'b': [np.float32([1, 2])]}
FAST = {'a': r.normal(size=(3, 2)).astype(np.float32), 'b': [np.float32([5, 6])]}


@pytest.mark.parametrize('momentum', [0.0, 0.9, 1.0])
def test_every_leaf_follows_the_formula(momentum):
  new = jax.jit(average)(SLOW, FAST, momentum)
  expected = jax.tree.map(lambda s, f: momentum * s + (1 - momentum) * f, SLOW, FAST)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), new, expected)


def test_after_n_steps_a_constant_is_left_behind_by_momentum_to_the_n():
  slow = np.float32(1)
  for _ in range(10):
    slow = average(slow, np.float32(0), 0.8)
  np.testing.assert_allclose(slow, 0.8 ** 10, rtol=1e-6)


def test_no_gradient_reaches_the_fast_parameters_and_dtypes_stay(strict_dtypes):
  grads = jax.grad(lambda fast: jnp.sum(average(SLOW, fast, 0.5)['a']))(FAST)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))
  half = average({'a': jnp.ones(2, jnp.bfloat16)}, {'a': np.ones(2, np.float32)}, np.float32(0.5))
  assert half['a'].dtype == jnp.bfloat16
