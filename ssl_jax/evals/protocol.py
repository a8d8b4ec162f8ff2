"""The fixed protocol: the numbers by which representations are compared, and their table.

Features are standardised with training statistics; then cosine kNN with k = 20 and plain votes,
logistic regression on 10 labels per class (five draws, the same ones for every representation), and
on all training labels (weight decay chosen on a held-out tenth of the training rows). Encoders with
normalisation statistics are calibrated first: `ssl_jax.evals.features.calibrate`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax.evals.features import standardize
from ssl_jax.evals.knn import knn
from ssl_jax.evals.labelled import labelled_pair
from ssl_jax.evals.linear import few_labels, linear_probe

K = 20
LABELS_PER_CLASS = 10
DRAWS = 5
HELD_OUT = 0.1
FRACTIONS = {'percent1': 0.01, 'percent10': 0.1}

# Columns of the table, in their order; a column is shown if the first row has it.
COLUMNS = {'knn20': 'kNN-20', 'labels10': '10 labels per class', 'percent1': '1 % of labels',
           'percent10': '10 % of labels', 'linear': 'linear'}


def evaluate_features(train_features, train_labels, test_features, test_labels, *, classes: int,
                      seed: int = 0, fractions: bool = False) -> dict[str, float]:
  """The fixed protocol on one representation.

  Args:
    train_features: [N, D], any floating dtype.
    train_labels: [N], whole numbers in [0, classes).
    test_features: [M, D]
    test_labels: [M]
    classes: C.
    seed: of the label draws and of the held-out part.
    fractions: also 1 % and 10 % of the labels, class-balanced.

  Returns:
    Accuracies in [0, 1]: knn20; labels10, labels10_std (over draws); linear; with `fractions` also
    percent1, percent1_std, percent10, percent10_std. And linear_weight_decay, the chosen one.

  Raises:
    ValueError: see `labelled_pair`; fewer than 20 training rows, or fewer than 10 of a class.
  """
  train, test = labelled_pair(train_features, train_labels, test_features, test_labels, classes)
  standard = standardize(train[0], test[0])
  data = standard[0], train[1], standard[1], test[1]
  result = dict(knn20=knn(*data, k=K, classes=classes)['accuracy'])
  amounts = {'labels10': dict(per_class=LABELS_PER_CLASS)}
  if fractions:
    amounts |= {name: dict(fraction=fraction) for name, fraction in FRACTIONS.items()}
  for name, amount in amounts.items():
    few = few_labels(*data, classes=classes, draws=DRAWS, seed=seed, **amount)
    result |= {name: few['mean'], f'{name}_std': few['std']}
  probe = linear_probe(*data, classes=classes, held_out=HELD_OUT, seed=seed)
  return result | dict(linear=probe['accuracy'], linear_weight_decay=probe['weight_decay'])


class Representation(NamedTuple):
  """Features of two splits and what they are called, with the labels of the same rows."""

  name: str
  train: np.ndarray
  train_labels: np.ndarray
  test: np.ndarray
  test_labels: np.ndarray


def fixed_protocol(representations: Iterable[Representation], *, classes: int, seed: int = 0,
                   fractions: bool = False) -> list[tuple[str, dict[str, float]]]:
  """The rows of the table: (name, result) of each representation of the same examples.

  Takes a generator too, so that only one representation is in memory.
  """
  return [(name, evaluate_features(*data, classes=classes, seed=seed, fractions=fractions))
          for name, *data in representations]


def describe(seed: int = 0) -> dict[str, str | int | float]:
  """How the numbers were made, as plain values to be stored beside them."""
  return dict(
    features='standardised with training statistics', knn=f'cosine, k={K}, plain votes',
    labels10=f'{LABELS_PER_CLASS} labels per class, {DRAWS} draws, logistic regression with C=1',
    selection=f'weight decay: held-out {HELD_OUT:.0%} of train, seed {seed}', seed=seed)


def format_table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
  """A Markdown table, aligned so that it also reads well as plain text.

  Accuracies to three digits, with the standard deviation over draws where there is one.
  """
  keys = [key for key in COLUMNS if key in rows[0][1]] if rows else list(COLUMNS)

  def cell(result, key):
    spread = f' ± {result[f"{key}_std"]:.3f}' if f'{key}_std' in result else ''
    return f'{result[key]:.3f}{spread}' if key in result else '-'

  table = [['features', *(COLUMNS[key] for key in keys)]]
  table += [[name, *(cell(result, key) for key in keys)] for name, result in rows]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = ['| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths)) + ' |'
           for line in table]
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])
