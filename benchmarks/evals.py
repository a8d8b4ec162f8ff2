"""Evaluation beside its yardsticks: 32 linear probes beside one, kNN beside scikit-learn.

  JAX_PLATFORMS=cpu python -m benchmarks.evals [--rows 50000] [--dims 512 2048] [--repeats 2]

Probes: one epoch over cached features, ten classes, batch 1024, compilation excluded. kNN: as many
queries as bank rows, k = 20, cosine, plain votes; scikit-learn is KNeighborsClassifier(
algorithm='brute'). Rivals take turns and the best of `--repeats` counts, so that a busy machine
hurts both; the features are Gaussian noise, which no search can prune.
"""

import argparse
import os
import time

import jax
import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from ssl_jax.evals.knn import CHUNK, knn_predict
from ssl_jax.evals.probes import train_probes

CLASSES, HEADS, K, BATCH = 10, 32, 20, 1024


def seconds(rivals: dict, repeats: int) -> dict[str, float]:
  """The best time of each function, run in turns; they have been compiled before."""
  best = dict.fromkeys(rivals, float('inf'))
  for _ in range(repeats):
    for name, function in rivals.items():
      began = time.perf_counter()
      jax.block_until_ready(function())
      best[name] = min(best[name], time.perf_counter() - began)
  return best


def problem(rows: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  return (rng.standard_normal((rows, dims), np.float32),
          rng.integers(CLASSES, size=rows, dtype=np.int32))


def probes(rows: int, dims: int, repeats: int) -> None:
  data = jax.device_put(problem(rows, dims, 0))  # once: what is timed is training
  epoch = lambda heads: train_probes(lambda _: data, None, classes=CLASSES, epochs=1,
                                     batch_size=BATCH, learning_rates=np.full(heads, 0.1))
  jax.block_until_ready([epoch(1), epoch(HEADS)])
  took = seconds({'one': lambda: epoch(1), 'all': lambda: epoch(HEADS)}, repeats)
  work = 4 * rows * dims * CLASSES  # forward and gradient of one head
  print(f'probes {rows} x {dims}: one {took["one"]:.2f} s '
        f'({work / took["one"] / 1e9:.0f} GFLOP/s), '
        f'{HEADS} together {took["all"]:.2f} s ({HEADS * work / took["all"] / 1e9:.0f} GFLOP/s): '
        f'{took["all"] / took["one"]:.1f}x one, '
        f'{HEADS * took["one"] / took["all"]:.1f}x faster than one after the other', flush=True)


def neighbours(rows: int, dims: int, repeats: int) -> None:
  (bank, labels), (queries, _) = problem(rows, dims, 0), problem(rows, dims, 1)
  peer = KNeighborsClassifier(K, algorithm='brute', metric='cosine').fit(bank, labels)
  found = {}

  def ours(queries=queries):
    found['ours'] = knn_predict(bank, labels, queries, k=K, classes=CLASSES)

  def theirs():
    found['theirs'] = peer.predict(queries)

  ours(queries[:CHUNK])
  took = seconds({'ours': ours, 'theirs': theirs}, repeats)
  work = 2 * rows * rows * dims
  print(f'kNN {rows} against {rows} x {dims}: ours {took["ours"]:.1f} s '
        f'({work / took["ours"] / 1e9:.0f} GFLOP/s), scikit-learn {took["theirs"]:.1f} s: '
        f'{took["theirs"] / took["ours"]:.1f}x; the same prediction for '
        f'{np.mean(found["ours"] == found["theirs"]):.3%}', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rows', type=int, default=50_000)
  parser.add_argument('--dims', type=int, nargs='+', default=[512, 2048])
  parser.add_argument('--repeats', type=int, default=2)
  args = parser.parse_args()
  print(f'{jax.default_backend()}, {len(os.sched_getaffinity(0))} cores, '
        f'load {os.getloadavg()[0]:.1f}, jax {jax.__version__}', flush=True)
  for dims in args.dims:
    probes(args.rows, dims, args.repeats)
    neighbours(args.rows, dims, args.repeats)


if __name__ == '__main__':
  main()
