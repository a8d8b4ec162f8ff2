"""What one device does in a run of a compiled program: FLOPs, bytes of memory, collectives.

XLA's own `cost_analysis` counts the body of a loop once, has nothing of Pallas kernels, counts
operands that lie in on-chip memory, and is empty for GPUs without one. Here a body counts as often as
it runs, and an array in HBM once for each operation that reads or writes it, at its padded size.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ssl_jax.plan.arithmetic import Window, convolution_flops
from ssl_jax.plan.hlo import (
  Array,
  Computation,
  Instruction,
  Program,
  arrays_of,
  elements,
)
from ssl_jax.plan.roofline import Collective

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute',
               'ragged-all-to-all', 'collective-broadcast')
# Operations that move nothing by themselves, and calls of the compiler's own that only give names.
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
        'opt-barrier', 'optimization-barrier', 'partition-id', 'replica-id', 'domain',
        'async-update'}
FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast', 'SliceId', 'AssumeGatherIndicesInBound')
SLICES = ('dynamic-slice', 'slice', 'gather')


class Work(NamedTuple):
  """One operation of the program and what it does in a step.

  flops, moved (bytes of HBM), cycles (the compiler's estimate, 0 without one): of one run.
  times: how often it runs in a step; a loop whose length is not told counts once.
  """

  instruction: Instruction
  flops: float
  moved: float
  cycles: float
  times: float
  collectives: tuple[Collective, ...] = ()


class Counts(NamedTuple):
  """Totals of a step on one device."""

  flops: float
  moved: float
  cycles: float
  collectives: tuple[Collective, ...]
  unknown_loops: int


def count(program: Program, islands: Sequence[int] = ()) -> tuple[Counts, list[Work]]:
  """The totals, and the operations that make them up.

  Args:
    program: see `hlo.parse`.
    islands: the slice (of GPUs: the host) of each device of the mesh, in its order; () is one.
  """
  walker = _Walker(program, np.asarray(islands if len(islands) else [0]))
  works = list(walker.computation(program.computations[program.entry], 1.0))
  collectives = [c._replace(times=c.times * work.times) for work in works for c in work.collectives]
  return Counts(
    flops=sum(w.flops * w.times for w in works), moved=sum(w.moved * w.times for w in works),
    cycles=sum(w.cycles * w.times for w in works), collectives=tuple(collectives),
    unknown_loops=walker.unknown_loops), works


class _Walker:
  """Follows calls and loops from the entry."""

  def __init__(self, program: Program, islands: np.ndarray):
    self._program, self._islands, self.unknown_loops = program, islands, 0
    self._begun: dict[str, str] = {}  # part of a collective -> the operation that began it

  def computation(self, c: Computation, times: float) -> Iterator[Work]:
    for instruction in c.instructions.values():
      if instruction.opcode == 'while':
        trips = trip_count(self._program, c, instruction)
        self.unknown_loops += trips is None
        for key in ('body', 'condition'):
          inner = self._program.computations[instruction.called(key)]
          yield from self.computation(inner, times * (trips or 1))
      elif instruction.opcode == 'conditional':
        yield from self._costliest(instruction, times)
      elif inner := self._wrapped(instruction):
        yield from self.computation(self._program.computations[inner], times)
      elif not _is_free(instruction):
        yield self._work(c, instruction, times)

  def _wrapped(self, instruction: Instruction) -> str | None:
    """The computation that a call runs, now or beside other work."""
    if instruction.opcode != 'call' and not instruction.opcode.endswith('-start') or (
        _kind(instruction)):
      return None
    return instruction.called('to_apply') or instruction.called('calls')

  def _costliest(self, instruction: Instruction, times: float) -> Iterator[Work]:
    found = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
    names = re.findall(r'%?([\w.\-]+)', found[1]) if found else [
      instruction.called('true_computation'), instruction.called('false_computation')]
    branches = [list(self.computation(self._program.computations[name], times))
                for name in names]
    yield from max(branches, key=lambda works: sum(w.flops + w.moved for w in works))

  def _work(self, c: Computation, instruction: Instruction, times: float) -> Work:
    inside = self._inside(c, instruction)
    flops = sum(_flops(where, one) for where, one in inside)
    new = [one for _, one in inside if _kind(one) and not self._goes_on(one, instruction)]
    # A collective that goes on beside other work is written into each operation that it goes on in.
    under_way = {array[:2] for _, one in inside if _kind(one) and one not in new
                 for array in one.arrays}
    declared = instruction.setting('bytes_accessed') if instruction.opcode == 'custom-call' else None
    moved = float(declared) if declared else self._moved(c, instruction, under_way)
    collectives = tuple(self._collective(one) for one in new)
    cycles = float(instruction.setting('estimated_cycles') or 0)
    return Work(instruction, flops, moved, cycles, times, collectives)

  def _goes_on(self, collective: Instruction, within: Instruction) -> bool:
    """Whether another operation than the one it is in began this collective."""
    part = _channel(collective)
    return part is not None and self._begun.setdefault(part, within.name) != within.name

  def _inside(self, c: Computation, instruction: Instruction
              ) -> list[tuple[Computation, Instruction]]:
    """The instruction, or those that it fuses, each with the computation that it is in."""
    if instruction.opcode != 'fusion':
      return [(c, instruction)]
    inner = self._program.computations[instruction.called('calls')]
    return [pair for one in inner.instructions.values() for pair in self._inside(inner, one)]

  # --- bytes --------------------------------------------------------------------------------------

  def _moved(self, c: Computation, instruction: Instruction, under_way: set) -> float:
    if instruction.opcode in ('copy-start', 'slice-start'):
      return _transfer(instruction)
    fused = instruction.opcode == 'fusion'
    body = self._program.computations[instruction.called('calls')] if fused else None
    read = sum(self._read(c, instruction, index, body) for index in _distinct(instruction.operands))
    passed = _in_hbm([array for array in instruction.arrays if array[:2] in under_way])
    return max(0.0, read + self._written(c, instruction, body) - 2 * passed)

  def _read(self, c: Computation, instruction: Instruction, index: int,
            body: Computation | None) -> float:
    operand = c.instructions.get(instruction.operands[index])
    if operand is None or operand.opcode == 'constant':
      return 0.0
    whole = _in_hbm(operand.arrays)
    if not whole:
      return 0.0
    if body is None:
      if instruction.opcode in SLICES and index == 0:
        return min(whole, _all(instruction.arrays))
      return 0.0 if instruction.opcode == 'dynamic-update-slice' and index == 0 else whole
    return min(whole, _read_in_fusion(body, index, whole))

  def _written(self, c: Computation, instruction: Instruction, body: Computation | None) -> float:
    whole = _in_hbm(_results(instruction))
    if instruction.opcode == 'dynamic-update-slice':
      return min(whole, _all(c.instructions[instruction.operands[1]].arrays))
    if body is None:
      return whole
    root = body.instructions[body.root]
    parts = [body.instructions[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    saved = 0.0  # an update in place writes what is new
    for part in parts:
      part = _unwrapped(body, part)
      if part.opcode == 'dynamic-update-slice':
        saved += max(0.0, _all(part.arrays) - _all(body.instructions[part.operands[1]].arrays))
    return max(0.0, whole - saved)

  # --- collectives --------------------------------------------------------------------------------

  def _collective(self, instruction: Instruction) -> Collective:
    kind = _kind(instruction)
    if instruction.opcode == 'send':
      slices = len(set(self._islands.tolist()))
      return Collective(kind, instruction.arrays[0].size, slices, slices)
    if kind == 'collective-permute':
      pairs = np.array(re.findall(r'\{(\d+),(\d+)\}', instruction.attributes), int).reshape(-1, 2)
      groups = pairs if len(pairs) else np.zeros((1, 1), int)
    else:
      groups = replica_groups(instruction.attributes, len(self._islands))
    spanned = max(len(set(self._island(group))) for group in groups)
    size, group = _all(_results(instruction)), len(groups[0])
    return Collective(kind, size * (group if kind == 'reduce-scatter' else 1), group, spanned)

  def _island(self, group: Sequence[int]) -> list[int]:
    return [int(self._islands[i]) if i < len(self._islands) else 0 for i in group]


def trip_count(program: Program, c: Computation, loop: Instruction) -> int | None:
  """How often a while loop runs, where the program tells."""
  told = re.search(r'known_trip_count.{0,8}?n\D+(\d+)', loop.attributes)
  if told:
    return int(told[1])
  condition = program.computations[loop.called('condition')]
  test = condition.instructions[condition.root]
  if test.opcode != 'compare' or 'direction=LT' not in test.attributes:
    return None
  counter, limit = (condition.instructions[name] for name in test.operands)
  index = re.search(r'index=(\d+)', counter.attributes)
  if not index or not re.fullmatch(r'-?\d+', limit.literal) or limit.opcode != 'constant':
    return None
  first = _initial(c, loop, int(index[1]))
  step = _step(program.computations[loop.called('body')], int(index[1]))
  if first is None or not step:
    return None
  return max(0, -(-(int(limit.literal) - first) // step))


def _step(body: Computation, index: int) -> int | None:
  """What a turn adds to element `index` of a loop's state."""
  root = body.instructions[body.root]
  if root.opcode != 'tuple':
    return None
  counter = _source(body, body.instructions[root.operands[index]])
  if counter.opcode not in ('add', 'fusion') or not counter.operands:
    return None
  if counter.opcode == 'fusion':  # of a counter and the constant 1, most likely among others
    return 1
  constants = [body.instructions[name].literal for name in counter.operands
               if body.instructions[name].opcode == 'constant']
  return int(constants[0]) if constants and re.fullmatch(r'\d+', constants[0]) else None


def _source(c: Computation, value: Instruction) -> Instruction:
  """Where a value comes from, before copies."""
  while value.opcode in ('copy', 'bitcast', 'copy-done', 'copy-start') and value.operands:
    value = c.instructions[value.operands[0]]
  return value


def _initial(c: Computation, loop: Instruction, index: int) -> int | None:
  """The constant that element `index` of a loop's state starts from."""
  start = c.instructions.get(loop.operands[0])
  if start is None or start.opcode != 'tuple':
    return None
  value = _source(c, c.instructions[start.operands[index]])
  is_number = value.opcode == 'constant' and re.fullmatch(r'-?\d+', value.literal)
  return int(value.literal) if is_number else None


def replica_groups(attributes: str, devices: int) -> np.ndarray:
  """Groups [n, size] of positions in the mesh, from any of the three ways to write them."""
  listed = re.search(r'replica_groups=\{(\{[\d,{}]*\})\}', attributes)
  if listed:
    return np.array([[int(n) for n in group.split(',')]
                     for group in re.findall(r'\{([\d,]+)\}', listed[1])])
  iota = re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes)
  if iota:
    shape, dims, order = ([int(n) for n in (text or '').split(',') if n] for text in iota.groups())
    return np.arange(math.prod(dims)).reshape(dims).transpose(order or None).reshape(shape)
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes)
  if mesh:
    sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    along = re.findall(r"'([^']+)'", mesh[2])
    names = list(sizes)
    order = [names.index(name) for name in names if name not in along]
    order += [names.index(name) for name in along]
    grid = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    return grid.transpose(order).reshape(-1, math.prod(sizes[name] for name in along))
  return np.arange(devices)[None]


# --- pieces ---------------------------------------------------------------------------------------


def _kind(instruction: Instruction) -> str | None:
  """Of collective, if it is one; between TPU slices the runtime does them, and gets them sent."""
  if instruction.opcode == 'send':
    between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    return between[1].lower().replace('_', '-') if between else None
  name = instruction.opcode.removesuffix('-start')
  return name if name in COLLECTIVES else None


def _is_free(instruction: Instruction) -> bool:
  if instruction.opcode == 'custom-call':
    return any(f'custom_call_target="{name}"' in instruction.attributes for name in FREE_CALLS)
  return instruction.opcode in FREE or instruction.opcode.endswith('-done')


def _results(instruction: Instruction) -> tuple[Array, ...]:
  """What it makes; the type of an asynchronous start names its operands first."""
  opcode = instruction.opcode
  if opcode == 'send':
    return ()
  parts = elements(instruction.type)
  if opcode == 'recv':
    return arrays_of(parts[0])
  if opcode.endswith('-start') and opcode != 'all-reduce-start' and len(parts) > 1:
    return arrays_of(parts[1])
  return instruction.arrays


def _channel(instruction: Instruction) -> str | None:
  """The same for all parts of a collective that libtpu does beside other work; None for a whole one."""
  found = re.search(r'channel_id=(\d+)', instruction.attributes)
  if not found or 'async_collective_fusion_config' not in instruction.attributes:
    return None
  return f'{found[1]} {[array[:2] for array in instruction.arrays]}'


def _in_hbm(arrays: Sequence[Array]) -> float:
  return sum(array.size for array in arrays if not array.on_chip)


def _all(arrays: Sequence[Array]) -> float:
  return sum(array.size for array in arrays)


def _distinct(operands: Sequence[str]) -> list[int]:
  return [i for i, name in enumerate(operands) if name not in operands[:i]]


def _transfer(instruction: Instruction) -> float:
  """An asynchronous copy or slice: ((source), destination, ...); the destination's size both ways."""
  source, destination = instruction.arrays[0], instruction.arrays[1]
  if instruction.opcode == 'copy-start':
    source, destination = destination, source  # (destination, source, context)
  ways = (not source.on_chip) + (not destination.on_chip)
  return ways * min(source.size, destination.size)


def _unwrapped(body: Computation, instruction: Instruction) -> Instruction:
  while instruction.opcode in ('bitcast', 'copy', 'convert') and instruction.operands:
    instruction = body.instructions[instruction.operands[0]]
  return instruction


def _read_in_fusion(body: Computation, index: int, whole: float) -> float:
  """What a fusion reads of its argument: all, or the slices that it takes."""
  parameter = next((i for i in body.instructions.values()
                    if i.opcode == 'parameter' and i.literal == str(index)), None)
  if parameter is None:
    return whole
  read, aliases = 0.0, [parameter.name]
  while aliases:
    name = aliases.pop()
    for user in body.instructions.values():
      if name not in user.operands:
        continue
      if user.opcode == 'bitcast':
        aliases.append(user.name)
      elif user.opcode in SLICES and user.operands[0] == name:
        read += _all(user.arrays)
      elif user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        continue
      else:
        return whole
  return read


def _flops(where: Computation, instruction: Instruction) -> float:
  """Of one matrix product, convolution, or kernel that declares them."""
  if instruction.opcode == 'custom-call':
    declared = re.search(r'"?flops"?:"?(\d+)', instruction.attributes)
    return float(declared[1]) if declared else 0.0
  if instruction.opcode not in ('dot', 'convolution'):
    return 0.0
  left, right = (where.instructions[name].arrays[0].shape for name in instruction.operands[:2])
  out = instruction.arrays[0].shape
  if instruction.opcode == 'dot':
    found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    contracted = math.prod(left[int(i)] for i in found[1].split(',') if i)
    return 2.0 * math.prod(out) * contracted
  return _convolution(instruction, left, right, out)


def _convolution(instruction: Instruction, left, right, out) -> float:
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  inputs, kernel, outputs = labels.groups()
  window = re.search(r'window=\{([^}]*)\}', instruction.attributes)
  settings = dict(part.split('=') for part in window[1].split()) if window else {}
  rank = len(inputs) - 2

  def values(key: str, default: str) -> list[str]:
    return settings[key].split('x') if key in settings else [default] * rank

  windows = [
    Window(left[inputs.index(str(i))], right[kernel.index(str(i))], out[outputs.index(str(i))],
           stride=int(values('stride', '1')[i]), low=int(values('pad', '0_0')[i].split('_')[0]),
           dilation=int(values('lhs_dilate', '1')[i]),
           kernel_dilation=int(values('rhs_dilate', '1')[i]))
    for i in range(rank)]
  outer = out[outputs.index('b')] * out[outputs.index('f')]
  return convolution_flops(outer, right[kernel.index('i')], windows)
