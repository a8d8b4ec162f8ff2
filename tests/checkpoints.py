"""Checkpoints for tests: a small state of all kinds of leaves, and what damages its files."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.types import TrainState


def make_state(seed=0, tx=None):
  """All containers and dtypes that occur: optax states, scalars, bfloat16, integers, no rows."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'encoder': {'conv': {'kernel': normal(16, 8), 'bias': normal(8)}},
            'head': [normal(8, 4), normal(8).astype(jnp.bfloat16)]}
  state = {'queue': jnp.asarray(rng.integers(0, 2**32, 4, dtype=np.uint32)),
           'pointer': jnp.int32(seed), 'flag': jnp.array(True), 'none': None,
           'empty': jnp.zeros((0, 3)), 'nan.dot': jnp.array([np.nan, -0.0, np.inf])}
  tx = tx or optax.adamw(optax.constant_schedule(0.1))
  return TrainState(jnp.int32(7), params, state, tx.init(params))


def abstract(state, shardings=None):
  like = lambda x, s=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(like, state) if shardings is None else jax.tree.map(like, state, shardings)


def assert_equal_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory, *steps, **options) -> Checkpoints:
  """Checkpoints whose step n holds make_state(n)."""
  checkpoints = Checkpoints(directory, **options)
  for step in steps:
    checkpoints.save(step, make_state(step), {'seed': step})
  checkpoints.wait()
  return checkpoints


def data_files(step: pathlib.Path) -> list[pathlib.Path]:
  """The largest file of a step first."""
  files = [path for path in step.rglob('*') if path.is_file() and path.name != 'manifest.json']
  return sorted(files, key=lambda path: -path.stat().st_size)


def flip_bit(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[:-1])
