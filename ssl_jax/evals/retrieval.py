"""Images and texts that find each other: recall in both directions, and classes by captions.

  recall@k = share of queries with one of their right items among the k most similar (cosine)

An image may have several right texts and a text several right images. Similarities are computed for
some queries at a time: memory grows with the number of items, never with queries x items.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KS = (1, 5, 10)
SCORES = 2**24  # similarities in memory at a time


class Recall(NamedTuple):
  """Of one direction.

  recall: {k: share of queries}.
  chance: {k: what a random order of the items would give}.
  queries, items: how many there are; queries without a right item do not count.
  """

  recall: Mapping[int, float]
  chance: Mapping[int, float]
  queries: int
  items: int


def retrieval(images: np.ndarray, texts: np.ndarray, pairs: np.ndarray,
              ks: Sequence[int] = KS) -> dict[str, Recall]:
  """Both directions: {'image to text': ..., 'text to image': ...}.

  Args:
    images: [N, D], distinct ones. texts: [M, D], distinct ones: nothing can tell equal texts apart.
    pairs: integers [P, 2], (image, text) that belong together.
    ks: how many of the most similar items are looked at.

  Raises:
    ValueError: shapes that do not fit together, no pairs, or one beyond the rows.
  """
  pairs = np.asarray(pairs)
  return {'image to text': recall(images, texts, pairs, ks),
          'text to image': recall(texts, images, pairs[:, ::-1], ks)}


def recall(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray, ks: Sequence[int] = KS, *,
           scores: int = SCORES) -> Recall:
  """One direction; arguments as `retrieval`, `pairs` are (query, right item).

  A wrong item as similar as the best right one counts as more similar, so that an encoder to which
  all things are alike finds nothing.
  """
  queries, items, pairs = _checked(queries, items, pairs)
  ranks, right = (np.concatenate(part) for part in zip(*_ranks(queries, items, pairs, scores)))
  n = len(items)
  return Recall({k: float(np.mean(ranks < k)) for k in ks},
                {k: float(np.mean(_by_chance(right, n, k))) for k in ks}, len(ranks), n)


def classify(images: np.ndarray, prompts: np.ndarray) -> np.ndarray:
  """The class whose captions an image is most similar to, int64 [N].

  Args:
    images: [N, D].
    prompts: [T, C, D], T captions of each of C classes. The mean of their directions stands for a
      class, as in CLIP (arXiv:2103.00020, section 3.1.4).
  """
  classes = unit(unit(prompts).mean(axis=0))
  return np.argmax(unit(images) @ classes.T, axis=1)


def unit(x: np.ndarray) -> np.ndarray:
  """Rows [..., D] divided by their norms, float32."""
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def format_retrieval(found: Mapping[str, Recall]) -> str:
  """A Markdown table of both directions, each above what chance gives."""
  ks = list(next(iter(found.values())).recall)
  table = [['retrieval', *(f'recall@{k}' for k in ks), 'queries', 'among']]
  for name, one in found.items():
    table += [[name, *(f'{one.recall[k]:.4f}' for k in ks), f'{one.queries:,}', f'{one.items:,}'],
              ['  by chance', *(f'{one.chance[k]:.4f}' for k in ks), '', '']]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = ['| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)) + ' |'
           for line in table]
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])


# --- pieces ---------------------------------------------------------------------------------------


def _checked(queries, items, pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Unit rows, and the pairs in the order of the queries, each once."""
  queries, items, pairs = unit(queries), unit(items), np.asarray(pairs)
  if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
    raise ValueError(f'expected rows of one width, got {queries.shape} and {items.shape}')
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in 'iu':
    raise ValueError(f'pairs must be integers [P, 2], got {pairs.dtype}{list(pairs.shape)}')
  pairs = np.unique(pairs, axis=0)
  if pairs.min() < 0 or (pairs.max(axis=0) >= (len(queries), len(items))).any():
    raise ValueError(f'pairs go from {pairs.min(axis=0)} to {pairs.max(axis=0)}, but there are '
                     f'{len(queries)} queries and {len(items)} items')
  return queries, items, pairs


def _ranks(queries: np.ndarray, items: np.ndarray, pairs: np.ndarray,
           scores: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(how many wrong items come before the best right one, how many are right) of some queries each."""
  asked, right = np.unique(pairs[:, 0], return_counts=True)
  starts = np.concatenate([[0], np.cumsum(right)])
  rows = max(1, scores // len(items))
  for first in range(0, len(asked), rows):
    some = asked[first:first + rows]
    similarity = queries[some] @ items.T
    mine = pairs[starts[first]:starts[first + len(some)]]
    is_right = np.zeros(similarity.shape, bool)
    is_right[np.searchsorted(some, mine[:, 0]), mine[:, 1]] = True
    best = np.max(np.where(is_right, similarity, -np.inf), axis=1, keepdims=True)
    yield np.sum((similarity >= best) & ~is_right, axis=1), right[first:first + len(some)]


def _by_chance(right: np.ndarray, items: int, k: int) -> np.ndarray:
  """1 - C(items - right, k) / C(items, k): at least one right item among k that are drawn."""
  draws = np.arange(min(k, items))
  wrong = np.maximum(items - right[:, None] - draws, 0) / (items - draws)
  return 1 - np.prod(wrong, axis=1)
