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
from ssl_jax.evals.health import health
from ssl_jax.evals.protocol import describe, evaluate_features, format_table
from ssl_jax.train.step import example_keys

DESCRIPTION = '''Prints kNN, few-label and linear accuracy of raw pixels, of the encoder as it was
initialised, and of the trained one, by the fixed protocol of docs/evaluation.md; writes
evaluation.json into the run.'''


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
  use_compilation_cache(args.cache_dir)
  began = time.monotonic()
  run = runs.load(args.workdir, step=args.step)
  data = runs.splits(run.config)
  rows, healths = [], []
  for name, train, test, views in representations(run, data):
    print(f'evaluating {name} ...', file=sys.stderr, flush=True)
    (z, y), (q, t) = train, test
    rows.append((name, evaluate_features(
      z, y, q, t, classes=1 + int(max(y.max(), t.max())), seed=args.seed,
      fractions=args.fractions)))
    if views is not None:
      healths.append((name, health(q, views)))
  print(format_table(rows))
  print()
  print(_health_table(healths))
  result = dict(step=run.step, protocol=describe(args.seed), accuracies=dict(rows),
                health=dict(healths), seconds=round(time.monotonic() - began, 1))
  path = pathlib.Path(args.workdir).expanduser() / runs.EVALUATION
  path.write_text(json.dumps(result, indent=2) + '\n')
  print(f'\nin {path} ({result["seconds"]} s)', file=sys.stderr)
  return 0


def representations(run: runs.Run, data: runs.Splits):
  """Yields (name, (train, labels), (test, labels), two views of test or None) of each to compare."""
  pixels = [_pixels(run.experiment, source) for source in data]
  yield 'raw pixels', *pixels, None
  start = run.experiment.program(run.config).init()
  for name, params, state in (('random init', start.params, start.state),
                              (run.config.method.name, run.params, run.state)):
    state = runs.calibrated(run.experiment, params, state, data.train)
    train, test = (runs.embed_split(run.experiment, params, state, source) for source in data)
    yield name, train, test, _views(run.experiment, params, state, data.test)


def _pixels(experiment, source):
  batch = source.take(np.arange(len(source)))
  inputs = np.asarray(experiment.views.inputs(batch))
  return inputs.reshape(len(inputs), -1), batch['label']


def _views(experiment, params, state, source):
  """Representations of two augmented views of the same images, [N, D] each."""
  n = min(1000, len(source))
  images = source.take(np.arange(n))
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
