"""What compiled programs move between devices."""

import re

import numpy as np
import pytest

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
