"""Tokens are those of the published algorithms, words are words; files of tokenizers."""

import pathlib
import pickle
import unicodedata

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer, load, tokenised, train

VOCABULARY = (pathlib.Path(__file__).parents[2] / 'ssl_jax' / 'data' / 'embedded'
              / 'wordnet_glosses' / 'vocab.txt')
TEXT = [
  'the cat sat on the mat; unhappily, the dog did not.', "It can't be unaffordable (or can it?)",
  'Über-naïve fiancés paid $3.50 in Zürich', '中国人 like 日本 tea',
  'a\tb\u00a0c \u200b d', '', 'x' * 101, 'so-called "quotes" -- and `ticks`', 'snow ☃ man',
  '[MASK] is text, as is [SEP]']


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
  names = tokenizer.pieces()
  return [names[i] for i in tokenizer.encode([text])[0].tokens]


def words(tokenizer: Tokenizer, text: str) -> list[list[str]]:
  """The pieces of each word."""
  encoded, = tokenizer.encode([text])
  found = [[] for _ in range(int(encoded.words.max(initial=-1)) + 1)]
  for piece, word in zip(pieces(tokenizer, text), encoded.words):
    found[word].append(piece)
  return found


# --- WordPiece ------------------------------------------------------------------------------------


def basic(text: str) -> list[str]:
  """BERT's BasicTokenizer, uncased, after google-research/bert tokenization.py."""
  text = ''.join(' ' if c.isspace() else c for c in text
                 if c.isspace() or unicodedata.category(c)[0] != 'C')
  text = ''.join(f' {c} ' if '\u4e00' <= c <= '\u9fff' else c for c in text)
  text = unicodedata.normalize('NFD', text.lower())
  text = ''.join(c for c in text if unicodedata.category(c) != 'Mn')
  is_mark = lambda c: unicodedata.category(c)[0] == 'P' or c in '$+<=>^`|~'
  return ''.join(f' {c} ' if is_mark(c) else c for c in text).split()


def longest_match(word: str, vocabulary: set[str]) -> list[str]:
  """WordPiece: the longest piece that fits, again and again (Schuster and Nakajima 2012)."""
  found, start = [], 0
  while start < len(word):
    prefix = '##' if start else ''
    ends = [e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary]
    if not ends or len(word) > 100:
      return ['[UNK]']
    found.append(prefix + word[start:ends[0]])
    start = ends[0]
  return found


def test_a_bert_vocabulary_gives_the_published_tokens_and_words():
  tokenizer = load(VOCABULARY)
  vocabulary = set(VOCABULARY.read_text().split('\n'))
  for text in TEXT:
    assert words(tokenizer, text) == [longest_match(word, vocabulary) for word in basic(text)]
  assert tokenizer.vocabulary == (8192, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4), 1)


def test_ids_alone_tell_words_as_the_library_does():
  fast, slow = load(VOCABULARY), load(VOCABULARY)
  slow._continues = None
  for a, b in zip(fast.encode(TEXT), slow.encode(TEXT)):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.words, b.words)


def test_case_is_what_the_file_beside_says(tmp_path):
  (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nThe\nthe\ncafé\ncafe\n')
  assert pieces(load(tmp_path), 'The café') == ['the', 'cafe']
  (tmp_path / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
  assert pieces(load(tmp_path / 'vocab.txt'), 'The café') == ['The', 'café']


# --- words ----------------------------------------------------------------------------------------


CORPUS = 9 * ['the cat sat on the mat, 中国人民 unhappily', "don't sit; the happy cat can't",
              '中国 tea']


def test_words_of_byte_level_bpe_begin_with_their_space():
  tokenizer = train(CORPUS, kind='bpe', size=300)
  assert [''.join(word) for word in words(tokenizer, "the unhappy cat can't.")] == [
    'the', 'Ġunhappy', 'Ġcat', 'Ġcan', "'t", '.']


@pytest.mark.parametrize('kind, size', [('wordpiece', 90), ('bpe', 270), ('unigram', 60)])
def test_every_cjk_character_is_a_word(kind, size):
  tokenizer = train(CORPUS, kind=kind, size=size)
  encoded, = tokenizer.encode(['the 中国人民 the'])
  runs = np.flatnonzero(np.diff(encoded.words, prepend=-1))
  texts = [tokenizer.decode(part).strip() for part in np.split(encoded.tokens, runs[1:])]
  if kind == 'unigram':  # One of its tokens may cover several characters; each then is a word.
    assert texts[0] == texts[-1] == 'the' and ''.join(texts[1:-1]) == '中国人民'
    assert all(run == 1 for run in np.diff(runs)[1:])
  else:
    assert texts == ['the', '中', '国', '人', '民', 'the']


def test_unigram_keeps_punctuation_apart():
  tokenizer = train(CORPUS, kind='unigram', size=60)
  assert [''.join(word) for word in words(tokenizer, 'the mat, the cat')] == [
    '▁the', '▁mat', ',', '▁the', '▁cat']


@pytest.mark.parametrize('kind, size', [('wordpiece', 90), ('bpe', 270), ('unigram', 60)])
def test_long_documents_are_tokenised_in_parts_as_a_whole(kind, size, monkeypatch):
  monkeypatch.setattr('ssl_jax.data.tokenize.PART', 20)
  monkeypatch.setattr('ssl_jax.data.tokenize.CHUNK_CHARACTERS', 50)
  tokenizer = train(CORPUS, kind=kind, size=size)
  texts = [' '.join(CORPUS), 'the  cat   sat ' * 9, 'x' * 70, 'x' * 30 + ' the ' + 'x' * 30, '']
  whole = tokenizer.encode(texts)
  found = tokenised([tuple(texts[:1]), (), tuple(texts[1:2]), *((text,) for text in texts[2:])],
                    tokenizer)
  assert found.documents.tolist() == [1, 0, 1, 1, 1, 1]
  assert found.sentences.tolist() == [len(one.tokens) for one in whole]
  np.testing.assert_array_equal(found.tokens, np.concatenate([one.tokens for one in whole]))
  starts = np.concatenate([np.diff(one.words, prepend=-1) != 0 for one in whole])
  np.testing.assert_array_equal(found.starts, starts)
  assert len(tokenised([(), ()], tokenizer).tokens) == 0


# --- files ----------------------------------------------------------------------------------------


def bpe_file(folder, special: list[str], **more) -> pathlib.Path:
  """A byte-level tokenizer.json that ships with what a user would not expect."""
  inner = tokenizers.Tokenizer(models.BPE(dropout=more.pop('dropout', None)))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
    vocab_size=300, show_progress=False, special_tokens=special,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  inner.enable_truncation(4)
  inner.enable_padding(length=128)
  file = folder / 'tokenizer.json'
  inner.save(str(file))
  return file


def test_truncation_padding_and_dropout_are_switched_off(tmp_path):
  tokenizer = load(bpe_file(tmp_path, ['<s>', '<pad>', '</s>', '<unk>', '<mask>'], dropout=0.9))
  first, again = (tokenizer.encode([CORPUS[0]])[0].tokens for _ in range(2))
  assert 4 < len(first) < 128
  np.testing.assert_array_equal(first, again)
  assert tokenizer.decode(first).strip() == CORPUS[0]


def test_offsets_are_characters():
  tokenizer = train(['the cat sat \u00e4'] * 3, size=60)
  (tokens, offsets), (none, empty) = tokenizer.encode_with_offsets(['the \u00e4 cat', ''])
  assert tokens.tolist() == tokenizer.encode(['the \u00e4 cat'])[0].tokens.tolist()
  assert [tuple(pair) for pair in offsets] == [(0, 3), (4, 5), (6, 9)]
  assert none.shape == (0,) and empty.shape == (0, 2)


def test_special_tokens_in_text_are_text(tmp_path):
  tokenizer = load(bpe_file(tmp_path, ['<s>', '<|endoftext|>']))
  for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
    encoded, = one.encode(['a <|endoftext|> b'])
    assert not np.isin(encoded.tokens, one.vocabulary.special).any()


def test_what_is_saved_is_loaded(tmp_path):
  (tmp_path / 'a').mkdir()
  file = bpe_file(tmp_path / 'a', ['<start>', '<end>', '<blank>'])
  (tmp_path / 'a' / 'tokenizer_config.json').write_text('{"mask_token": "<blank>"}')
  for tokenizer in (load(file), load(VOCABULARY)):
    tokenizer.save(tmp_path / 'b' / 'tokenizer.json')
    for copy in (load(tmp_path / 'b'), pickle.loads(pickle.dumps(tokenizer))):
      assert copy.fingerprint() == tokenizer.fingerprint()
      assert copy.vocabulary == tokenizer.vocabulary
      np.testing.assert_array_equal(copy.encode(TEXT)[1].words, tokenizer.encode(TEXT)[1].words)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, content, message', [
  ('tokenizer.json', '{"a": 1}', 'is no tokenizer.json'),
  ('tokenizer.json', '{', 'is no tokenizer.json'),
  ('vocab.txt', 'the\ncat\n', r'expected one piece per line, among them \[UNK\]; got 2 lines'),
  ('vocab.txt', '', 'got 0 lines'),
  ('vocab.txt', '[UNK]\na\nb\na\n', "line 4 repeats 'a' of line 2"),
  ('model.bin', 'x', 'neither tokenizer.json nor vocab.txt'),
  ('tokenizer.json', tokenizers.Tokenizer(models.BPE()).to_str(), 'never trained')])
def test_a_file_that_is_no_tokenizer(name, content, message, tmp_path):
  (tmp_path / name).write_text(content)
  with pytest.raises(DataError, match=message):
    load(tmp_path)


def test_mistakes(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such tokenizer'):
    load(tmp_path / 'tokenizer.json')
  file = bpe_file(tmp_path, ['<|endoftext|>'])
  with pytest.raises(DataError, match='has no mask token, which masked-language modelling needs'):
    load(file, require_mask=True)
  (tmp_path / 'tokenizer_config.json').write_text('[1]')
  with pytest.raises(DataError, match='must hold a JSON object, got list'):
    load(file)
  (tmp_path / 'tokenizer_config.json').write_text('{')
  with pytest.raises(DataError, match='tokenizer_config.json is damaged'):
    load(file)
  assert load(VOCABULARY, require_mask=True).vocabulary.mask == 4
