"""`evaluate` for language models: the objective on held-out text, and what the encoder is worth."""

import sys

import numpy as np

from ssl_jax import build, runs
from ssl_jax.data.sources import Source
from ssl_jax.evals.bag_of_words import counted, evaluate_counts
from ssl_jax.evals.features import embed_all
from ssl_jax.evals.objective import format_objective, measure_all, unigram
from ssl_jax.evals.protocol import Representation, describe, fixed_protocol, format_table

TRAIN_ROWS = 20_000  # documents that probes are trained on at the most
ROWS = 256  # of a batch
STEP = 16  # lengths of batches are multiples of it: as many programs are compiled


def is_text(run: runs.Run) -> bool:
  return 'tokens' in run.experiment.batch and not build.has_text_tower(run.config)


def evaluate_text(run: runs.Run, seed: int, fractions: bool) -> dict:
  """Prints and returns the tables; probes only where the text has labels."""
  data = runs.splits(run.config)
  start = runs.initial_state(run)
  states = {'random init': (start.params, start.state), run.config.method.name: (run.params, run.state)}
  result = {}
  if run.method.measure is not None:
    result['objective'] = objective(run, data)
    print(format_objective(result['objective'].items()))
  if data.train.labels is None:
    print('no probes: the text has no labels', file=sys.stderr)
    return result
  rows = probes(run, data, states, seed, fractions)
  print('\n' + format_table(rows))
  return result | dict(protocol=describe(seed), accuracies=dict(rows))


def objective(run: runs.Run, data: runs.Splits) -> dict[str, dict[str, float]]:
  """Held-out loss and accuracy of the run, after what the frequencies of tokens reach."""
  prepare = run.experiment.views.prepare
  whole = lambda: runs.feed(data.test, run.experiment.mesh, rows=ROWS)
  found = {}
  if run.config.views.name == 'masks':
    found['frequencies'] = unigram(data.train.counts(), whole(), prepare=prepare)
  print('measuring the objective ...', file=sys.stderr, flush=True)
  found[run.config.method.name] = measure_all(run.method.measure, run.params, run.state, whole(),
                                              prepare=prepare)
  return found


def probes(run: runs.Run, data: runs.Splits, states: dict, seed: int, fractions: bool):
  """The fixed protocol on counted words and on the encoder's representations."""
  train = some(data.train, TRAIN_ROWS, seed)
  test = np.arange(len(data.test))
  labels, test_labels = data.train.labels[train], data.test.labels
  print(f'evaluating on {len(train):,} of {len(data.train):,} labelled documents ...',
        file=sys.stderr, flush=True)
  counts = [_counted(source, rows) for source, rows in ((data.train, train), (data.test, test))]
  table = [('bag of words', evaluate_counts(counts[0], labels, counts[1], test_labels, seed=seed))]

  def representations():
    for name, (params, state) in states.items():
      print(f'evaluating {name} ...', file=sys.stderr, flush=True)
      yield Representation(name, embed_documents(run, params, state, data.train, train), labels,
                           embed_documents(run, params, state, data.test, test), test_labels)

  classes = 1 + int(max(data.train.labels.max(), test_labels.max()))
  return table + fixed_protocol(representations(), classes=classes, seed=seed, fractions=fractions)


def some(source: Source, most: int, seed: int, least: int = 40) -> np.ndarray:
  """Rows of a labelled source, ascending: about `most`, each class in proportion but with `least`."""
  if len(source) <= most:
    return np.arange(len(source))
  rng, rows = np.random.default_rng(seed), []
  for label in np.unique(source.labels):
    members = np.flatnonzero(source.labels == label)
    count = max(least, round(len(members) * most / len(source)))
    rows.append(rng.permutation(members)[:count])
  return np.sort(np.concatenate(rows))


class Rows:
  """Rows of a source, cut to the length of the longest of them."""

  def __init__(self, source: Source, rows: np.ndarray, length: int):
    self._source, self._rows, self._length = source, rows, length

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    fields = self._source[int(self._rows[i])]
    return {name: x[:self._length] if x.ndim else x for name, x in fields.items()}


def embed_documents(run: runs.Run, params, state, source: Source, rows: np.ndarray) -> np.ndarray:
  """Representations [len(rows), D]: documents of similar length together, so that little is padding."""
  lengths = -(-source.lengths()[rows] // STEP) * STEP
  found = None
  for length in np.unique(lengths):
    mine = np.flatnonzero(lengths == length)
    part = Rows(source, rows[mine], int(length))
    features, _ = embed_all(run.experiment.method.embed, params, state,
                            runs.feed(part, run.experiment.mesh, rows=ROWS),
                            inputs=run.experiment.views.inputs)
    found = np.zeros((len(rows), features.shape[1]), np.float32) if found is None else found
    found[mine] = features
  return found


def _counted(source: Source, rows: np.ndarray):
  fields = [source[int(i)] for i in rows]
  tokens = np.stack([x['tokens'] for x in fields])
  return counted(tokens, np.stack([x['words'] for x in fields]) >= 0, source.vocabulary.size)
