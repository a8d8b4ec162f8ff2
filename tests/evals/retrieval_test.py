"""Recall in both directions against plain loops, its chance level, and classes by captions."""

import math

import numpy as np
import pytest

from ssl_jax.evals.retrieval import classify, format_retrieval, recall, retrieval

RNG = np.random.default_rng(0)
QUERIES, ITEMS = RNG.normal(size=(23, 5)), RNG.normal(size=(31, 5))
# Query 4 has no right item, others have one to three; a pair that is given twice counts once.
PAIRS = np.array([(q, i) for q in range(23) for i in range(31) if (q * 7 + i) % 19 == 0 and q != 4])
PAIRS = np.concatenate([PAIRS, PAIRS[:2]])


def by_hand(queries, items, pairs, k):
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  order = np.argsort(-unit(queries) @ unit(items).T, axis=1)
  asked = sorted({int(q) for q, _ in pairs})
  right = {q: {int(i) for p, i in pairs if p == q} for q in asked}
  hits = [bool(right[q] & set(order[q, :k].tolist())) for q in asked]
  n = len(items)
  chance = [1 - math.comb(n - len(right[q]), k) / math.comb(n, k) for q in asked]
  return np.mean(hits), np.mean(chance)


@pytest.mark.parametrize('scores', [1, 100, 2**24], ids=['a query', 'a few', 'all at a time'])
def test_recall_is_that_of_plain_loops(scores):
  found = recall(QUERIES, ITEMS, PAIRS, (1, 3, 10, 31), scores=scores)
  for k in (1, 3, 10, 31):
    expected = by_hand(QUERIES, ITEMS, PAIRS, k)
    np.testing.assert_allclose((found.recall[k], found.chance[k]), expected, rtol=1e-6)
  assert 0 < found.recall[3] < 1 == found.recall[31] == pytest.approx(found.chance[31])
  assert (found.queries, found.items) == (len({q for q, _ in PAIRS.tolist()}), 31)


def test_both_directions_with_several_captions_per_image():
  """Three captions of each image, close to it: all are found."""
  images = np.eye(4)
  texts = np.repeat(images, 3, axis=0) + RNG.uniform(0, .1, (12, 4))
  pairs = np.stack([np.arange(12) // 3, np.arange(12)], axis=1)
  found = retrieval(images, texts, pairs, (1, 5))
  assert all(one.recall[1] == 1 for one in found.values())
  assert found['image to text'].chance[1] == pytest.approx(3 / 12)
  assert found['text to image'].chance == pytest.approx({1: 1 / 4, 5: 1.})
  shifted = retrieval(images, texts, (pairs + [1, 0]) % [4, 12], (1,))
  assert all(one.recall[1] == 0 for one in shifted.values())
  table = format_retrieval(found)
  assert '| image to text | 1.0000 ' in table and '|   by chance   | 0.2500 ' in table


def test_an_encoder_to_which_all_is_alike_finds_nothing():
  ones = np.ones((6, 3))
  found = recall(ones, ones, np.stack([np.arange(6)] * 2, axis=1), (1, 5))
  assert found.recall == {1: 0., 5: 0.}


def test_classes_are_the_mean_direction_of_their_captions():
  """A long caption counts as much as a short one."""
  prompts = np.array([[[1., 0], [0, 1]], [[100., 0], [-50, 50]]])  # [2 captions, 2 classes, 2]
  angles = np.deg2rad([0, 40, 60, 110, 180])
  images = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  assert classify(images, prompts).tolist() == [0, 0, 1, 1, 1]  # the border is at 56.25 degrees


@pytest.mark.parametrize('pairs, words', [
  (np.zeros((0, 2), int), r'integers \[P, 2\]'), (np.array([[0., 1.]]), r'integers \[P, 2\]'),
  (np.array([[0, 31]]), '23 queries and 31 items'), (np.array([[-1, 0]]), '23 queries'),
])
def test_mistakes_are_answered(pairs, words):
  with pytest.raises(ValueError, match=words):
    recall(QUERIES, ITEMS, pairs)
  with pytest.raises(ValueError, match='rows of one width'):
    recall(QUERIES, ITEMS[:, :3], PAIRS)
