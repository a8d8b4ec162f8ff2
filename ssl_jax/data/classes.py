"""One numbering of classes for two splits.

Folders, JSON lines and shards number the classes of each split by themselves, in the order of their
names: where a split lacks a class, the numbers of all that follow are others. Labels are compared by
name therefore.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ssl_jax.data.sources import DataError, Source

NAMED = 10  # classes in a message


def aligned(train: Source, test: Source, splits: tuple[str, str] = ('train', 'test')) -> Source:
  """`test` with its labels in the numbering of `train`; `test` itself where they share it.

  Classes without an example do not matter. Sources without names of classes are taken at their word.

  Args:
    train, test: two splits of the same data.
    splits: what they are called, for messages.

  Raises:
    DataError: a class of `test` that `train` does not have, or names in one of them only.
  """
  ours, theirs = (tuple(getattr(source, 'classes', ())) for source in (train, test))
  if ours == theirs:
    return test
  labels = getattr(test, 'labels', None)
  if not ours or not theirs:
    if labels is None or getattr(train, 'labels', None) is None:
      return test
    raise DataError(f'the labels of the {splits[bool(ours)]} split are numbers, those of the '
                    f'{splits[not ours]} split are names: their classes cannot be told apart')
  used = range(len(theirs)) if labels is None else np.unique(labels[labels >= 0]).tolist()
  unknown = [theirs[i] for i in used if theirs[i] not in ours]
  if unknown:
    more = f' and {len(unknown) - NAMED} more' if len(unknown) > NAMED else ''
    raise DataError(
      f'the {splits[1]} split has classes that the {splits[0]} split does not have: '
      f'{", ".join(unknown[:NAMED])}{more} (those of {splits[0]}: {", ".join(ours[:NAMED])}'
      f'{", ..." if len(ours) > NAMED else ""}); rename or remove them, or choose other splits by '
      f'config.evaluate.train_split and test_split')
  return Renumbered(test, [ours.index(name) if name in ours else -1 for name in theirs], ours)


class Renumbered:
  """A source with other numbers in its field 'label'; offers what the source offers."""

  def __init__(self, source: Source, numbers: Sequence[int], classes: Sequence[str]):
    """`numbers[i]` replaces label i, whose name becomes classes[numbers[i]]."""
    self._source, self._numbers, self.classes = source, list(numbers), tuple(classes)
    # The last place is that of -1, which stays: no label.
    self._table = np.array([*numbers, -1], np.int32)

  def __reduce__(self):
    return Renumbered, (self._source, self._numbers, self.classes)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._renumbered(self._source[index])

  @property
  def labels(self) -> np.ndarray | None:
    found = getattr(self._source, 'labels', None)
    return None if found is None else self._table[found]

  def fingerprint(self) -> str:
    about = self._source.fingerprint(), self._numbers, self.classes
    return hashlib.sha256(repr(about).encode()).hexdigest()

  def __getattr__(self, name: str) -> Any:
    """The optional members, so that `hasattr` tells what the source has."""
    if name.startswith('_'):
      raise AttributeError(name)
    member = getattr(self._source, name)
    if name in ('take', 'draw'):
      return lambda *args, **options: self._renumbered(member(*args, **options))
    if name == 'documents':
      return lambda: Renumbered(member(), self._numbers, self.classes)
    return member

  def _renumbered(self, fields: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**fields, 'label': self._table[fields['label']]} if 'label' in fields else fields
