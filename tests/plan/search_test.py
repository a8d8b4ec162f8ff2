"""The search for a batch, on machines whose memory is a formula."""

import math

import pytest

from ssl_jax.plan.search import COMPILATIONS, next_guess


def search(uses, room, first, tells=True):
  """(largest that fits, compilations)."""
  used = {}
  guess = first
  while guess is not None and len(used) < COMPILATIONS:
    size = uses(guess)
    used[guess] = size if size <= room or tells else math.inf
    guess = next_guess(used, room)
  return max((n for n, size in used.items() if size <= room), default=0), len(used)


@pytest.mark.parametrize('first', [1, 8, 64, 500])
def test_memory_that_grows_linearly_is_found_at_once(first):
  found, compilations = search(lambda n: 100 + 7 * n, 1000, first)
  assert 121 <= found <= 128 and compilations <= 5


@pytest.mark.parametrize('first', [2, 100])
def test_a_compiler_that_only_says_no(first):
  found, compilations = search(lambda n: 100 + 7 * n, 1000, first, tells=False)
  assert found >= 100 and compilations <= COMPILATIONS


def test_memory_that_grows_in_steps():
  found, _ = search(lambda n: 100 + 64 * math.ceil(n / 8), 1000, 4)
  assert 104 <= found <= 112


def test_nothing_fits():
  assert search(lambda n: 2000 + n, 1000, 4)[0] == 0


def test_never_the_same_twice_and_always_between():
  used = {}
  guess, room = 3, 977.0
  while guess is not None and len(used) < 20:
    assert guess not in used and guess > 0
    used[guess] = 50 + 3.3 * guess ** 1.2
    guess = next_guess(used, room)
