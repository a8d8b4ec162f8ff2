"""`python -m ssl_jax evaluate`: what a run's representation is worth, by the fixed protocol."""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from ssl_jax import runs
from ssl_jax.cli import hosts
from ssl_jax.cli.image_text_evaluation import evaluate_image_text, is_image_text
from ssl_jax.cli.material import material
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.cli.text_evaluation import evaluate_text, is_text
from ssl_jax.data.batches import in_order
from ssl_jax.data.sources import DataError
from ssl_jax.evals.health import health
from ssl_jax.evals.protocol import Representation, describe, fixed_protocol, format_table
from ssl_jax.evals.protocols import (
  PROTOCOLS,
  check,
  check_rows,
  format_protocols,
  run_protocols,
)
from ssl_jax.schema import did_you_mean
from ssl_jax.train.step import example_keys

DESCRIPTION = '''Prints kNN, few-label and linear accuracy of raw pixels, of the encoder as it was
initialised, and of the trained one, by the fixed protocol of docs/evaluation.md, or what --protocols
names; of runs on images and texts also how well the two find each other; writes evaluation.json into
the run.'''
FIXED = 'fixed'

MOST_PIXELS = 2**29  # as float32 2 GiB; beyond it raw pixels are no baseline anybody waits for


def run(argv: list[str]) -> int:
  parser = Parser('evaluate', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', help='a run')
  parser.add_argument('--step', type=int, help='which checkpoint; default the newest')
  parser.add_argument('--seed', type=int, default=0, help='of label draws and the held-out part')
  parser.add_argument('--protocols', type=_names, default=FIXED, metavar='NAME,...',
                      help=f'which protocols: {FIXED} (the table of all representations) and, for '
                      f'the trained one, {", ".join(PROTOCOLS)}')
  parser.add_argument('--fractions', action='store_true', help='also 1 %% and 10 %% of the labels')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  args, _ = parser.read(argv)
  hosts.note_alone()
  if not args.workdir:
    parser.error('needs --workdir=FOLDER')
  if args.seed < 0:
    parser.error(f'--seed must be at least 0, got {args.seed}')
  use_compilation_cache(args.cache_dir)
  began = time.monotonic()
  run = runs.load(args.workdir, step=args.step)
  if is_text(run):
    return _finish(args, _text(parser, run, args), began)
  try:
    _images(run, args)
  except ValueError as error:  # such as a class with fewer than ten examples
    raise DataError(f'these data cannot be evaluated: {error}') from error
  return _finish(args, dict(step=run.step), began)


def _images(run: runs.Run, args) -> None:
  """Runs the protocols; each is written when it is finished, whatever happens to the next."""
  data = runs.splits(run.config)
  if is_image_text(run):
    found = evaluate_image_text(run, data)
    _write(_path(args), dict(found, step=run.step, pending=args.protocols))
    if data.train.labels is None and args.protocols == [FIXED]:
      return print('no probes: the images have no labels', file=sys.stderr)
  train, test = (runs.labels(*pair) for pair in zip(data, ('train', 'test')))
  classes = 1 + max(int(np.max(train)), int(np.max(test)))
  named = [name for name in args.protocols if name != FIXED]
  check_rows(named, train, classes)
  if FIXED in args.protocols:
    _write(_path(args), dict(_fixed(run, data, classes, args), step=run.step, pending=named))
  if named:
    _named(run, data, classes, named, args)


def _text(parser: Parser, run: runs.Run, args) -> dict:
  if args.protocols != [FIXED]:
    parser.error(f'--protocols: only {FIXED!r} is for text, the others look at images')
  try:
    return dict(step=run.step) | evaluate_text(run, args.seed, args.fractions)
  except ValueError as error:
    raise DataError(f'these data cannot be evaluated: {error}') from error


def _finish(args, result: dict, began: float) -> int:
  seconds = round(time.monotonic() - began, 1)
  _write(_path(args), result | dict(seconds=seconds, pending=[]))
  print(f'\nin {_path(args)} ({seconds} s)', file=sys.stderr)
  return 0


def _path(args) -> pathlib.Path:
  return pathlib.Path(args.workdir).expanduser() / runs.EVALUATION


def _names(text: str) -> list[str]:
  """Checked while arguments are parsed, so that `sweep` can ask with --help."""
  names = [name.strip() for name in text.split(',') if name.strip()]
  for name in names or ['']:
    if name not in (FIXED, *PROTOCOLS):
      raise argparse.ArgumentTypeError(
        f'{name!r} is unknown{did_you_mean(name, (FIXED, *PROTOCOLS))}')
  return list(dict.fromkeys(names))


def _write(path: pathlib.Path, result: dict) -> None:
  """Adds to what is known of the same step; numbers of another step would not belong beside it.

  `pending` are the protocols to come: where it stays, the evaluation was interrupted.
  """
  if path.is_file():
    before = json.loads(path.read_text())
    if before.get('step') == result['step']:
      result = _merged(before, result)
  if not result['pending']:
    del result['pending']
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(result, indent=2) + '\n')
  partial.replace(path)


def _merged(before: dict, result: dict) -> dict:
  new = {row['protocol'] for row in result.get('protocols', ())}
  kept = [row for row in before.get('protocols', ()) if row['protocol'] not in new]
  protocols = kept + list(result.get('protocols', ()))
  return before | result | (dict(protocols=protocols) if protocols else {})


def _fixed(run: runs.Run, data: runs.Splits, classes: int, args) -> dict:
  """The table of raw pixels, the random and the trained encoder, and their health."""
  healths = []
  rows = fixed_protocol(representations(run, data, healths), seed=args.seed,
                        fractions=args.fractions, classes=classes)
  print(format_table(rows))
  print()
  print(_health_table(healths))
  return dict(protocol=describe(args.seed), accuracies=dict(rows), health=dict(healths))


def _named(run: runs.Run, data: runs.Splits, classes: int, names: list[str], args) -> None:
  """The protocols of the literature on the trained encoder."""
  results = []
  made = material(run, data, classes, names, args.seed)
  check(names, made)  # once more: images that cannot be read are left out
  for i, name in enumerate(names):
    print(f'evaluating {name} ...', file=sys.stderr, flush=True)
    results += run_protocols([name], made, seed=args.seed)
    row = dict(results[-1]._asdict(), seed=args.seed)
    _write(_path(args), dict(step=run.step, protocols=[row], pending=names[i + 1:]))
  print(format_protocols(results))


def representations(run: runs.Run, data: runs.Splits, healths: list) -> Iterator[Representation]:
  """What is compared; appends the health of each but the pixels."""
  workers = run.config.workers
  if sum(len(s) * next(in_order(s, batch_size=1))['image'].size for s in data) < MOST_PIXELS:
    print('evaluating raw pixels ...', file=sys.stderr, flush=True)
    train, test = (_pixels(run.experiment, source) for source in data)
    yield Representation('raw pixels', *train, *test)
  start = runs.initial_state(run)
  for name, params, state in (('random init', start.params, start.state),
                              (run.config.method.name, run.params, run.state)):
    print(f'evaluating {name} ...', file=sys.stderr, flush=True)
    state = runs.calibrated(run.experiment, params, state, data.train, workers)
    train, test = (runs.embed_split(run.experiment, params, state, s, workers) for s in data)
    healths.append((name, health(test[0], _views(run.experiment, params, state, data.test))))
    yield Representation(name, *train, *test)


def _take(source, count: int) -> dict[str, np.ndarray]:
  """The first `count` examples, without those that cannot be read."""
  batch = next(in_order(source, batch_size=count))
  readable = batch.pop('weight') > 0
  return {name: x[readable] for name, x in batch.items()}


def _pixels(experiment, source) -> tuple[np.ndarray, np.ndarray]:
  """(inputs of the readable examples as vectors, their labels)."""
  batch = _take(source, len(source))
  inputs = np.asarray(experiment.views.inputs(batch))
  return inputs.reshape(len(inputs), -1), batch['label']


def _views(experiment, params, state, source):
  """Representations of two augmented views of the same images, [N, D] each."""
  images = {'image': _take(source, min(1000, len(source)))['image']}
  n = len(images['image'])
  keys = example_keys(jax.random.key(0), np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32))
  views = jax.jit(experiment.views.prepare)(keys, images)['views']
  if views.shape[1] < 2:  # a supervised run has one view
    return None
  embed = jax.jit(experiment.method.embed)
  return tuple(np.asarray(embed(params, state, views[:, v])) for v in (0, 1))


def _health_table(rows) -> str:
  names = ('effective_rank', 'spread', 'alignment', 'uniformity')
  lines = ['representation     ' + ''.join(f'{name:>16}' for name in names)]
  lines += [f'{name:19}' + ''.join(f'{numbers[key]:16.3f}' if key in numbers else f'{"-":>16}'
                                   for key in names) for name, numbers in rows]
  return '\n'.join(lines)
