"""What every classification protocol expects: checked features and labels, seeded draws of them."""

import numpy as np


def labelled(features, labels, classes: int, *, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Checked copies of a labelled set: features float32 [N, D], labels int32 [N].

  Args:
    features: [N, D], any floating dtype (bfloat16 too), NumPy or JAX.
    labels: [N], any dtype that holds whole numbers in [0, classes).
    classes: C >= 2.
    name: of the set, for messages ('train', 'test').

  Raises:
    ValueError: shapes that do not fit, features that are not finite, labels out of range.
  """
  features, labels = np.asarray(features).astype(np.float32), np.asarray(labels)
  if classes < 2:
    raise ValueError(f'classification needs at least 2 classes, got classes={classes}')
  if features.ndim != 2 or labels.shape != features.shape[:1] or not features.size:
    raise ValueError(f'{name}: expected features [N, D] and labels [N] with N, D >= 1, '
                     f'got {features.shape} and {labels.shape}')
  if not np.isfinite(features).all():
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    raise ValueError(f'{name}: {len(bad)} of {len(features)} feature rows are not finite '
                     f'(the first is row {bad[0]}); the encoder has diverged')
  whole = labels.astype(np.int32)
  if (whole != labels).any() or whole.min() < 0 or whole.max() >= classes:
    wrong = np.unique(labels[(whole != labels) | (whole < 0) | (whole >= classes)])[:5]
    raise ValueError(f'{name}: labels must be whole numbers in [0, {classes}), '
                     f'got {wrong.tolist()}')
  return features, whole


def labelled_pair(train_features, train_labels, features, labels, classes: int):
  """`labelled` for a training and a test set, which must agree in D.

  Raises:
    ValueError: as `labelled`; different widths; only one class in the training set.
  """
  train = labelled(train_features, train_labels, classes, name='train')
  test = labelled(features, labels, classes, name='test')
  if train[0].shape[1] != test[0].shape[1]:
    raise ValueError(f'train features have {train[0].shape[1]} columns, '
                     f'test features {test[0].shape[1]}')
  if train[1].min() == train[1].max():
    raise ValueError(f'train: all {len(train[1])} labels are class {train[1][0]}; '
                     'a classifier needs more than one class')
  return train, test


def draw(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Row numbers, ascending: `counts[c]` rows of each class c, without replacement.

  Raises:
    ValueError: a class has fewer rows than asked for; the message names it.
  """
  rows = []
  for c, count in enumerate(counts):
    members = np.flatnonzero(labels == c)
    if len(members) < count:
      raise ValueError(f'class {c} has {len(members)} labelled rows, {count} were asked for')
    rows.append(rng.permutation(members)[:count])
  return np.sort(np.concatenate(rows))


def fraction_counts(labels: np.ndarray, fraction: float, classes: int) -> np.ndarray:
  """Rows per class of a class-balanced `fraction`: rounded, and 1 for any class that has a row.

  Raises:
    ValueError: `fraction` is not in (0, 1].
  """
  if not 0 < fraction <= 1:
    raise ValueError(f'expected a fraction of the labels in (0, 1], got {fraction}')
  members = np.bincount(labels, minlength=classes)
  return np.maximum(np.rint(fraction * members).astype(int), members > 0)
