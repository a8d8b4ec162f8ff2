"""kNN against scikit-learn and a brute-force formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evals import knn as module
from ssl_jax.evals.knn import knn, knn_predict, knn_sweep, nearest
from ssl_jax.parallel import make_mesh


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


def test_the_search_is_numpys_in_blocks_and_on_any_number_of_devices(monkeypatch):
  monkeypatch.setattr(module, 'BLOCK', 32)  # 301 rows are 10 blocks, or 2 on each of 8 devices
  x, _, queries, _ = problem(n=301)
  # Rows of +-1 in 4 dimensions: lengths of 2, so that similarities are exact and ties are many.
  signs = np.sign(np.random.default_rng(0).normal(size=(301, 4))).astype(np.float32)
  for bank, asked in ((x, queries), (signs, signs[:40])):
    unit = lambda a: a / np.linalg.norm(a.astype(np.float64), axis=1, keepdims=True)
    similarity = unit(asked) @ unit(bank).T
    order = np.argsort(-similarity, axis=1, kind='stable')[:, :50]
    for devices in (None, 1, 2, 8):
      mesh = devices and make_mesh(devices=jax.devices()[:devices])
      got, rows = nearest(bank, asked, k=50, mesh=mesh, chunk=16)
      np.testing.assert_array_equal(rows, order)
      np.testing.assert_allclose(got, np.take_along_axis(similarity, order, 1), atol=1e-6)


def test_a_mesh_of_two_axes_and_one_of_copies():
  x, y, queries, labels = problem()
  expected = knn_predict(x, y, queries, k=7, classes=5, temperature=.07)
  for shape in ({'data': 4, 'fsdp': 2}, {'data': 4, 'tensor': 2}):
    got = knn_predict(x, y, queries, k=7, classes=5, temperature=.07, mesh=make_mesh(shape))
    np.testing.assert_array_equal(got, expected)


def test_more_neighbours_than_a_device_has_rows():
  x, y, queries, _ = problem(n=20)
  _, rows = nearest(x, queries, k=20, mesh=make_mesh())
  np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(20), (len(queries), 1)))


@pytest.mark.parametrize('temperature', [None, .07])
def test_a_sweep_is_each_k_by_itself_and_top_5_is_scikit_learns(temperature):
  x, y, queries, labels = problem(classes=8)
  ks = (10, 2, 40)
  found = knn_sweep(x, y, queries, labels, ks=ks, classes=8, temperature=temperature, chunk=64)
  assert sorted(found) == sorted(ks)
  for k in ks:
    alone = knn(x, y, queries, labels, k=k, classes=8, temperature=temperature)
    assert found[k]['accuracy'] == alone['accuracy'] < found[k]['top5']
  weights = 'uniform' if temperature is None else lambda d: np.exp((1 - d) / temperature)
  peer = KNeighborsClassifier(40, metric='cosine', weights=weights).fit(x, y)
  # Stable: equal votes in the order of classes.
  order = np.argsort(-peer.predict_proba(queries).round(9), axis=1, kind='stable')[:, :5]
  assert found[40]['top5'] == pytest.approx(np.mean((order == labels[:, None]).any(1)))


def test_the_largest_array_is_a_chunk_by_a_block(monkeypatch):
  monkeypatch.setattr(module, 'BLOCK', 64)

  def temporary(n, chunk):
    bank, queries = (jax.ShapeDtypeStruct((rows, 8), jnp.float32) for rows in (n, chunk))
    compiled = module._nearest.lower(bank, queries, k=5, count=n, block=64, mesh=None).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # All similarities of the larger bank would be 256 * 16384 * 4 = 16.8 MB; a block's are 65 kB.
  assert temporary(2**14, 256) < 4e5
  assert temporary(2**14, 256) < 1.1 * temporary(2**8, 256)


@pytest.mark.parametrize('wrong, message', [
  (dict(k=301), 'k <= 300'), (dict(k=0), 'k=0'), (dict(temperature=0.), 'temperature'),
  (dict(classes=4), r'\[0, 4\)'), (dict(classes=1), 'at least 2'),
])
def test_mistakes_are_named(wrong, message):
  with pytest.raises(ValueError, match=message):
    knn(*problem(), **(dict(classes=5) | wrong))
