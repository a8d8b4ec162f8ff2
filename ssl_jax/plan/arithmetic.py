"""FLOPs of matrix products and convolutions: of one operation, and of a traced program.

Only these two kinds count, as in every published utilisation (MFU). A multiplication and an addition
are two. Positions of a convolution that fall on padding or between dilated elements are no work, so
that a gradient's convolution costs what the forward one does.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Var


def convolution_flops(
    outer: int, contracted: int, dimensions: Sequence['Window'],
) -> float:
  """Of one convolution.

  Args:
    outer: elements of the result beside its spatial ones: batch x output features.
    contracted: input features that one output feature sees.
    dimensions: one per spatial dimension.
  """
  return 2.0 * outer * contracted * math.prod(window.products() for window in dimensions)


class Window:
  """One spatial dimension of a convolution, in XLA's terms."""

  def __init__(self, size: int, kernel: int, out: int, stride: int = 1, low: int = 0,
               dilation: int = 1, kernel_dilation: int = 1):
    self.size, self.kernel, self.out = size, kernel, out
    self.stride, self.low = stride, low
    self.dilation, self.kernel_dilation = dilation, kernel_dilation

  def products(self) -> int:
    """(output, kernel) pairs that meet an element of the input."""
    if self.kernel == 1 and self.dilation == 1 and self.low == 0:
      return min(self.out, -(-self.size // self.stride))
    place = (np.arange(self.out)[:, None] * self.stride - self.low
             + np.arange(self.kernel)[None] * self.kernel_dilation)
    last = (self.size - 1) * self.dilation
    return int(np.sum((place >= 0) & (place <= last) & (place % self.dilation == 0)))


def traced_flops(jaxpr: ClosedJaxpr | Jaxpr, wanted: Sequence[bool] | None = None, *,
                 platform: str = 'tpu') -> float:
  """Of a whole traced program, over all devices.

  Loops count as often as they run (a `while` whose count the trace does not know: once), of several
  branches the costliest, the body of a shard_map once per device. A Pallas kernel counts what it
  declares. What no result depends on is not counted: a rule of differentiation may offer more
  gradients than are asked for.

  Args:
    jaxpr: of `jax.make_jaxpr` or `jax.stages.Traced`.
    wanted: which of its results are; all by default.
    platform: whose branch counts where the program has one for each.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  needed = {out for out, used in zip(jaxpr.outvars, wanted or [True] * len(jaxpr.outvars))
            if used and isinstance(out, Var)}
  total = 0.0
  for equation in reversed(jaxpr.eqns):
    used = [out in needed for out in equation.outvars]
    if any(used) or equation.effects:
      needed |= {value for value in equation.invars if isinstance(value, Var)}
      total += _equation_flops(equation, used, platform)
  return total


def _equation_flops(equation, used: Sequence[bool], platform: str) -> float:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  if name == 'pallas_call':
    estimate = params.get('cost_estimate')
    return float(estimate.flops) if estimate else 0.0
  if name == 'cond':
    return max(traced_flops(branch, used, platform=platform)
               for branch in _branches(params, platform))
  times = 1
  if name == 'scan':
    times = params['length']
  elif name == 'shard_map':
    mesh = params['mesh']
    times = math.prod(mesh.shape[axis] for axis in params.get('manual_axes', mesh.axis_names))
  # What a turn of a loop leaves to the next is needed whoever uses the last.
  used = None if name in ('scan', 'while') else used
  return times * sum(
    traced_flops(inner, used if used and len(used) == len(_results(inner)) else None,
                 platform=platform)
    for inner in inner_programs(params))


def _branches(params: dict[str, Any], platform: str) -> Sequence[Any]:
  """Of a cond: all, or the one for the platform."""
  named = params.get('branches_platforms')
  if not named:
    return params['branches']
  mine = [i for i, names in enumerate(named) if names and platform in names]
  return [params['branches'][(mine or [named.index(None)])[0]]]


def _results(jaxpr) -> Sequence[Any]:
  return getattr(jaxpr, 'jaxpr', jaxpr).outvars


def inner_programs(params: dict[str, Any]) -> list[Any]:
  """The programs within an equation: of a call, a loop, a rule of differentiation."""
  found = []
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (ClosedJaxpr, Jaxpr)):
        found.append(item)
  return found


def _convolution(equation) -> float:
  params, (left, right) = equation.params, (x.aval.shape for x in equation.invars)
  out = equation.outvars[0].aval.shape
  numbers = params['dimension_numbers']
  windows = [
    Window(left[i], right[k], out[o], stride, low, dilation, kernel_dilation)
    for i, k, o, stride, (low, _), dilation, kernel_dilation in zip(
      numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], params['window_strides'],
      params['padding'], params['lhs_dilation'], params['rhs_dilation'])]
  batch, features = (out[i] for i in numbers.out_spec[:2])
  return convolution_flops(batch * features, right[numbers.rhs_spec[1]], windows)
