"""Negatives from the batch, a memory bank or a queue, and how many: one table, one plot.

  python -m benchmarks.negatives --workdir=runs/negatives [--numbers 256 1024 4096] [--seeds 0]

Each run is configs/negatives_fashion_mnist.py with one of its sources and K negatives, all see the
same number of images; end to end K is the batch, so those runs take fewer steps with larger
batches, and none above --largest-batch. The learning rate is the same everywhere. Resumable:
finished runs are not repeated, an interrupted one continues. Prints the table and writes it to
negatives.md and the plot to negatives.png in --to (the workdir if it is not given). Other options
(--config.steps=...) go to every run.
"""

import argparse
import json
import pathlib
import statistics
import sys

from matplotlib.figure import Figure

from benchmarks.gate import command
from ssl_jax.cli.options import load_config

CONFIG = 'configs/negatives_fashion_mnist.py'
SOURCES = {'end_to_end': ('end to end', 'batch_size'),
           'memory_bank': ('memory bank', 'method.negatives'),
           'queue': ('queue', 'method.queue')}


def accuracies(source: str, number: int, seed: int, workdir: pathlib.Path, images: int,
               extra: list[str]) -> dict:
  """{'random init': {...}, method: {...}} of a run; made if it is not there."""
  folder = workdir / f'{source}_{number}_{seed}'
  if not (folder / 'evaluation.json').exists():
    print(f'{folder.name} ...', file=sys.stderr, flush=True)
    steps = [f'--config.steps={max(1, images // number)}'] if source == 'end_to_end' else []
    command('train', f'--config={CONFIG}:{source}', f'--workdir={folder}',
            '--config.evaluate.every=None', f'--config.seed={seed}', *extra,
            f'--config.{SOURCES[source][1]}={number}', *steps)
    command('evaluate', f'--workdir={folder}')
  return json.loads((folder / 'evaluation.json').read_text())['accuracies']


def measured(args, extra: list[str]) -> dict:
  """{source: {K: [accuracy with 10 labels per class, by seed]}}, and those of random encoders."""
  config = load_config(CONFIG)
  given = dict(option.removeprefix('--config.').split('=', 1) for option in extra)
  images = int(given.get('steps', config.steps)) * int(given.get('batch_size', config.batch_size))
  found, random = {source: {} for source in args.sources}, []
  for source in args.sources:
    for number in args.numbers:
      if source == 'end_to_end' and number > args.largest_batch:
        continue
      runs = [accuracies(source, number, seed, args.workdir, images, extra) for seed in args.seeds]
      random += [run.pop('random init')['labels10'] for run in runs]
      runs = [{name: x for name, x in run.items() if name != 'raw pixels'} for run in runs]
      found[source][number] = [next(iter(run.values()))['labels10'] for run in runs]
  return found | {'random': random}


def table(found: dict, numbers: list[int]) -> str:
  lines = ['Accuracy with 10 labels per class; random encoder '
           f'{statistics.mean(found["random"]):.3f}', '',
           '| negatives from | ' + ' | '.join(f'K = {number}' for number in numbers) + ' |',
           '|' + '---|' * (1 + len(numbers))]
  for source, (title, _) in SOURCES.items():
    if source in found:
      cells = [_cell(found[source].get(number)) for number in numbers]
      lines.append(f'| {title} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _cell(values: list[float] | None) -> str:
  if values is None:
    return '–'
  spread = f' ± {statistics.stdev(values):.3f}' if len(values) > 1 else ''
  return f'{statistics.mean(values):.3f}{spread}'


def plot(found: dict, numbers: list[int], path: pathlib.Path) -> None:
  figure = Figure(figsize=(5.2, 3.6), layout='constrained')
  axes = figure.subplots()
  for (source, (title, _)), marker in zip(SOURCES.items(), 'so^'):
    points = found.get(source, {})
    means = [statistics.mean(values) for values in points.values()]
    several = all(len(values) > 1 for values in points.values())
    spread = [statistics.stdev(values) for values in points.values()] if several else None
    axes.errorbar(list(points), means, spread, marker=marker, capsize=3, label=title)
  axes.axhline(statistics.mean(found['random']), color='grey', linestyle=':', label='random encoder')
  axes.set_xscale('log')
  axes.set_xticks(numbers, [f'{number:,}' for number in numbers])
  axes.minorticks_off()
  axes.set_xlabel('negatives K')
  axes.set_ylabel('accuracy, 10 labels per class')
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(frameon=False, ncols=2, loc='lower center', bbox_to_anchor=(0.5, 1))
  figure.savefig(path, dpi=150)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/negatives'))
  parser.add_argument('--to', type=pathlib.Path)
  parser.add_argument('--sources', nargs='+', default=list(SOURCES), choices=SOURCES)
  parser.add_argument('--numbers', nargs='+', type=int, default=[256, 1024, 4096],
                      help='K; of queues a multiple of the batch')
  parser.add_argument('--seeds', nargs='+', type=int, default=[0])
  parser.add_argument('--largest-batch', type=int, default=1024)
  args, extra = parser.parse_known_args()
  found = measured(args, extra)
  to = args.to or args.workdir
  to.mkdir(parents=True, exist_ok=True)
  text = table(found, args.numbers)
  (to / 'negatives.md').write_text(text + '\n')
  plot(found, args.numbers, to / 'negatives.png')
  print(text)


if __name__ == '__main__':
  main()
