"""What training is worth while it runs: kNN accuracy or the held-out objective now and then, and a
watch for collapse."""

import itertools
import time
from collections.abc import Callable

from ssl_jax import build
from ssl_jax.data.batches import in_order
from ssl_jax.data.sources import ArraySource
from ssl_jax.evals.health import collapse_verdict, health
from ssl_jax.evals.knn import knn
from ssl_jax.evals.objective import measure_all
from ssl_jax.runs import calibrated, embed_split, feed, labels, splits
from ssl_jax.types import TrainState

SAMPLE = 500  # training examples on which health is measured
HELD_OUT = 2048  # rows of held-out text on which the objective is measured


class Monitor:
  """Callbacks of the loop. Each hands its numbers to `write` and says a line on the terminal.

  `each` is called before every batch that is looked at; what it raises ends the look.
  """

  def __init__(self, config, experiment, write: Callable, say: Callable[[str], None],
               each: Callable[[], None] = lambda: None):
    self._experiment, self._write, self._say, self._each = experiment, write, say, each
    self._workers = config.workers
    self._warned = False
    self._project = None if hasattr(experiment.source, 'documents') else _projection(config, experiment)
    self._splits = self._sample = self._held_out = None
    if config.evaluate.every is None:
      return
    # What cannot be evaluated is found now, not in an hour.
    if hasattr(experiment.source, 'documents'):
      self._held_out = build.source(config, config.evaluate.test_split)
    else:
      self._splits = splits(config)
      for source, name in zip(self._splits, ('train', 'test')):
        labels(source, name)

  def evaluate(self, step: int, ts: TrainState) -> None:
    """kNN-20 of the test split on the train split, with calibrated normalisation; of text the
    objective on the test split."""
    began = time.monotonic()
    if self._held_out is not None:
      return self._measure(step, ts, began)
    state = calibrated(self._experiment, ts.params, ts.state, self._splits.train, self._workers,
                       self._each)
    (z, y), (q, t) = (embed_split(self._experiment, ts.params, state, source, self._workers,
                                  self._each)
                      for source in self._splits)
    accuracy = knn(z, y, q, t, k=min(20, len(z)), classes=1 + int(max(y.max(), t.max())))['accuracy']
    self._write(step, {'knn20': accuracy})
    self._say(f'step {step}: kNN-20 accuracy {accuracy:.4f} ({time.monotonic() - began:.1f} s)')

  def _measure(self, step: int, ts: TrainState, began: float) -> None:
    experiment, rows = self._experiment, 256
    whole = feed(self._held_out, experiment.mesh, rows=rows, each=self._each)
    batches = itertools.islice(whole, HELD_OUT // rows)
    found = measure_all(experiment.method.measure, ts.params, ts.state, batches,
                        prepare=experiment.views.prepare)
    self._write(step, {f'heldout_{name}': value for name, value in found.items()})
    numbers = ', '.join(f'{name} {value:.4f}' for name, value in found.items())
    self._say(f'step {step}: held-out {numbers} ({time.monotonic() - began:.1f} s)')

  def health(self, step: int, ts: TrainState) -> None:
    """Effective rank, spread and uniformity of the first training examples; warns of a collapse."""
    if self._sample is None:
      source = self._experiment.source
      source = source.documents() if hasattr(source, 'documents') else source
      sample = next(in_order(source, batch_size=min(SAMPLE, len(source))))
      readable = sample.pop('weight') > 0
      self._sample = ArraySource({name: x[readable] for name, x in sample.items() if name != 'id'})
    state = calibrated(self._experiment, ts.params, ts.state, self._sample, each=self._each)
    features, _ = embed_split(self._experiment, ts.params, state, self._sample, each=self._each)
    self._write(step, health(features))
    verdict = collapse_verdict(features)
    if verdict is None and self._project is not None:
      # Where the objective has collapsed, the encoder before the head may still be healthy.
      projected, _ = embed_split(self._project, ts.params, state, self._sample, each=self._each)
      verdict = collapse_verdict(projected)
      verdict = verdict and f'projections: {verdict}'
    if verdict and not self._warned:
      self._say(f'WARNING at step {step}: {verdict}')
    self._warned = bool(verdict)


def _projection(config, experiment):
  """`experiment` whose `embed` gives what the objective sees of an image, the head's output."""
  net, method = build.network(config), experiment.method

  def project(params, state, inputs):
    found = net.features(*method.encoder(params, state), inputs, ('projection',))
    return found['projection']

  return experiment._replace(method=method._replace(embed=project))
