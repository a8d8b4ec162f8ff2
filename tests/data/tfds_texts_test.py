"""Text of TFDS: a builder made here, prepared as ArrayRecord, read by name without TensorFlow."""

import pickle
import sys

import numpy as np
import pytest

from ssl_jax.data.sources import DataError
from ssl_jax.data.tfds_texts import tfds_text


def sentences(corpus):
  return [document.sentences for document in corpus]


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


def test_glue_of_tfds_is_found_by_name(tmp_path):
  """TFDS registers it only with packages that it never reaches where there is no TensorFlow."""
  pytest.importorskip('tensorflow_datasets')
  with pytest.raises(DataError, match=(
      '(?s)glue/cola is not in .*as tfds, tensorflow_datasets.text.glue; .*download_and_prepare')):
    tfds_text(dataset='glue/cola', field='sentence', data_dir=str(tmp_path))
  assert 'tensorflow' not in sys.modules
