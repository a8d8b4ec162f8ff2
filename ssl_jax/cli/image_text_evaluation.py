"""`evaluate` for runs on images and texts: do the two find each other on held-out pairs?"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_jax import build, runs
from ssl_jax.data.sources import Source
from ssl_jax.data.unreadable import allowed
from ssl_jax.evals import texts
from ssl_jax.evals.features import embed_all
from ssl_jax.evals.retrieval import classify, format_retrieval, retrieval
from ssl_jax.models.towers import Towers, text_inputs


def is_image_text(run: runs.Run) -> bool:
  return build.has_text_tower(run.config)


class Images:
  """The images that examples `rows` of a source show; 'label' is the number of the row."""

  def __init__(self, source: Source, rows: np.ndarray):
    self._source, self._rows, self.unreadable = source, rows, allowed(source)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return {'image': self._source[int(self._rows[i])]['image'], 'label': np.int32(i)}


class Rows:
  """Texts, {field: [N, L]}."""

  def __init__(self, fields: Mapping[str, np.ndarray]):
    self._fields = fields

  def __len__(self) -> int:
    return len(self._fields['tokens'])

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return self.take(i)

  def take(self, rows) -> dict[str, np.ndarray]:
    return {name: x[rows] for name, x in self._fields.items()}


def evaluate_image_text(run: runs.Run, data: runs.Splits) -> dict[str, Any]:
  """Prints and returns retrieval on the test split and, where it has classes, what their captions
  tell. Normalisation statistics are those of a pass over the training images."""
  print('evaluating retrieval ...', file=sys.stderr, flush=True)
  workers, experiment = run.config.workers, run.experiment
  towers = build.image_text_towers(run.config, experiment.mesh)
  state = runs.calibrated(experiment, run.params, run.state, data.train, workers)
  numbers, first, of_example = np.unique(data.test.images, return_index=True, return_inverse=True)
  shown = runs.feed(Images(data.test, first), experiment.mesh, workers)
  images, readable = embed_all(towers.image, run.params, state, shown,
                               inputs=experiment.views.inputs)
  words, text_of_example = _texts(run, towers, state, data.test)
  place = np.full(len(numbers), -1)
  place[readable] = np.arange(len(readable))
  pairs = np.stack([place[of_example], text_of_example], axis=1)
  found = retrieval(images, words, pairs[pairs[:, 0] >= 0])
  print(format_retrieval(found))
  result = dict(retrieval={name: _plain(one._asdict()) for name, one in found.items()})
  if data.test.labels is None or not len(getattr(data.test, 'classes', ())):
    return result
  labels = data.test.labels[first][readable]
  return result | dict(by_captions=_by_captions(run, towers, state, data.test, images, labels))


def _texts(run: runs.Run, towers: Towers, state, source: Source) -> tuple[np.ndarray, np.ndarray]:
  """(unit rows of the distinct texts, the number of each example's): equal texts are one."""
  fields = [source.text(i) for i in range(len(source))]
  fields = {name: np.stack([one[name] for one in fields]) for name in fields[0]}
  _, first, of_example = np.unique(fields['tokens'], axis=0, return_index=True,
                                   return_inverse=True)
  distinct = Rows(fields).take(first)
  rows, _ = embed_all(towers.text, run.params, state, runs.feed(Rows(distinct), run.experiment.mesh),
                      inputs=text_inputs)
  return rows, of_example.reshape(-1)


def _by_captions(run: runs.Run, towers: Towers, state, source: Source, images: np.ndarray,
                 labels: np.ndarray) -> dict[str, Any]:
  """Accuracy of naming each image by the most similar caption of a class."""
  embed = texts.embedder(towers.text, run.params, state, run.tokenizer, run.config.data.length)
  captions = [prompt.format(name) for prompt in source.prompts for name in source.classes]
  prompts = embed(captions).reshape(len(source.prompts), len(source.classes), -1)
  accuracy = float(np.mean(classify(images, prompts) == labels))
  chance = 1 / len(source.classes)
  print(f'\nclass by its captions: accuracy {accuracy:.4f}, by chance {chance:.4f} '
        f'({len(labels):,} images, {len(source.classes)} classes, {len(source.prompts)} '
        f'caption{"s" * (len(source.prompts) > 1)} each)\n')
  return dict(accuracy=accuracy, chance=chance, prompts=list(source.prompts))


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
  """As JSON has it: the keys of mappings are texts."""
  return {name: {str(k): x for k, x in value.items()} if isinstance(value, Mapping) else value
          for name, value in fields.items()}
