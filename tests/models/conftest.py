"""What compiled programs move between devices; weights that are the same on every machine."""

import re
import zlib

import jax
import numpy as np
import pytest

from ssl_jax.parallel import path_name

KINDS = 'all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter'


def find_collectives(text: str) -> list[tuple[str, int]]:
  """(operation, elements of the largest array in its result) of every collective in HLO text."""
  found = []
  for line in text.splitlines():
    match = re.search(rf'= (.*?) ({KINDS})(?:-start)?\(', line)
    if match:
      shapes = re.findall(r'\w+\[([\d,]*)\]', match[1])
      sizes = [int(np.prod([int(n) for n in dims.split(',') if n])) for dims in shapes]
      found.append((match[2], max(sizes)))
  return found


@pytest.fixture
def collectives():
  return find_collectives


def numbers(name, shape):
  """Numbers in [-1, 1) from integer arithmetic alone, the same on every machine."""
  steps = np.arange(np.prod(shape), dtype=np.uint64) * np.uint64(2654435761)
  return ((steps + np.uint64(zlib.crc32(name.encode()))) % 2**32 / 2**31 - 1).reshape(shape)


def weight(path, leaf):
  name = path_name(path)
  u = numbers(name, leaf.shape)
  if name.endswith('kernel'):
    return u * np.sqrt(6 / np.prod(leaf.shape[:-1]))
  scaled = {'scale': 1 + .3 * u, 'bias': .1 * u, 'mean': .1 * u, 'var': 1 + .4 * u}
  return scaled.get(name.split('/')[-1], u)


@pytest.fixture
def uniform():
  return numbers


@pytest.fixture
def numbered():
  """(net, x) -> (params, state) in float64, each number made from its name and index."""
  def make(net, x):
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return tuple(jax.tree_util.tree_map_with_path(weight, tree) for tree in shapes)

  return make
