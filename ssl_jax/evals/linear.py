"""Linear probes: how well a linear classifier on frozen features does, with all labels or with few.

  few labels: Chen et al. 2020, "Big Self-Supervised Models are Strong Semi-Supervised Learners"
  (arXiv:2006.10029) for the class-balanced 1 % and 10 %; here on frozen features.

The classifier is `ssl_jax.evals.logistic`. Features are used as they come: standardise them first.
"""

from collections.abc import Sequence

import jax
import numpy as np

from ssl_jax.evals.labelled import draw, fraction_counts, labelled_pair
from ssl_jax.evals.logistic import fit_logistic, predict

# On the mean loss; with n rows, decay d is scikit-learn's C = 1 / (d * n).
WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Of the sweep, most of whose time goes to the weakest decays (pixels of Fashion-MNIST, 10,000 rows:
# 151 iterations at 1e-2, 742 at 1e-4). What has not converged by then is judged as it is: within
# 0.001 of the accuracy at convergence for decays >= 1e-4, and 0.008 below it at 1e-5. The refit of
# the chosen decay runs to convergence.
SWEEP_ITERATIONS = 150


def _accuracies(weights, features, labels) -> np.ndarray:
  """[P] for weights [P, C, D + 1]."""
  weights, features = jax.device_put((weights, features))
  predicted = jax.device_get(predict(weights, features[None]))
  return (predicted == labels[None]).mean(axis=1)


def linear_probe(train_features, train_labels, features, labels, *, classes: int,
                 weight_decays: Sequence[float] = WEIGHT_DECAYS, held_out: float = 0.1,
                 seed: int = 0) -> dict[str, float]:
  """Accuracy of logistic regression on all training labels.

  All weight decays are trained together on the training rows without a held-out part, drawn per
  class with `seed`; the one with the best accuracy there (of equals the strongest) is trained again
  on all training rows. The test rows are only ever used for the accuracy that is returned.

  Args:
    train_features: [N, D], any floating dtype; computed in float32.
    train_labels: [N], whole numbers in [0, classes).
    features: [M, D]
    labels: [M]
    classes: C.
    weight_decays: to choose from.
    held_out: the share of the training rows that chooses.
    seed: of the held-out part.

  Returns:
    accuracy: on the test rows, in [0, 1].
    weight_decay: the chosen one.
    held_out_accuracy: of the chosen one, on the held-out part of the training rows.
    gradient: the largest entry of the gradient at the end; more than 1e-5 means not converged.

  Raises:
    ValueError: see `labelled_pair`; also weight decays that are not positive, or a held-out part
      that leaves nothing to train on.
  """
  train, test = labelled_pair(train_features, train_labels, features, labels, classes)
  decays = sorted(map(float, weight_decays), reverse=True)
  if not decays or not decays[-1] > 0:
    raise ValueError(f'expected positive weight decays, got {tuple(weight_decays)}')
  away = draw(train[1], fraction_counts(train[1], held_out, classes), np.random.default_rng(seed))
  kept = np.ones(len(train[1]), np.float32)
  kept[away] = 0
  if len(np.unique(train[1][kept > 0])) < 2:
    raise ValueError(f'holding out {held_out} of {len(kept)} training rows leaves fewer than two '
                     'classes to train on; hold out less or label more')
  sweep = fit_logistic(*train, decays, classes=classes, mask=kept,
                       max_iterations=SWEEP_ITERATIONS)
  chosen = _accuracies(sweep.weights, train[0][away], train[1][away])
  best = int(np.argmax(chosen))
  final = fit_logistic(*train, [decays[best]], classes=classes)
  return dict(accuracy=float(_accuracies(final.weights, *test)[0]),
              weight_decay=decays[best],
              held_out_accuracy=float(chosen[best]), gradient=float(final.gradient[0]))


def few_labels(train_features, train_labels, features, labels, *, classes: int,
               per_class: int | None = None, fraction: float | None = None, draws: int = 5,
               seed: int = 0) -> dict[str, float]:
  """Accuracy of logistic regression on few labels, over seeded draws of which.

  Draw i depends on (seed, i) and the training labels alone, so that encoders compared with the same
  seed see the same labels. The penalty is fixed, there are no labels to choose it with: weight
  decay 1 / n on the mean loss of n rows, scikit-learn's C = 1.

  Args:
    train_features, train_labels, features, labels, classes: as for `linear_probe`.
    per_class: labels per class; or
    fraction: the share of every class (at least one label), such as 0.01.
    draws: how many.
    seed: of the draws.

  Returns:
    mean: of the accuracies, in [0, 1].
    std: of the accuracies over draws (n - 1 in the denominator; 0 for one draw).

  Raises:
    ValueError: see `labelled_pair`; also a class with fewer than `per_class` rows (named), or not
      exactly one of `per_class` and `fraction`.
  """
  train, test = labelled_pair(train_features, train_labels, features, labels, classes)
  if (per_class is None) == (fraction is None):
    raise ValueError(f'expected per_class or fraction, got {per_class=} and {fraction=}')
  if draws < 1 or (per_class is not None and per_class < 1):
    raise ValueError(f'expected draws >= 1 and per_class >= 1, got {draws=} and {per_class=}')
  counts = (np.full(classes, per_class) if fraction is None else
            fraction_counts(train[1], fraction, classes))
  rows = np.stack([draw(train[1], counts, np.random.default_rng((seed, i))) for i in range(draws)])
  decays = np.full(draws, 1 / rows.shape[1])
  fit = fit_logistic(train[0][rows], train[1][rows], decays, classes=classes)
  accuracy = _accuracies(fit.weights, *test)
  return dict(mean=float(accuracy.mean()), std=float(accuracy.std(ddof=1)) if draws > 1 else 0.0)
