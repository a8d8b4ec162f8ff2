"""Factors of dropout: the same for a row of the global batch wherever it is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax.models.dropout import dropout_factors
from ssl_jax.parallel import make_mesh
from ssl_jax.types import Mode

ROWS, REST, RATE = 16, (5, 3), .3
KEY = jax.random.key(0)


def factors(rows, axis_name=None, rate=RATE):
  return dropout_factors(KEY, (rows, *REST), rate, Mode(True, axis_name))


def by_shard_map(check_vma, shape=None):
  mesh = make_mesh(shape)
  axes = tuple(shape or ('data',))
  return jax.shard_map(lambda x: x * factors(len(x), axes), mesh=mesh, in_specs=P(axes),
                       out_specs=P(axes), check_vma=check_vma)(jnp.ones((ROWS, *REST)))


@pytest.mark.parametrize('way', [
  lambda: by_shard_map(True), lambda: by_shard_map(False),
  lambda: by_shard_map(True, {'data': 4, 'fsdp': 2}),
  lambda: jax.vmap(lambda x: factors(2, 'i'), axis_name='i')(jnp.ones(8)).reshape(ROWS, *REST),
  lambda: jax.pmap(lambda x: factors(2, 'i'), 'i')(jnp.ones(8)).reshape(ROWS, *REST),
  lambda: jax.jit(lambda: factors(ROWS), out_shardings=NamedSharding(make_mesh(), P('data')))(),
], ids=['check_vma=True', 'check_vma=False', 'two axes', 'vmap', 'pmap', 'global view'])
def test_a_row_has_its_draws_on_any_number_of_devices(way):
  expected = np.asarray(factors(ROWS))
  assert len(np.unique(expected.reshape(ROWS, -1), axis=0)) == ROWS
  np.testing.assert_array_equal(way(), expected)


def test_more_rows_do_not_change_the_first():
  np.testing.assert_array_equal(factors(64)[:ROWS], factors(ROWS))


@pytest.mark.parametrize('rate', [.1, .25, .5, 1e-5, .999999])
def test_the_rate_is_exact_and_the_mean_one(rate):
  got = np.asarray(dropout_factors(KEY, (64, 8192), rate, Mode(True)), np.float64)
  cut = min(round(rate * 65536), 65535)
  scale = 65536 / (65536 - cut)
  assert set(np.unique(got)) <= {0., np.float64(np.float32(scale))}
  deviation = np.sqrt(cut / 65536 * (1 - cut / 65536) / got.size)
  assert abs((got == 0).mean() - cut / 65536) <= 4 * deviation
  assert abs(got.mean() - 1) <= 4 * deviation * scale + 1e-6


def test_dtype():
  got = dropout_factors(KEY, (4, 8), .5, Mode(True), jnp.bfloat16)
  assert got.dtype == jnp.bfloat16 and set(np.unique(np.float32(got))) == {0, 2}
