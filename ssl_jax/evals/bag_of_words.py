"""What counting words reaches on labelled text: the baseline beside which encoders must be seen.

Rows are tf-idf vectors, tf = 1 + log count, idf = 1 + log((1 + n) / (1 + documents)), of norm 1, as
scikit-learn defines them; classifiers are its logistic regression and its kNN.
"""

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evals.labelled import draw, fraction_counts
from ssl_jax.evals.protocol import DRAWS, HELD_OUT, LABELS_PER_CLASS, K

STRENGTHS = (1., 10., 100.)  # scikit-learn's C


def counted(rows: np.ndarray, real: np.ndarray, vocabulary: int) -> scipy.sparse.csr_matrix:
  """Token counts [N, V] of rows of tokens [N, L], where `real` [N, L]."""
  row, _ = np.nonzero(real)
  ones = np.ones(len(row), np.float32)
  return scipy.sparse.csr_matrix((ones, (row, rows[real])), shape=(len(rows), vocabulary))


def evaluate_counts(train: scipy.sparse.csr_matrix, train_labels: np.ndarray,
                    test: scipy.sparse.csr_matrix, test_labels: np.ndarray, *,
                    seed: int = 0) -> dict[str, float]:
  """The columns of the fixed protocol (`evals.protocol`) for counts [N, V] and [M, V].

  The strength of the regression on all labels is chosen on a held-out tenth of the training rows.
  """
  weigh = TfidfTransformer(sublinear_tf=True).fit(train)
  train, test = weigh.transform(train), weigh.transform(test)
  classes = 1 + int(max(train_labels.max(), test_labels.max()))
  neighbours = KNeighborsClassifier(K, metric='cosine', algorithm='brute').fit(train, train_labels)
  few = []
  for i in range(DRAWS):
    rng = np.random.default_rng((seed, i))
    rows = draw(train_labels, np.where(np.bincount(train_labels, minlength=classes) > 0,
                                       LABELS_PER_CLASS, 0), rng)
    few.append(_regression(train[rows], train_labels[rows], 100.).score(test, test_labels))
  best = _choose(train, train_labels, classes, seed)
  return dict(
    knn20=float(neighbours.score(test, test_labels)), labels10=float(np.mean(few)),
    labels10_std=float(np.std(few)),
    linear=float(_regression(train, train_labels, best).score(test, test_labels)),
    linear_weight_decay=1 / (best * len(train_labels)))


def _regression(features, labels, strength: float) -> LogisticRegression:
  return LogisticRegression(C=strength, max_iter=200).fit(features, labels)


def _choose(train, labels, classes: int, seed: int) -> float:
  rng = np.random.default_rng(seed)
  held = np.zeros(len(labels), bool)
  held[draw(labels, np.minimum(fraction_counts(labels, HELD_OUT, classes),
                               np.bincount(labels, minlength=classes) - 1).clip(0), rng)] = True
  scores = [_regression(train[~held], labels[~held], c).score(train[held], labels[held])
            for c in STRENGTHS]
  return STRENGTHS[int(np.argmax(scores))]
