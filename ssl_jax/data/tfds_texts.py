"""Text datasets of TFDS by name, read without TensorFlow."""

import functools
import hashlib
from typing import Any

import numpy as np

from ssl_jax.data.documents import VERSION, Document, in_range, sentences_of
from ssl_jax.data.tensorflow_datasets import Records, builder_of, check_prepared


class TfdsTexts:
  """One split of a prepared dataset; travels to workers as the arguments of `tfds_text`."""

  def __init__(self, records: Records, full_name: str, classes: tuple[str, ...], arguments: dict):
    self._records, self._full_name, self.classes = records, full_name, classes
    self._arguments, self._field, self._label = arguments, arguments['field'], arguments['label']

  def __reduce__(self):
    return functools.partial(tfds_text, **self._arguments), ()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> Document:
    value = self._records[in_range(i, len(self))][self._field]
    return Document(sentences_of(value, f'{self._full_name}[{i}]: {self._field!r}'))

  @functools.cached_property
  def labels(self) -> dict[str, np.ndarray]:
    """{'label': int32 [N]} or {}; one pass over the records when first asked for."""
    if self._label is None:
      return {}
    found = (self._records[i][self._label] for i in range(len(self)))
    return {'label': np.fromiter(found, np.int32, len(self))}

  def fingerprint(self) -> str:
    """SHA-256 over name, version, split, number of examples and fields; not the bytes."""
    about = (VERSION, self._full_name, len(self), self._field, self._label, self.classes)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def tfds_text(*, dataset: str, split: str = 'train', data_dir: str | None = None,
              field: str = 'text', label: str | None = None) -> TfdsTexts:
  """A text dataset of TFDS, prepared as ArrayRecord, without TensorFlow; nothing is downloaded.

  Documents keep the numbers of their records: one whose text is empty has no sentences.

  Args:
    dataset: 'imdb_reviews', 'glue/sst2:2.0.0'.
    split: as TFDS writes them: 'train', 'train[:90%]', 'train+test'.
    data_dir: where datasets are prepared; None is TFDS's own, ~/tensorflow_datasets.
    field: the feature with the text; a sequence of texts is taken for sentences.
    label: the feature with the label; None for data without.

  Raises:
    ValueError: an unknown dataset, split or feature, or one that is no text or no integer.
    DataError: the dataset is not prepared, or not as ArrayRecord; says how to.
  """
  arguments = dict(locals())
  found = builder_of(dataset, data_dir)
  check_prepared(found, dataset, data_dir)
  features = found.info.features
  for name, what in ((field, 'field'), (label, 'label')):
    if name is not None and name not in features:
      raise ValueError(f'{dataset} has no feature {name!r} to be the {what}, but '
                       f'{", ".join(sorted(features))}')
  if not _holds(features[field], np.object_):
    raise ValueError(f'the feature {field!r} of {dataset} is no text, but {features[field]}')
  if label is not None and not _holds(features[label], np.integer):
    raise ValueError(f'the feature {label!r} of {dataset} is no integer, but {features[label]}')
  try:
    records = found.as_data_source(split=split)
  except ValueError as error:
    raise ValueError(f'{dataset}: {error}') from error
  classes = tuple(getattr(features[label], 'names', None) or ()) if label is not None else ()
  full_name = f'{found.info.full_name}/{split}'
  return TfdsTexts(Records(records, full_name), full_name, classes, arguments)


def _holds(feature: Any, kind: type) -> bool:
  """Whether a feature of TFDS is of a NumPy type; nested ones have a dict of them."""
  return not isinstance(feature.np_dtype, dict) and np.issubdtype(feature.np_dtype, kind)
