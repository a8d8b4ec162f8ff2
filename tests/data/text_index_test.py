"""Files of text with all that is wrong with such files: found, scanned, read in parts."""

import tracemalloc

import pytest

from ssl_jax.data import text_index
from ssl_jax.data.corpora import text_files
from ssl_jax.data.sources import DataError


def corpus(tmp_path, data, **options):
  file = tmp_path / 'a.txt'
  file.write_bytes(data if isinstance(data, bytes) else data.encode())
  return text_files(path=str(file), **options)


def sentences(corpus):
  return [document.sentences for document in corpus]


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
  monkeypatch.setattr(text_index, 'LARGEST', 10)
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
