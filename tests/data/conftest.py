"""What the tests of tokens share; fixtures, because test files cannot import each other."""

import numpy as np
import pytest

from ssl_jax.data.documents import Document
from ssl_jax.data.token_store import InMemory
from ssl_jax.data.tokenize import Tokenizer, train

PAD, UNK, CLS, SEP = range(4)


class Fake:
  """A corpus in a list."""

  def __init__(self, documents: list[list[str]], labels=None):
    self.documents, self.classes = documents, ('a', 'b') if labels else ()
    self.labels = {} if labels is None else {'label': np.array(labels)}

  def __len__(self):
    return len(self.documents)

  def __getitem__(self, i):
    return Document(tuple(self.documents[i]))

  def fingerprint(self):
    return repr((self.documents, self.labels))


def random_corpus(count=60, seed=0, most=30) -> Fake:
  """Documents of one to four sentences; the words of each document are its own."""
  rng = np.random.default_rng(seed)
  return Fake([[' '.join([f'w{i}'] * int(rng.integers(1, most)))
                for _ in range(rng.integers(1, 5))] for i in range(count)])


def check_row(row, length):
  """What holds of every row."""
  names = ('tokens', 'segments', 'positions', 'words')
  assert all(row[name].shape == (length,) and row[name].dtype == np.int32 for name in names)
  segments = row['segments']
  filled = int((segments > 0).sum())
  assert (segments[:filled] > 0).all() and np.isin(np.diff(segments[:filled]), (0, 1)).all()
  assert (row['tokens'][filled:] == PAD).all() and (row['words'][filled:] == -1).all()
  for number in range(1, segments.max() + 1):
    inside = segments == number
    np.testing.assert_array_equal(row['positions'][inside], np.arange(inside.sum()))
  special = np.isin(row['tokens'], (PAD, CLS, SEP))
  np.testing.assert_array_equal(row['words'] == -1, special)
  numbers = row['words'][~special]
  assert np.isin(np.diff(numbers), (0, 1)).all() and numbers[0] == 0


@pytest.fixture(scope='session')
def tokenizer() -> Tokenizer:
  """Knows 'w0' to 'w299'."""
  return train([' '.join(f'w{i}' for i in range(300))] * 3, size=400)


@pytest.fixture(scope='session')
def store(tokenizer) -> InMemory:
  return InMemory(random_corpus(), tokenizer)


@pytest.fixture
def fake():
  return Fake


@pytest.fixture
def corpus_of():
  return random_corpus


@pytest.fixture
def check():
  return check_row
