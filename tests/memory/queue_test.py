"""The queue: the last keys in order, the same on any devices and however it is spread."""

from functools import partial

import jax
import numpy as np
import pytest

from ssl_jax.memory.queue import Queue, advanced, enqueue, random_queue
from ssl_jax.parallel import ROWS, make_mesh, over

SIZE, BATCH, DIM = 32, 8, 3
KEYS = np.random.default_rng(0).normal(size=(6, BATCH, DIM)).astype(np.float32)
MESHES = [({'data': 8}, 'data'), ({'data': 2, 'fsdp': 2, 'tensor': 2}, 'data'),
          ({'data': 2, 'fsdp': 2, 'tensor': 2}, 'tensor')]


def test_it_starts_as_unit_rows():
  queue = random_queue(jax.random.key(0), SIZE, DIM)
  np.testing.assert_allclose(np.linalg.norm(queue.rows, axis=1), 1, rtol=1e-6)
  assert queue.pointer == 0 and queue.pointer.dtype == np.int32
  assert len(np.unique(np.asarray(queue.rows), axis=0)) == SIZE


def filled(put, queue):
  """Queues after each of KEYS."""
  states = []
  for keys in KEYS:
    queue = Queue(put(queue.rows, keys, queue.pointer), advanced(queue.pointer, BATCH, SIZE))
    states.append(queue)
  return states


def test_it_holds_the_last_rows_in_order_and_the_pointer_wraps():
  states = filled(jax.jit(enqueue), random_queue(jax.random.key(0), SIZE, DIM))
  assert [int(state.pointer) for state in states] == [8, 16, 24, 0, 8, 16]
  rows, pointer = states[-1]
  oldest_first = np.roll(rows, -int(pointer), axis=0)
  np.testing.assert_array_equal(oldest_first, KEYS[2:].reshape(-1, DIM))


@pytest.mark.parametrize('shape, axis', MESHES, ids=['all data', 'part of the batch', 'tensor'])
def test_spread_rows_are_the_rows_of_one_device(shape, axis):
  queue = random_queue(jax.random.key(0), SIZE, DIM)
  put = over(make_mesh(shape)).manual(partial(enqueue, queue_axis=axis), (axis, ROWS, None), axis)
  for got, expected in zip(filled(jax.jit(put), queue), filled(enqueue, queue)):
    np.testing.assert_array_equal(got.rows, expected.rows)


def test_inside_an_axis_every_device_gets_the_rows_of_all():
  queue = random_queue(jax.random.key(0), SIZE, DIM)
  new = jax.vmap(partial(enqueue, axis_name='i'), in_axes=(None, 0, None), axis_name='i')(
    queue.rows, KEYS[0].reshape(4, 2, DIM), 24)
  expected = enqueue(queue.rows, KEYS[0], 24)
  np.testing.assert_array_equal(new, np.broadcast_to(expected, new.shape))


def test_new_rows_get_no_gradient():
  rows = random_queue(jax.random.key(0), SIZE, DIM).rows
  assert not np.any(jax.grad(lambda new: enqueue(rows, new, 0).sum())(KEYS[0]))


@pytest.mark.parametrize('size, message', [(12, 'use 8 or 16'), (4, 'use 8 or 16')])
def test_a_queue_that_does_not_take_whole_batches_is_refused(size, message):
  with pytest.raises(ValueError, match=message):
    enqueue(np.zeros((size, DIM), np.float32), KEYS[0], 0)
