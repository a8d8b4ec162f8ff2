"""Corpora: the glosses that ship, and files of text with all that is wrong with such files."""

import collections
import functools
import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest

from ssl_jax.data import corpora
from ssl_jax.data.corpora import jsonl, text_files, tfds_text, wordnet_glosses
from ssl_jax.data.sources import DataError

FOLDER = 'ssl_jax/data/embedded/wordnet_glosses'
SPLITS = ('train', 'validation', 'test')
glosses = functools.cache(lambda split: wordnet_glosses(split=split))

# Lines of /usr/share/wordnet/data.*, shortened to what is read: their glosses verbatim, and ours.
KNOWN = {
  # 02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 023 @ 02083346 n 0000 ...
  'n02084071': ('noun.animal', (
    'a member of the genus Canis (probably descended from the common wolf) that has been '
    'domesticated by man since prehistoric times; occurs in many breeds',
    'the dog barked all night')),
  # 00002684 03 n 02 object 0 physical_object 0 039 @ 00001930 n 0000 ...
  'n00002684': ('noun.Tops', (
    'a tangible and visible entity; an entity that can cast a shadow',
    'it was full of rackets, balls and other objects')),
  # 03155194 44 a 01 saponified 0 ... | converted into soap; "saponified oils"
  'a03155194': ('adj.ppl', ('converted into soap', 'saponified oils')),
}


@functools.cache
def documents():
  """{id: (split, document, label, part of speech)} of all glosses."""
  return {corpus.name(i): (split, corpus[i], int(corpus.labels['label'][i]),
                           int(corpus.labels['part_of_speech'][i]))
          for split in SPLITS for corpus in [glosses(split)] for i in range(len(corpus))}


# --- the glosses that ship ------------------------------------------------------------------------


def test_wordnet_has_every_synset_once():
  assert [len(glosses(split)) for split in SPLITS] == [105_000, 6_399, 6_260]
  assert len(documents()) == 117_659
  parts = collections.Counter(part for _, _, _, part in documents().values())
  assert [parts[i] for i in range(4)] == [82_115, 13_767, 18_156, 3_621]  # wnstats(7WN)
  assert sum(len(document.sentences) for _, document, _, _ in documents().values()) == 166_005


def test_wordnet_glosses_are_verbatim():
  for name, (label, sentences) in KNOWN.items():
    _, document, number, _ = documents()[name]
    assert document.sentences == sentences and glosses('train').classes[number] == label


def test_wordnet_sentences_are_clean():
  for _, document, _, _ in documents().values():
    assert document.sentences
    for sentence in document.sentences:
      assert sentence and sentence == sentence.strip() and sentence.isascii()
      assert '\n' not in sentence and sentence[-1] != ';'


def test_wordnet_labels_are_those_of_the_part_of_speech():
  assert len(corpora.WORDNET_CLASSES) == 45
  prefix = {'noun': 'noun', 'verb': 'verb', 'adj': 'adjective', 'adv': 'adverb'}
  for _, _, label, part in documents().values():
    name = corpora.WORDNET_CLASSES[label].split('.')[0]
    assert prefix[name] == corpora.PARTS_OF_SPEECH[part]
  assert glosses('test').labels['label'].dtype == np.int32
  assert glosses('test').labels['part_of_speech'].dtype == np.int32


def test_wordnet_splits_hold_five_percent_of_every_class():
  counts = np.array([np.bincount(glosses(split).labels['label'], minlength=45) for split in SPLITS])
  assert counts.min() == 3
  share = counts / counts.sum(0)
  large = counts.sum(0) > 200
  assert (np.abs(share[1:, large] - 0.05) < 0.026).all()
  assert (share[0] > 0.85).all()


def test_wordnet_splits_share_no_sentence():
  found = [{sentence.casefold() for document in glosses(split) for sentence in document.sentences}
           for split in SPLITS]
  assert not found[0] & found[1] and not found[0] & found[2] and not found[1] & found[2]


@pytest.mark.parametrize('names', [
  ('n02084071', 'n02114100', 'n02118333'),  # dog, wolf, fox: each @ 02083346 n, canine
  ('n02121620', 'n02127808'),  # cat, big cat: each @ 02120997 n, feline
  ('v01882188', 'v01885863', 'v01927002'),  # walk, crawl, run: each @ 01835514 v, travel
  ('a00217728', 'a00218440', 'r00242006'),  # beautiful, & bonny, and \ beautifully
])
def test_wordnet_relatives_are_in_one_split(names):
  assert len({documents()[name][0] for name in names}) == 1


def test_wordnet_refuses_other_splits():
  with pytest.raises(ValueError, match="'train', 'validation', 'test', not 'dev'"):
    wordnet_glosses(split='dev')
  for i in (-1, 6_260):
    with pytest.raises(IndexError, match='of 6260'):
      glosses('test')[i]


def test_wordnet_travels_and_has_a_fingerprint_equal_across_processes(root):
  copy = pickle.dumps(glosses('test'))
  assert len(copy) < 200 and pickle.loads(copy)[7] == glosses('test')[7]
  code = ('import sys; from ssl_jax.data.corpora import wordnet_glosses as w; '
          'print(w(split="test").fingerprint(), "jax" in sys.modules, "tensorflow" in sys.modules)')
  run = subprocess.run([sys.executable, '-c', code], cwd=root, text=True, capture_output=True,
                       env=dict(os.environ, PYTHONHASHSEED='7'), timeout=60, check=True)
  assert run.stdout.split() == [glosses('test').fingerprint(), 'False', 'False']
  assert len({glosses(split).fingerprint() for split in SPLITS}) == 3


def test_wordnet_is_small_and_documented(root):
  data = (root / FOLDER / 'wordnet_glosses.npz').read_bytes()
  assert len(data) < 5e6
  assert hashlib.sha256(data).hexdigest() in (root / FOLDER / 'README.md').read_text()
  licence = (root / FOLDER / 'LICENSE').read_text()
  assert 'WordNet 3.0 Copyright 2006 by Princeton University' in licence


@pytest.fixture(scope='module')
def tool():
  path = os.path.join(os.path.dirname(__file__), '..', '..', 'tools', 'make_wordnet_glosses.py')
  spec = importlib.util.spec_from_file_location('make_wordnet_glosses', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('gloss, want', [
  ('a thing', ['a thing']),
  ('one; two; "three; four"; "five";', ['one; two', 'three; four', 'five']),
  # Authors are left out, quotes within are not.
  ('a; "b c" - Shakespeare; "d"--Romans 12:19', ['a', 'b c', 'd']),
  ('a; "b" (British usage); "c" H.L.Mencken', ['a', 'b', 'c']),
  ('a; "`pis aller\' is French"', ['a', "`pis aller' is French"]),
  ('go on; "I know," he said, "but no"', ['go on', '"I know," he said, "but no"']),
  # A phrase in the definition is no example.
  ('progress (in the phrase "make strides"); "they made strides"',
   ['progress (in the phrase "make strides")', 'they made strides']),
  ('a report (e.g., "I am")', ['a report (e.g., "I am")']),
  ('not wearing a jacket; "shirtsleeves" means this; "in your shirtsleeves"',
   ['not wearing a jacket', '"shirtsleeves" means this', 'in your shirtsleeves']),
  # Other separators, or none.
  ('a: "b", "c" "d" or "e"', ['a', 'b', 'c', 'd', 'e']),
  ('a;"b";"c"', ['a', 'b', 'c']),
  ('tense; "muscles tensed;" "ropes strained"', ['tense', 'muscles tensed', 'ropes strained']),
  # A quote is missing.
  ('a; "b"; drop names"', ['a', 'b', 'drop names']),
  ('a; "b c', ['a', 'b c']),
  ('a; "long-toed; "five-toed"', ['a', 'long-toed', 'five-toed']),
  ('in a simple way; "easy"; (`soft\' is rare)', ['in a simple way', 'easy', "(`soft' is rare)"]),
])
def test_glosses_are_cut_into_sentences(tool, gloss, want):
  assert [gloss[start:end] for start, end in tool.sentences(gloss)] == want


def test_the_tool_reproduces_the_file_and_keeps_groups_whole(tool, tmp_path, root):
  if not tool.FOLDER.exists():
    pytest.skip('needs the Debian package wordnet-base')
  readme = (root / FOLDER / 'README.md').read_text()
  assert all(f'{digest}  {name}' in readme for name, digest in tool.INPUTS.items())
  synsets = tool.read(tool.FOLDER)
  arrays = tool.arrays_of(synsets)
  tool.write_npz(tmp_path / 'again.npz', arrays)
  shipped = root / FOLDER / 'wordnet_glosses.npz'
  with np.load(tmp_path / 'again.npz') as again, np.load(shipped) as ours:
    assert again.files == ours.files
    for name in ours.files:
      np.testing.assert_array_equal(again[name], ours[name])
  if 'ng' not in zlib.ZLIB_RUNTIME_VERSION:
    assert (tmp_path / 'again.npz').read_bytes() == shipped.read_bytes()
  # Not by the tool's groups: every pointer to a hypernym or head, one by one.
  under = collections.defaultdict(set)
  for synset, split in zip(synsets, arrays['split']):
    for symbol, target in synset.pointers:
      if symbol in ('@', '@i'):
        under[target].add(split)
      if symbol == '&':
        assert documents()[target][0] == SPLITS[split]
  assert all(len(splits) == 1 for splits in under.values())
  for synset in synsets:
    assert all(part in synset.gloss for part in documents()[synset.id][1].sentences)


def test_the_tool_refuses_another_version(tool, tmp_path):
  (tmp_path / 'data.noun').write_text('other')
  with pytest.raises(ValueError, match='another version of the package'):
    tool.read(tmp_path)


# --- text files -----------------------------------------------------------------------------------


def corpus(tmp_path, data, **options):
  file = tmp_path / 'a.txt'
  file.write_bytes(data if isinstance(data, bytes) else data.encode())
  return text_files(path=str(file), **options)


def sentences(corpus):
  return [document.sentences for document in corpus]


def test_a_document_per_line(tmp_path):
  found = corpus(tmp_path, 'one\n  two words \n\n \t \nthree')
  assert sentences(found) == [('one',), ('two words',), ('three',)]
  assert len(found) == 3 and found.labels == {} and found.classes == ()
  for i in (-1, 3):
    with pytest.raises(IndexError):
      found[i]


def test_documents_between_blank_lines(tmp_path):
  found = corpus(tmp_path, '\n\n a b\nc\n\n\n \t\nd\n\ne\nf', documents='blank')
  assert sentences(found) == [('a b', 'c'), ('d',), ('e', 'f')]


@pytest.mark.parametrize('documents, want', [
  ('line', [('a',), ('b',), ('c',)]), ('blank', [('a', 'b'), ('c',)])])
def test_line_ends_marks_and_the_last_line(tmp_path, documents, want):
  plain = 'a\nb\n\nc\n'
  for data in (plain, plain[:-1], plain.replace('\n', '\r\n'), '\ufeff' + plain,
               '\ufeff\n' + plain, plain + '\n\n', plain.replace('\n\n', '\n\0 \0\n'),
               plain.replace('\n\n', '\n\u3000\n')):
    assert sentences(corpus(tmp_path, data, documents=documents)) == want


def test_bytes_that_are_no_utf8_are_replaced_and_counted(tmp_path, capfd):
  found = corpus(tmp_path, 'gr\u00fcn\n'.encode() + b'gr\xfcn\nx\xff\xfey\n\xe2\x82\nok\n')
  assert sentences(found) == [
    ('gr\u00fcn',), ('gr\ufffdn',), ('x\ufffd\ufffdy',), ('\ufffd',), ('ok',)]
  assert found.invalid == 3
  assert '3 lines hold bytes that are no UTF-8' in capfd.readouterr().err
  assert corpus(tmp_path, 'fine\n').invalid == 0 and not capfd.readouterr().err


def test_nul_is_a_space(tmp_path):
  assert sentences(corpus(tmp_path, b'\0a\0b\0\n\0\0\nc')) == [('a b',), ('c',)]


def test_long_lines_work_and_only_the_line_is_held(tmp_path):
  size = 10_000_000
  found = corpus(tmp_path, b'a\n' + b'\n'.join([b'x' * size] * 8) + b'\nb\n')
  assert [len(document.sentences[0]) for document in found] == [1, *[size] * 8, 1]
  tracemalloc.start()
  again = text_files(path=str(tmp_path / 'a.txt'))
  again[2]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 4.5 * size  # of 8: bytes, text, and the same of the line before


@pytest.mark.parametrize('documents', ['line', 'blank'])
def test_what_is_too_long_for_a_document_is_refused(tmp_path, monkeypatch, documents):
  monkeypatch.setattr(corpora, 'LARGEST', 10)
  ends = {'line': '1234567890\n', 'blank': '12345\n6789\n123\n'}
  with pytest.raises(DataError, match=r'line [34]: a document of more than 10 bytes; are there'):
    corpus(tmp_path, 'ok\n\n' + ends[documents], documents=documents)


def test_files_are_read_by_pattern_and_split(tmp_path):
  for name, text in {'b/2.txt': 'c\nd', 'b/1.txt': 'b', 'a.txt': 'a\n', '.hidden.txt': 'no',
                     'b/3.md': 'no', 'train.txt': 'x', 'test.txt': 'y'}.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)

  def read(path, **options):
    found = text_files(path=f'{tmp_path}/{path}', **options)
    return [sentence for sentence, in sentences(found)]

  assert read('b/*.txt') == ['b', 'c', 'd']
  assert read('**/*.txt') == ['a', 'b', 'c', 'd', 'y', 'x']
  assert read('b/[1]*') == ['b'] and read('*/2.txt') == ['c', 'd']
  assert read('{split}.txt') == ['x'] and read('{split}.txt', split='test') == ['y']
  assert read('{split}.*', split='test') == ['y']
  (tmp_path / 'odd[1].txt').write_text('odd')
  assert read('odd[1].txt') == ['odd']  # a name, where there is such a file


def test_a_document_ends_with_its_file(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.txt').write_text(f'{name}1\n{name}2')
  found = text_files(path=f'{tmp_path}/*.txt', documents='blank')
  assert sentences(found) == [('a1', 'a2'), ('b1', 'b2')]


def test_mistakes_are_answered(tmp_path):
  def refused(name, error, words, **options):
    with pytest.raises(error, match=words) as caught:
      text_files(path=str(tmp_path / name), **options)
    assert str(tmp_path) in str(caught.value)

  refused('none.txt', FileNotFoundError, 'no such file of text')
  refused('*.txt', FileNotFoundError, 'no file of text matches')
  refused('none/*.txt', FileNotFoundError, 'no file of text matches')
  refused('', ValueError, r"is a folder; name the files in it, as in '.*/\*.txt'")
  (tmp_path / 'a.txt').write_text('a')
  refused('a.txt', ValueError, "'train' split; .* write '{split}'", split='test')
  for name, data in {
      'empty.txt': b'', 'mark.txt': b'\xef\xbb\xbf', 'blank.txt': b'\n \r\n\0\n'}.items():
    (tmp_path / name).write_bytes(data)
    refused(name, DataError, f'{name} holds no documents')
    refused(name, DataError, f'{name} holds no documents', documents='blank')
  refused('*.txt', DataError, 'blank.txt holds no documents')
  (tmp_path / 'a16').write_bytes('a\n'.encode('utf-16'))
  refused('a16', DataError, 'is UTF-16, expected plain text in UTF-8')
  (tmp_path / 'a.gz').write_bytes(b'\x1f\x8b\x08')
  refused('a.gz', DataError, 'is gzip, expected plain text')
  with pytest.raises(ValueError, match="'line' .* 'blank' .*, not 'page'"):
    text_files(path='a', documents='page')


def test_a_file_that_changes_is_noticed(tmp_path):
  found = corpus(tmp_path, 'a\nb\n')
  (tmp_path / 'a.txt').write_text('longer\nthan before\n')
  with pytest.raises(DataError, match='a.txt has changed since it was scanned: it was 4 bytes'):
    found[0]


def test_files_travel_to_workers(tmp_path):
  found = corpus(tmp_path, 'a\nb c\n\nd\n', documents='blank')
  copy = pickle.loads(pickle.dumps(found))
  assert sentences(copy) == sentences(found) and copy.fingerprint() == found.fingerprint()
  many = corpus(tmp_path, 'some words\n' * 10_000)
  assert len(pickle.dumps(many)) < 17 * 10_000


def test_fingerprint_sees_content_and_kind_and_not_the_folder(tmp_path, root):
  def write(folder, **files):
    (tmp_path / folder).mkdir()
    for name, text in files.items():
      (tmp_path / folder / name).write_text(text)
    return f'{tmp_path}/{folder}/*'

  base = write('base', a='x\n', b='y\n')
  prints = [text_files(path=path, documents=documents).fingerprint() for path, documents in (
    (base, 'line'), (base, 'blank'), (write('moved', a='x\ny\n'), 'line'),
    (write('other', a='x\n', b='z\n'), 'line'), (write('order', a='y\n', b='x\n'), 'line'))]
  assert len(set(prints)) == len(prints)
  assert text_files(path=write('copy', c='x\n', d='y\n')).fingerprint() == prints[0]
  code = ('import sys; from ssl_jax.data.corpora import text_files as t; '
          'print(t(path=sys.argv[1]).fingerprint())')
  run = subprocess.run([sys.executable, '-c', code, base], cwd=root, text=True, capture_output=True,
                       env=dict(os.environ, PYTHONHASHSEED='7'), timeout=60, check=True)
  assert run.stdout.strip() == prints[0]


# --- JSON Lines -----------------------------------------------------------------------------------


def lines(tmp_path, *items, **options):
  """A corpus of objects, or of strings and bytes as they are."""
  rows = [item if isinstance(item, bytes) else
          (item if isinstance(item, str) else json.dumps(item)).encode() for item in items]
  (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(rows))
  return jsonl(path=str(tmp_path / 'a.jsonl'), **options)


def test_jsonl_text_and_sentences(tmp_path):
  found = lines(tmp_path, {'text': 'one\u00e9 '}, '', {'text': ''},
                {'text': ['a b', '', 'c'], 'x': 1}, {'text': []}, {'text': 'two\0lines\nkept'})
  assert sentences(found) == [('one\u00e9',), ('a b', 'c'), ('two lines\nkept',)]
  assert found.labels == {} and found.classes == ()
  assert sentences(lines(tmp_path, {'body': 'x', 'text': 'y'}, field='body')) == [('x',)]


def test_jsonl_in_windows_style_and_with_invalid_text(tmp_path):
  found = lines(tmp_path, b'\xef\xbb\xbf{"text": "a"}\r', b'{"text": "\xff"}',
                '{"text": "\\ud800 b"}')
  assert sentences(found) == [('a',), ('\ufffd',), ('\ufffd b',)] and found.invalid == 1


def test_jsonl_labels(tmp_path):
  names = lines(tmp_path, *({'text': 't', 'y': y} for y in ('pos', 'neg', 'pos')),
                {'text': '', 'y': 'odd'}, label='y')
  assert names.classes == ('neg', 'pos') and names.labels['label'].tolist() == [1, 0, 1]
  copy = pickle.loads(pickle.dumps(names))
  assert copy.classes == names.classes and copy[1] == names[1]
  numbers = lines(tmp_path, *({'text': 't', 'y': y} for y in (7, -1, 7)), label='y')
  assert numbers.classes == () and numbers.labels['label'].tolist() == [7, -1, 7]
  assert names.labels['label'].dtype == numbers.labels['label'].dtype == np.int32
  assert copy.fingerprint() == names.fingerprint() != numbers.fingerprint()


@pytest.mark.parametrize('line, words', [
  ('{"text": "cut', r'a.jsonl, line 3: expected a JSON object, but it is damaged: Unterminated'),
  ('[' * 100_000, r'a.jsonl, line 3: expected a JSON object, but it is damaged'),
  ('"text"', r'a.jsonl, line 3: expected a JSON object, got str'),
  ('{"body": 1, "y": 1}', r"a.jsonl, line 3: there is no field 'text', but body, y"),
  ('{"text": null}', r"a.jsonl, line 3: 'text' must be text, or a list of texts; got NoneType"),
  ('{"text": ["a", 1]}', r"a.jsonl, line 3: 'text' must be text, or a list of texts; got list"),
  ('{"text": "a"}', r"a.jsonl, line 3: there is no field 'y', but text"),
  ('{"text": "a", "y": "b"}', r"a.jsonl, line 3: labels must be all integers .* got 'b'"),
  ('{"text": "a", "y": 1.5}', 'got 1.5'),
  ('{"text": "a", "y": true}', 'got True'),
  ('{"text": "a", "y": 3000000000}', 'of 32 bits'),
])
def test_jsonl_damage_is_named_by_file_and_line(tmp_path, line, words):
  with pytest.raises(DataError, match=words):
    lines(tmp_path, {'text': 'fine', 'y': 0}, '', line, label='y')


def test_jsonl_without_documents_or_files(tmp_path):
  with pytest.raises(DataError, match='a.jsonl holds no documents'):
    lines(tmp_path, {'text': ' '})
  with pytest.raises(FileNotFoundError, match='no such file'):
    jsonl(path=str(tmp_path / 'none.jsonl'))
  with pytest.raises(FileNotFoundError, match='no file of text matches'):
    jsonl(path=str(tmp_path / 'n*.jsonl'))


# --- TFDS -----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Six training documents 'text 0' to 'text 5', labels i % 2; prepared by TFDS itself."""
  package = pytest.importorskip('tensorflow_datasets')

  class Notes(package.core.GeneratorBasedBuilder):
    VERSION = package.core.Version('1.0.0')

    def _info(self):
      texts = package.features.Text()
      return package.core.DatasetInfo(builder=self, features=package.features.FeaturesDict({
        'text': texts, 'parts': package.features.Sequence(texts),
        'kind': package.features.ClassLabel(names=['even', 'odd']), 'both': {'a': texts}}))

    def _split_generators(self, download_manager):
      return {'train': self._generate_examples(6)}

    def _generate_examples(self, count):
      for i in range(count):
        text = b'bad \xff\0' if i == 4 else '' if i == 5 else f'text {i}'
        yield i, {'text': text, 'parts': [f'{i}.', ' ', 'end'], 'kind': i % 2, 'both': {'a': 'x'}}

  path = tmp_path_factory.mktemp('tfds')
  Notes(data_dir=path, file_format='array_record').download_and_prepare()
  return str(path)


def notes(folder, **options):
  return tfds_text(**{'dataset': 'notes', 'data_dir': folder, **options})


def test_tfds_text_is_read_without_tensorflow(folder):
  found = notes(folder, label='kind')
  assert len(found) == 6 and found.classes == ('even', 'odd')
  assert sorted(sentences(found)) == [
    (), ('bad \ufffd',), ('text 0',), ('text 1',), ('text 2',), ('text 3',)]
  labels = found.labels['label']
  assert labels.dtype == np.int32
  assert all(labels[i] == int(s[0][-1]) % 2 for i, s in enumerate(sentences(found))
             if s and s[0].startswith('text'))
  assert 'tensorflow' not in sys.modules
  with pytest.raises(IndexError):
    found[6]


def test_tfds_sequences_are_sentences(folder):
  found = notes(folder, field='parts')
  assert ('3.', 'end') in sentences(found) and found.labels == {} and found.classes == ()


def test_tfds_text_travels_to_workers(folder):
  found = notes(folder, label='kind')
  copy = pickle.loads(pickle.dumps(found))
  assert sentences(copy) == sentences(found)
  assert copy.fingerprint() == found.fingerprint() != notes(folder).fingerprint()
  assert notes(folder, split='train[:50%]').fingerprint() != notes(folder).fingerprint()


@pytest.mark.parametrize('change, error, words', [
  (dict(dataset='imdb_review'), ValueError, "no dataset 'imdb_review'; did .* 'imdb_reviews'"),
  (dict(dataset='ag_news_subset'), DataError, '(?s)not in .*download_and_prepare'),
  (dict(split='dev'), ValueError, "notes: Unknown split 'dev'"),
  (dict(field='body'), ValueError, "no feature 'body' to be the field, but both, kind, parts"),
  (dict(label='body'), ValueError, "no feature 'body' to be the label"),
  (dict(field='kind'), ValueError, "'kind' of notes is no text"),
  (dict(field='both'), ValueError, "'both' of notes is no text"),
  (dict(label='text'), ValueError, "'text' of notes is no integer"),
])
def test_tfds_mistakes_are_answered(folder, change, error, words):
  with pytest.raises(error, match=words):
    notes(folder, **change)
