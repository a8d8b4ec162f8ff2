"""Numbers as people write them, and the ticks of an axis."""

import math
from typing import NamedTuple

import numpy as np


def number(x, digits: int = 4) -> str:
  """'12,345', '0.8312', '6.0e-05': `digits` significant ones, whole numbers in full."""
  if x is None:
    return '–'
  x = float(x)
  if math.isnan(x):
    return 'nan'
  if math.isinf(x):
    return '∞' if x > 0 else '−∞'
  if x == int(x) and abs(x) < 1e15:
    text = f'{int(x):,}'
  elif abs(x) >= 10**(digits - 1):
    text = f'{x:,.0f}'
  elif abs(x) < 1e-3:
    text = f'{x:.{max(1, digits - 2)}e}'
  else:
    text = f'{x:.{digits - 1 - math.floor(math.log10(abs(x)))}f}'
  return text.replace('-', '−', 1) if x < 0 else text


def tick_text(x: float) -> str:
  """Short: '20k', '1.5M', '0.25', '1e-4'."""
  size = abs(x)
  for limit, letter in ((1e9, 'G'), (1e6, 'M'), (1e4, 'k')):
    if size >= limit:
      return f'{x / (1e3 if letter == "k" else limit):g}{letter}'.replace('-', '−')
  if size and size < 1e-3:
    mantissa, exponent = f'{x:.1e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'.replace('-', '−')
  return f'{x:.6g}'.replace('-', '−')


class Axis(NamedTuple):
  """A range of values, low < high, and where its ticks are."""

  low: float
  high: float
  ticks: tuple[float, ...]
  log: bool = False

  def texts(self) -> list[str]:
    """Of the ticks; with the same number of decimals on a linear axis."""
    if self.log or max(map(abs, self.ticks), default=0) >= 1e4:
      return [tick_text(tick) for tick in self.ticks]
    decimals = max((_decimals(tick) for tick in self.ticks), default=0)
    if decimals > 4:
      return [tick_text(tick) for tick in self.ticks]
    return [f'{tick:.{decimals}f}'.replace('-', '−') for tick in self.ticks]

  def place(self, values, start: float, end: float) -> np.ndarray:
    """Where `values` lie between the pixels `start` (low) and `end` (high)."""
    values = np.asarray(values, np.float64)
    low, high = self.low, self.high
    if self.log:
      values, low, high = np.log10(values), math.log10(low), math.log10(high)
    return start + (values - low) / (high - low) * (end - start)


def linear_axis(values, *, count: int = 5, tight: bool = False) -> Axis:
  """Ticks at 1, 2 or 5 times a power of ten, about `count` of them; nan and inf are left out.

  The range ends at the data where `tight`, else at the next tick.
  """
  low, high = _range(values)
  if high <= low:
    pad = abs(low) / 2 or 1.0
    low, high, tight = low - pad, high + pad, False
  raw = (high - low) / count
  power = 10.0**math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
  first = math.ceil(low / step - 1e-9) if tight else math.floor(low / step + 1e-9)
  last = math.floor(high / step + 1e-9) if tight else math.ceil(high / step - 1e-9)
  # Rounding takes away the noise of 3 * 0.1.
  ticks = tuple(float(f'{i * step:.12g}') for i in range(first, last + 1))
  return Axis(low, high, ticks) if tight else Axis(ticks[0], ticks[-1], ticks)


def log_axis(values) -> Axis:
  """Ticks at powers of ten, or at 1, 2 and 5 times them where there would be fewer than three.

  Values that are not positive are left out.
  """
  values = np.asarray(values, np.float64)
  low, high = _range(values[values > 0])
  if high <= low:
    low, high = low / 2, high * 2
  bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
  every = max(1, math.ceil((top - bottom) / 6))
  ticks = [10.0**e for e in range(bottom, top + 1, every) if low <= 10.0**e <= high]
  if len(ticks) < 3:
    ticks = [m * 10.0**e for e in range(bottom, top + 1) for m in (1, 2, 5)
             if low <= m * 10.0**e <= high]
  return Axis(low, high, tuple(ticks), log=True)


def _decimals(x: float) -> int:
  return len(f'{x:.12f}'.rstrip('0').partition('.')[2])


def _range(values) -> tuple[float, float]:
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def smoothed(values, width: int) -> np.ndarray:
  """Centred running mean of [N] with a Hann window over `width` points; nan and inf do not count.

  nan where no finite value is near.
  """
  values = np.asarray(values, np.float64)
  window = np.hanning(width + 2)[1:-1]
  finite = np.isfinite(values)
  total = np.convolve(np.where(finite, values, 0), window)
  weight = np.convolve(finite.astype(np.float64), window)
  start = (width - 1) // 2
  total, weight = (x[start:start + len(values)] for x in (total, weight))
  return np.where(weight > 1e-9, total / np.maximum(weight, 1e-9), np.nan)


def thinned(x, y, most: int) -> tuple[np.ndarray, np.ndarray]:
  """At most about `most` points of a curve [N], with the lowest and highest of every stretch kept.

  So that a spike, or a nan (kept where a stretch has nothing else), is not lost among many steps.
  """
  x, y = np.asarray(x), np.asarray(y, np.float64)
  if len(x) <= most:
    return x, y
  keep = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), most // 2):
    finite = part[np.isfinite(y[part])]
    keep |= {finite[y[finite].argmin()], finite[y[finite].argmax()]} if len(finite) else {part[0]}
  keep = np.array(sorted(keep))
  return x[keep], y[keep]
