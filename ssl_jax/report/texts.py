"""Texts inside the page: neighbours as lists, and rows of tokens with what is masked in them."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.report.html import Html, join, tag
from ssl_jax.report.images import Neighbours

LONGEST = 160  # characters of a text that are shown
LISTED = 3  # neighbours of each text


class Word(NamedTuple):
  """A token as the network sees it, and what it has to predict there (None: nothing)."""

  seen: str
  was: str | None = None


class Masked(NamedTuple):
  """The words of one row."""

  words: tuple[Word, ...]


def snippet(row: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> str:
  """The text of a row of tokens, without padding and special tokens, cut where it is long."""
  real = np.asarray(row['segments']) > 0
  text = tokenizer.decode([token for token in np.asarray(row['tokens'])[real]
                           if token not in tokenizer.vocabulary.special])
  return text if len(text) <= LONGEST else text[:LONGEST - 1] + '…'


def masked(row: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> Masked:
  """Of a row as a masking rule leaves it, with its 'slots', 'targets' and 'weights' [K]."""
  used = np.asarray(row['weights']) > 0
  was = {int(slot): tokenizer.decode([target]).strip()
         for slot, target in zip(row['slots'][used], row['targets'][used])}
  return Masked(tuple(
    Word(tokenizer.decode([row['tokens'][place]]).strip(), was.get(int(place)))
    for place in np.flatnonzero(row['segments'] > 0)))


def neighbour_lists(neighbours: Neighbours) -> Html:
  """One column per encoder: a test text, then its neighbours; right and wrong differ in the colour
  and the style of the line beside them."""
  return tag('div', [_column(neighbours, nearest) for nearest in neighbours.groups], class_='pair')


def _column(neighbours: Neighbours, nearest) -> Html:
  entries = []
  for q, query in enumerate(neighbours.queries):
    right = None if neighbours.query_names is None else neighbours.query_names[q]
    entries.append(tag('dt', query, _small(right)))
    for k, text in enumerate(nearest.images[q][:LISTED]):
      name = None if nearest.names is None else nearest.names[q][k]
      look = 'found' if name is None else 'found right' if name == right else 'found wrong'
      cosine = f'cosine {nearest.similarity[q, k]:.3f}'
      entries.append(tag('dd', text, _small(f'{name}, {cosine}' if name else cosine), class_=look))
  note = '' if nearest.precision is None else (
    f'{nearest.precision:.1%} right among the neighbours of all test texts')
  return tag('figure', tag('figcaption', tag('b', nearest.name), tag('span', note, class_='note')),
             tag('dl', entries, class_='texts'))


def _small(words: str | None) -> Html | None:
  return None if words is None else join(' ', tag('small', words))


def masked_rows(rows) -> Html:
  """Each row as a paragraph: what has to be predicted stands above what the network sees."""
  return join([tag('p', [_word(word) for word in row.words], class_='masked') for row in rows])


def _word(word: Word) -> Html:
  if word.was is None:
    return join(word.seen, ' ')
  return join(tag('ruby', tag('mark', word.seen), tag('rt', word.was)), ' ')
