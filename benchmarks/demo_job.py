"""The demo's whole job, data and augmentation included, beside the same job in lightly.

  python -m benchmarks.demo_job --torch-python=/path/to/an/environment/with/torch-and-lightly/bin/python

Both train the same convnet and head on the same images with the same batch, steps, schedule and AdamW
(lightly: PIL transforms, a DataLoader with two workers), one after the other, twice. Prints images/s
from the first step to the last (start-up and compilation are not in it) and accuracy by the fixed
protocol. Without --torch-python only ours is measured.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

from ssl_jax.data.sources import fashion_mnist_12k
from ssl_jax.evals.protocol import evaluate_features
from ssl_jax.train.metrics import read_lines

CONFIG, BATCH = 'configs/simclr_fashion_mnist.py', 256


def ours(folder: pathlib.Path, steps: int, seed: int):
  """(images/s, result of the fixed protocol)."""
  run = [sys.executable, '-m', 'ssl_jax']
  quiet = ['--config.evaluate.every=None', '--config.evaluate.health_every=None',
           '--config.log_every=1', '--config.checkpoint.every=0']
  subprocess.run([*run, 'train', f'--config={CONFIG}', f'--workdir={folder}', *quiet,
                  f'--config.steps={steps}', f'--config.seed={seed}'], check=True,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  lines = read_lines(folder / 'metrics.jsonl')
  seconds = lines[-1]['seconds'] - lines[0]['seconds']
  subprocess.run([*run, 'evaluate', f'--workdir={folder}'], check=True, stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL)
  result = json.loads((folder / 'evaluation.json').read_text())['accuracies']['simclr']
  return (lines[-1]['step'] - lines[0]['step']) * BATCH / seconds, result


def theirs(python: str, folder: pathlib.Path, steps: int, seed: int):
  data = {split: fashion_mnist_12k(split=split) for split in ('train', 'test')}
  arrays = {split: source.take(np.arange(len(source))) for split, source in data.items()}
  np.savez(folder / 'images.npz', **{f'{split}_image': x['image'] for split, x in arrays.items()})
  script = pathlib.Path(__file__).with_name('lightly_job.py')
  out = subprocess.run([python, str(script), str(folder / 'images.npz'), str(folder / 'z.npz'),
                        str(steps), str(seed)], check=True, capture_output=True, text=True).stdout
  z = np.load(folder / 'z.npz')
  result = evaluate_features(z['train'], arrays['train']['label'], z['test'],
                             arrays['test']['label'], classes=10)
  return json.loads(out.splitlines()[-1])['images_per_second'], result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--torch-python', help='interpreter of an environment with torch and lightly')
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--rounds', type=int, default=2)
  args = parser.parse_args()
  found = {'ssl_jax': []}
  for seed in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      found['ssl_jax'].append(ours(folder / 'run', args.steps, seed))
      if args.torch_python:
        found.setdefault('lightly', []).append(theirs(args.torch_python, folder, args.steps, seed))
  print(f'{args.steps} steps of {BATCH} images, {args.rounds} seeds, medians')
  print('| | images/s | kNN-20 | 10 labels per class | linear |\n|---|---|---|---|---|')
  for name, rounds in found.items():
    middle = lambda pick, rounds=rounds: statistics.median(pick(r) for r in rounds)
    print(f'| {name} | {middle(lambda r: r[0]):.0f} | {middle(lambda r: r[1]["knn20"]):.3f} | '
          f'{middle(lambda r: r[1]["labels10"]):.3f} | {middle(lambda r: r[1]["linear"]):.3f} |')
  if args.torch_python:
    ratios = [a[0] / b[0] for a, b in zip(*found.values())]
    print(f'ratio of images/s, round by round: {", ".join(f"{r:.2f}" for r in ratios)}')
  else:
    print('lightly was skipped: give --torch-python')


if __name__ == '__main__':
  main()
