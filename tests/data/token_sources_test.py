"""Rows: nothing lost, nothing mixed, the same for any hosts and workers; pairs as BERT's."""

import pickle
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from ssl_jax.data import packing, token_sources
from ssl_jax.data.batches import batches, in_order
from ssl_jax.data.corpora import Document
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_sources import Documents, InMemory, Packed, Pairs, Pieces, wordnet_glosses
from ssl_jax.data.tokenize import Tokenizer, load, train

PAD, UNK, CLS, SEP = range(4)


class Fake:
  """A corpus in a list."""

  def __init__(self, documents: list[list[str]], labels=None):
    self.documents, self.classes = documents, ('a', 'b') if labels else ()
    self.labels = {} if labels is None else {'label': np.array(labels)}

  def __len__(self):
    return len(self.documents)

  def __getitem__(self, i):
    return Document(tuple(self.documents[i]))

  def fingerprint(self):
    return repr((self.documents, self.labels))


@pytest.fixture(scope='module')
def tokenizer() -> Tokenizer:
  return train([' '.join(f'w{i}' for i in range(300))] * 3, size=400)


def corpus_of(count=60, seed=0, most=30) -> Fake:
  """Documents of one to four sentences; the words of each document are its own."""
  rng = np.random.default_rng(seed)
  return Fake([[' '.join([f'w{i}'] * int(rng.integers(1, most)))
                for _ in range(rng.integers(1, 5))] for i in range(count)])


@pytest.fixture(scope='module')
def store(tokenizer) -> InMemory:
  return InMemory(corpus_of(), tokenizer)


def pieces(row) -> list[np.ndarray]:
  """The tokens of each segment, special ones taken off."""
  found = []
  for number in range(1, row['segments'].max() + 1):
    tokens = row['tokens'][row['segments'] == number]
    assert tokens[0] == CLS and tokens[-1] == SEP
    found.append(tokens[1:-1])
  return found


def check(row, length):
  """What holds of every row."""
  names = ('tokens', 'segments', 'positions', 'words')
  assert all(row[name].shape == (length,) and row[name].dtype == np.int32 for name in names)
  segments = row['segments']
  filled = int((segments > 0).sum())
  assert (segments[:filled] > 0).all() and np.isin(np.diff(segments[:filled]), (0, 1)).all()
  assert (row['tokens'][filled:] == PAD).all() and (row['words'][filled:] == -1).all()
  for number in range(1, segments.max() + 1):
    inside = segments == number
    np.testing.assert_array_equal(row['positions'][inside], np.arange(inside.sum()))
  special = np.isin(row['tokens'], (PAD, CLS, SEP))
  np.testing.assert_array_equal(row['words'] == -1, special)
  numbers = row['words'][~special]
  assert np.isin(np.diff(numbers), (0, 1)).all() and numbers[0] == 0


def texts(tokens, store) -> set[int]:
  """The documents that the tokens may be of."""
  return {i for i in range(len(store)) if set(tokens.tolist()) <= set(store.read(i)[0].tolist())}


# --- packed ---------------------------------------------------------------------------------------


def test_an_example_by_hand(tokenizer):
  store = InMemory(Fake([['w1 w2'], ['w3'], ['']]), tokenizer)
  row = Packed(store, 10).draw(0, seed=0, epoch=0)
  one, two = (tokenizer.encode([text])[0].tokens.tolist() for text in ('w1 w2', 'w3'))
  a = [CLS, *one, SEP, CLS, *two, SEP]
  b = [CLS, *two, SEP, CLS, *one, SEP]
  assert len(Packed(store, 10)) == 1
  assert row['tokens'].tolist() in [x + [PAD] * (10 - len(x)) for x in (a, b)]
  assert row['segments'][:len(a)].tolist() in (
    [1] * (len(one) + 2) + [2] * (len(two) + 2), [1] * (len(two) + 2) + [2] * (len(one) + 2))
  check(row, 10)


def test_no_document_crosses_its_segment_and_none_is_cut_but_at_the_length(store):
  source, length = Packed(store, 64), 64
  whole = [store.read(i)[0].tolist() for i in range(len(store))]
  allowed = [doc[at:at + 62] for doc in whole for at in range(0, len(doc), 62)]
  seen = []
  for i in range(len(source)):
    row = source.draw(i, seed=3, epoch=1)
    check(row, length)
    for piece in pieces(row):
      assert piece.tolist() in allowed
      seen.append(tuple(piece.tolist()))
  assert len(seen) <= len(allowed) and len(set(seen)) == len({tuple(x) for x in seen})


def test_nothing_is_lost_without_packing(store):
  source = Pieces(store, 16)
  got = {i: [] for i in range(len(store))}
  for i in range(len(source)):
    row = source[i]
    check(row, 16)
    piece, = pieces(row)
    document, _ = source._piece(i)
    got[document] += piece.tolist()
  assert all(tokens == store.read(i)[0].tolist() for i, tokens in got.items())


def test_epochs_have_other_rows_but_as_many(store):
  source = Packed(store, 64)
  rows = {tuple(source.draw(0, seed=0, epoch=epoch)['tokens'].tolist()) for epoch in range(5)}
  assert len(rows) == 5 and len(source) == source._rows
  again = source.draw(0, seed=0, epoch=0)['tokens']  # a plan that is no longer kept
  assert tuple(again.tolist()) in rows and len(source._plans) <= 2


def test_words_are_those_of_the_tokenizer_and_a_cut_word_begins_anew(tokenizer):
  text = 'w1 unseen w2'
  store = InMemory(Fake([[text, text]]), tokenizer)
  encoded, = tokenizer.encode([f'{text} {text}'])
  row = Documents(store, 64)[0]
  np.testing.assert_array_equal(row['words'][1:1 + len(encoded.words)], encoded.words)
  check(Pieces(store, 4)[1], 4)


def test_batches_do_not_depend_on_workers_and_hosts(store):
  source = Packed(store, 64)
  take = lambda **more: list(islice(batches(source, batch_size=6, seed=2, **more), 9))
  whole = take()
  assert whole[0]['epoch'][0] != whole[-1]['epoch'][0]  # over the end of an epoch
  for a, b in zip(take(workers=2), whole):
    for name in b:
      np.testing.assert_array_equal(a[name], b[name])
  for rows in ([0, 4], [1, 2, 3, 5]):
    for a, b in zip(take(rows=rows), whole):
      np.testing.assert_array_equal(a['tokens'], b['tokens'][rows])
  for a, b in zip(take(start=4), whole[4:]):
    np.testing.assert_array_equal(a['tokens'], b['tokens'])


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_sees_every_document_once_in_order(tokenizer):
  store = InMemory(Fake([['w1 w2'], [''], ['w3 ' * 99]], labels=[1, 0, 1]), tokenizer)
  source = Documents(store, 12)
  assert len(source) == 3 and source.labels.tolist() == [1, 0, 1] and source.classes == ('a', 'b')
  batch, = in_order(source, batch_size=3)
  assert batch['label'].tolist() == [1, 0, 1] and batch['label'].dtype == np.int32
  assert batch['tokens'][1, :3].tolist() == [CLS, SEP, PAD]  # an empty one is kept
  assert batch['segments'][1].sum() == 2
  np.testing.assert_array_equal(batch['tokens'][2, 1:-1], store.read(2)[0][:10])
  assert 'cut off' in source.report()


def test_empty_documents_are_dropped_for_training_and_rows_of_one_have_labels(tokenizer):
  store = InMemory(Fake([['w1'], [''], ['w2']], labels=[0, 1, 1]), tokenizer)
  source = Pieces(store, 8)
  assert len(source) == 2 and [source[i]['label'] for i in range(2)] == [0, 1]
  assert source.labels is None and '1 empty' in source.report()


def test_unknown_is_kept_and_counted(tokenizer):
  store = InMemory(Fake([['☃ ☃ ☃'], ['w1']]), tokenizer)
  assert store.unknown == 3 and (Documents(store, 8)[0]['tokens'][1:4] == UNK).all()
  share = 3 / store.sizes.sentences.sum()
  assert f'{share:.2%} unknown' in Packed(store, 8).report()


def test_without_special_tokens(store, tokenizer):
  store = pickle.loads(pickle.dumps(store))
  store.vocabulary = tokenizer.vocabulary._replace(pad=None, cls=None, mask=None)
  row = Documents(store, 300)[0]
  end = len(store.read(0)[0])
  assert row['tokens'][end] == SEP and row['segments'][:end + 1].all()
  assert not row['segments'][end + 1:].any() and (row['tokens'][end + 1:] == SEP).all()
  store.vocabulary = store.vocabulary._replace(sep=None)
  assert Documents(store, 300)[0]['segments'].sum() == end
  with pytest.raises(ValueError, match=r'tokenizer with \[CLS\] and \[SEP\]'):
    Pairs(store, 64, 'nsp', True)


# --- pairs ----------------------------------------------------------------------------------------


def two_sentences(count=300) -> Fake:
  """Document i says w<i> and then w<i + 1 mod 300>, so that neighbours can be told."""
  return Fake([[f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4] for i in range(count)])


def halves(row) -> tuple[list[int], list[int]]:
  return tuple(row['tokens'][(row['types'] == kind) & (row['words'] >= 0)].tolist()
               for kind in (0, 1))


def test_next_sentences(tokenizer):
  store = InMemory(two_sentences(), tokenizer)
  source = Pairs(store, 64, 'nsp', True)
  assert len(source) == 300
  rows = [source.draw(i, seed=0, epoch=epoch) for epoch in range(5) for i in range(300)]
  labels = np.array([row['next'] for row in rows])
  # A short target may leave one sentence, which has a random B always: a little above a half.
  assert 0.47 < labels.mean() < 0.6 and labels.dtype == np.int32
  true = {}
  for i in range(300):
    sentences = tokenizer.encode([f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4])
    true[i] = tuple(one.tokens.tolist() for one in sentences)
  for row, i in zip(rows, list(range(300)) * 5):
    check(row, 64)
    a, b = halves(row)
    follows = (a, b) == true[i]
    assert follows == (row['next'] == 0)
    end = int((row['segments'] > 0).sum())
    assert row['tokens'][0] == CLS and row['tokens'][end - 1] == SEP
    assert row['types'][len(a) + 1] == 0 and row['tokens'][len(a) + 1] == SEP
    assert row['types'][len(a) + 2:end].all() and not row['types'][end:].any()


def test_a_single_sentence_has_a_random_next_one(tokenizer):
  store = InMemory(Fake([[f'w{i}'] for i in range(40)]), tokenizer)
  for kind in ('nsp', 'sop'):
    source = Pairs(store, 16, kind, True)
    rows = [source.draw(i, seed=0, epoch=0) for i in range(40)]
    assert all(row['next'] == 1 for row in rows)
    assert all(a != b for a, b in map(halves, rows))
  assert len({tuple(halves(source.draw(0, seed=0, epoch=epoch))[1]) for epoch in range(50)}) > 20


def test_sentence_order(tokenizer):
  store = InMemory(two_sentences(), tokenizer)
  source = Pairs(store, 64, 'sop', True)
  swapped = 0
  for i in range(300):
    row = source.draw(i, seed=1, epoch=0)
    a, b = halves(row)
    first, second = (one.tokens.tolist() for one in tokenizer.encode(
      [f'w{i} ' * 5, f'w{(i + 1) % 300} ' * 4]))
    if {tuple(a), tuple(b)} == {tuple(first), tuple(second)}:
      assert row['next'] == int((a, b) == (second, first))
      swapped += row['next']
  assert 100 < swapped < 190


def test_long_pairs_are_cut_at_either_end_of_the_longer(tokenizer):
  words = ' '.join(f'w{i}' for i in range(100, 130))
  store = InMemory(Fake([[words, words], ['w1 w2']]), tokenizer)
  source = Pairs(store, 24, 'sop', True)
  whole = tokenizer.encode([words])[0].tokens.tolist()
  starts = set()
  for epoch in range(60):
    row = source.draw(0, seed=0, epoch=epoch)
    a, b = halves(row)
    assert 0 < len(a) + len(b) <= 21
    if len(a) + len(b) == 21 and row['segments'].all():
      joined = ' '.join(map(str, whole))
      assert ' '.join(map(str, a)) in joined
      starts.add(joined.find(' '.join(map(str, a))))
  assert len(starts) > 3


@pytest.mark.parametrize('a, b, most', [(4, 4, 5), (3, 4, 5), (10, 3, 8), (2, 5, 5), (1, 9, 6),
                                        (7, 7, 8), (2, 2, 9)])
def test_the_closed_form_of_truncation(a, b, most):
  left, right = a, b
  while left + right > most:  # google-research/bert truncate_seq_pair
    left, right = (left - 1, right) if left > right else (left, right - 1)
  cut = token_sources._cut(np.random.default_rng(0), *(
    token_sources.Piece(np.arange(n), np.ones(n, bool)) for n in (a, b)), most)
  assert [len(piece.tokens) for piece in cut] == [left, right]


def test_chunks_fill_a_row_and_evaluation_has_one_per_document(store, tokenizer):
  training, evaluation = (Pairs(store, 24, 'nsp', flag) for flag in (True, False))
  assert len(evaluation) == len(store) < len(training)
  counted = [i for document, first, last in training._chunks.tolist() for i in range(first, last)]
  assert counted == list(range(len(store.sizes.sentences)))
  empty = InMemory(Fake([['w1', 'w2'], [''], ['w3']]), tokenizer)
  row = Pairs(empty, 16, 'nsp', False)[1]
  assert halves(row)[0] == [] and halves(row)[1] and row['next'] == 1
  assert len(Pairs(empty, 16, 'nsp', True)) == 2


def test_pairs_depend_on_seed_epoch_and_number_alone(store):
  source = Pairs(store, 32, 'nsp', True)

  def draws(seed, epoch):
    return [source.draw(i, seed=seed, epoch=epoch)['tokens'].tolist() for i in range(8)]

  assert draws(1, 2) == draws(1, 2)
  assert draws(1, 2) != draws(1, 3) != draws(3, 1)
  whole = list(islice(batches(source, batch_size=4, seed=1), 3))
  share = list(islice(batches(source, batch_size=4, seed=1, rows=[1, 3]), 3))
  for a, b in zip(share, whole):
    np.testing.assert_array_equal(a['tokens'], b['tokens'][[1, 3]])


# --- fingerprints and files -----------------------------------------------------------------------


def test_fingerprints_name_all_that_shapes_the_rows(store, tokenizer):
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


def test_sentences_are_joined_by_a_space():
  tokenizer = train(['the cat sat. The mat.'], kind='bpe', size=280)
  store = InMemory(Fake([['the cat', 'sat.']]), tokenizer)
  assert tokenizer.decode(store.read(0)[0]) == 'the cat sat.'


def test_the_glosses_waste_little_and_report_it():
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


def test_corpora_without_text(tokenizer):
  with pytest.raises(DataError, match='all documents are empty'):
    Packed(InMemory(Fake([[''], []]), tokenizer), 16)
  with pytest.raises(DataError, match='the corpus has no documents'):
    InMemory(Fake([]), tokenizer)
  with pytest.raises(DataError, match='at least two documents'):
    Pairs(InMemory(Fake([['w1', 'w2'], ['']]), tokenizer), 16, 'nsp', True)


def test_jax_is_not_imported(root):
  code = ('import sys; from ssl_jax.data import token_sources; '
          'print({"jax", "flax", "grain", "tensorflow_datasets"} & set(sys.modules))')
  run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True,
                       check=True)
  assert run.stdout.strip() == 'set()'
