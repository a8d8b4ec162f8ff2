"""A vocabulary is learned from text, the same in every process."""

import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer, train

CORPUS = 9 * ['the cat sat on the mat, 中国人民 unhappily', "don't sit; the happy cat can't",
              '中国 tea']


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
  names = tokenizer.pieces()
  return [names[i] for i in tokenizer.encode([text])[0].tokens]


# Many characters and pairs that are equally frequent: ties are what hash tables decide.
TIES = '''
from ssl_jax.data.tokenize import train
text = [' '.join(chr(0x400 + (i * j) % 1500) + chr(0x61 + (i + j) % 26) for j in range(9))
        for i in range(700)]
print(train(iter(text), kind={kind!r}, size={size}).fingerprint())
'''


@pytest.mark.parametrize('kind, size', [('wordpiece', 2500), ('bpe', 700)])
def test_the_same_text_gives_the_same_vocabulary_in_every_process(kind, size, root):
  runs = {subprocess.run([sys.executable, '-c', TIES.format(kind=kind, size=size)], cwd=root,
                         capture_output=True, text=True, check=True).stdout for _ in range(3)}
  assert len(runs) == 1 and len(runs.pop().strip()) == 64


@pytest.mark.parametrize('kind', ['wordpiece', 'bpe', 'unigram'])
def test_a_trained_vocabulary(kind):
  tokenizer = train(iter(CORPUS), kind=kind, size=350)
  assert tokenizer.vocabulary[1:-1] == (0, 1, 2, 3, 4, (0, 1, 2, 3, 4))
  assert tokenizer.vocabulary.size <= 350
  encoded, = tokenizer.encode(['The CAT sat'])
  assert encoded.tokens.dtype == np.uint32 and encoded.words.dtype == np.int32
  assert tokenizer.decode(encoded.tokens) == 'the cat sat' and encoded.words.max() == 2
  cased = train(CORPUS + ['The CAT'] * 9, kind=kind, size=350, lowercase=False)
  assert cased.decode(cased.encode(['The CAT'])[0].tokens) == 'The CAT'


def test_rare_characters_are_unknown(monkeypatch):
  monkeypatch.setattr('ssl_jax.data.vocabulary_training.ALPHABET', 4)
  tokenizer = train(['aaa bbb cc'] * 3 + ['dd', 'e'], size=30)
  assert pieces(tokenizer, 'a d e') == ['a', 'd', '[UNK]']


@pytest.mark.parametrize('kind', ['wordpiece', 'bpe', 'unigram'])
def test_a_size_that_is_too_small(kind):
  with pytest.raises(ValueError, match='special tokens'):
    train(CORPUS, kind=kind, size=5)
  with pytest.raises(ValueError, match='is too small: its special tokens and single characters'):
    train(CORPUS, kind=kind, size=10)


@pytest.mark.parametrize('kind', ['wordpiece', 'bpe', 'unigram'])
def test_no_text(kind):
  with pytest.raises(DataError, match='there is no text'):
    train(iter(['', '  ']), kind=kind, size=300)
  with pytest.raises(ValueError, match="'wordpiece', 'bpe', 'unigram', got 'word'"):
    train(CORPUS, kind='word', size=300)
