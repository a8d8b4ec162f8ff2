"""One config on one machine: compiled as `train` compiles it, counted, and bounded by a roofline."""

import re
import time
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.plan import compiler, counts, hlo
from ssl_jax.plan.arithmetic import traced_flops
from ssl_jax.plan.compiler import DoesNotFit, Memory
from ssl_jax.plan.counts import Counts, Work
from ssl_jax.plan.hardware import Target
from ssl_jax.plan.roofline import Roofline, roofline


class Plan(NamedTuple):
  """What a train step costs; all figures are of one device and one step unless they say otherwise.

  target, hosts, batch_size (global), steps (of the whole run).
  parameters: that a gradient trains, of the whole model.
  arguments: bytes of them, known before compiling.
  memory: None if the compiler found no room.
  shortage: its words then.
  unread: why the program could not be read, '' if it was. FLOPs then are those of the traced program,
    bytes XLA's own, and collectives are not known.
  accessed: bytes by XLA's own count, 0 where it has none; see `counts` for how it differs.
  counts, bound: None then too.
  useful: FLOPs of the step without recomputation (the config without remat and microbatch), a
    device's share of them.
  works: the operations of the program, dearest first.
  program: for looking up their sources.
  compile_seconds: on this machine.
  """

  target: Target
  hosts: int
  batch_size: int
  steps: int
  parameters: int
  useful: float
  arguments: int = 0
  memory: Memory | None = None
  shortage: str = ''
  unread: str = ''
  accessed: float = 0.0
  counts: Counts | None = None
  bound: Roofline | None = None
  works: tuple[Work, ...] = ()
  program: hlo.Program | None = None
  compile_seconds: float = 0.0

  @property
  def fits(self) -> bool:
    return self.memory is not None and self.free >= 0

  @property
  def free(self) -> float:
    """Bytes that are left; negative where they do not suffice."""
    if self.memory is not None:
      return self.target.chip.memory - self.memory.peak
    wanted = re.search(r'\(([\d.]+)([KMGT])\) exceeds', self.shortage) or re.search(
      r'Used ([\d.]+)([KMGT])', self.shortage)
    if not wanted:
      return float('-inf')
    # What the compiler names are temporaries.
    size = float(wanted[1]) * 1024 ** ('KMGT'.index(wanted[2]) + 1)
    return min(-1.0, self.target.chip.memory - self.arguments - size)

  @property
  def examples_per_second(self) -> float:
    """At most, on the whole machine."""
    return self.batch_size / self.bound.seconds

  @property
  def utilisation(self) -> float:
    """MFU at most: useful FLOPs of the bound's time over the peak."""
    return self.useful / self.bound.seconds / self.target.chip.flops

  @property
  def run_seconds(self) -> float:
    return self.steps * self.bound.seconds

  @property
  def chip_hours(self) -> float:
    return self.run_seconds * self.target.chips / 3600


def measure(config: ConfigDict, shape: build.Shape, target: Target) -> Plan:
  """Compiles the train step of `config` for `target`.

  Args:
    config: complete, as `train` takes it.
    shape: of the data, see `stand_in.shape_of_data`.
    target: the machine.

  Raises:
    ConfigError: config and machine do not go together, or the compiler is not installed.
  """
  devices = compiler.devices(target)
  experiment = build.abstract(config, shape, devices)
  program = experiment.program(config)
  traced = program.step.trace(program.state, program.batch)
  plan = Plan(target, compiler.hosts(devices), config.batch_size, experiment.steps,
              parameters=sum(x.size for x in jax.tree.leaves(program.state.params)),
              useful=_useful(config, shape, devices, traced, target) / len(devices),
              arguments=compiler.size_on_a_device((program.state, program.batch)))
  began = time.monotonic()
  try:
    executable = compiler.compiled(traced)
  except DoesNotFit as error:
    return plan._replace(shortage=str(error), compile_seconds=time.monotonic() - began)
  plan = plan._replace(compile_seconds=time.monotonic() - began,
                       memory=compiler.memory_of(executable),
                       accessed=(executable.cost_analysis() or {}).get('bytes accessed', 0.0))
  executed = _flops(traced, target) / len(devices)
  return _counted(plan, executable, executed, compiler.islands(experiment.mesh, target))


def _counted(plan: Plan, executable, executed: float, islands) -> Plan:
  """`plan` with what the program says, as far as it can be read."""
  target, chip = plan.target, plan.target.chip
  try:
    parsed = hlo.parse(compiler.text_of(executable))
  except jax.errors.JaxRuntimeError as error:  # libtpu's newest operations, of which jaxlib is unaware
    totals = Counts(executed, plan.accessed, 0.0, (), 0)
    return plan._replace(counts=totals, bound=roofline(executed, plan.accessed, (), target),
                         unread=str(error).splitlines()[0])
  totals, works = counts.count(parsed, islands)
  if not target.is_tpu:  # convolutions and products are calls of libraries, which tell nothing
    totals = totals._replace(flops=executed)
  works.sort(key=lambda w: -w.times * max(w.flops / chip.flops, w.moved / chip.hbm))
  return plan._replace(counts=totals, works=tuple(works), program=parsed,
                       bound=roofline(totals.flops, totals.moved, totals.collectives, target))


def _flops(traced, target: Target) -> float:
  return traced_flops(traced.jaxpr, platform='tpu' if target.is_tpu else 'cuda')


def _useful(config: ConfigDict, shape: build.Shape, devices, traced, target: Target) -> float:
  """FLOPs over all devices of the step in which nothing is computed twice to save memory."""
  plain = without_recomputation(config)
  if plain is not config:
    program = build.abstract(plain, shape, devices).program(plain)
    traced = program.step.trace(program.state, program.batch)
  return _flops(traced, target)


def without_recomputation(config: ConfigDict) -> ConfigDict:
  """`config` itself, or a copy that keeps every activation."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked(), changed.ignore_type():
    found = bool(changed.microbatch)
    changed.microbatch = None
    sections = [changed]
    while sections:
      section = sections.pop()
      sections += [value for value in section.values() if isinstance(value, ConfigDict)]
      if section.get('remat') is not None:
        section.remat, found = None, True
  return changed if found else config
