"""Reads the text of a compiled program (XLA's HLO) into instructions."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

WIDTHS = dict(pred=1, s4=0.5, u4=0.5, s8=1, u8=1, s16=2, u16=2, s32=4, u32=4, s64=8, u64=8, f16=2,
              bf16=2, f32=4, f64=8, c64=8, c128=16, f8e4m3fn=1, f8e5m2=1, token=0, opaque=0)
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?')
_ASSIGNED = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\{$')
_REFERENCE = re.compile(r'%([\w.\-]+)')


class Array(NamedTuple):
  """An array of a type: where it lies and what it takes there.

  shape: logical. size: bytes, padded as its layout says. on_chip: in VMEM, SMEM or such, not in HBM.
  """

  dtype: str
  shape: tuple[int, ...]
  size: float
  on_chip: bool


class Instruction(NamedTuple):
  """One line: `name = type opcode(operands), attributes`."""

  name: str
  type: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  literal: str = ''

  @property
  def arrays(self) -> tuple[Array, ...]:
    return arrays_of(self.type)

  def called(self, key: str) -> str | None:
    """The computation that an attribute names, such as calls= or body=."""
    found = re.search(rf'\b{key}=%?([\w.\-]+)', self.attributes)
    return found[1] if found else None

  def setting(self, key: str) -> str | None:
    """A quoted value of backend_config or metadata."""
    found = re.search(rf'"?{key}"?[=:]"?(-?[\w.\-/() \[\]:,<>]+)', self.attributes)
    return found[1] if found else None


class Computation(NamedTuple):
  name: str
  instructions: Mapping[str, Instruction]
  root: str


class Program(NamedTuple):
  """A module: its computations, the name of the entry, and where in the source frames are."""

  computations: Mapping[str, Computation]
  entry: str
  frames: Mapping[int, tuple[str, ...]]

  def source(self, instruction: Instruction, inside: str) -> str:
    """'path:line' of the innermost frame in a file whose path begins with `inside`, else of the
    innermost one; '' if there is none."""
    found = re.search(r'stack_frame_id=(\d+)', instruction.attributes)
    stack = self.frames.get(int(found[1]), ()) if found else ()
    return next((place for place in stack if place.startswith(inside)), stack[0] if stack else '')


def arrays_of(type_text: str) -> tuple[Array, ...]:
  """All arrays of a type; several for a tuple."""
  return tuple(_array(*found.groups()) for found in _ARRAY.finditer(type_text)
               if found[1] in WIDTHS)


def elements(type_text: str) -> list[str]:
  """The types in a tuple, [the type] of an array."""
  if not type_text.startswith('('):
    return [type_text]
  found, depth, begun = [], 0, 1
  for place, letter in enumerate(type_text[1:-1], 1):
    depth += (letter in '({[') - (letter in ')}]')
    if letter == ',' and depth == 0:
      found.append(type_text[begun:place])
      begun = place + 1
  return [part.strip() for part in (*found, type_text[begun:-1])]


def parse(text: str) -> Program:
  """Of `jax.stages.Compiled.as_text()`."""
  computations, entry, lines = {}, '', iter(text.splitlines())
  frames = {}
  for line in lines:
    if line in ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames'):
      frames[line] = list(iter(lambda: next(lines, ''), ''))
      continue
    opened = _COMPUTATION.match(line)
    if opened:
      computations[opened[2]] = _computation(opened[2], lines)
      entry = opened[2] if opened[1] else entry
  return Program(computations, entry, _stacks(frames))


def _computation(name: str, lines: Iterator[str]) -> Computation:
  instructions, root = {}, ''
  for line in lines:
    if line.startswith('}'):
      break
    found = _ASSIGNED.match(line)
    if not found:
      continue
    instruction = _instruction(found[2], found[3])
    instructions[instruction.name] = instruction
    root = instruction.name if found[1] else root
  return Computation(name, instructions, root)


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text, 0) + 1 if text.startswith('(') else text.index(' ')
  rest = text[end:].lstrip()
  opened = rest.index('(')
  closed = _closing(rest, opened)
  inner = rest[opened + 1:closed]
  return Instruction(name, text[:end], rest[:opened], tuple(_REFERENCE.findall(inner)),
                     rest[closed + 1:], inner)


def _closing(text: str, opened: int) -> int:
  depth = 0
  for found in re.compile(r'[()]').finditer(text, opened):
    depth += 1 if found[0] == '(' else -1
    if depth == 0:
      return found.start()
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')


def _array(dtype: str, dims: str, layout: str | None) -> Array:
  shape = tuple(int(n) for n in dims.split(',') if n)
  space = re.search(r'S\((\d+)\)', layout or '')
  on_chip = space is not None and space[1] != '0'
  return Array(dtype, shape, WIDTHS[dtype] * math.prod(_padded(shape, layout or '')), on_chip)


def _padded(shape: tuple[int, ...], layout: str) -> list[int]:
  """`shape` in memory: tiles such as T(8,128) fill the minor dimensions up."""
  found = re.match(r'\{([\d,]*):T\(([\d,]+)\)', layout)
  if not found or not shape:
    return list(shape)
  minor_to_major = [int(n) for n in found[1].split(',') if n]
  tile = [int(n) for n in found[2].split(',')]
  padded = list(shape)
  for dimension, n in zip(minor_to_major, reversed(tile)):
    padded[dimension] = -(-padded[dimension] // n) * n
  return padded


def _stacks(tables: Mapping[str, list[str]]) -> dict[int, tuple[str, ...]]:
  """Frame -> places from the innermost out."""
  if 'StackFrames' not in tables:
    return {}
  names = {int(line.split(' ', 1)[0]): line.split(' ', 1)[1].strip('"')
           for line in tables['FileNames']}
  places, frames = {}, {}
  for line in tables['FileLocations']:
    number, file, at = (int(n) for n in re.match(
      r'(\d+) \{file_name_id=(\d+).*? line=(\d+)', line).groups())
    places[number] = f'{names[file]}:{at}'
  for line in tables['StackFrames']:
    number, place = (int(n) for n in re.match(r'(\d+) \{file_location_id=(\d+)', line).groups())
    parent = re.search(r'parent_frame_id=(\d+)', line)
    # Frame numbers are printed from 1, their parents one higher: 1 is none.
    frames[number] = (places[place], int(parent[1]) - 1 if parent else 0)

  def stack(number: int) -> tuple[str, ...]:
    found = []
    while number in frames:
      place, number = frames[number]
      found.append(place)
    return tuple(found)

  return {number: stack(number) for number in frames}
