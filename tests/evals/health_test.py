"""Health measures against formulas in float64 and limiting cases."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evals.health import (
  alignment,
  collapse_verdict,
  effective_rank,
  health,
  spread,
  uniformity,
)


def gaussian(n=600, d=16, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_effective_rank_equals_the_entropy_of_the_gram_matrix_spectrum():
  x = gaussian(200, 8) * np.geomspace(1, 20, 8)
  sigma = np.sqrt(np.linalg.eigvalsh(x.T @ x))
  p = sigma / sigma.sum()
  assert effective_rank(x) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-4)


@pytest.mark.parametrize('rank', [1, 3, 16])
def test_effective_rank_of_equal_singular_values_is_the_rank(rank):
  axes = np.linalg.qr(gaussian(100, 16))[0]
  assert effective_rank(axes[:, :rank] @ np.eye(16)[:rank] * 7) == pytest.approx(rank, rel=1e-3)


def test_spread_of_isotropic_and_of_constant_features():
  assert spread(gaussian(4000, 32)) == pytest.approx(1, abs=0.02)
  assert spread(np.ones((10, 4)) * np.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-6)
  x = gaussian(50, 5).astype(np.float64)
  unit = x / np.sqrt((x**2).sum(1))[:, None]
  expected = np.mean(np.sqrt(np.mean(unit**2, 0) - np.mean(unit, 0)**2)) * 5**0.5
  assert spread(x) == pytest.approx(expected, rel=1e-5)


def test_alignment_and_uniformity_equal_their_definitions():
  x, y = gaussian(70, 6).astype(np.float64), gaussian(70, 6, seed=1).astype(np.float64)
  x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
  for alpha in (2, 1):
    expected = np.mean([np.sum((a - b)**2)**(alpha / 2) for a, b in zip(x, y)])
    assert alignment(3 * x, y, alpha=alpha) == pytest.approx(expected, rel=1e-5)
  pairs = [np.exp(-3 * np.sum((x[i] - x[j])**2)) for i in range(70) for j in range(i)]
  assert uniformity(5 * x, t=3) == pytest.approx(np.log(np.mean(pairs)), rel=1e-5)


def test_uniformity_over_several_blocks_and_its_limits():
  assert uniformity(np.ones((1500, 3))) == pytest.approx(0, abs=1e-5)
  # Two opposite points, squared distance 4: over 2 * 1100 rows, 1099 / 2199 of the pairs are at 0.
  x = np.tile([[1., 0.], [-1., 0.]], (1100, 1))
  expected = np.log((1099 + 1100 * np.exp(-8)) / 2199)
  assert uniformity(x) == pytest.approx(expected, rel=1e-5)
  assert uniformity(np.array([[1., 0.], [-1., 0.]]), t=2) == pytest.approx(-8, rel=1e-5)


def test_the_report_takes_bfloat16_and_two_views():
  x = jnp.asarray(gaussian(64, 4), jnp.bfloat16)
  report = health(x, views=(x, -x))
  assert set(report) == {'effective_rank', 'spread', 'uniformity', 'alignment'}
  assert report['alignment'] == pytest.approx(4, rel=1e-5)  # opposite directions
  assert report['spread'] == pytest.approx(spread(np.asarray(x, np.float32)))
  assert all(type(value) is float for value in report.values())


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_the_report_on_diverged_features_does_not_stop_a_run(bad):
  x = gaussian(20, 4)
  x[3, 1] = bad
  assert np.isnan(list(health(x).values())).all() and len(health(x)) == 3
  report = health(gaussian(20, 4), views=(x, x))
  assert set(report) == {'effective_rank', 'spread', 'uniformity', 'alignment'}
  assert np.isnan(report['alignment'])


HEALTHY = {
  'gaussian': gaussian(),
  'rectified': np.maximum(gaussian(600, 32) @ gaussian(32, 128, 1), 0),
  'two dimensions': gaussian(600, 2),
  'large offset': gaussian(600, 16) + 2,
}


@pytest.mark.parametrize('name', HEALTHY)
def test_no_verdict_on_healthy_features(name):
  assert collapse_verdict(HEALTHY[name]) is None


@pytest.mark.parametrize('features, words', [
  (np.ones((100, 8)) + 1e-3 * gaussian(100, 8), 'complete collapse.*threshold 0.05'),
  (np.zeros((100, 8)), 'complete collapse.*spread 0.0000'),
  (gaussian(100, 1) * gaussian(1, 64, 1), 'dimensional collapse: effective rank 1.0 of at most 64'),
  (gaussian(600, 3) @ gaussian(3, 128, 1), r'dimensional collapse.*threshold 5.1'),
  (gaussian(10, 4) * np.array([[np.nan, 1, 1, 1]]), 'diverged: 10 of 10'),
])
def test_verdicts_give_the_numbers(features, words):
  verdict = collapse_verdict(features)
  assert verdict is not None
  assert re.search(words, verdict), verdict


@pytest.mark.parametrize('call', [
  lambda: effective_rank(np.ones(3)), lambda: spread(np.ones((1, 3))),
  lambda: alignment(np.ones((2, 3)), np.ones((3, 3))), lambda: collapse_verdict(np.ones((2, 2, 2))),
])
def test_wrong_shapes_are_named(call):
  with pytest.raises(ValueError, match='shape'):
    call()
