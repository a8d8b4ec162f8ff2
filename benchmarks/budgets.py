"""What the train steps of the flagship configs may cost when they are compiled, and what they cost.

  python -m benchmarks.budgets [--update] [NAME ...]        (needs the extra [plan]: libtpu)

Compiles each case (`ssl_jax.plan`), compares it with benchmarks/budgets.json and fails where a figure
grew by more than 2 %, or where the program breaks a promise (`broken_promises`). --update writes what
it measures instead. Figures belong to versions of jax and libtpu; a case without a budget for those
that are installed fails, too. `make budgets` runs all cases, one to sixteen minutes each when we
tried; `make test` the cheap ones.
"""

import argparse
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

from ssl_jax.cli.options import load_config, override
from ssl_jax.plan import hlo, report
from ssl_jax.plan.hardware import parse
from ssl_jax.plan.measure import Plan, measure
from ssl_jax.plan.stand_in import shape_of_data

FILE = pathlib.Path(__file__).with_name('budgets.json')
CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
GROWTH = 0.02
FIGURES = ('flops', 'hbm_bytes', 'temporaries', 'arguments', 'collective_bytes', 'collective_runs')


class Case(NamedTuple):
  config: str
  topology: str
  overrides: tuple[str, ...] = ()
  cheap: bool = False


CASES: Mapping[str, Case] = {
  'simclr_tiny': Case('simclr_fashion_mnist.py:smoke', 'v5e-4', ('--config.batch_size=256',),
                      cheap=True),
  'mlm_tiny': Case('mlm_wordnet.py:smoke', 'v5e-4', ('--config.batch_size=64',), cheap=True),
  'simclr_resnet50': Case('simclr_resnet50_imagenet.py', 'v5e:8x16'),
  'simclr_vit_s16': Case('simclr_vit_s16_imagenet.py', 'v5e:8x16'),
  'moco_v3_vit_b16': Case('moco_v3_vit_b16_imagenet.py', 'v5e:16x16'),
  'dino_vit_s16': Case('dino_vit_s16_imagenet.py', 'v5e:4x8'),
  'swav_resnet50': Case('swav_resnet50_imagenet.py', 'v5e:8x16'),
  'clip_vit_b32': Case('clip_vit_b32.py', 'v5e:16x16'),
  'bert_base_512': Case('bert_base_wikipedia.py:phase2', 'v5e:4x4', ('--config.batch_size=1024',)),
}


def versions() -> str:
  return f'jax {version("jax")}, libtpu {version("libtpu")}'


def planned(case: Case) -> tuple[Any, Plan]:
  """The config of a case, and its plan."""
  config = override(load_config(str(CONFIGS / case.config)), list(case.overrides))
  return config, measure(config, shape_of_data(config)[0], parse(case.topology))


def figures(plan: Plan) -> dict[str, float]:
  """Of one device and one step."""
  moved = report.collectives(plan).values()
  return dict(
    flops=plan.counts.flops, hbm_bytes=plan.counts.moved, temporaries=plan.memory.temporaries,
    arguments=plan.memory.arguments, collective_bytes=sum(size for _, size in moved),
    collective_runs=sum(runs for runs, _ in moved))


def grown(measured: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
  """The figures that are more than GROWTH above their budget."""
  return [f'{name}: {measured[name]:,.0f}, budget {allowed[name]:,.0f} '
          f'({measured[name] / max(allowed[name], 1) - 1:+.1%})'
          for name in FIGURES if measured[name] > allowed[name] * (1 + GROWTH) + 1]


def broken_promises(plan: Plan, config) -> list[str]:
  """What no program may contain: see docs/design.md, P5, and its traps."""
  text = config.views.name == 'masks'
  found = []
  kinds = report.collectives(plan)
  if not text and any('all-to-all' in kind for kind in kinds):
    found.append('an all-to-all in a method of images')
  gradient, reduced = 4 * plan.parameters, _all_reduced(plan)
  # A tied table's comes from the embedding and from the output layer, and is reduced for each.
  if reduced > (2.0 if text else 1.3) * gradient:
    found.append(f'{reduced / 1e6:.1f} MB are all-reduced, the gradient has {gradient / 1e6:.1f} MB: '
                 f'it is reduced more than once')
  given = _given(plan)  # fused with a loss, the gradient of a matrix bears the loss's name
  for where, opcode, shape in _arrays(plan):
    if opcode == 'gather' and not text and where.startswith('views/'):
      found.append(f'a gather in the views: {where} {shape}')
    if not text and where.startswith('losses/') and shape not in given and (
        sum(n >= plan.batch_size for n in shape) > 1):
      found.append(f'(global batch) x (global batch): {where} {shape}')
    if text and _is_logits(shape, config, plan):
      found.append(f'(tokens) x (vocabulary): {where} {shape}')
  return found


def _all_reduced(plan: Plan) -> float:
  """Bytes that all-reduces sum, without the scalars and vectors of statistics."""
  return sum(work.times * hlo.WIDTHS[array.dtype] * math.prod(array.shape)
             for work in plan.works for array in work.instruction.arrays
             if len(array.shape) > 1 and any(c.kind == 'all-reduce' for c in work.collectives))


def _is_logits(shape: tuple[int, ...], config, plan: Plan) -> bool:
  """A row of the vocabulary, padded to lanes, for every position of a device's rows."""
  tokens, least = plan.batch_size // plan.target.devices * config.data.length, config.views.vocabulary
  return any(least <= n < least + 256 and math.prod(shape) // n >= tokens for n in shape)


def _given(plan: Plan) -> set[tuple[int, ...]]:
  """Shapes of the program's arguments."""
  entry = plan.program.computations[plan.program.entry]
  return {array.shape for one in entry.instructions.values() if one.opcode == 'parameter'
          for array in one.arrays}


def _arrays(plan: Plan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """(place in the package, opcode, shape) of all that any computation makes; duplicates once."""
  seen = set()
  for computation in plan.program.computations.values():
    for instruction in computation.instructions.values():
      for array in instruction.arrays:
        place = plan.program.source(instruction, report.PACKAGE).removeprefix(report.PACKAGE)
        key = (place, instruction.opcode, array.shape)
        if key not in seen and instruction.opcode != 'parameter':
          seen.add(key)
          yield key


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--update', action='store_true', help='write what is measured')
  parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(CASES))
  args = parser.parse_args(argv)
  unknown = [name for name in args.names if name not in CASES]
  if unknown:
    parser.error(f'unknown {", ".join(unknown)}; there are {", ".join(CASES)}')
  recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
  allowed = recorded.setdefault(versions(), {})
  bad = 0
  print('| case | machine | GFLOP | HBM MB | peak GiB | of | collectives MB | least ms | MFU at most '
        '| verdict |')
  print('|' + '---|' * 10)
  for name in args.names or CASES:
    config, plan = planned(CASES[name])
    verdicts = ['does not fit'] if not plan.fits else broken_promises(plan, config)
    if plan.fits:
      measured = figures(plan)
      if args.update:
        allowed[name] = measured
        FILE.write_text(json.dumps(recorded, indent=1, sort_keys=True) + '\n')
      elif name in allowed:
        verdicts += grown(measured, allowed[name])
      else:
        verdicts.append(f'no budget for {versions()}; --update records it')
    bad += bool(verdicts)
    print(row(name, plan, verdicts), flush=True)
  return 1 if bad else 0


def row(name: str, plan: Plan, verdicts: list[str]) -> str:
  if not plan.fits:
    return f'| {name} | {plan.target.name} |' + ' |' * 7 + f' {"; ".join(verdicts)} |'
  n = figures(plan)
  return (f'| {name} | {plan.target.name} | {n["flops"] / 1e9:,.1f} | {n["hbm_bytes"] / 1e6:,.1f} '
          f'| {plan.memory.peak / report.GIB:.2f} | {plan.target.chip.memory / report.GIB:.2f} '
          f'| {n["collective_bytes"] / 1e6:,.1f} | {plan.bound.seconds * 1e3:.2f} '
          f'| {plan.utilisation:.1%} | {"; ".join(verdicts) or "within budget"} |')


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.exit(main(sys.argv[1:]))
