"""Tokens are those of the published algorithms, words are words, training is deterministic."""

import json
import pathlib
import pickle
import subprocess
import sys
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
  assert tokenizer.vocabulary == (8192, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4))


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


def test_special_tokens_by_convention(tmp_path):
  roberta = load(bpe_file(tmp_path, ['<s>', '<pad>', '</s>', '<unk>', '<mask>'])).vocabulary
  assert roberta == (300, 1, 3, 0, 2, 4, (0, 1, 2, 3, 4))
  gpt2 = load(bpe_file(tmp_path, ['<|endoftext|>'])).vocabulary
  assert gpt2 == (300, None, None, None, 0, None, (0,))
  bert = load(bpe_file(tmp_path, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'])).vocabulary
  assert bert == (300, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4))


def test_special_tokens_as_the_files_beside_name_them(tmp_path):
  file = bpe_file(tmp_path, ['<start>', '<end>', '<blank>', '<other>'])
  assert load(file).vocabulary[1:] == (None, None, None, None, None, (0, 1, 2, 3))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(dict(
    bos_token='<start>', eos_token={'content': '<end>'}, mask_token='<other>')))
  (tmp_path / 'special_tokens_map.json').write_text(
    '{"mask_token": "<blank>", "pad_token": "<no>"}')
  assert load(file).vocabulary[1:] == (None, None, 0, 1, 2, (0, 1, 2, 3))
  gpt2 = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')
  file = bpe_file(tmp_path, ['<|endoftext|>'])
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(gpt2))
  (tmp_path / 'tokenizer_config.json').unlink()
  assert load(file).vocabulary[1:] == (None, None, None, 0, None, (0,))


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


# --- training -------------------------------------------------------------------------------------


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
  assert tokenizer.vocabulary[1:] == (0, 1, 2, 3, 4, (0, 1, 2, 3, 4))
  assert tokenizer.vocabulary.size <= 350
  encoded, = tokenizer.encode(['The CAT sat'])
  assert encoded.tokens.dtype == np.uint32 and encoded.words.dtype == np.int32
  assert tokenizer.decode(encoded.tokens) == 'the cat sat' and encoded.words.max() == 2
  cased = train(CORPUS + ['The CAT'] * 9, kind=kind, size=350, lowercase=False)
  assert cased.decode(cased.encode(['The CAT'])[0].tokens) == 'The CAT'


def test_rare_characters_are_unknown(monkeypatch):
  monkeypatch.setattr('ssl_jax.data.tokenize.ALPHABET', 4)
  tokenizer = train(['aaa bbb cc'] * 3 + ['dd', 'e'], size=30)
  assert pieces(tokenizer, 'a d e') == ['a', 'd', '[UNK]']


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
