"""Rows of texts and pairs by hand, and how they are cut."""

import pytest

from ssl_jax.data.tokenize import train
from ssl_jax.evals.text_rows import encode

TEXT = ['the cat sat on the mat .', 'a dog , unhappily , ran home', 'Paris is in France']


@pytest.fixture(scope='module')
def tokenizer():
  return train(TEXT * 3, kind='wordpiece', size=120)


def test_rows_of_texts_and_pairs(tokenizer):
  v = tokenizer.vocabulary
  ids = lambda text: tokenizer.encode([text])[0].tokens.tolist()
  rows = encode((['the cat', ''],), tokenizer, length=32)
  assert rows['tokens'].shape == (2, 16) and set(rows) == {'tokens', 'segments'}
  assert rows['tokens'][0, :5].tolist() == [v.cls, *ids('the cat'), v.sep, v.pad]
  assert rows['segments'].sum(1).tolist() == [4, 2]
  rows = encode((['the cat'], ['a dog ran']), tokenizer, length=32, types=True)
  want = [v.cls, *ids('the cat'), v.sep, *ids('a dog ran'), v.sep]
  assert rows['tokens'][0, :len(want)].tolist() == want
  assert rows['types'][0].tolist() == [0] * 4 + [1] * 4 + [0] * 8
  assert 'types' not in encode((['a'], ['b']), tokenizer, length=32)


def loop(a, b, most):
  """google-research/bert run_classifier.py, _truncate_seq_pair."""
  a, b = list(a), list(b)
  while len(a) + len(b) > most:
    (a if len(a) > len(b) else b).pop()
  return a, b


def test_pairs_are_cut_token_by_token(tokenizer):
  words = ['cat', 'dog', 'mat', 'sat', 'ran', 'the', 'home', 'on', 'in', 'is']
  for n in range(10):
    for m in range(10):
      for length in (7, 8):
        a, b = words[:n], words[::-1][:m]
        row = encode(([' '.join(a)], [' '.join(b)]), tokenizer, length=length)
        shown = tokenizer.decode(row['tokens'][0][row['segments'][0] > 0]).split()
        a, b = loop(a, b, length - 3)
        assert shown == ['[CLS]', *a, '[SEP]', *b, '[SEP]']


def test_rows_are_as_long_as_needed(tokenizer):
  long = ['cat ' * n for n in (3, 14, 15, 90)]
  lengths = [encode(([text],), tokenizer, length=70)['tokens'].shape[1] for text in long]
  assert lengths == [16, 16, 32, 70]


def test_mistakes_about_rows_are_answered(tokenizer):
  with pytest.raises(ValueError, match='no text'):
    encode(([],), tokenizer, length=16)
  with pytest.raises(ValueError, match='no space'):
    encode((['a'], ['b']), tokenizer, length=4)
  plain = train(TEXT, kind='bpe', size=270)
  plain.vocabulary = plain.vocabulary._replace(cls=None)
  with pytest.raises(ValueError, match=r'need a tokenizer with \[CLS\]'):
    encode((['a'], ['b']), plain, length=16)


def test_two_separators_where_the_tokenizer_is_robertas(tokenizer):
  roberta = train(TEXT * 3, kind='wordpiece', size=120)
  roberta.vocabulary = v = roberta.vocabulary._replace(separators=2)
  ids = lambda text: roberta.encode([text])[0].tokens.tolist()
  rows = encode((['the cat'], ['a dog ran']), roberta, length=32, types=True)
  want = [v.cls, *ids('the cat'), v.sep, v.sep, *ids('a dog ran'), v.sep]
  assert rows['tokens'][0, :len(want)].tolist() == want
  assert rows['types'][0].tolist() == [0] * 5 + [1] * 4 + [0] * 7
  words = 'cat dog mat sat ran the home on in is'.split()
  row = encode(([' '.join(words)], [' '.join(words)]), roberta, length=11)
  shown = roberta.decode(row['tokens'][0]).split()
  a, b = loop(words, words, 11 - 4)
  assert shown == ['[CLS]', *a, '[SEP]', '[SEP]', *b, '[SEP]']
