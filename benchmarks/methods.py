"""What each method costs beside SimCLR: the train step on the same backbone, views and batch.

  python -m benchmarks.methods [--methods byol ...] [--batch 256] [--rounds 7]

All take SimCLR's two views of Fashion-MNIST and its convnet; heads, targets and states are those of
each method's config. A method with one view or with local crops has its own. Columns: the time of a
step (median of turns in which all take one step each), the FLOPs of the compiled step, both beside
SimCLR's, and the extra cost: time per FLOP beside SimCLR's.
"""

import argparse
import statistics
import time

import jax

from benchmarks.gate import methods
from ssl_jax import build
from ssl_jax.cli.options import load_config
from ssl_jax.data.batches import batches
from ssl_jax.parallel import to_global


def step_of(method: str, rows: int):
  """(step, state, batch, GFLOP) of a method's demo, compiled, with `rows` examples."""
  config = load_config(f'configs/{method}_fashion_mnist.py')
  with config.ignore_type():
    config.batch_size = rows
    if config.method.name not in ('swav', 'dino', 'instance_discrimination'):
      config.views = load_config('configs/simclr_fashion_mnist.py').views
  experiment = build.experiment(config, jax.devices()[:1])
  program = experiment.program(config)
  compiled = program.step.lower(program.state, program.batch).compile()
  batch = next(batches(experiment.source, batch_size=rows, seed=0))
  placed = to_global(batch, program.batch['id'].sharding, rows)
  return compiled, program.init(), placed, compiled.cost_analysis()['flops'] / 1e9


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--methods', nargs='+', default=methods())
  parser.add_argument('--batch', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=7)
  options = parser.parse_args()
  names = ['simclr', *(name for name in options.methods if name != 'simclr')]
  steps = {name: step_of(name, options.batch) for name in names}
  states = {name: state for name, (_, state, _, _) in steps.items()}
  seconds = {name: [] for name in names}
  for turn in range(options.rounds + 1):
    for name, (step, _, batch, _) in steps.items():
      began = time.perf_counter()
      states[name], _ = jax.block_until_ready(step(states[name], batch))
      if turn:  # the first of each warms up
        seconds[name].append(time.perf_counter() - began)
  times = {name: statistics.median(values) for name, values in seconds.items()}
  flops = {name: step[3] for name, step in steps.items()}
  print('| method | ms per step | GFLOP per step | time / SimCLR | FLOPs / SimCLR | extra cost |')
  print('|---|---|---|---|---|---|')
  for name in names:
    slower, more = times[name] / times['simclr'], flops[name] / flops['simclr']
    print(f'| {name} | {1000 * times[name]:.1f} | {flops[name]:.2f} | {slower:.2f} | {more:.2f} '
          f'| {slower / more - 1:+.0%} |')


if __name__ == '__main__':
  main()
