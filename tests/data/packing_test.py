"""Packing is best fit, deterministic, of as many rows in every epoch, and wastes little."""

import numpy as np
import pytest

from ssl_jax.data.packing import Plan, best_fit, left_out, plan, row_tokens, rows, waste


def lengths_of(count=500, capacity=64, seed=0):
  rng = np.random.default_rng(seed)
  return np.clip(rng.lognormal(2.5, 0.8, count).astype(int) + 1, 1, capacity)


def naive(lengths, capacity, order) -> list[list[int]]:
  """Best fit as it is told: the fullest row that has room; among equals the last touched."""
  alone = [[i] for i in order if lengths[i] == capacity]
  found, touched = [], []  # rows; of each, (space, when it was last touched)
  for now, i in enumerate(order):
    if lengths[i] == capacity:
      continue
    fitting = [(space, -when, row) for row, (space, when) in enumerate(touched)
               if space >= lengths[i]]
    if fitting:
      space, _, row = min(fitting)
      found[row].append(i)
      touched[row] = space - lengths[i], now
    else:
      found.append([i])
      touched.append((capacity - lengths[i], now))
  return alone + found


def as_lists(packed: Plan) -> list[list[int]]:
  return [packed.row(r).tolist() for r in range(len(packed))]


@pytest.mark.parametrize('capacity', [8, 64, 200])
def test_best_fit_is_best_fit(capacity):
  for seed in range(3):
    lengths = lengths_of(300, capacity, seed)
    order = np.random.default_rng(seed).permutation(300)
    assert as_lists(best_fit(lengths, capacity, order)) == naive(lengths, capacity, order)


def test_an_example_by_hand():
  packed = best_fit(np.array([6, 5, 4, 3, 10, 2]), 10, np.arange(6))
  assert as_lists(packed) == [[4], [0, 2], [1, 3, 5]]
  assert row_tokens(packed, np.array([6, 5, 4, 3, 10, 2])).tolist() == [10, 10, 10]


def test_the_plan_of_an_epoch():
  lengths, capacity = lengths_of(), 64
  counted = set()
  for epoch in range(4):
    packed = plan(lengths, capacity, seed=1, epoch=epoch)
    assert len(packed) == rows(lengths, capacity) == -(-lengths.sum() // capacity)
    documents = packed.documents.tolist()
    assert len(set(documents)) == len(documents)  # no document twice
    tokens = row_tokens(packed, lengths)
    assert tokens.max() <= capacity and tokens.sum() == lengths[documents].sum()
    assert waste(packed, lengths, capacity) == pytest.approx(1 - tokens.mean() / capacity)
    assert left_out(packed, lengths) == pytest.approx(1 - tokens.sum() / lengths.sum())
    counted.update(documents)
  assert counted == set(range(len(lengths)))  # others are left out in each epoch


def test_the_fullest_rows_are_kept():
  lengths, capacity = lengths_of(), 64
  packed = plan(lengths, capacity, seed=1, epoch=0)
  kept = set(packed.documents.tolist())
  rest = np.array([i for i in range(len(lengths)) if i not in kept])
  assert len(rest) and row_tokens(packed, lengths).min() > 0.8 * capacity


def test_the_same_plan_again_and_another_in_another_epoch_or_seed():
  lengths = lengths_of()
  first = plan(lengths, 64, seed=1, epoch=0)
  assert as_lists(plan(lengths, 64, seed=1, epoch=0)) == as_lists(first)
  for other in (dict(seed=1, epoch=1), dict(seed=2, epoch=0)):
    assert as_lists(plan(lengths, 64, **other)) != as_lists(first)


def test_waste_is_small_for_short_documents():
  lengths = np.clip(np.random.default_rng(0).lognormal(2.8, 0.5, 20000).astype(int) + 2, 3, 128)
  packed = plan(lengths, 128, seed=0, epoch=0)
  assert waste(packed, lengths, 128) < 0.015 and left_out(packed, lengths) < 0.015


@pytest.mark.parametrize('lengths', [[1], [8], [5, 5, 5], [8, 8], [1] * 9])
def test_small_corpora(lengths):
  packed = plan(np.array(lengths), 8, seed=0, epoch=0)
  assert len(packed) == -(-sum(lengths) // 8)


@pytest.mark.parametrize('lengths', [[3, 9], [0, 3]])
def test_documents_that_do_not_fit(lengths):
  with pytest.raises(ValueError, match='between 1 and 8 tokens, the length of a row; got'):
    best_fit(np.array(lengths), 8, np.arange(2))
