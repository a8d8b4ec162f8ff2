"""The search for a batch, on machines whose memory is a formula."""

import math

import pytest

from ssl_jax.plan.search import COMPILATIONS, next_guess


def search(uses, room, first, most=10**6, told=lambda size: size):
  """(largest that fits, compilations); `told` is what the compiler says of a batch that does not."""
  used, guess = {}, first
  while guess is not None and len(used) < COMPILATIONS:
    assert guess not in used and 0 < guess <= most
    size = uses(guess)
    used[guess] = size if size <= room else max(told(size), room + 1)
    guess = next_guess(used, room, most)
  return max((n for n, size in used.items() if size <= room), default=0), len(used)


@pytest.mark.parametrize('first', [1, 8, 64, 500, 4000])
def test_memory_that_grows_linearly(first):
  found, compilations = search(lambda n: 100 + 7 * n, 1000, first)
  assert 120 <= found <= 128 and compilations < COMPILATIONS


def test_a_tiny_network_on_a_large_chip():
  """From 3 MB of 16 GB, where the first two points lie on a line that leads nowhere."""
  found, _ = search(lambda n: 3e6 + 150e3 * n + (n % 3) * 1e3, 16e9, 16)
  assert 16e9 / 150e3 * 0.93 < found


@pytest.mark.parametrize('told', [
  lambda size: math.inf, lambda size: 0.8 * size, lambda size: round(size, -2)],
  ids=['nothing', 'temporaries', 'rounded'])
@pytest.mark.parametrize('first', [2, 100, 2000])
def test_a_compiler_that_says_little(first, told):
  found, _ = search(lambda n: 100 + 7 * n, 1000, first, told=told)
  assert found >= 118


def test_memory_that_does_not_grow_at_first():
  found, _ = search(lambda n: max(500, 7 * n), 1000, 4)
  assert 134 <= found <= 142


def test_memory_that_grows_in_steps():
  found, _ = search(lambda n: 100 + 64 * math.ceil(n / 8), 1000, 4)
  assert 104 <= found <= 112


def test_not_more_than_there_are_examples():
  assert search(lambda n: n, 1e9, 8, most=100)[0] >= 95


def test_nothing_fits():
  assert search(lambda n: 2000 + n, 1000, 4)[0] == 0
