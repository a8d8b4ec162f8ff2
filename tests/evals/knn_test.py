"""kNN against scikit-learn and a brute-force formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evals.knn import knn, knn_predict


def problem(n=300, m=101, d=12, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(classes, d))
  make = lambda y: (centres[y] + 1.2 * rng.normal(size=(len(y), d))).astype(np.float32)
  train_labels, labels = rng.integers(classes, size=n), rng.integers(classes, size=m)
  return make(train_labels), train_labels, make(labels), labels


@pytest.mark.parametrize('k', [1, 4, 20])
def test_predicts_what_scikit_learn_predicts_ties_included(k):
  x, y, queries, labels = problem()
  peer = KNeighborsClassifier(k, metric='cosine', weights='uniform').fit(x, y)
  expected = peer.predict(queries)
  if k == 4:  # the case is there to compare ties: make sure that there are some
    votes = np.sort(peer.predict_proba(queries), axis=1)
    assert (votes[:, -1] == votes[:, -2]).sum() > 5
  np.testing.assert_array_equal(knn_predict(x, y, queries, k=k, classes=5, chunk=32), expected)
  accuracy = knn(x, y, queries, labels, k=k, classes=5)['accuracy']
  assert accuracy == pytest.approx(np.mean(expected == labels))


def test_weighted_votes_equal_the_formula():
  x, y, queries, _ = problem(m=40)
  unit = lambda a: a / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)
  similarity = unit(queries) @ unit(x).T
  expected = []
  for row in similarity:
    near = np.argsort(-row)[:15]
    expected.append(np.bincount(y[near], np.exp(row[near] / 0.07), minlength=5).argmax())
  got = knn_predict(x, y, queries, k=15, classes=5, temperature=0.07)
  np.testing.assert_array_equal(got, expected)
  plain = knn_predict(x, y, queries, k=15, classes=5)
  assert (plain != expected).any()  # the weights matter on these data


def test_a_tiny_temperature_is_the_nearest_neighbour_and_does_not_overflow():
  x, y, queries, _ = problem(m=40)
  got = knn_predict(x, y, queries, k=15, classes=5, temperature=1e-4)
  np.testing.assert_array_equal(got, knn_predict(x, y, queries, k=1, classes=5))


def test_dtypes_and_scale_do_not_matter():
  x, y, queries, labels = problem()
  x, queries = (np.asarray(jnp.asarray(a, jnp.bfloat16)) for a in (x, queries))
  plain = knn(x.astype(np.float32), y, queries.astype(np.float32), labels, classes=5)
  assert knn(x, y.astype(np.uint8), queries, labels.astype(float), classes=5) == plain
  # 4 is a power of two: the same directions to the last bit.
  assert knn(jnp.asarray(x) * 4, jnp.asarray(y), jnp.asarray(queries), labels, classes=5) == plain


def test_rows_of_zeros_and_the_transfer_guard():
  x, y, queries, labels = problem()
  x[3] = queries[0] = 0
  with jax.transfer_guard('disallow'):
    assert 0 <= knn(x, y, queries, labels, classes=5)['accuracy'] <= 1


def test_memory_does_not_grow_with_the_number_of_queries():
  from ssl_jax.evals import knn as module
  def temporary(m, chunk):
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in
              (((500, 8), jnp.float32), ((500,), jnp.int32), ((m, 8), jnp.float32))]
    compiled = module._predict.lower(*shapes, k=5, classes=3, temperature=None,
                                     chunk=chunk).compile()
    return compiled.memory_analysis().temp_size_in_bytes
  # All similarities would be 4096 * 500 * 4 = 8.2 MB; 64 queries at a time are 0.13 MB.
  assert temporary(4096, 64) < 2e6 < temporary(4096, 4096)


@pytest.mark.parametrize('wrong, message', [
  (dict(k=301), 'k <= 300'), (dict(k=0), 'k=0'), (dict(temperature=0.), 'temperature'),
  (dict(classes=4), r'\[0, 4\)'), (dict(classes=1), 'at least 2'),
])
def test_mistakes_are_named(wrong, message):
  with pytest.raises(ValueError, match=message):
    knn(*problem(), **(dict(classes=5) | wrong))
