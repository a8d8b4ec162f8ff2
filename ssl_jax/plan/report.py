"""A plan in words, and as JSON."""

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ssl_jax
from ssl_jax.plan.counts import Work
from ssl_jax.plan.measure import Plan
from ssl_jax.plan.roofline import ASSUMPTIONS, moved_bytes

GIB = 1 << 30
# Whose lines are shown, of the many on the way to an operation.
PACKAGE = os.path.dirname(ssl_jax.__file__) + os.sep


def text(plan: Plan, config_name: str, data: str) -> str:
  """All that is known of a plan, for a terminal."""
  target = plan.target
  lines = [f'{config_name} on {target.name} ({target.note})',
           f'  data: {data}',
           f'  batch {plan.batch_size:,}, {plan.batch_size / target.devices:,.4g} per device; '
           f'{plan.steps:,} steps; {plan.parameters / 1e6:.2f} M parameters; compiled in '
           f'{plan.compile_seconds:.0f} s', '']
  lines += _memory(plan)
  if plan.counts is not None:
    lines += ['', *_work(plan), '', *_roofline(plan)]
    lines += ['', 'this is a bound, not a prediction; it assumes', *(f'  - {a}' for a in ASSUMPTIONS)]
  return '\n'.join(lines)


def _memory(plan: Plan) -> list[str]:
  room = plan.target.chip.memory
  if plan.memory is None:
    wanted = '' if math.isinf(plan.free) else (
      f': it takes {(room - plan.free) / GIB:.2f} GiB, {-plan.free / GIB:.2f} GiB too much')
    return [f'memory per device, of {room / GIB:.2f} GiB: does NOT fit{wanted}',
            '  use more devices, a smaller batch, --config.microbatch, --config.network.remat, or '
            'let --fit search']
  m = plan.memory
  verdict = (f'fits, {plan.free / GIB:.2f} GiB left' if plan.fits else
             f'does NOT fit, {-plan.free / GIB:.2f} GiB too much')
  return [f'memory per device, of {room / GIB:.2f} GiB: {verdict}',
          f'  arguments   {m.arguments / GIB:8.3f} GiB (parameters, optimizer and method state, batch)',
          f'  outputs     {m.outputs / GIB:8.3f} GiB, of which {m.donated / GIB:.3f} take the place of '
          f'arguments',
          f'  temporaries {m.temporaries / GIB:8.3f} GiB',
          f'  peak        {m.peak / GIB:8.3f} GiB',
          *([] if plan.target.is_tpu else [
            '  (JAX takes 75 % of a GPU unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise)'])]


def _work(plan: Plan) -> list[str]:
  c = plan.counts
  again = ('' if plan.useful > 0.995 * c.flops else
           f' ({plan.useful / c.flops:.1%}; the rest is computed again to save memory)')
  lines = ['work of a step per device',
           f'  arithmetic: {_amount(c.flops, "FLOP")} executed, {_amount(plan.useful, "FLOP")} useful'
           f'{again}',
           f'  HBM: {_amount(c.moved, "B")} read and written'
           + (f' (XLA, which counts on-chip memory and each loop once: {_amount(plan.accessed, "B")})'
              if plan.accessed else '')]
  if plan.unread:
    return [*lines, f'  this jaxlib cannot read the program of this libtpu ({plan.unread}): FLOPs are '
            'those of the traced program, bytes are those of XLA, collectives are missing']
  found = collectives(plan)
  for kind, (runs, moved) in found.items():
    lines.append(f'  {kind}: {runs:,.0f} runs, {_amount(moved, "B")} arrive')
  if not found:
    lines.append('  no collectives')
  if c.unknown_loops:
    lines.append(f'  {c.unknown_loops} loops whose length the program does not tell count once')
  return lines


def _roofline(plan: Plan) -> list[str]:
  b, target = plan.bound, plan.target
  rows = [('arithmetic', b.arithmetic), ('HBM', b.memory), ('links', b.links)]
  if b.network:
    rows.append(('network', b.network))
  lines = [f'roofline: at least {_duration(b.seconds)} a step, bound by {b.bound}',
           '  ' + ', '.join(f'{name} {seconds * 1e3:.2f} ms' for name, seconds in rows)]
  if plan.counts.cycles:
    lines.append(f'  the compiler expects {plan.counts.cycles / 1e6:.1f} M cycles on a core')
  rate = plan.examples_per_second
  lines += [
    f'  at most {rate:,.0f} examples/s, {rate / target.chips:,.0f} per chip, to be fed by '
    f'{plan.hosts:,} host{"s" * (plan.hosts > 1)} with {rate / plan.hosts:,.0f} each',
    f'  MFU at most {plan.utilisation:.1%}',
    f'  the whole run: at least {_duration(plan.run_seconds)}, {plan.chip_hours:,.1f} chip-hours']
  return lines


def collectives(plan: Plan) -> dict[str, tuple[float, float]]:
  """{kind: (runs of a step, bytes that arrive at a device)}."""
  found = defaultdict(lambda: (0.0, 0.0))
  for c in plan.counts.collectives:
    kind = f'{c.kind} between slices or hosts' if c.islands > 1 else c.kind
    runs, moved = found[kind]
    found[kind] = (runs + c.times, moved + c.times * moved_bytes(c))
  return dict(sorted(found.items()))


def explain(plan: Plan, count: int = 10) -> str:
  """The largest arrays and the dearest operations, with the lines that they come from."""
  chip = plan.target.chip
  lines = [f'the {count} largest arrays that the program writes to HBM (not all live at once)']
  seen = set()
  for work in sorted(plan.works, key=lambda w: -_largest(w)):
    size = _largest(work)
    where = _where(plan, work)
    kind = work.instruction.type[:72]
    if (size, where) in seen:
      continue
    seen.add((size, where))
    lines.append(f'  {size / 1e6:10.1f} MB  {where}  {kind}')
    if len(seen) == count:
      break
  lines += ['', f'the {count} operations with the highest bound']
  for work in plan.works[:count]:
    arithmetic, memory = work.flops / chip.flops, work.moved / chip.hbm
    lines.append(f'  {work.times * max(arithmetic, memory) * 1e3:8.3f} ms in {work.times:.0f} runs, by '
                 f'{"arithmetic" if arithmetic > memory else "HBM":<10} {_where(plan, work)}')
  lines += ['', 'by part: time at the peaks, one operation after the other; share of the HBM bytes']
  lines += [f'  {name:<28} {seconds * 1e3:9.3f} ms  {share:6.1%}'
            for name, (seconds, share) in parts(plan).items()]
  return '\n'.join(lines)


def parts(plan: Plan) -> dict[str, tuple[float, float]]:
  """{'models': (seconds, share of all HBM bytes), ...}, dearest first.

  Seconds are the sum over operations of the larger of arithmetic and HBM at their peaks. What the
  compiler made itself, mostly copies between HBM and the chip, has no source.
  """
  chip, found = plan.target.chip, defaultdict(lambda: [0.0, 0.0])
  for work in plan.works:
    source = plan.program.source(work.instruction, PACKAGE)
    file = source.removeprefix(PACKAGE).split(':')[0] if source.startswith(PACKAGE) else ''
    part = found[(file.rpartition('/')[0] or file) or 'made by the compiler']
    part[0] += work.times * max(work.flops / chip.flops, work.moved / chip.hbm)
    part[1] += work.times * work.moved / max(plan.counts.moved, 1)
  return {name: (seconds, share)
          for name, (seconds, share) in sorted(found.items(), key=lambda item: -item[1][0])}


def _largest(work: Work) -> float:
  arrays = work.instruction.arrays
  if work.instruction.opcode in ('copy-start', 'slice-start'):
    arrays = ()  # a copy of what is listed already
  return max((array.size for array in arrays if not array.on_chip), default=0.0)


def _where(plan: Plan, work: Work) -> str:
  source = plan.program.source(work.instruction, PACKAGE)
  place = source.removeprefix(PACKAGE) if source.startswith(PACKAGE) else source.rsplit('/', 1)[-1]
  name = work.instruction.setting('op_name') or work.instruction.name
  return f'{place or "(made by the compiler)"} {"/".join(name.split("/")[-3:])}'


def as_json(plan: Plan, config_name: str, data: str) -> dict[str, Any]:
  """The same as plain numbers: bytes, FLOPs, seconds."""
  out = dict(
    config=config_name, topology=plan.target.name, note=plan.target.note, data=data,
    chips=plan.target.chips, devices=plan.target.devices, batch_size=plan.batch_size,
    steps=plan.steps, parameters=plan.parameters, fits=plan.fits,
    memory_of_device=plan.target.chip.memory, compile_seconds=round(plan.compile_seconds, 1))
  if not math.isinf(plan.free):
    out['bytes_left'] = plan.free
  if plan.memory is None:
    return out | dict(arguments=plan.arguments, shortage=plan.shortage.splitlines()[0])
  c, b = plan.counts, plan.bound
  return out | dict(
    memory=plan.memory._asdict() | dict(peak=plan.memory.peak),
    flops=c.flops, useful_flops=plan.useful, hbm_bytes=c.moved, xla_bytes_accessed=plan.accessed,
    compiler_cycles=c.cycles,
    unknown_loops=c.unknown_loops,
    collectives={kind: dict(runs=runs, bytes=moved)
                 for kind, (runs, moved) in collectives(plan).items()},
    roofline=b._asdict() | dict(seconds=b.seconds, bound=b.bound),
    examples_per_second=plan.examples_per_second, mfu_at_most=plan.utilisation,
    run_seconds=plan.run_seconds, chip_hours=plan.chip_hours, unread=plan.unread,
    parts={name: dict(seconds=seconds, share_of_hbm_bytes=share)
           for name, (seconds, share) in parts(plan).items()})


def _amount(value: float, unit: str) -> str:
  for prefix, size in (('T', 1e12), ('G', 1e9), ('M', 1e6)):
    if value >= size:
      return f'{value / size:.2f} {prefix}{unit}'
  return f'{value / 1e3:.2f} k{unit}'


def _duration(seconds: float) -> str:
  for unit, size in (('days', 86400), ('hours', 3600), ('minutes', 60), ('s', 1)):
    if seconds >= 2 * size or unit == 's' and seconds >= 1:
      return f'{seconds / size:.1f} {unit}'
  return f'{seconds * 1e3:.2f} ms'


def scaling(plans: Sequence[Plan]) -> str:
  """A table of one config on several machines, and how much of the first one's speed each keeps."""
  lines = ['| machine | devices | batch | peak memory | of | step at least | bound by '
           '| examples/s at most | per device, of the first | chip-hours |', '|' + '---|' * 10]
  first = next((p for p in plans if p.fits), None)
  for p in plans:
    cells = [p.target.name, f'{p.target.devices:,}', f'{p.batch_size:,}']
    if not p.fits:
      lines.append('| ' + ' | '.join([*cells, 'does not fit', *[''] * 6]) + ' |')
      continue
    share = (p.examples_per_second / p.target.devices) / (
      first.examples_per_second / first.target.devices) if first else math.nan
    cells += [f'{p.memory.peak / GIB:.2f} GiB', f'{p.target.chip.memory / GIB:.2f} GiB',
              f'{p.bound.seconds * 1e3:.2f} ms', p.bound.bound, f'{p.examples_per_second:,.0f}',
              f'{share:.0%}', f'{p.chip_hours:,.1f}']
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)
