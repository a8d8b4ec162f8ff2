"""Attention against its formula, one head of one example after the other."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.models.attention import attention


def operands():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 5, 3, 4)), *rng.normal(size=(2, 2, 6, 3, 4))


def expected(q, k, v):
  y = np.zeros_like(q)
  for example, head in np.ndindex(2, 3):
    weights = np.exp(q[example, :, head] @ k[example, :, head].T / np.sqrt(4))
    weights /= weights.sum(1, keepdims=True)
    y[example, :, head] = weights @ v[example, :, head]
  return y


def test_equals_the_formula():
  q, k, v = operands()
  with jax.enable_x64(True):
    np.testing.assert_allclose(attention(*map(jnp.asarray, (q, k, v))), expected(q, k, v),
                               rtol=1e-12)


def test_half_precision_has_a_softmax_in_float32():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in operands())
  got = attention(q, k, v)
  assert got.dtype == jnp.bfloat16
  wide = expected(*(np.asarray(x, np.float64) for x in (q, k, v)))
  np.testing.assert_allclose(got.astype(jnp.float32), wide, atol=2e-2)
  # 300 and 301 are one number in bfloat16, whose exponentials differ.
  q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  k = jnp.array([[150, 150], [150, 151]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.array([0., 1.], jnp.bfloat16).reshape(1, 2, 1, 1).repeat(2, -1)
  share = 1 / (1 + np.exp(-1 / np.sqrt(2)))
  np.testing.assert_allclose(attention(q, k, v)[0, 0, 0, 0], share, atol=4e-3)
