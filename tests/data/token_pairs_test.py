"""Pairs of sentences as BERT's and ALBERT's scripts make them."""

from itertools import islice

import numpy as np
import pytest

from ssl_jax.data import token_pairs
from ssl_jax.data.batches import batches
from ssl_jax.data.token_frames import Piece
from ssl_jax.data.token_pairs import Pairs
from ssl_jax.data.token_store import InMemory

CLS, SEP = 2, 3


def two_sentences(count=300) -> list[list[str]]:
  """Document i says w<i> and then w<i + 1 mod 300>, so that neighbours can be told."""
  return [[f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4] for i in range(count)]


def halves(row) -> tuple[list[int], list[int]]:
  return tuple(row['tokens'][(row['types'] == kind) & (row['words'] >= 0)].tolist()
               for kind in (0, 1))


def test_next_sentences(tokenizer, check, fake):
  store = InMemory(fake(two_sentences()), tokenizer)
  source = Pairs(store, 64, 'nsp', True)
  assert len(source) == 300
  rows = [source.draw(i, seed=0, epoch=epoch) for epoch in range(5) for i in range(300)]
  labels = np.array([row['next'] for row in rows])
  # A short target may leave one sentence, which has a random B always: a little above a half.
  assert 0.47 < labels.mean() < 0.6 and labels.dtype == np.int32
  true = {}
  for i in range(300):
    sentences = tokenizer.encode([f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4])
    true[i] = tuple(one.tokens.tolist() for one in sentences)
  for row, i in zip(rows, list(range(300)) * 5):
    check(row, 64)
    a, b = halves(row)
    follows = (a, b) == true[i]
    assert follows == (row['next'] == 0)
    end = int((row['segments'] > 0).sum())
    assert row['tokens'][0] == CLS and row['tokens'][end - 1] == SEP
    assert row['types'][len(a) + 1] == 0 and row['tokens'][len(a) + 1] == SEP
    assert row['types'][len(a) + 2:end].all() and not row['types'][end:].any()


def test_a_single_sentence_has_a_random_next_one(tokenizer, fake):
  store = InMemory(fake([[f'w{i}'] for i in range(40)]), tokenizer)
  for kind in ('nsp', 'sop'):
    source = Pairs(store, 16, kind, True)
    rows = [source.draw(i, seed=0, epoch=0) for i in range(40)]
    assert all(row['next'] == 1 for row in rows)
    assert all(a != b for a, b in map(halves, rows))
  assert len({tuple(halves(source.draw(0, seed=0, epoch=epoch))[1]) for epoch in range(50)}) > 20


def test_sentence_order(tokenizer, fake):
  store = InMemory(fake(two_sentences()), tokenizer)
  source = Pairs(store, 64, 'sop', True)
  swapped = 0
  for i in range(300):
    row = source.draw(i, seed=1, epoch=0)
    a, b = halves(row)
    first, second = (one.tokens.tolist() for one in tokenizer.encode(
      [f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4]))
    if {tuple(a), tuple(b)} == {tuple(first), tuple(second)}:
      assert row['next'] == int((a, b) == (second, first))
      swapped += row['next']
  assert 100 < swapped < 190


def test_long_pairs_are_cut_at_either_end_of_the_longer(tokenizer, fake):
  words = ' '.join(f'w{i}' for i in range(100, 130))
  store = InMemory(fake([[words, words], ['w1 w2']]), tokenizer)
  source = Pairs(store, 24, 'sop', True)
  whole = tokenizer.encode([words])[0].tokens.tolist()
  starts = set()
  for epoch in range(60):
    row = source.draw(0, seed=0, epoch=epoch)
    a, b = halves(row)
    assert 0 < len(a) + len(b) <= 21
    if len(a) + len(b) == 21 and row['segments'].all():
      joined = ' '.join(map(str, whole))
      assert ' '.join(map(str, a)) in joined
      starts.add(joined.find(' '.join(map(str, a))))
  assert len(starts) > 3


@pytest.mark.parametrize('a, b, most', [(4, 4, 5), (3, 4, 5), (10, 3, 8), (2, 5, 5), (1, 9, 6),
                                        (7, 7, 8), (2, 2, 9)])
def test_the_closed_form_of_truncation(a, b, most):
  left, right = a, b
  while left + right > most:  # google-research/bert truncate_seq_pair
    left, right = (left - 1, right) if left > right else (left, right - 1)
  cut = token_pairs._cut(np.random.default_rng(0), *(
    Piece(np.arange(n), np.ones(n, bool)) for n in (a, b)), most)
  assert [len(piece.tokens) for piece in cut] == [left, right]


def test_chunks_fill_a_row_and_evaluation_has_one_per_document(store, tokenizer, fake):
  training, evaluation = (Pairs(store, 24, 'nsp', flag) for flag in (True, False))
  assert len(evaluation) == len(store) < len(training)
  counted = [i for document, first, last in training._chunks.tolist() for i in range(first, last)]
  assert counted == list(range(len(store.sizes.sentences)))
  empty = InMemory(fake([['w1', 'w2'], [''], ['w3']]), tokenizer)
  row = Pairs(empty, 16, 'nsp', False)[1]
  assert halves(row)[0] == [] and halves(row)[1] and row['next'] == 1
  assert len(Pairs(empty, 16, 'nsp', True)) == 2


def test_pairs_depend_on_seed_epoch_and_number_alone(store):
  source = Pairs(store, 32, 'nsp', True)

  def draws(seed, epoch):
    return [source.draw(i, seed=seed, epoch=epoch)['tokens'].tolist() for i in range(8)]

  assert draws(1, 2) == draws(1, 2)
  assert draws(1, 2) != draws(1, 3) != draws(3, 1)
  whole = list(islice(batches(source, batch_size=4, seed=1), 3))
  share = list(islice(batches(source, batch_size=4, seed=1, rows=[1, 3]), 3))
  for a, b in zip(share, whole):
    np.testing.assert_array_equal(a['tokens'], b['tokens'][[1, 3]])
