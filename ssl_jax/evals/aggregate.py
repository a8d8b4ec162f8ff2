"""Several runs of one setting as one number: mean, spread, and what a difference is worth.

  mean ± std with n - 1 in the denominator; interval mean ± t(n - 1) std / sqrt(n)   (Student 1908)
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
ENOUGH = 3  # runs from which on an interval is shown: t is 12.7 for two of them, 4.3 for three


class Summary(NamedTuple):
  """Some numbers as one.

  Attributes:
    n: how many there are.
    mean: of them.
    std: sample standard deviation (n - 1), None for a single value.
    low, high: the confidence interval of the true mean, if values are about normal; None for a
      single value.
  """

  n: int
  mean: float
  std: float | None
  low: float | None
  high: float | None


def summarise(values: Iterable[float], *, confidence: float = CONFIDENCE) -> Summary:
  """The summary of finite numbers, such as one accuracy of several seeds.

  Raises:
    ValueError: no values, a value that is not finite, or a confidence outside (0, 1).
  """
  x = np.asarray(list(values), np.float64)
  if x.ndim != 1 or not len(x):
    raise ValueError(f'a summary needs at least one number, got shape {x.shape}')
  if not np.isfinite(x).all():
    raise ValueError(f'a summary needs finite numbers, got {x.tolist()}; leave failed runs out')
  if not 0 < confidence < 1:
    raise ValueError(f'confidence must be between 0 and 1, got {confidence}')
  n, mean = len(x), float(x.mean())
  if n == 1:
    return Summary(1, mean, None, None, None)
  std = float(x.std(ddof=1))
  half = float(stdtrit(n - 1, (1 + confidence) / 2)) * std / math.sqrt(n)
  return Summary(n, mean, std, mean - half, mean + half)


def group(items: Iterable[Any], key: Callable[[Any], Hashable]) -> dict[Hashable, list]:
  """`items` by `key(item)`; groups and members in the order in which they come."""
  groups: dict[Hashable, list] = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return groups


def paired_difference(first: Mapping[Hashable, float], second: Mapping[Hashable, float],
                      ) -> Summary | None:
  """The summary of `second[k] - first[k]` over the keys (seeds) that both have; None without any.

  What a seed does to both cancels, so the interval is as a rule narrower than that of either mean.
  """
  shared = [key for key in first if key in second]
  return summarise(second[key] - first[key] for key in shared) if shared else None


def separated(difference: Summary) -> bool:
  """Whether a difference of at least `ENOUGH` pairs has an interval that leaves zero out."""
  return difference.n >= ENOUGH and (difference.low > 0 or difference.high < 0)


def spelled(summary: Summary, digits: int = 3, *, sign: bool = False) -> str:
  """'0.811 ± 0.003 [0.804, 0.818]'; no spread for one value, the interval from three values on."""
  form = f'{"+" if sign else ""}.{digits}f'
  text = f'{summary.mean:{form}}'
  if summary.std is not None:
    text += f' ± {summary.std:.{digits}f}'
  if summary.n >= ENOUGH:
    text += f' [{summary.low:{form}}, {summary.high:{form}}]'
  return text


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A Markdown table, aligned so that it also reads well as plain text; a pipe is escaped."""
  table = [[str(text).replace('|', '\\|') for text in line] for line in (header, *rows)]
  widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
  lines = ['| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths)) + ' |'
           for line in table]
  rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
  return '\n'.join([lines[0], rule, *lines[1:]])
