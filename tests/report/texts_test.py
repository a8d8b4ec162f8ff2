"""Texts on the page: what is cut, what is marked, and which neighbours are right."""

import re

import numpy as np
import pytest

from ssl_jax.data import tokenize
from ssl_jax.data.token_sources import WORDNET_VOCABULARY
from ssl_jax.report.images import Nearest, Neighbours
from ssl_jax.report.texts import LONGEST, Word, masked, masked_rows, neighbour_lists, snippet


@pytest.fixture(scope='module')
def tokenizer():
  return tokenize.load(WORDNET_VOCABULARY)


def row(tokenizer, text, length):
  """[CLS] text [SEP], filled up with [PAD]."""
  known = tokenizer.vocabulary
  tokens = [known.cls, *tokenizer.encode([text])[0].tokens.tolist(), known.sep]
  fill = [0] * (length - len(tokens))
  return dict(tokens=np.array(tokens + [known.pad] * len(fill)),
              segments=np.array([1] * len(tokens) + fill))


def test_a_snippet_is_text_alone(tokenizer):
  assert snippet(row(tokenizer, 'the season of cutting', 12), tokenizer) == 'the season of cutting'
  long = snippet(row(tokenizer, 'the season ' * 40, 90), tokenizer)
  assert len(long) == LONGEST and long.endswith('…')


def test_masks_stand_below_what_they_hide(tokenizer):
  one = row(tokenizer, 'the season of trees', 8)
  targets = one['tokens'][[2, 4, 1]]
  one['tokens'][2] = tokenizer.vocabulary.mask
  one |= dict(slots=np.array([2, 4, 1]), targets=targets, weights=np.array([1., 1., 0.]))
  words = masked(one, tokenizer).words
  assert words == (Word('[CLS]'), Word('the'), Word('[MASK]', 'season'), Word('of'),
                   Word('trees', 'trees'), Word('[SEP]'))
  markup = masked_rows([masked(one, tokenizer)])
  assert '<ruby><mark>[MASK]</mark><rt>season</rt></ruby>' in markup and markup.count('<mark>') == 2


def test_neighbours_are_marked_by_their_class():
  found = [['a', 'b', 'c', 'd'], ['<i>', 'f', 'g', 'h']]
  names = [['cat', 'dog', 'cat', 'cat'], ['cat', 'dog', 'cat', 'dog']]
  similarity = np.array([[0.9, 0.8, 0.7, 0.6]] * 2)
  markup = neighbour_lists(Neighbours(['first', 'second'], ['cat', 'dog'], [
    Nearest('masked_lm', found, similarity, names, 0.5)]))
  assert re.findall('found (right|wrong)', markup) == [
    'right', 'wrong', 'right', 'wrong', 'right', 'wrong']
  assert 'cat, cosine 0.900' in markup and '50.0% right' in markup and '<i>' not in markup
  plain = neighbour_lists(Neighbours(['first', 'second'], None, [
    Nearest('masked_lm', found, similarity, None)]))
  assert 'right' not in plain and 'wrong' not in plain and 'cosine 0.700' in plain
