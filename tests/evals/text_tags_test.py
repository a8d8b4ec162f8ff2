"""CoNLL's files read, tags on the first piece of each word, entities measured."""

import itertools

import numpy as np
import pytest

from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import train
from ssl_jax.evals.text_metrics import chunks
from ssl_jax.evals.text_tags import encode_tags, measure_tags, read_conll

TEXT = ['the cat sat on the mat .', 'a dog , unhappily , ran home', 'Paris is in France']


@pytest.fixture(scope='module')
def tokenizer():
  return train(TEXT * 3, kind='wordpiece', size=120)


def conll(folder, text, name='a.txt'):
  path = folder / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


# --- reading --------------------------------------------------------------------------------------

FILE = """-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
German JJ B-NP I-MISC
call NN I-NP I-MISC
Brexit NN I-NP B-MISC

-DOCSTART- -X- -X- O

Peter NNP B-NP I-PER
"""


def test_conll_is_read_and_becomes_iob2(tmp_path):
  found = read_conll(conll(tmp_path, FILE))
  assert found.words == [['EU', 'rejects', 'German', 'call', 'Brexit'], ['Peter']]
  assert found.tags == [['B-ORG', 'O', 'B-MISC', 'I-MISC', 'B-MISC'], ['B-PER']]
  assert found.classes == ('O', 'B-MISC', 'I-MISC', 'B-ORG', 'I-ORG', 'B-PER', 'I-PER')
  assert found.count == 2 and found.take(np.array([1])).words == [['Peter']]


@pytest.mark.parametrize('text', [
  'a\tO\nb c\tB-x\n', '\ufeffa\tO\r\nb c\tB-x\r\n\r\n', '\n \na\tO\nb c\tB-x\n\n\n'])
def test_two_columns_tabs_and_line_ends(tmp_path, text):
  found = read_conll(conll(tmp_path, text))
  assert found.words == [['a', 'b c']] and found.tags == [['O', 'B-x']]


def test_words_may_be_odd(tmp_path):
  found = read_conll(conll(tmp_path, '\u2028 O\n\u00a0  O\n'))
  assert found.words == [['\u2028', '\u00a0']]


def test_iob1_and_iob2_have_the_same_entities(tmp_path):
  for tags in itertools.product(['O', 'B-x', 'I-x', 'B-y', 'I-y'], repeat=4):
    path = conll(tmp_path, ''.join(f'w {tag}\n' for tag in tags))
    own, = read_conll(path).tags
    assert chunks(own) == chunks(tags)
    for before, tag in zip(['O', *own], own):
      assert tag[0] != 'I' or before[2:] == tag[2:]


@pytest.mark.parametrize('text, words', [
  ('a O\nb NN O\n', 'line 2: expected 2 columns as in line 1, got 3: .b NN O.'),
  ('a NN O\n\nb O\n', 'line 3: expected 3 columns as in line 1, got 2'),
  ('a\n', "line 1: expected a word, then its tag as the last column; got 'a'"),
  ('a O\nb E-PER\n', "line 2: expected a tag such as 'B-PER', 'I-PER' or 'O' .* got 'E-PER'"),
  ('a B-\n', "got 'B-'"), ('a PER\n', "got 'PER'"), ('', 'a.txt holds no sentences'),
  ('-DOCSTART- O\n\n', 'holds no sentences'),
  (b'a O\nb\xff O\n', 'is no UTF-8')])
def test_broken_files_are_named_by_line(tmp_path, text, words):
  with pytest.raises(DataError, match=words):
    read_conll(conll(tmp_path, text))


def test_tags_that_training_has_not(tmp_path):
  train = read_conll(conll(tmp_path, 'a I-x\n'))
  other = conll(tmp_path, 'a O\nb B-x\nc I-x\n', 'b.txt')
  assert read_conll(other, classes=train.classes).classes == train.classes == ('O', 'B-x', 'I-x')
  conll(tmp_path, 'a O\nb B-y\n', 'b.txt')
  with pytest.raises(DataError, match=r"b.txt, line 2: the tag 'B-y' does not occur in training"):
    read_conll(other, classes=train.classes)
  with pytest.raises(FileNotFoundError):
    read_conll(tmp_path / 'none.txt')


# --- rows -----------------------------------------------------------------------------------------


def test_tags_stand_on_the_first_piece_of_each_word(tokenizer):
  classes = ('O', 'B-x')
  words = [['cats', '\u200b', 'Paris', 'the'], [], ['cat'] * 20]
  tags = [['B-x', 'O', 'B-x', 'O'], [], ['O'] * 19 + ['B-x']]
  rows, lost = encode_tags(words, tags, classes, tokenizer, length=16)
  pieces = [len(tokenizer.encode([word])[0].tokens) for word in words[0]]
  assert pieces[0] > 1 and pieces[1] == 0
  want = np.full(16, -1)
  want[[1, 1 + pieces[0], 1 + pieces[0] + pieces[2]]] = [1, 1, 0]
  assert rows['label'][0].tolist() == want.tolist()
  assert (rows['label'][1] == -1).all()
  assert rows['label'][2].tolist() == [-1] + [0] * 14 + [-1]
  assert lost == 1 + 6 and rows['tokens'].shape == (3, 16)
  outputs = np.eye(2)[np.maximum(rows['label'], 0)]
  # The third entity and five words outside are cut off: it is missed, they are right.
  assert measure_tags(classes)(outputs, rows) == pytest.approx(dict(
    entity_f1=2 * 2 / (2 + 3), accuracy=23 / 24))
  outputs[0, 1] = [1, 0]  # one of the two others is missed
  assert measure_tags(classes)(outputs, rows)['entity_f1'] == pytest.approx(2 * 1 / (1 + 3))
  with pytest.raises(ValueError, match="sentence 0: expected one tag of O, B-x"):
    encode_tags([['a']], [['B-y']], classes, tokenizer, length=16)


def test_words_behind_the_first_stand_behind_a_space():
  """In byte-level BPE a word within a text is another token than at its beginning."""
  bpe = train(['cat cat cat'] * 9, kind='bpe', size=280)
  rows, _ = encode_tags([['cat', 'cat']], [['O', 'O']], ['O'], bpe, length=16)
  own = rows['tokens'][0][rows['segments'][0] > 0]
  assert own[1:-1].tolist() == bpe.encode(['cat cat'])[0].tokens.tolist()


def test_entities_over_all_sentences_equal_another_derivation(tokenizer):
  """Against counts of (sentence, type, first, last) that are read off the tags one by one."""
  rng = np.random.default_rng(0)
  classes = ('O', 'B-x', 'I-x', 'B-y', 'I-y')
  words = [['cat'] * int(n) for n in rng.integers(1, 9, 30)]
  tags = [list(rng.choice(classes, size=len(own))) for own in words]
  rows, lost = encode_tags(words, tags, classes, tokenizer, length=16)
  assert lost == 0
  outputs = rng.normal(size=(*rows['tokens'].shape, 5))
  predicted = [[classes[i] for i in outputs[n, 1:1 + len(own)].argmax(1)]
               for n, own in enumerate(words)]
  sides = [{(n, *entity) for n, own in enumerate(side) for entity in entities(own)}
           for side in (predicted, tags)]
  shared = len(sides[0] & sides[1])
  precision, recall = (shared / len(side) for side in sides)
  found = measure_tags(classes)(outputs, rows)
  assert shared and found['entity_f1'] == pytest.approx(
    2 * precision * recall / (precision + recall))
  same = [a == b for one, other in zip(predicted, tags) for a, b in zip(one, other)]
  assert found['accuracy'] == pytest.approx(np.mean(same))


def entities(tags):
  """An entity is where a tag of a type stands that the one before does not lead to."""
  for i, tag in enumerate(tags):
    before = tags[i - 1] if i else 'O'
    if tag != 'O' and (tag[0] == 'B' or before[1:] != tag[1:]):
      end = i + 1
      while end < len(tags) and tags[end] == f'I-{tag[2:]}':
        end += 1
      yield tag[2:], i, end
