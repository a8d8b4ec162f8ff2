"""Rows of one text: nothing lost, nothing mixed, the same for any hosts and workers."""

from itertools import islice

import numpy as np

from ssl_jax.data.batches import batches, in_order
from ssl_jax.data.token_rows import Documents, Packed, Pieces
from ssl_jax.data.token_store import InMemory

PAD, CLS, SEP = 0, 2, 3


def pieces(row) -> list[np.ndarray]:
  """The tokens of each segment, special ones taken off."""
  found = []
  for number in range(1, row['segments'].max() + 1):
    tokens = row['tokens'][row['segments'] == number]
    assert tokens[0] == CLS and tokens[-1] == SEP
    found.append(tokens[1:-1])
  return found


# --- training -------------------------------------------------------------------------------------


def test_an_example_by_hand(tokenizer, fake, check):
  store = InMemory(fake([['w1 w2'], ['w3'], ['']]), tokenizer)
  row = Packed(store, 10).draw(0, seed=0, epoch=0)
  one, two = (tokenizer.encode([text])[0].tokens.tolist() for text in ('w1 w2', 'w3'))
  a = [CLS, *one, SEP, CLS, *two, SEP]
  b = [CLS, *two, SEP, CLS, *one, SEP]
  assert len(Packed(store, 10)) == 1
  assert row['tokens'].tolist() in [x + [PAD] * (10 - len(x)) for x in (a, b)]
  assert row['segments'][:len(a)].tolist() in (
    [1] * (len(one) + 2) + [2] * (len(two) + 2), [1] * (len(two) + 2) + [2] * (len(one) + 2))
  check(row, 10)


def test_no_document_crosses_its_segment_and_none_is_cut_but_at_the_length(store, check):
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


def test_nothing_is_lost_without_packing(store, check):
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


def test_evaluation_sees_every_document_once_in_order(tokenizer, fake):
  store = InMemory(fake([['w1 w2'], [''], ['w3 ' * 99]], labels=[1, 0, 1]), tokenizer)
  source = Documents(store, 12)
  assert len(source) == 3 and source.labels.tolist() == [1, 0, 1] and source.classes == ('a', 'b')
  batch, = in_order(source, batch_size=3)
  assert batch['label'].tolist() == [1, 0, 1] and batch['label'].dtype == np.int32
  assert batch['tokens'][1, :3].tolist() == [CLS, SEP, PAD]  # an empty one is kept
  assert batch['segments'][1].sum() == 2
  np.testing.assert_array_equal(batch['tokens'][2, 1:-1], store.read(2)[0][:10])
  assert 'cut off' in source.report()


def test_empty_documents_are_dropped_for_training_and_rows_of_one_have_labels(tokenizer, fake):
  store = InMemory(fake([['w1'], [''], ['w2']], labels=[0, 1, 1]), tokenizer)
  source = Pieces(store, 8)
  assert len(source) == 2 and [source[i]['label'] for i in range(2)] == [0, 1]
  assert source.labels is None and '1 empty' in source.report()
