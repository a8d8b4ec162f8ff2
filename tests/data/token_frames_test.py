"""Rows put together: words numbered, special tokens or none, pairs as BERT's or as RoBERTa's."""

import pickle

import numpy as np
import pytest

from ssl_jax.data.token_frames import Frame, Piece
from ssl_jax.data.token_pairs import Pairs
from ssl_jax.data.token_rows import Documents, Pieces
from ssl_jax.data.token_store import InMemory

CLS, SEP = 2, 3


def test_words_are_those_of_the_tokenizer_and_a_cut_word_begins_anew(tokenizer, fake, check):
  text = 'w1 unseen w2'
  store = InMemory(fake([[text, text]]), tokenizer)
  encoded, = tokenizer.encode([f'{text} {text}'])
  row = Documents(store, 64)[0]
  np.testing.assert_array_equal(row['words'][1:1 + len(encoded.words)], encoded.words)
  check(Pieces(store, 4)[1], 4)


def test_without_special_tokens(store, tokenizer):
  store = pickle.loads(pickle.dumps(store))
  store.vocabulary = tokenizer.vocabulary._replace(pad=None, cls=None, mask=None)
  row = Documents(store, 300)[0]
  end = len(store.read(0)[0])
  assert row['tokens'][end] == SEP and row['segments'][:end + 1].all()
  assert not row['segments'][end + 1:].any() and (row['tokens'][end + 1:] == SEP).all()
  store.vocabulary = store.vocabulary._replace(sep=None)
  assert Documents(store, 300)[0]['segments'].sum() == end
  with pytest.raises(ValueError, match=r'tokenizer with \[CLS\] and \[SEP\]'):
    Pairs(store, 64, 'nsp', True)


@pytest.mark.parametrize('separators', [1, 2])
def test_pairs_with_one_separator_or_two(tokenizer, separators):
  vocabulary = tokenizer.vocabulary._replace(separators=separators)
  frame = Frame(12, vocabulary)
  a, b = (Piece(np.array(tokens), np.array(starts)) for tokens, starts in (
    ([10, 11], [1, 1]), ([20, 21, 22], [1, 0, 1])))
  row = frame.pair(a, b)
  middle = [SEP] * separators
  want = [CLS, 10, 11, *middle, 20, 21, 22, SEP]
  rest = 12 - len(want)
  assert frame.pair_body == 12 - 2 - separators
  assert row['tokens'].tolist() == want + [0] * rest
  assert row['segments'].tolist() == [1] * len(want) + [0] * rest
  assert row['positions'].tolist() == [*range(len(want))] + [0] * rest
  assert row['types'].tolist() == [0] * (3 + separators) + [1] * 4 + [0] * rest
  assert row['words'].tolist() == [-1, 0, 1, *[-1] * separators, 2, 2, 3, -1] + [-1] * rest


def test_pairs_of_pretraining_have_as_many_separators(corpus_of, tokenizer):
  bert, roberta = (InMemory(corpus_of(), tokenizer) for _ in range(2))
  roberta.vocabulary = tokenizer.vocabulary._replace(separators=2)
  one, two = (Pairs(store, 48, 'nsp', True) for store in (bert, roberta))
  for source, count in ((one, 2), (two, 3)):
    rows = [source.draw(i, seed=0, epoch=0) for i in range(20)]
    assert all((row['tokens'] == SEP).sum() == count for row in rows)
    assert max(row['segments'].sum() for row in rows) == 48
  assert one.fingerprint() != two.fingerprint()
