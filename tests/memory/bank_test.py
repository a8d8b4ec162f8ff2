"""The memory bank: products with its rows, their gradient, and writes that touch nothing else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.memory.bank import bank_lse, bank_scores, random_bank, write_bank
from ssl_jax.parallel import ROWS, make_mesh, over

N, B, K, DIM = 24, 8, 5, 3
r = np.random.default_rng(0)
unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
BANK, NEW = (unit(r.normal(size=(n, DIM))).astype(np.float32) for n in (N, B))
IDS = r.permutation(N)[:B].astype(np.uint32)
DRAWN = r.integers(0, N, (B, K)).astype(np.int32)
MESHES = [({'data': 8}, 'data'), ({'data': 2, 'fsdp': 2, 'tensor': 2}, 'fsdp')]
each_mesh = pytest.mark.parametrize('shape, axis', MESHES, ids=['data', 'fsdp of data x fsdp'])


def scores_over(shape, axis):
  """`bank_scores` with a bank that is spread over `axis` of a mesh."""
  run = lambda bank, queries, ids, axis_name: bank_scores(bank, queries, ids, bank_axis=axis)
  return over(make_mesh(shape)).manual(run, (axis, ROWS, ROWS), ROWS)


def expected_bank(ids, new, momentum):
  bank = BANK.astype(np.float64)
  for i, row in zip(ids, new):  # the last one of an id counts, from the row that was
    bank[i] = unit(momentum * BANK[i] + (1 - momentum) * row)
  return bank


def test_it_starts_as_unit_rows():
  rows = random_bank(jax.random.key(0), N, DIM)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize('momentum', [0.0, 0.5])
def test_only_the_rows_of_the_batch_are_written(momentum):
  bank = jax.jit(partial(write_bank, momentum=momentum))(BANK, IDS, NEW)
  np.testing.assert_allclose(bank, expected_bank(IDS, NEW, momentum), atol=1e-6)
  others = np.setdiff1d(np.arange(N), IDS)
  np.testing.assert_array_equal(bank[others], BANK[others])


def test_of_equal_ids_the_last_counts_and_unknown_ids_are_ignored():
  ids = np.array([3, 7, 3, N, 7, 0, 3, 2 ** 31 - 1], np.uint32)
  bank = write_bank(BANK, ids, NEW, momentum=0.5)
  known = ids < N
  np.testing.assert_allclose(bank, expected_bank(ids[known], NEW[known], 0.5), atol=1e-6)


@each_mesh
def test_a_spread_bank_is_that_of_one_device(shape, axis):
  on = over(make_mesh(shape))
  ids = np.concatenate([IDS[:6], IDS[:2]])  # twice the same, on two devices
  put = on.manual(partial(write_bank, momentum=0.5, bank_axis=axis), (axis, ROWS, ROWS), axis)
  np.testing.assert_allclose(jax.jit(put)(BANK, ids, NEW), expected_bank(ids, NEW, 0.5), atol=1e-6)

  def sums(bank, queries, drawn):
    scores = scores_over(shape, axis)
    lse = on.manual(partial(bank_lse, bank_axis=axis), (axis, ROWS), ROWS)
    return weighted(scores(bank, queries, drawn), lse(bank, queries))

  for which in (0, 1):
    value, grad = jax.jit(jax.value_and_grad(lambda q, i=which: sums(BANK, q, DRAWN)[i]))(NEW)
    want = jax.value_and_grad(lambda q, i=which: from_all_products(q)[i])(NEW)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(grad, want[1], rtol=1e-4, atol=1e-5)


def weighted(scores, lse):
  weights = jnp.arange(1., B + 1)
  return (weights[:, None] * scores ** 2).sum(), (weights * lse).sum()


def from_all_products(queries):
  logits = queries @ BANK.T
  return weighted(jnp.take_along_axis(logits, DRAWN, 1), jnp.log(jnp.exp(logits).sum(1)))


def test_scores_are_products_with_gradient_for_queries_alone():
  np.testing.assert_allclose(bank_scores(BANK, NEW, DRAWN),
                             np.einsum('bkd,bd->bk', BANK[DRAWN], NEW), atol=1e-6)
  np.testing.assert_allclose(bank_lse(BANK, NEW), np.log(np.exp(NEW @ BANK.T).sum(1)), rtol=1e-5)
  total = lambda bank, q: bank_scores(bank, q, DRAWN).sum() + bank_lse(bank, q).sum()
  of_bank, of_queries = jax.grad(total, argnums=(0, 1))(BANK, NEW)
  assert not np.any(of_bank) and np.all(np.any(of_queries, axis=1))
  assert not np.any(jax.grad(lambda new: write_bank(BANK, IDS, new, momentum=0.5).sum())(NEW))


@pytest.mark.parametrize('spread', [False, True])
def test_an_id_that_the_bank_does_not_have_is_noticed(spread):
  drawn = np.where(np.arange(B)[:, None] == 2, N, DRAWN)
  score = scores_over(None, 'data') if spread else bank_scores
  scores = jax.jit(score)(BANK, NEW, drawn)
  np.testing.assert_array_equal(np.isnan(scores).any(1), np.arange(B) == 2)


def test_memory_does_not_hold_the_rows_of_all_queries():
  many = jax.ShapeDtypeStruct((64, 512), np.int32)
  queries, bank = (jax.ShapeDtypeStruct((n, 32), np.float32) for n in (64, 2048))
  grad = jax.jit(jax.grad(lambda q, bank, ids: (bank_scores(bank, q, ids) ** 2).sum()))
  used = grad.lower(queries, bank, many).compile().memory_analysis().temp_size_in_bytes
  assert used < 64 * 512 * 32 * 4 / 4
