"""The held-out objective: fixed masks, weights, and what token frequencies reach."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.batches import in_order
from ssl_jax.evals.objective import SEED, format_objective, measure_all, unigram
from ssl_jax.train.step import example_keys
from ssl_jax.views import masks

VOCABULARY, MASK = 20, 4
VIEWS = masks.build(vocabulary=VOCABULARY, mask=MASK, special=(0, 1, 2, 3))


class Rows:
  """7 rows of 12 tokens."""

  tokens = np.random.default_rng(0).integers(5, VOCABULARY, (7, 12)).astype(np.int32)

  def __len__(self):
    return len(self.tokens)

  def __getitem__(self, i):
    return {'tokens': self.tokens[i]}

  def fingerprint(self):
    return 'rows'


def passes(size):
  return ({k: jnp.asarray(x) for k, x in b.items()} for b in in_order(Rows(), batch_size=size))


def measure(params, state, batch):
  """'sum' adds up targets, 'rows' counts rows."""
  weights = batch['weights'] * batch['weight'][:, None]
  return {'targets': (jnp.sum(weights * batch['targets']), jnp.sum(weights)),
          'rows': (jnp.sum(batch['weight']), jnp.ones(()))}


def test_masks_and_means_do_not_depend_on_the_batches():
  found = [measure_all(measure, {}, {}, passes(size), prepare=VIEWS.prepare) for size in (7, 3, 2)]
  for one in found[1:]:
    np.testing.assert_allclose(one['targets'], found[0]['targets'], rtol=1e-6)
  assert found[0]['rows'] == 7  # padded rows have no weight
  assert found[1]['rows'] == 7 / 3


def test_frequencies_by_hand():
  counts = np.zeros(VOCABULARY, np.int64)
  counts[[6, 9]] = 30, 10
  got = unigram(counts, passes(4), prepare=VIEWS.prepare)
  hits = losses = total = 0.
  log_p = np.log((counts + 1) / (40 + VOCABULARY))
  for batch in passes(7):
    keys = example_keys(jax.random.key(SEED), jnp.zeros_like(batch['id']), batch['id'])
    masked = jax.device_get(VIEWS.prepare(keys, batch))
    weights, targets = masked['weights'], masked['targets']
    hits += (weights * (targets == 6)).sum()
    losses += (weights * -log_p[targets]).sum()
    total += weights.sum()
  np.testing.assert_allclose([got['accuracy'], got['loss']], [hits / total, losses / total], rtol=1e-5)


def test_the_table_names_rows_and_columns():
  text = format_objective([('frequencies', {'loss': 2.}), ('model', {'loss': 1., 'accuracy': .5})])
  assert '| frequencies | 2.0000 | -        |' in text and '| model       | 1.0000 | 0.5000   |' in text
