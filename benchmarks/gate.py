"""Does every method learn? Three seeds each and a broken control, by the fixed protocol, in one table.

  python -m benchmarks.gate --workdir=runs/gate [--methods simclr byol ...]

Resumable: finished runs are not repeated, an interrupted one continues. Accuracy with 10 labels per
class must be at least 0.04 above the random encoder's of the same seed on every seed, and as much above
the gain of the control (benchmarks/shuffled_positives.py: views, labels and ids that do not belong
together).
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
GATE, SEEDS = 0.04, (0, 1, 2)
# Not of this gate: a baseline with all labels, a comparison, and pairs that are retrieved instead.
OTHER = ('supervised', 'negatives', 'clip', 'siglip')


def methods() -> list[str]:
  """Those with a config on the images that ship."""
  found = [path.stem.removesuffix('_fashion_mnist') for path in CONFIGS.glob('*_fashion_mnist.py')]
  return sorted(set(found) - set(OTHER))


def command(*arguments: str) -> None:
  subprocess.run([sys.executable, '-m', 'ssl_jax', *arguments], check=True, stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL)


def result(method: str, seed: int, control: bool, workdir: pathlib.Path, extra: list[str]) -> dict:
  """{'accuracies', 'minutes'} of a run; made if it is not there."""
  folder = workdir / f'{method}_{"control" if control else seed}'
  config = f'benchmarks/shuffled_positives.py:{method}' if control else (
    f'configs/{method}_fashion_mnist.py')
  watch = folder.with_suffix('.minutes')
  if not (folder / 'evaluation.json').exists():
    print(f'{folder.name} ...', file=sys.stderr, flush=True)
    began = time.monotonic()
    command('train', f'--config={config}', f'--workdir={folder}', '--config.evaluate.every=None',
            f'--config.seed={seed}', *extra)
    minutes = float(watch.read_text()) if watch.exists() else 0.
    watch.write_text(str(minutes + (time.monotonic() - began) / 60))
    command('evaluate', f'--workdir={folder}')
  accuracies = json.loads((folder / 'evaluation.json').read_text())['accuracies']
  return dict(accuracies=accuracies, minutes=float(watch.read_text()))


def row(method: str, name: str, found: dict) -> tuple[str, float]:
  """(a line of the table, the gain over the random encoder)."""
  random, *_, own = found['accuracies']['random init'], *found['accuracies'].values()
  gain = own['labels10'] - random['labels10']
  return (f'| {method} | {name} | {random["labels10"]:.3f} | {own["labels10"]:.3f} ± '
          f'{own["labels10_std"]:.3f} | **{gain:+.3f}** | {random["knn20"]:.3f} | {own["knn20"]:.3f} '
          f'| {own["linear"]:.3f} | {found["minutes"]:.1f} |'), gain


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/gate'))
  parser.add_argument('--methods', nargs='+', default=methods(), choices=methods())
  args, extra = parser.parse_known_args()
  print('| method | run | random, 10 labels | 10 labels per class | gain | random, kNN-20 | kNN-20 '
        '| linear | minutes |')
  print('|' + '---|' * 9)
  failed = []
  for method in args.methods:
    gains = []
    for seed in SEEDS:
      line, gain = row(method, f'seed {seed}', result(method, seed, False, args.workdir, extra))
      print(line, flush=True)
      failed += [f'{method}, seed {seed}'] if gain < GATE else []
      gains.append(gain)
    line, gain = row(method, 'control', result(method, 0, True, args.workdir, extra))
    print(line, flush=True)
    # Wrong positives still spread the images, which some methods turn into a few points.
    failed += [f'{method} is too close to its control'] if min(gains) - gain < GATE else []
  print(f'FAILED: {"; ".join(failed)}' if failed else 'passed')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
