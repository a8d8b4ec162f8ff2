"""PCA against scikit-learn and its definition; t-SNE is repeatable and keeps clusters together."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from ssl_jax.evals.health import effective_rank
from ssl_jax.evals.projection import pca, spectrum, tsne


@pytest.fixture(scope='module')
def features():
  rng = np.random.default_rng(0)
  return (rng.normal(size=(60, 7)) * np.arange(7, 0, -1) + 5).astype(np.float32)


def test_pca_equals_scikit_learn_up_to_the_signs(features):
  theirs = PCA(3).fit(features.astype(np.float64))
  points, explained = pca(features, dims=3)
  assert points.shape == (60, 3) and points.dtype == np.float32
  np.testing.assert_allclose(explained, theirs.explained_variance_ratio_, rtol=1e-6)
  np.testing.assert_allclose(
    np.abs(points), np.abs(theirs.transform(features.astype(np.float64))), rtol=1e-4, atol=1e-4)


def test_the_sign_of_a_component_is_a_property_of_the_data(features):
  centred = features - features.mean(axis=0)
  points = pca(features).points
  directions = np.linalg.lstsq(centred, points, rcond=None)[0].T
  largest = directions[np.arange(2), np.abs(directions).argmax(axis=1)]
  assert (largest > 0).all()
  order = np.random.default_rng(1).permutation(60)
  np.testing.assert_allclose(pca(features[order]).points, points[order], atol=1e-4)


def test_features_without_variance_give_zeros():
  points, explained = pca(np.ones((5, 3)))
  assert not points.any() and not explained.any()


def test_the_spectrum_has_the_entropy_of_the_effective_rank(features):
  p = spectrum(features)
  assert p.shape == (7,) and (np.diff(p) <= 0).all()
  np.testing.assert_allclose(p.sum(), 1)
  np.testing.assert_allclose(np.exp(-np.sum(p * np.log(p))), effective_rank(features), rtol=1e-4)
  assert not spectrum(np.zeros((4, 3))).any()


def test_tsne_is_repeatable_and_keeps_clusters_together():
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1, 2], 20)
  x = 10 * np.eye(3, 60)[labels] + rng.normal(size=(60, 60))
  points = tsne(x, seed=0, perplexity=8)
  assert points.shape == (60, 2) and points.dtype == np.float32
  np.testing.assert_array_equal(points, tsne(x, seed=0, perplexity=8))
  distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(distance, np.inf)
  assert (labels[distance.argmin(axis=1)] == labels).mean() >= 0.95


def test_tsne_of_equal_rows_is_finite():
  assert np.isfinite(tsne(np.ones((12, 4)), seed=0, perplexity=3)).all()
  assert np.isfinite(tsne(np.arange(12.)[:, None], seed=0, perplexity=3)).all()  # one dimension


@pytest.mark.parametrize('call, words', [
  (lambda: pca(np.ones((5, 3)), dims=4), r'dims must be in \[1, 3\]'),
  (lambda: pca(np.ones(5)), r'\[N, D\]'),
  (lambda: pca(np.array([[1., np.nan], [0, 1]])), '1 of 2 feature rows are not finite'),
  (lambda: tsne(np.ones((5, 3)), seed=0, perplexity=5), 'below the number of rows, 5'),
])
def test_mistakes_are_explained(call, words):
  with pytest.raises(ValueError, match=words):
    call()
