"""Seconds from process start to the end of the demo's first step, cold and with the compilation cache.

  python -m benchmarks.startup [--rounds=3]
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time


def first_step(cache: str, folder: str) -> float:
  began = time.monotonic()
  arguments = ['--config=configs/simclr_fashion_mnist.py', f'--workdir={folder}',
               f'--cache_dir={cache}', '--config.steps=2', '--config.schedule.warmup_steps=1',
               '--config.evaluate.every=None', '--config.evaluate.health_every=None']
  process = subprocess.Popen([sys.executable, '-m', 'ssl_jax', 'train', *arguments],
                             stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
  seconds = next(time.monotonic() - began for line in process.stderr if re.match('first step', line))
  process.stderr.read()
  process.wait()
  return seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  cold, warm = [], []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      cold.append(first_step(str(folder / 'cache'), str(folder / 'cold')))
      warm.append(first_step(str(folder / 'cache'), str(folder / 'warm')))
  print('| | median | all |\n|---|---|---|')
  for name, seconds in (('cold', cold), ('with the compilation cache', warm)):
    print(f'| {name} | {statistics.median(seconds):.1f} s | '
          f'{", ".join(f"{s:.1f}" for s in seconds)} |')


if __name__ == '__main__':
  main()
