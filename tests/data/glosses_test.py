"""WordNet's glosses that ship: all of them, verbatim, in splits that share nothing."""

import collections
import functools
import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest

from ssl_jax.data.glosses import PARTS_OF_SPEECH, WORDNET_CLASSES, wordnet_glosses

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


# --- what ships ----------------------------------------------------------------------------------


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
  assert len(WORDNET_CLASSES) == 45
  prefix = {'noun': 'noun', 'verb': 'verb', 'adj': 'adjective', 'adv': 'adverb'}
  for _, _, label, part in documents().values():
    name = WORDNET_CLASSES[label].split('.')[0]
    assert prefix[name] == PARTS_OF_SPEECH[part]
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
  code = ('import sys; from ssl_jax.data.glosses import wordnet_glosses as w; '
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


# --- the tool that made them -----------------------------------------------------------------------


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
