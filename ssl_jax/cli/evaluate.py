"""`python -m ssl_jax evaluate`: what a run's representation is worth, by the fixed protocol."""

import json
import pathlib
import sys
import time

import jax
import numpy as np

from ssl_jax import runs
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.data.batches import in_order
from ssl_jax.data.sources import DataError
from ssl_jax.evals.health import health
from ssl_jax.evals.protocol import describe, fixed_protocol, format_table
from ssl_jax.train.step import example_keys

DESCRIPTION = '''Prints kNN, few-label and linear accuracy of raw pixels, of the encoder as it was
initialised, and of the trained one, by the fixed protocol of docs/evaluation.md; writes
evaluation.json into the run.'''


MOST_PIXELS = 2**29  # as float32 2 GiB; beyond it raw pixels are no baseline anybody waits for


def run(argv: list[str]) -> int:
  parser = Parser('evaluate', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', help='a run')
  parser.add_argument('--step', type=int, help='which checkpoint; default the newest')
  parser.add_argument('--seed', type=int, default=0, help='of label draws and the held-out part')
  parser.add_argument('--fractions', action='store_true', help='also 1 %% and 10 %% of the labels')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  args, _ = parser.read(argv)
  if not args.workdir:
    parser.error('needs --workdir=FOLDER')
  if args.seed < 0:
    parser.error(f'--seed must be at least 0, got {args.seed}')
  use_compilation_cache(args.cache_dir)
  began = time.monotonic()
  run = runs.load(args.workdir, step=args.step)
  data = runs.splits(run.config)
  labels = [runs.labels(source, split) for source, split in zip(data, ('train', 'test'))]
  healths = []
  try:
    rows = fixed_protocol(
      representations(run, data, healths), *labels, seed=args.seed, fractions=args.fractions,
      classes=1 + int(np.max(np.concatenate(labels))))
  except ValueError as error:  # such as a class with fewer than ten examples
    raise DataError(f'these data cannot be evaluated: {error}') from error
  print(format_table(rows))
  print()
  print(_health_table(healths))
  result = dict(step=run.step, protocol=describe(args.seed), accuracies=dict(rows),
                health=dict(healths), seconds=round(time.monotonic() - began, 1))
  path = pathlib.Path(args.workdir).expanduser() / runs.EVALUATION
  path.write_text(json.dumps(result, indent=2) + '\n')
  print(f'\nin {path} ({result["seconds"]} s)', file=sys.stderr)
  return 0


def representations(run: runs.Run, data: runs.Splits, healths: list):
  """Yields (name, train features, test features) of what is compared; appends their health."""
  if sum(len(s) * np.size(s[0]['image']) for s in data) < MOST_PIXELS:
    print('evaluating raw pixels ...', file=sys.stderr, flush=True)
    yield 'raw pixels', *(_pixels(run.experiment, source) for source in data)
  start = runs.initial_state(run)
  for name, params, state in (('random init', start.params, start.state),
                              (run.config.method.name, run.params, run.state)):
    print(f'evaluating {name} ...', file=sys.stderr, flush=True)
    state = runs.calibrated(run.experiment, params, state, data.train)
    train, test = (runs.embed_split(run.experiment, params, state, s)[0] for s in data)
    healths.append((name, health(test, _views(run.experiment, params, state, data.test))))
    yield name, train, test


def _take(source, count: int) -> dict[str, np.ndarray]:
  return next(in_order(source, batch_size=count))


def _pixels(experiment, source) -> np.ndarray:
  inputs = np.asarray(experiment.views.inputs(_take(source, len(source))))
  return inputs.reshape(len(inputs), -1)


def _views(experiment, params, state, source):
  """Representations of two augmented views of the same images, [N, D] each."""
  n = min(1000, len(source))
  images = {'image': _take(source, n)['image']}
  keys = example_keys(jax.random.key(0), np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32))
  views = jax.jit(experiment.views.prepare)(keys, images)['views']
  embed = jax.jit(experiment.method.embed)
  return tuple(np.asarray(embed(params, state, views[:, v])) for v in (0, 1))


def _health_table(rows) -> str:
  names = ('effective_rank', 'spread', 'alignment', 'uniformity')
  lines = ['representation     ' + ''.join(f'{name:>16}' for name in names)]
  lines += [f'{name:19}' + ''.join(f'{numbers[key]:16.3f}' for key in names)
            for name, numbers in rows]
  return '\n'.join(lines)
