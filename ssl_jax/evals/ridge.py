"""Few-shot classification by ridge regression in closed form, for all penalties at once.

  minimise over W:  ||X W - Y||^2 + l2 ||W||^2,  X = [(x - mean) / (std + 1e-5), 100],  Y = +-1
  X^T X = Q diag(e) Q^T  ->  W(l2) = Q diag(1 / (e + l2)) Q^T X^T Y     (N >= D, else with X X^T)

As in google-research/big_vision (evaluators/fewshot_lsr.py; reported by Dosovitskiy et al. 2021,
arXiv:2010.11929): the constant of 100 is the bias, large so that it is hardly penalised. On the
host in float64: the constant alone puts 10^4 N into X^T X, too much beside an l2 of 1 in float32.
"""

from collections.abc import Sequence

import numpy as np

BIAS = 100.0
EPSILON = 1e-5


def _with_bias(x: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
  return np.pad((x - mean) / scale, ((0, 0), (0, 1)), constant_values=BIAS)


def ridge_scores(train_features, train_labels, features, *, classes: int,
                 l2: Sequence[float]) -> np.ndarray:
  """Scores float64 [L, M, C] of `features` under each of L penalties; one eigendecomposition.

  Args:
    train_features: [N, D], whitened (per feature) with their own mean and deviation.
    train_labels: [N], integers in [0, classes).
    features: [M, D]
    classes: C.
    l2: [L], positive.

  Raises:
    ValueError: a penalty that is not positive.
  """
  penalties = np.asarray(l2, np.float64)
  if penalties.ndim != 1 or not penalties.size or not (penalties > 0).all():
    raise ValueError(f'expected positive penalties l2, got {l2}')
  train, test = (np.asarray(x, np.float64) for x in (train_features, features))
  mean, scale = train.mean(axis=0), train.std(axis=0) + EPSILON
  x = _with_bias(train, mean, scale)
  y = 2.0 * (np.asarray(train_labels)[:, None] == np.arange(classes)) - 1
  rows, columns = x.shape
  if rows >= columns:
    values, vectors = np.linalg.eigh(x.T @ x)
    left, right = vectors, vectors.T @ (x.T @ y)
  else:
    values, vectors = np.linalg.eigh(x @ x.T)
    left, right = x.T @ vectors, vectors.T @ y
  # [M, E]: the test rows meet the features once, however many penalties there are.
  along = _with_bias(test, mean, scale) @ left
  return np.stack([along @ (right / (values + penalty)[:, None]) for penalty in penalties])
