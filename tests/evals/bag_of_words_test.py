"""Counted words as a baseline, beside scikit-learn's own pipeline."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ssl_jax.evals.bag_of_words import counted, evaluate_counts

WORDS = [f'w{i}' for i in range(30)]


def documents(count, seed):
  """Two thirds of a document's words are of its class's third of the vocabulary."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, count)
  tokens = np.where(rng.random((count, 8)) < .5, labels[:, None] * 10 + rng.integers(0, 10, (count, 8)),
                    rng.integers(0, 30, (count, 8)))
  return tokens, rng.random((count, 8)) < .9, labels


def test_counts_leave_out_what_is_no_word():
  got = counted(np.array([[1, 1, 2], [0, 2, 2]]), np.array([[1, 1, 1], [0, 1, 0]], bool), 4).toarray()
  np.testing.assert_array_equal(got, [[0, 2, 1, 0], [0, 0, 1, 0]])


def test_the_regression_is_that_of_a_tfidf_pipeline():
  train, test = documents(400, 0), documents(200, 1)
  got = evaluate_counts(*[x for tokens, real, labels in (train, test)
                          for x in (counted(tokens, real, 30), labels)])
  texts = [[' '.join(WORDS[t] for t, r in zip(row, ok) if r) for row, ok in zip(tokens, real)]
           for tokens, real, _ in (train, test)]
  tfidf = TfidfVectorizer(sublinear_tf=True, vocabulary=WORDS).fit(texts[0])
  strength = 1 / (got['linear_weight_decay'] * 400)
  model = LogisticRegression(C=strength, max_iter=200).fit(tfidf.transform(texts[0]), train[2])
  assert abs(got['linear'] - model.score(tfidf.transform(texts[1]), test[2])) < 1e-9
  assert .6 < got['labels10'] < got['linear'] and got['knn20'] > .6


def test_shuffled_labels_are_at_chance():
  train, test = documents(300, 0), documents(300, 1)
  labels = np.random.default_rng(3).permutation(train[2])
  got = evaluate_counts(counted(*train[:2], 30), labels, counted(*test[:2], 30), test[2])
  assert got['linear'] < .5
