"""Schedules of momenta: their values against the formulas of the references."""

import jax
import numpy as np
import pytest

from ssl_jax.memory.schedules import schedule


def test_the_cosine_is_that_of_byol():
  steps, start = 100, 0.996
  value = jax.jit(schedule('cosine', start, 1., steps))
  expected = lambda k: 1 - (1 - start) * (np.cos(np.pi * k / steps) + 1) / 2
  for k in (0, 1, 33, 50, 99, 100):
    np.testing.assert_allclose(value(k), expected(k), rtol=1e-6)
  assert value(0) == np.float32(start) and value(steps) == 1 and value(10 * steps) == 1


def test_the_line_and_the_constant():
  line = schedule('linear', 0.996, 1., 10)
  np.testing.assert_allclose([line(k) for k in (0, 5, 10, 11)], [0.996, 0.998, 1, 1], rtol=1e-6)
  fixed = schedule('constant', 0.999, 1., None)
  np.testing.assert_allclose([fixed(0), fixed(10 ** 6)], 0.999)


def test_values_are_of_the_precision_in_use():
  assert schedule('cosine', 0.9, 1., 7)(3).dtype == np.float32
  with jax.enable_x64(True):
    assert schedule('cosine', 0.9, 1., 7)(3).dtype == np.float64
    assert schedule('constant', 0.9, 1., 7)(3).dtype == np.float64


@pytest.mark.parametrize('name, steps, message', [
  ('cos', 10, 'unknown schedule'), ('cosine', None, 'number of steps'),
  ('linear', 0, 'number of steps')])
def test_what_is_refused(name, steps, message):
  with pytest.raises(ValueError, match=message):
    schedule(name, 0.9, 1., steps)
