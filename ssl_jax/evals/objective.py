"""The objective itself on held-out data: the same masks for every run and step, no dropout.

Masked-LM accuracy is MLPerf's (mlcommons/training, BERT): the share of the masked tokens of a fixed
set of rows whose most probable entry is the right one. Beside it stands what needs no model, the
frequencies of tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.train.step import example_keys
from ssl_jax.types import Batch, PyTree

SEED = 20181011  # of the masks, whatever the seed of the run


@partial(jax.jit, static_argnums=(0, 1))
def _measured(measure, prepare, params, state, batch):
  prepared = _prepared(prepare, batch)
  return measure(params, state, prepared)


def _prepared(prepare, batch):
  """The batch under its fixed masks; rows of weight 0 do not count."""
  keys = example_keys(jax.random.key(SEED), jnp.zeros_like(batch['id']), batch['id'])
  return {**prepare(keys, batch), 'weight': batch['weight']}


@partial(jax.jit, static_argnums=0)
def _targets(prepare, batch):
  prepared = _prepared(prepare, batch)
  return prepared['targets'], prepared['weights'] * prepared['weight'][:, None]


def measure_all(measure: Callable, params: PyTree, state: PyTree, batches: Iterable[Batch], *,
                prepare: Callable) -> dict[str, float]:
  """Means over a data set of what `Method.measure` gives.

  Args:
    measure: (params, state, prepared batch) -> {name: (sum, weight)}.
    params, state: of the method.
    batches: with 'id' and 'weight' [B], as `data.batches.in_order` gives.
    prepare: `Views.prepare`; its keys depend on the ids alone.

  Returns:
    {name: sum / weight}, NaN where nothing has weight.
  """
  totals: dict[str, np.ndarray] = {}
  for batch in batches:
    found = jax.device_get(_measured(measure, prepare, params, state, dict(batch)))
    for name, pair in found.items():
      totals[name] = totals.get(name, 0) + np.array(pair, np.float64)
  return {name: float(total / weight) if weight else float('nan')
          for name, (total, weight) in totals.items()}


def unigram(counts: np.ndarray, batches: Iterable[Batch], *, prepare: Callable) -> dict[str, float]:
  """What the frequencies of tokens reach under the same masks: {'loss', 'accuracy'}.

  Args:
    counts: [V], how often each token occurs in training; 1 is added to each for the loss.
    batches, prepare: as `measure_all`.
  """
  log_p = np.log((counts + 1) / (counts + 1).sum())
  best, sums = int(np.argmax(counts)), np.zeros(3)
  for batch in batches:
    targets, weights = jax.device_get(_targets(prepare, dict(batch)))
    sums += [(weights * -log_p[targets]).sum(), (weights * (targets == best)).sum(), weights.sum()]
  return dict(loss=float(sums[0] / sums[2]), accuracy=float(sums[1] / sums[2]))


def format_objective(rows: Iterable[tuple[str, Mapping[str, float]]]) -> str:
  """A Markdown table of `measure_all` results by name."""
  rows = list(rows)
  columns = list(dict.fromkeys(key for _, numbers in rows for key in numbers))
  table = [['held-out', *columns]]
  table += [[name, *(f'{numbers[key]:.4f}' if key in numbers else '-' for key in columns)]
            for name, numbers in rows]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)) + ' |'
           for line in table]
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])
