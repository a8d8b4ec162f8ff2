"""Batch k is a function of (seed, k): for every partition, start, worker count and process."""

import json
import multiprocessing
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from ssl_jax.data.batches import batches, describe_change, example_ids, fingerprint, in_order
from ssl_jax.data.order import ORDER_VERSION, permuted
from ssl_jax.data.sources import ArraySource, DataError


class Squares:
  """A source without `take`, as one that decodes; `bad` raises, `ragged` has another shape."""

  def __init__(self, length=23, bad=None, ragged=None):
    self.length, self.bad, self.ragged = length, bad, ragged

  def __len__(self):
    return self.length

  def __getitem__(self, i):
    if i == self.bad:
      raise OSError('truncated image')
    return dict(x=np.full(3 if i == self.ragged else 2, i * i, np.float32))

  def fingerprint(self):
    return f'squares {self.length}'


class TakesOnly(Squares):
  """`take` fails though every single example can be read."""

  def take(self, indices):
    raise OSError('disk on fire')


def arrays(n=23):
  rng = np.random.default_rng(0)
  return ArraySource(dict(image=rng.integers(0, 256, (n, 3, 3, 1), np.uint8), label=np.arange(n)))


def first(count, source=None, **options):
  stream = batches(source or arrays(), **{'batch_size': 8, 'seed': 5, **options})
  try:
    return list(islice(stream, count))
  finally:
    stream.close()


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert list(a) == list(b)
    for name in a:
      assert type(a[name]) is np.ndarray and a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


# --- which examples -------------------------------------------------------------------------------


@pytest.mark.parametrize('length, batch_size', [(23, 8), (24, 8), (8, 8), (1, 1), (101, 10)])
def test_an_epoch_visits_every_example_at_most_once(length, batch_size):
  per_epoch = length // batch_size
  for epoch in range(3):
    got = [example_ids(epoch * per_epoch + i, seed=1, length=length, batch_size=batch_size)
           for i in range(per_epoch)]
    assert [e for _, e in got] == [epoch] * per_epoch
    ids = np.concatenate([ids for ids, _ in got])
    assert ids.dtype == np.int64 and len(np.unique(ids)) == per_epoch * batch_size
    assert ids.min() >= 0 and ids.max() < length
    order = permuted(np.arange(length), length=length, seed=1, epoch=epoch)
    np.testing.assert_array_equal(ids, order[:per_epoch * batch_size])


def test_the_remainder_differs_from_epoch_to_epoch():
  left_out = {frozenset(range(23)) - frozenset(np.concatenate(
    [example_ids(2 * epoch + i, seed=0, length=23, batch_size=8)[0] for i in (0, 1)]).tolist())
    for epoch in range(10)}
  assert len(left_out) == 10


def test_batches_far_into_training_cost_no_more():
  ids, epoch = example_ids(10**12, seed=0, length=1_281_167, batch_size=4096)
  assert epoch == 10**12 // (1_281_167 // 4096) and len(np.unique(ids)) == 4096


@pytest.mark.parametrize('change, message', [
  (dict(batch_size=24), 'got 24 for 23 examples'),
  (dict(batch_size=0), 'got 0 for 23'),
  (dict(seed=-1), 'seed must be an integer >= 0, got -1'),
  (dict(seed=0.5), 'seed must be'),
  (dict(start=-1), 'start must be'),
  (dict(workers=-1), 'workers must be'),
  (dict(prefetch=0), 'prefetch must be at least 1'),
  (dict(rows=[1, 0]), 'ascending positions'),
  (dict(rows=[0, 0]), 'ascending positions'),
  (dict(rows=[7, 8]), r'in \[0, 8\)'),
  (dict(rows=[-1, 0]), 'ascending'),
  (dict(rows=[]), 'ascending'),
])
def test_wrong_arguments_are_refused_at_once(change, message):
  with pytest.raises(ValueError, match=message):
    batches(arrays(), **{'batch_size': 8, 'seed': 0, **change})


# --- the stream -----------------------------------------------------------------------------------


def test_a_batch_holds_what_its_ids_say():
  source = arrays()
  for k, batch in enumerate(first(5, source)):
    ids, epoch = example_ids(k, seed=5, length=23, batch_size=8)
    assert list(batch) == ['epoch', 'id', 'image', 'label']
    assert batch['id'].dtype == batch['epoch'].dtype == np.uint32
    np.testing.assert_array_equal(batch['id'], ids)
    np.testing.assert_array_equal(batch['epoch'], np.full(8, epoch))
    np.testing.assert_array_equal(batch['label'], ids)
    np.testing.assert_array_equal(batch['image'], source.arrays['image'][ids])


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_together_feed_the_global_batch(hosts):
  whole = first(4)
  # Hosts interleave on real slices; here in an arbitrary order, of unequal sizes for good measure.
  owner = np.random.default_rng(hosts).permutation(np.arange(8) % hosts)
  if hosts > 1:
    owner[np.flatnonzero(owner == 0)[0]] = 1
  shares = [(np.flatnonzero(owner == host), first(4, rows=np.flatnonzero(owner == host)))
            for host in range(hosts)]
  for k, batch in enumerate(whole):
    for name, array in batch.items():
      union = np.zeros_like(array)
      for rows, share in shares:
        assert len(share[k][name]) == len(rows)
        union[rows] = share[k][name]
      np.testing.assert_array_equal(union, array)


@pytest.mark.parametrize('start', [1, 2, 5])
def test_start_equals_skipping(start):
  assert_same(first(4, start=start), first(start + 4)[start:])


def test_a_source_without_take_is_stacked():
  batch, = first(1, Squares())
  np.testing.assert_array_equal(batch['x'], np.repeat(batch['id'][:, None] ** 2, 2, axis=1))
  assert batch['x'].dtype == np.float32


def test_errors_name_the_example():
  with pytest.raises(DataError, match='cannot read example 11: OSError: truncated image'):
    first(4, Squares(bad=11), batch_size=23)
  with pytest.raises(DataError, match=r"example \d+ has .*\(\d,\).* but example \d+ has"):
    first(1, Squares(ragged=11), batch_size=23)
  with pytest.raises(DataError, match=r'cannot read the examples \[.*disk on fire'):
    first(1, TakesOnly())


def test_in_order_counts_every_example_once():
  source = arrays()
  got = list(in_order(source, batch_size=8))
  assert [b['image'].shape for b in got] == [(8, 3, 3, 1)] * 3
  weight = np.concatenate([b['weight'] for b in got])
  assert weight.dtype == np.float32 and weight.tolist() == [1.] * 23 + [0.]
  labels = np.concatenate([b['label'] for b in got])
  assert labels.tolist() == [*range(23), 22]
  np.testing.assert_array_equal(np.concatenate([b['id'] for b in got]), labels)
  assert np.sum(labels * weight) == np.sum(np.arange(23))
  alone, = in_order(source, batch_size=50)
  assert alone['weight'].sum() == 23 and len(alone['weight']) == 50
  with pytest.raises(ValueError, match='got 0'):
    in_order(source, batch_size=0)


# --- workers --------------------------------------------------------------------------------------


def test_two_workers_give_the_same_batches_and_leave():
  options = dict(start=1, rows=[0, 3, 4])
  stream = batches(arrays(), batch_size=8, seed=5, workers=2, **options)
  got = list(islice(stream, 5))
  assert len(multiprocessing.active_children()) == 2
  stream.close()
  assert not multiprocessing.active_children()
  assert_same(got, first(5, **options))


def test_a_worker_names_the_example_it_cannot_read():
  with pytest.raises(DataError, match='cannot read example 11: OSError: truncated image'):
    first(4, Squares(bad=11), batch_size=23, workers=1)
  assert not multiprocessing.active_children()


def test_without_workers_jax_and_grain_are_not_imported(root):
  code = ('import sys, numpy; from ssl_jax.data.batches import batches; '
          'from ssl_jax.data.sources import ArraySource; '
          'next(batches(ArraySource(dict(x=numpy.arange(4))), batch_size=2, seed=0)); '
          'print({"jax", "grain", "flax", "absl"} & set(sys.modules))')
  run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True,
                       timeout=60, check=True)
  assert run.stdout.strip() == 'set()'


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprint_names_all_that_shapes_the_stream():
  source = arrays()
  old = fingerprint(source, batch_size=8, seed=5)
  assert json.loads(json.dumps(old)) == old
  assert old == dict(source=source.fingerprint(), length=23, batch_size=8, seed=5,
                     order=ORDER_VERSION)
  assert describe_change(old, fingerprint(arrays(), batch_size=np.int64(8), seed=5)) is None
  other = ArraySource(dict(arrays().arrays, label=np.arange(23)[::-1]))
  for new, words in [
      (fingerprint(source, batch_size=16, seed=5), 'the batch size was 8, is 16'),
      (fingerprint(source, batch_size=8, seed=6), 'the data seed was 5, is 6'),
      (fingerprint(source, batch_size=8, seed=5, version=ORDER_VERSION + 1),
       f'the version of the shuffling was {ORDER_VERSION}, is {ORDER_VERSION + 1}'),
      (fingerprint(other, batch_size=8, seed=5), 'the contents of the data changed'),
      (dict(old, tokenizer='a'), 'tokenizer was None, is a')]:
    assert describe_change(old, new).startswith(words)
  both = describe_change(old, fingerprint(arrays(24), batch_size=16, seed=5))
  assert 'contents' in both and 'number of examples was 23, is 24' in both and 'batch size' in both
