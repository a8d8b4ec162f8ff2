"""What SimCLR's views cost beside the ResNet-50 step that they feed, compiled for one TPU v5e chip.

  python -m benchmarks.views [--part tpu cpu] [--batch 256] [--torch-python PYTHON]

tpu: batch of 256 x 256 uint8 images -> 2 views of 224, and SimCLR's step on them (ResNet-50 in
bfloat16, LARS), each compiled by libtpu without a TPU. Bytes accessed and FLOPs are the compiler's
cost analysis; it counts the body of a loop once, so what the body of colour jitter's loop reads,
writes and computes is added for its other turns. Cycles are the sum of the compiler's estimates, in
which operations that overlap count twice. Nothing is run.

cpu: images/s per core of the same two views, and of torchvision's v2 transforms in the interpreter
that --torch-python names, one thread each; CPU seconds, because a shared machine is noisy.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

SIZE, SOURCE, TURNS = 224, 256, 4
TARGET = 0.05
BYTES = dict(pred=1, s8=1, u8=1, bf16=2, s32=4, u32=4, f32=4)
# Instructions that name values and move nothing.
FREE = ('parameter', 'get-tuple-element', 'tuple', 'bitcast', 'constant', 'iota', 'broadcast')
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%([\w.\-]+) = (.+?) ([a-z][a-z\-]*)\((.*)$')
SHAPE = re.compile(r'\b(pred|s8|u8|bf16|s32|u32|f32)\[([\d,]*)\]')


class Cost(NamedTuple):
  """Of one compiled program."""

  bytes: float
  flops: float
  cycles: float
  gathers: int


# --- the compiler's cost --------------------------------------------------------------------------


def compiled_cost(compiled, turns: int = 1) -> Cost:
  """The cost of a program whose only loop, if it has one, runs `turns` times."""
  analysis, text = compiled.cost_analysis(), compiled.as_text()
  programs = computations(text)
  bodies = re.findall(r' while\(.*body=%([\w.\-]+)', text)
  if len(bodies) > 1:
    raise ValueError(f'expected one loop at most, found {len(bodies)}')
  again = (turns - 1) if bodies else 0
  body = programs[bodies[0]] if bodies else []
  return Cost(
    analysis['bytes accessed'] + again * moved(body),
    analysis['flops'] + again * sum(arithmetic(programs, line) for line in body),
    cycles(text) + again * sum(cycles(line) for line in body),
    len(re.findall(r' gather\(', text)))


def computations(text: str) -> dict[str, list[str]]:
  """The instructions of every computation of a program, by name."""
  found, name = {}, None
  for line in text.splitlines():
    if start := re.match(r'(?:ENTRY )?%([\w.\-]+) \(.*\{$', line):
      name = start[1]
      found[name] = []
    elif name:
      found[name].append(line)
  return found


def moved(body: list[str]) -> float:
  """Bytes that the instructions of a computation read and write."""
  shapes, total = {}, 0
  for name, shape, kind, rest in filter(None, (INSTRUCTION.match(x) and INSTRUCTION.match(x).groups()
                                               for x in body)):
    shapes[name] = sum(BYTES[kind] * elements(dims) for kind, dims in SHAPE.findall(shape))
    if kind not in FREE:
      operands = re.findall(r'%([\w.\-]+)', rest.split(')')[0])
      total += shapes[name] + sum(shapes.get(operand, 0) for operand in operands)
  return total


def arithmetic(programs: dict[str, list[str]], line: str) -> float:
  """Operations of the fusion on this line: one per element of every instruction in it."""
  called = re.search(r'calls=%([\w.\-]+)', line)
  if not called:
    return 0
  parts = filter(None, map(INSTRUCTION.match, programs[called[1]]))
  return sum(elements(SHAPE.search(part[2])[2]) for part in parts if part[3] not in FREE)


def elements(dims: str) -> int:
  return math.prod(int(n) for n in dims.split(',') if n)


def cycles(text: str) -> float:
  return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))


# --- the programs ---------------------------------------------------------------------------------


def on_one_chip():
  """A function that places shapes on one v5e chip that need not exist."""
  import jax
  from jax.experimental import topologies

  chip = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices[0]
  one = jax.sharding.SingleDeviceSharding(chip)
  return lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tree)


def compile_views(place, batch: int):
  import jax
  import jax.numpy as jnp

  from ssl_jax.views import simclr

  prepare = simclr.build(size=SIZE, dtype=jnp.bfloat16).prepare
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
  image = jax.ShapeDtypeStruct((batch, SOURCE, SOURCE, 3), jnp.uint8)
  return jax.jit(prepare).lower(place(keys), place({'image': image})).compile()


def compile_step(place, batch: int):
  import jax
  import jax.numpy as jnp

  from ssl_jax.methods import simclr
  from ssl_jax.models import mlp, resnet
  from ssl_jax.models.network import from_linen, with_head
  from ssl_jax.train import optimizers
  from ssl_jax.train.step import init_state, make_train_step

  network = with_head(resnet.resnet50(dtype=jnp.bfloat16), mlp.mlp(hidden=2048, out=128))
  method, tx = simclr.build(from_linen(network)), optimizers.lars(0.3)
  views = {'views': jax.ShapeDtypeStruct((batch, 2, SIZE, SIZE, 3), jnp.bfloat16)}
  state = jax.eval_shape(lambda b: init_state(method, tx, jax.random.key(0), b), views)
  step = make_train_step(method, tx, key=jax.random.key(0))
  return jax.jit(step, donate_argnums=0).lower(place(state), place(views)).compile()


def tpu(batch: int) -> None:
  place = on_one_chip()
  views = compiled_cost(compile_views(place, batch), TURNS)
  step = compiled_cost(compile_step(place, batch))
  print(f'one v5e chip, {batch} images of {SOURCE} x {SOURCE} x 3 uint8 -> 2 views of {SIZE}')
  print(f'{"":<16} {"GB accessed":>11} {"TFLOP":>8} {"Mcycles":>8} {"gathers":>8}')
  for name, cost in (('views', views), ('ResNet-50 step', step)):
    print(f'{name:<16} {cost.bytes / 1e9:>11.2f} {cost.flops / 1e12:>8.3f} '
          f'{cost.cycles / 1e6:>8.1f} {cost.gathers:>8}')
  shares = [v / s for v, s in zip(views[:3], step[:3])]
  met = 'met' if max(shares[:2]) <= TARGET and not views.gathers else 'missed'
  print(f'{"share":<16} {shares[0]:>11.1%} {shares[1]:>8.1%} {shares[2]:>8.1%}')
  print(f'target: at most {TARGET:.0%} of bytes and FLOPs, no gather: {met}')


# --- on the CPU -----------------------------------------------------------------------------------


def ours(batch: int, rounds: int) -> float:
  """Images/s per core."""
  import jax
  import numpy as np

  from ssl_jax.views import simclr

  prepare = jax.jit(simclr.build(size=SIZE).prepare)
  keys = jax.random.split(jax.random.key(0), batch)
  image = np.random.default_rng(0).integers(0, 256, (batch, SOURCE, SOURCE, 3), np.uint8)
  return rate(lambda: jax.block_until_ready(prepare(keys, {'image': image})), batch, rounds)


def torchvision(batch: int, rounds: int) -> float:
  """The same with torchvision's transforms of uint8 tensors, image by image as its loaders do."""
  import torch
  from torchvision.transforms import v2

  torch.set_num_threads(1)
  view = v2.Compose([
    v2.RandomResizedCrop(SIZE, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
    v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
    v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.))], 0.5),
    v2.ToDtype(torch.float32, scale=True)])
  images = torch.randint(0, 256, (batch, 3, SOURCE, SOURCE), dtype=torch.uint8)
  return rate(lambda: [(view(image), view(image)) for image in images], batch, rounds)


def rate(work, batch: int, rounds: int) -> float:
  """Images per CPU second: the median of the rounds."""
  work()
  spent = []
  for _ in range(rounds):
    start = time.process_time()
    work()
    spent.append(time.process_time() - start)
  return batch / statistics.median(spent)


def cpu(batch: int, rounds: int, python: str) -> None:
  print(f'CPU, {batch} images of {SOURCE} x {SOURCE} x 3 uint8 -> 2 views of {SIZE}')
  print(f'{"ours":<16} {ours(batch, rounds):>8.1f} images/s per core')
  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
  command = [python, __file__, '--serve', '--cpu-batch', str(batch), '--rounds', str(rounds)]
  result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
  if result.returncode:
    reason = result.stderr.strip().splitlines()[-1:]
    print(f'torchvision skipped: {python} says {reason}; see --torch-python', file=sys.stderr)
  else:
    print(f'{"torchvision v2":<16} {float(result.stdout):>8.1f} images/s per core')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--part', nargs='+', choices=('tpu', 'cpu'), default=['tpu', 'cpu'])
  parser.add_argument('--batch', type=int, default=256, help='images on the chip')
  parser.add_argument('--cpu-batch', type=int, default=16)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--torch-python', default=sys.executable, help='interpreter with torchvision')
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    print(torchvision(args.cpu_batch, args.rounds))
    return
  # Before JAX is imported: libtpu only compiles, and must not look for a TPU.
  os.environ.update(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
  if 'tpu' in args.part:
    tpu(args.batch)
  if 'cpu' in args.part:
    cpu(args.cpu_batch, args.rounds, args.torch_python)


if __name__ == '__main__':
  main()
