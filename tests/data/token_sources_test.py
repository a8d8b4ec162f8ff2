"""What a config may name as its text: files, fingerprints, mistakes."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.data import packing, token_sources
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_pairs import Pairs
from ssl_jax.data.token_rows import Documents, Packed, Pieces
from ssl_jax.data.token_sources import wordnet_glosses
from ssl_jax.data.token_store import InMemory
from ssl_jax.data.tokenize import load, train


def test_fingerprints_name_all_that_shapes_the_rows(store, tokenizer, corpus_of):
  other_tokenizer = train(['w1 w2 other'], size=100)
  sources = [
    Packed(store, 64), Packed(store, 32), Pieces(store, 64), Documents(store, 64),
    Pairs(store, 64, 'nsp', True), Pairs(store, 64, 'sop', True), Pairs(store, 64, 'nsp', False),
    Packed(InMemory(corpus_of(seed=1), tokenizer), 64),
    Packed(InMemory(corpus_of(), other_tokenizer), 64)]
  assert len({source.fingerprint() for source in sources}) == len(sources)
  for source in sources:
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(copy[0]['tokens'], source[0]['tokens'])


def test_the_glosses_waste_little_and_report_it(check):
  source = wordnet_glosses(split='test')
  assert source.vocabulary == load(token_sources.WORDNET_VOCABULARY).vocabulary
  plan = source._plan(0, 0)
  assert packing.waste(plan, source._lengths, 128) <= 0.03
  assert packing.left_out(plan, source._lengths) <= 0.03
  assert 'documents' in source.report() and 'padding' in source.report()
  check(source.draw(7, seed=0, epoch=3), 128)
  evaluation = wordnet_glosses(split='test', training=False)
  assert len(evaluation.classes) == 45 and len(evaluation.labels) == len(evaluation)
  assert evaluation[3]['label'] == evaluation.labels[3]


def test_files(tmp_path, tokenizer):
  tokenizer.save(tmp_path / 'tokenizer.json')
  (tmp_path / 'text.txt').write_text('w1 w2\nw3\n\nw4 w5\n')
  (tmp_path / 'text.jsonl').write_text('{"text": "w1", "y": "b"}\n{"text": "w2 w3", "y": "a"}\n')
  options = dict(tokenizer=str(tmp_path / 'tokenizer.json'), length=16)
  text = token_sources.text_files(path=str(tmp_path / 'text.txt'), documents='blank',
                                  training=False, **options)
  assert len(text) == 2 and text.labels is None and len(text.store.sizes.sentences) == 3
  lines = token_sources.jsonl(path=str(tmp_path / 'text.jsonl'), label='y', training=False,
                              **options)
  assert lines.labels.tolist() == [1, 0] and lines.classes == ('a', 'b')
  packed = token_sources.text_files(path=str(tmp_path / 'text.txt'), **options)
  assert isinstance(packed, Packed)
  pairs = token_sources.text_files(path=str(tmp_path / 'text.txt'), pairs='nsp', pack=False,
                                   **options)
  assert {'types', 'next'} <= set(pairs[0])


@pytest.mark.parametrize('options, message', [
  (dict(pairs='nsp'), 'set pack=False'),
  (dict(pairs='sop', training=False), 'set pack=False'),
  (dict(length=2), 'length must be at least 3'),
  (dict(length=4, pack=False, pairs='nsp'), 'at least 5 for a pair'),
  (dict(pack=False, pairs='next'), "must be 'nsp', 'sop' or None, got 'next'")])
def test_mistakes(options, message):
  with pytest.raises(ValueError, match=message):
    wordnet_glosses(split='test', **options)


def test_corpora_without_text(tokenizer, fake):
  with pytest.raises(DataError, match='all documents are empty'):
    Packed(InMemory(fake([[''], []]), tokenizer), 16)
  with pytest.raises(DataError, match='the corpus has no documents'):
    InMemory(fake([]), tokenizer)
  with pytest.raises(DataError, match='at least two documents'):
    Pairs(InMemory(fake([['w1', 'w2'], ['']]), tokenizer), 16, 'nsp', True)


def test_jax_is_not_imported(root):
  code = ('import sys; from ssl_jax.data import token_sources; '
          'print({"jax", "flax", "grain", "tensorflow_datasets"} & set(sys.modules))')
  run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True,
                       check=True)
  assert run.stdout.strip() == 'set()'
