"""Cross-entropy against scikit-learn's and a formula in NumPy, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ssl_jax.losses.classification import accuracy, cross_entropy
from ssl_jax.parallel import make_mesh, over

RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(16, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 16).astype(np.int32)


def test_equals_scikit_learn():
  p = np.exp(LOGITS.astype(np.float64))
  p /= p.sum(1, keepdims=True)
  np.testing.assert_allclose(
    cross_entropy(LOGITS, LABELS), log_loss(LABELS, p, labels=range(5)), rtol=1e-6)


def test_smoothing_equals_the_formula():
  target = 0.9 * np.eye(5)[LABELS] + 0.1 / 5
  log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
  expected = -(target * log_p).sum(1).mean()
  np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, smoothing=0.1), expected, rtol=1e-6)


@pytest.mark.parametrize('function', [cross_entropy, accuracy])
def test_equals_itself_over_8_devices(function):
  mesh = make_mesh({'data': 8})
  np.testing.assert_allclose(
    jax.jit(over(mesh)(function))(LOGITS, LABELS), function(LOGITS, LABELS), rtol=1e-6)


def test_accuracy_counts_hits():
  assert accuracy(LOGITS, LOGITS.argmax(1)) == 1
  assert accuracy(LOGITS, LOGITS.argmin(1)) == 0


@pytest.mark.parametrize('label', [-1, 5])
def test_a_label_that_is_no_class_is_not_taken_for_another(label):
  labels = np.where(np.arange(16) == 3, label, LABELS)
  assert np.isnan(cross_entropy(LOGITS, labels))


def test_half_precision_is_computed_in_float32():
  assert cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), LABELS).dtype == jnp.float32
