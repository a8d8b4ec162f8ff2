"""Corpora in files: plain text of two kinds, and JSON Lines."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.data.corpora import jsonl, text_files
from ssl_jax.data.sources import DataError

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


def test_nul_is_a_space(tmp_path):
  assert sentences(corpus(tmp_path, b'\0a\0b\0\n\0\0\nc')) == [('a b',), ('c',)]


def test_a_document_ends_with_its_file(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.txt').write_text(f'{name}1\n{name}2')
  found = text_files(path=f'{tmp_path}/*.txt', documents='blank')
  assert sentences(found) == [('a1', 'a2'), ('b1', 'b2')]


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
