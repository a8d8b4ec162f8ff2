"""Does the demo learn? SimCLR on three seeds, shuffled positives on one, by the fixed protocol.

  python -m benchmarks.gate --workdir=runs/gate         resumable: finished runs are not repeated

Prints one table: 10-label accuracy must be at least 0.04 above the random encoder's on every seed, and
shuffled positives must not be.
"""

import argparse
import json
import pathlib
import subprocess
import sys

CONFIG = 'configs/simclr_fashion_mnist.py'
GATE = 0.04
RUNS = {**{f'seed {seed}': [f'--config.seed={seed}'] for seed in (0, 1, 2)},
        'seed 0, shuffled positives': [
          '--config.seed=0', '--config.views.name=benchmarks.shuffled_positives']}


def command(*arguments: str) -> None:
  subprocess.run([sys.executable, '-m', 'ssl_jax', *arguments], check=True, stdout=subprocess.DEVNULL)


def result(name: str, overrides: list[str], workdir: pathlib.Path, extra: list[str]) -> dict:
  folder = workdir / name.replace(' ', '_').replace(',', '')
  if not (folder / 'evaluation.json').exists():
    print(f'{name} ...', file=sys.stderr, flush=True)
    command('train', f'--config={CONFIG}', f'--workdir={folder}', '--config.evaluate.every=None',
            *overrides, *extra)
    command('evaluate', f'--workdir={folder}')
  return json.loads((folder / 'evaluation.json').read_text())['accuracies']


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/gate'))
  args, extra = parser.parse_known_args()
  print('| run | features | kNN-20 | 10 labels per class | gain | linear |')
  print('|---|---|---|---|---|---|')
  passed = True
  for name, overrides in RUNS.items():
    rows = result(name, overrides, args.workdir, extra)
    random = rows['random init']['labels10']
    for features, numbers in rows.items():
      gain = numbers['labels10'] - random
      shown = f'{gain:+.3f}' if features == 'simclr' else ''
      features = 'SimCLR' if features == 'simclr' else features
      print(f'| {name} | {features} | {numbers["knn20"]:.3f} | {numbers["labels10"]:.3f} ± '
            f'{numbers["labels10_std"]:.3f} | {shown} | {numbers["linear"]:.3f} |', flush=True)
      if features == 'SimCLR':
        passed &= (gain >= GATE) != ('shuffled' in name)
  print('passed' if passed else f'FAILED: gain below {GATE}, or shuffled positives reach it')
  return 0 if passed else 1


if __name__ == '__main__':
  sys.exit(main())
