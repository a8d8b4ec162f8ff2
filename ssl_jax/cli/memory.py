"""What to say when the memory of a device does not suffice."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

import ssl_jax
from ssl_jax import build
from ssl_jax.parallel import batch_axes, path_name
from ssl_jax.plan.arithmetic import inner_programs
from ssl_jax.plan.compiler import size_on_a_device
from ssl_jax.schema import ConfigError, find, plain, signature
from ssl_jax.train.step import Program

MB = 1e6
LARGEST = 8
PACKAGE = os.path.dirname(ssl_jax.__file__) + os.sep


class Piece(NamedTuple):
  """An array, or the part of it that one device holds: bytes, kind, and what it is."""

  size: float
  kind: str
  what: str


@contextlib.contextmanager
def explained(config, program: Program) -> Iterator[None]:
  """Turns an allocation that failed on a device into a ConfigError: what is large, what helps."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise ConfigError(shortage(config, program, str(error))) from error


def shortage(config, program: Program, words: str) -> str:
  """The report; `words` are the runtime's."""
  mesh = program.batch['id'].sharding.mesh
  shards = math.prod(mesh.shape[axis] for axis in batch_axes(mesh))
  state, batch = size_on_a_device(program.state), size_on_a_device(program.batch)
  return '\n'.join([
    f'the memory of a device does not suffice: {words.strip().splitlines()[0]}',
    f'each device holds {state / MB:,.0f} MB of parameters, optimizer and method state, and '
    f'{config.batch_size // shards} of the {config.batch_size} examples ({batch / MB:,.0f} MB)',
    'the largest arrays of the state, on a device:', *_listed(_of_state(program)),
    'the largest arrays that the step computes, on a device, before the compiler saves any:',
    *_listed(_of_step(program, config.batch_size, shards)),
    'what helps:', *(f'  {knob}' for knob in _knobs(config, mesh, shards)),
    '`python -m ssl_jax plan --config=... --topology=...` tells beforehand what fits'])


def _listed(pieces: Sequence[Piece]) -> list[str]:
  largest = sorted(dict.fromkeys(pieces), key=lambda piece: -piece.size)[:LARGEST]
  return [f'  {piece.size / MB:9,.1f} MB  {piece.kind}  {piece.what}' for piece in largest]


def _of_state(program: Program) -> list[Piece]:
  leaves = jax.tree_util.tree_leaves_with_path(program.state)
  return [Piece(size_on_a_device(x), _kind(x), path_name(path)) for path, x in leaves]


def _of_step(program: Program, rows: int, shards: int) -> list[Piece]:
  """What the traced step computes; the rows of a batch are spread, in shard_map they already are."""
  traced = program.step.trace(program.state, program.batch).jaxpr
  return [Piece(math.prod(x.shape) * x.dtype.itemsize
                / (shards if whole and x.shape and x.shape[0] % rows == 0 else 1), _kind(x), where)
          for x, where, whole in _computed(traced)]


def _computed(jaxpr: ClosedJaxpr | Jaxpr, whole: bool = True) -> Iterator[tuple[Any, str, bool]]:
  """(array, where it is computed, whether its shape is that of the global array)."""
  for equation in jaxpr.eqns:
    inner = inner_programs(equation.params)
    for one in inner:
      yield from _computed(one, whole and equation.primitive.name != 'shard_map')
    if not inner:
      where = f'{_place(equation)} {equation.primitive.name}'
      yield from ((x.aval, where, whole) for x in equation.outvars if hasattr(x.aval, 'dtype'))


def _place(equation) -> str:
  """'models/resnet.py:88': the innermost line of ours."""
  frames = getattr(equation.source_info.traceback, 'frames', ())
  ours = (f'{frame.file_name.removeprefix(PACKAGE)}:{frame.line_num}' for frame in frames
          if frame.file_name.startswith(PACKAGE))
  return next(ours, '(made by JAX)')


def _kind(x) -> str:
  return f'{x.dtype}{list(x.shape)}'


def _knobs(config, mesh, shards: int) -> list[str]:
  """Three things to change, the one that changes the result least first."""
  batch, now = config.batch_size, config.microbatch or config.batch_size
  smaller = [n for n in range(shards, now // 2 + 1, shards) if batch % n == 0]
  chunk = (f'--config.microbatch={smaller[-1]}: the encoder sees so many examples at a time, the loss '
           'still the whole batch' if smaller else 'devices with more memory: each has one example')
  known = signature(find('network', config.network.name, build.NETWORKS))
  if 'remat' in known and plain(config.network).get('remat') is None:
    second = '--config.network.remat=full: computes activations twice instead of keeping them'
  elif mesh.size == 1:
    second = 'more devices: each then holds its part of the batch'
  else:
    second = ("--config.mesh='{\"data\": -1, \"fsdp\": N}' --config.sharding='((\".*\", \"fsdp\"),)': "
              'spreads the state over N of the devices')
  half = max(shards, batch // 2 // shards * shards)
  return [chunk, second, f'--config.batch_size={half}, with the learning rate that belongs to it']
