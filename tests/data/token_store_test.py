"""Tokenised documents in memory."""

from ssl_jax.data.token_rows import Documents, Packed
from ssl_jax.data.token_store import InMemory
from ssl_jax.data.tokenize import train

UNK = 1


def test_unknown_is_kept_and_counted(tokenizer, fake):
  store = InMemory(fake([['☃ ☃ ☃'], ['w1']]), tokenizer)
  assert store.unknown == 3 and (Documents(store, 8)[0]['tokens'][1:4] == UNK).all()
  share = 3 / store.sizes.sentences.sum()
  assert f'{share:.2%} unknown' in Packed(store, 8).report()


def test_sentences_are_joined_by_a_space(fake):
  tokenizer = train(['the cat sat. The mat.'], kind='bpe', size=280)
  store = InMemory(fake([['the cat', 'sat.']]), tokenizer)
  assert tokenizer.decode(store.read(0)[0]) == 'the cat sat.'
