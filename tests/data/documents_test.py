"""Odd text becomes what it is said to."""

import numpy as np
import pytest

from ssl_jax.data.documents import clean, in_range, sentences_of
from ssl_jax.data.sources import DataError


def test_text_is_cleaned():
  assert clean(' \0a\0b \n') == 'a b'
  assert sentences_of('\ud800 b', 'x') == ('\ufffd b',)
  assert sentences_of(b'bad \xff\0', 'x') == ('bad \ufffd',)


def test_lists_of_text_lose_what_is_empty():
  assert sentences_of(np.array([b'3.', b' ', b'end'], object), 'x') == ('3.', 'end')
  assert sentences_of([], 'x') == ()


@pytest.mark.parametrize('value', [None, 1, ['a', 1]])
def test_what_is_no_text_is_refused(value):
  with pytest.raises(DataError, match="field 'a' must be text, or a list of texts; got"):
    sentences_of(value, "field 'a'")


def test_numbers_of_documents():
  assert in_range(2, 3) == 2
  for i in (-1, 3):
    with pytest.raises(IndexError, match=f'document {i} of 3'):
      in_range(i, 3)
