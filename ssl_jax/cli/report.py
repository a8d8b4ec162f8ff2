"""`python -m ssl_jax report`: everything that is known of a run on one self-contained page."""

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax import __version__, build, runs
from ssl_jax.cli.compare import steps_per_second
from ssl_jax.cli.options import Parser, fields
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.data.batches import batches
from ssl_jax.data.sources import FASHION_MNIST_CLASSES, DataError
from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.evals.features import standardize
from ssl_jax.evals.projection import pca, spectrum, tsne
from ssl_jax.report import environment
from ssl_jax.report.charts import Classes
from ssl_jax.report.images import Augmented, Nearest, Neighbours
from ssl_jax.report.numbers import number
from ssl_jax.report.page import Curve, Embedding, Evaluation, Missing, Panel, Report, Tile, render
from ssl_jax.report.texts import Masked, masked, snippet
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import CheckpointError, Checkpoints
from ssl_jax.train.metrics import read_lines
from ssl_jax.train.step import example_keys

DESCRIPTION = '''Writes RUN/report.html: curves, evaluation, a map of the embedding, nearest
neighbours, augmentations or masks, health, config and environment. One file that loads nothing;
what a run does not have yet is named with the command that makes it.'''

# Training examples among which neighbours are sought; a Transformer takes longer for each.
BANK = {'image': 10_000, 'text': 2000}
QUERIES, NEAREST, SHOWN = 8, 8, 6
COLOURS = 20  # classes that are told apart in a scatter

# Titles and units of what metrics.jsonl holds, in the order of the page; the rest comes after.
CURVES = {
  'loss': ('loss', ''), 'contrastive_accuracy': ('contrastive accuracy', 'positive ranked first'),
  'accuracy': ('accuracy', 'of the batch'),
  'knn20': ('kNN-20 accuracy', 'test split, while training'),
  'learning_rate': ('learning rate', ''), 'grad_norm': ('gradient norm', ''),
  'effective_rank': ('effective rank', 'dimensions filled'), 'spread': ('spread', '1: isotropic'),
  'uniformity': ('uniformity', 'lower is more even')}
NOT_NOISY = ('learning_rate', 'knn20', 'effective_rank', 'spread', 'uniformity')
LOG_FROM = 100  # ratio of the largest to the smallest value of a curve


def run(argv: list[str]) -> int:
  parser = Parser('report', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', help='a run')
  parser.add_argument('--out', metavar='FILE', help='default: report.html in the run')
  parser.add_argument('--examples', type=int, default=2000, help='test examples in the scatters')
  parser.add_argument('--seed', type=int, default=0, help='of what is drawn at random')
  parser.add_argument('--step', type=int, help='which checkpoint; default the newest')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  args, _ = parser.read(argv)
  if not args.workdir:
    parser.error('needs --workdir=FOLDER')
  if args.seed < 0 or args.examples < 10:
    parser.error('--seed must be at least 0 and --examples at least 10')
  use_compilation_cache(args.cache_dir)
  workdir = pathlib.Path(args.workdir).expanduser()
  out = pathlib.Path(args.out).expanduser() if args.out else workdir / 'report.html'
  page = render(gather(workdir, examples=args.examples, seed=args.seed, step=args.step, argv=argv))
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(page, encoding='utf-8')
  print(f'{out} ({len(page.encode()) / 2**20:.1f} MiB)')
  return 0


def gather(workdir: pathlib.Path, *, examples: int, seed: int, step: int | None,
           argv: list[str]) -> Report:
  """Everything the page shows.

  Raises:
    ConfigError: the folder is not a run's.
    CheckpointError: `step` was asked for and is not there.
    DataError: a file of the run is damaged.
  """
  config = runs.read_config(workdir)
  train = 'python -m ssl_jax train --config=FILE.py --workdir=' + str(workdir)
  lines = read_lines(workdir / runs.METRICS)
  saved = evaluation(workdir, config)
  try:
    loaded = runs.load(workdir, step=step)
  except CheckpointError as error:
    if step is not None:
      raise
    loaded, parts = None, (Missing(f'{error}; this needs one.', train),) * 2
  else:
    parts = learned(loaded, examples, seed)
  set_rows, left = defaults(config)
  machine, note = provenance(workdir, loaded, argv)
  done = loaded.step if loaded else lines[-1]['step'] if lines else 0
  return Report(
    title=workdir.resolve().name,
    lead=f'Checkpoint of step {done:,}' if loaded else 'No checkpoint yet',
    tiles=tiles(config, loaded, lines, saved, done),
    curves=curves(lines, _class_count(parts[0])) or Missing('No metrics have been logged yet.', train),
    evaluation=saved, embedding=parts[0], neighbours=parts[1],
    augmentations=augmentations(config, seed, loaded and loaded.tokenizer),
    config=set_rows, defaults_left=left,
    environment=machine, environment_note=note,
    footer=f'ssl_jax {__version__}, written {time.strftime("%Y-%m-%d %H:%M %z")}')


# --- files of the run -----------------------------------------------------------------------------


def evaluation(workdir: pathlib.Path, config) -> Evaluation | Missing:
  path = workdir / runs.EVALUATION
  if not path.is_file():
    return Missing('This run has not been evaluated yet.',
                   f'python -m ssl_jax evaluate --workdir={workdir}')
  try:
    saved = json.loads(path.read_text())
    step, protocol = saved['step'], saved.get('protocol', {})
    result = saved.get('accuracies', {}), saved.get('health', {}), saved.get('protocols', [])
  except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f'{path} is damaged ({error}); evaluate again') from error
  words = [f'{what}{protocol[key]}' for key, what in (
    ('features', 'features '), ('knn', 'kNN: '), ('labels10', 'few labels: '), ('selection', ''))
    if key in protocol]
  note = '; '.join([f'Checkpoint of step {step}', *words]) + '. The best of a column is coloured.'
  return Evaluation(*result, ours=config.method.name, note=note)


def _class_count(part: Embedding | Missing) -> int:
  labelled = isinstance(part, Embedding) and part.classes is not None
  return len(part.classes.names) + part.others if labelled else 0


def curves(lines: list[dict], class_count: int = 0) -> list[Curve]:
  """One chart per number in the metrics, and the speed that their times tell."""
  found = []
  names = dict.fromkeys([*CURVES, *(name for line in lines for name in line)])
  for name in names:
    rows = [line for line in lines if name in line]
    if name in ('step', 'seconds') or not rows:
      continue
    title, unit = CURVES.get(name, (name.replace('_', ' '), ''))
    values = np.array([float(line[name]) for line in rows])
    finite = values[np.isfinite(values)]
    # A learning rate that ends at 0 would fill a log scale with its last steps.
    log = bool(name != 'learning_rate' and len(finite) and finite.min() > 0
               and finite.max() > LOG_FROM * finite.min())
    chance = f'chance {1 / class_count:.3g}' if class_count and name == 'knn20' else ''
    unit = ', '.join(word for word in (unit, chance, 'log scale' if log else '') if word)
    found.append(Curve(title, unit, np.array([line['step'] for line in rows]), values, log,
                        name not in NOT_NOISY))
  speed = seconds_per_step(lines)
  if len(speed):
    found.append(Curve('time per step', 'ms, evaluation left out', speed[:, 0], 1e3 * speed[:, 1],
                       noisy=True))
  return found


def seconds_per_step(lines: list[dict]) -> np.ndarray:
  """[(step, seconds), ...] between logged steps.

  A step's last line is written after what was measured at that step, so the time from there to the
  first line of the next logged step is training alone (saving included).
  """
  first, last = {}, {}
  for line in lines:
    if 'seconds' in line:
      first.setdefault(line['step'], line['seconds'])
      last[line['step']] = line['seconds']
  steps = sorted(first)
  return np.array([(b, max(0., first[b] - last[a]) / (b - a)) for a, b in zip(steps, steps[1:])])


def tiles(config, loaded, lines, saved, done: int) -> list[Tile]:
  planned = loaded.experiment.steps if loaded else config.steps or done
  found = [
    Tile('method', config.method.name), Tile('network', config.network.name),
    Tile('data', config.data.name),
    Tile('steps', number(done), f'of {number(planned)}' if done < planned else 'complete')]
  losses = [float(line['loss']) for line in lines if 'loss' in line]
  if losses:
    found.append(Tile('last loss', number(losses[-1]), f'first {number(losses[0])}'))
  if isinstance(saved, Evaluation) and saved.ours in saved.accuracies:
    ours, start = saved.accuracies[saved.ours], saved.accuracies.get('random init', {})
    for key, label in (('labels10', '10 labels per class'), ('knn20', 'kNN-20'),
                       ('linear', 'linear probe')):
      if key in ours:
        gain = f'{ours[key] - start[key]:+.3f} over random init' if key in start else ''
        found.append(Tile(label, f'{ours[key]:.3f}', gain.replace('-', '−')))
  rate = steps_per_second([(line['step'], line['seconds']) for line in lines if 'seconds' in line])
  if rate is not None:
    found.append(Tile('speed', number(config.batch_size * rate, 3),
                      f'examples/s, {1e3 / rate:.0f} ms per step'))
  return found


def defaults(config) -> tuple[list[tuple[str, Any, Any]], list[tuple[str, Any]]]:
  """((field, value, default) of what the config says, (field, default) of what it does not)."""
  known = dict(fields(type(config)(build.OPTIONAL)))
  for section in ('data', 'views', 'network', 'head', 'method', 'optimizer'):
    bare = type(config)({section: {'name': config[section].name}})
    known |= dict(build.defaults(bare))
  said = fields(config)
  return [(name, value, known.get(name, ...)) for name, value in said], build.defaults(config)


def provenance(workdir: pathlib.Path, loaded, argv) -> tuple[Mapping[str, str], str]:
  """What the run was made with, as far as it is recorded."""
  starts = environment.read(workdir)
  if starts:
    note = 'Recorded when the run was started' + (
      f', the last of {len(starts)} times.' if len(starts) > 1 else '.')
    return starts[-1], note
  found = {}
  if loaded is not None:
    meta = Checkpoints(workdir / runs.CHECKPOINTS).metadata(loaded.step)
    mesh = ', '.join(f'{axis} {size}' for axis, size in meta['mesh'].items())
    found = {'trained with': f'ssl_jax {meta["version"]}, jax {meta["jax"]}, {meta["cores"]} cores, '
                             f'mesh {mesh}', 'data': str(meta['data']['source'])[:16] + '…'}
  now = environment.describe(['report', *argv], [d.device_kind for d in jax.devices()])
  return {**found, **now}, ('The run has no record of its own; below the first rows, this is the '
                            'machine and the code that wrote the report.')


# --- what the encoder learned ---------------------------------------------------------------------


class Subset:
  """The examples `ids` of a source, as a source; `tokenizer`: to show texts."""

  def __init__(self, source, ids: np.ndarray, tokenizer: Tokenizer | None = None):
    self._source, self._ids, self._tokenizer = source, ids, tokenizer

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._source[int(self._ids[index])]

  def shown(self, rows) -> np.ndarray | list[str]:
    """Images uint8 [N, H, W, C], or N texts."""
    found = [self[i] for i in rows]
    if kind_of(found[0]) == 'image':
      return np.stack([example['image'] for example in found])
    return [snippet(example, self._tokenizer) for example in found]


class Sample(NamedTuple):
  """Training examples, test examples, names of the classes (None: as numbers), what they are."""

  bank: Subset
  test: Subset
  names: tuple[str, ...] | None
  kind: str


def kind_of(example: Mapping[str, Any]) -> str | None:
  kinds = {'image': 'image', 'tokens': 'text'}
  return next((kind for field, kind in kinds.items() if field in example), None)


def sample(config, examples: int, seed: int, tokenizer: Tokenizer | None = None) -> Sample:
  """Where there is no test split, part of the training data takes its place; never the same ones.

  Raises:
    ConfigError: the examples are neither images nor texts.
    DataError, OSError: they cannot be read.
  """
  rng = np.random.default_rng(seed)
  source = build.source(config, config.evaluate.train_split)
  kind = kind_of(source[0])
  if kind is None:
    raise ConfigError('these examples are neither images nor texts')
  tokenizer = tokenizer or build.tokenizer(config)
  try:
    other = runs.splits(config).test  # its classes numbered as those of training
  except (ConfigError, DataError, OSError):
    order = rng.permutation(len(source))
    count = min(examples, len(source) // 2)
    other, ids, rest = source, np.sort(order[:count]), np.sort(order[count:][:BANK[kind]])
  else:
    ids = np.sort(rng.permutation(len(other))[:examples])
    rest = np.sort(rng.permutation(len(source))[:BANK[kind]])
  names = getattr(source, 'classes', None)
  if names is None and config.data.name == 'fashion_mnist_12k':
    names = FASHION_MNIST_CLASSES
  return Sample(Subset(source, rest, tokenizer), Subset(other, ids, tokenizer), names, kind)


def learned(run: runs.Run, examples: int, seed: int):
  """(Embedding, Neighbours), each or a Missing that says why not."""
  try:
    data = sample(run.config, examples, seed, run.tokenizer)
  except (ConfigError, DataError, OSError) as error:
    return (Missing(f'The data of the run cannot be read here: {error}'),) * 2
  start = runs.initial_state(run)
  features, labels = {}, None
  for name, params, state in ((f'{run.config.method.name}, step {run.step}', run.params, run.state),
                              ('random init', start.params, start.state)):
    print(f'embedding with {name} ...', file=sys.stderr, flush=True)
    state = runs.calibrated(run.experiment, params, state, data.bank)
    (bank, bank_labels), (test, test_labels) = (
      runs.embed_split(run.experiment, params, state, part) for part in (data.bank, data.test))
    features[name], labels = (bank, test), (bank_labels, test_labels)
  try:
    return (embedding(features, labels[1], data.names, seed, data.kind),
            neighbours(features, labels, data, seed))
  except ValueError as error:  # features that are not finite: the run diverged
    return (Missing(f'The features cannot be shown: {error}'),) * 2


def embedding(features, labels, names, seed: int, kind: str) -> Embedding:
  maps, planes = [], []
  for name, (_, test) in features.items():
    print(f't-SNE of {name} ...', file=sys.stderr, flush=True)
    points = tsne(test, seed=seed, perplexity=min(30, (len(test) - 1) / 3))
    maps.append(Panel(f't-SNE · {name}', points))
    points, share = pca(test, 2)
    planes.append(Panel(f'PCA · {name}', points, *(
      f'component {i + 1}: {share[i]:.0%} of the variance' for i in (0, 1))))
  found, others = (None, 0) if labels is None else classes(labels, names)
  spectra = {name: spectrum(test) for name, (_, test) in features.items()}
  return Embedding([*maps, *planes], found, spectra, len(points), others, kind)


def classes(labels: np.ndarray, names) -> tuple[Classes, int]:
  """The 20 most frequent classes in the order of their numbers, and how many others there are."""
  values, counts = np.unique(labels, return_counts=True)
  kept = np.sort(values[np.argsort(-counts, kind='stable')[:COLOURS]])
  index = np.full(len(labels), -1)
  for c, value in enumerate(kept):
    index[labels == value] = c
  return Classes(tuple(_name(value, names) for value in kept), index), len(values) - len(kept)


def _name(label: int, names) -> str:
  return names[label] if names is not None and 0 <= label < len(names) else f'class {label}'


def neighbours(features, labels, data: Sample, seed: int) -> Neighbours | Missing:
  """Queries of different classes where there are labels; the same ones for every encoder."""
  bank_labels, test_labels = labels
  if len(data.bank) < NEAREST:
    return Missing(f'There are only {len(data.bank)} training {data.kind}s to seek neighbours '
                   'among.')
  order = np.random.default_rng(seed).permutation(len(data.test))
  if test_labels is not None:
    _, first = np.unique(test_labels[order], return_index=True)
    order = np.concatenate([order[np.sort(first)], np.delete(order, first)])
  queries = order[:QUERIES]
  groups = []
  for name, (bank, test) in features.items():
    rows, similarity = nearest(*standardize(bank, test))
    found, precision = None, None
    if test_labels is not None:
      precision = float(np.mean(bank_labels[rows] == test_labels[:, None]))
      found = [[_name(label, data.names) for label in bank_labels[rows[q]]] for q in queries]
    shown = [data.bank.shown(rows[q]) for q in queries]
    if data.kind == 'image':
      shown = np.stack(shown)
    groups.append(Nearest(name, shown, similarity[queries], found, precision))
  names = None if test_labels is None else [_name(test_labels[q], data.names) for q in queries]
  return Neighbours(data.test.shown(queries), names, groups)


def nearest(bank: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows of `bank` [N, D] most similar to each of `test` [M, D], and the cosines: [M, 8] each."""
  unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (bank, test)]
  cosine = unit[1] @ unit[0].T
  rows = np.argsort(-cosine, axis=1, kind='stable')[:, :NEAREST]
  return rows, np.take_along_axis(cosine, rows, axis=1)


def augmentations(config, seed: int, tokenizer: Tokenizer | None = None
                  ) -> list[Augmented] | list[Masked] | Missing:
  """The first examples of the training stream, and what `prepare` makes of them."""
  views = build.image_views(config)
  try:
    source = build.source(config, crops=views.crops, training=True)
    batch = next(batches(source, batch_size=min(SHOWN, len(source)), seed=seed))
    kind = kind_of(source[0])
    originals = [source[int(i)].get('image') for i in batch['id']]
    tokenizer = tokenizer or build.tokenizer(config)
  except (ConfigError, DataError, OSError) as error:
    return Missing(f'The data of the run cannot be read here: {error}')
  if kind is None:
    return Missing('These examples are neither images nor texts.')
  keys = example_keys(jax.random.key(seed), batch['epoch'], batch['id'])
  made = jax.device_get(jax.jit(views.prepare)(keys, batch))
  if kind == 'text':
    return _masked(made, tokenizer)
  shown = {name: _displayed(views, originals[0], x) for name, x in made.items()
           if name not in batch and x.ndim == 5}
  if not shown:
    return Missing('The views of this run are no images.')
  return [Augmented(image, {name: x[i] for name, x in shown.items()})
          for i, image in enumerate(originals)]


def _masked(made: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[Masked] | Missing:
  if 'slots' not in made:
    return Missing('The network sees these texts as they are: nothing is masked.')
  rows = {name: made[name] for name in ('tokens', 'segments', 'slots', 'targets', 'weights')}
  return [masked({name: x[i] for name, x in rows.items()}, tokenizer)
          for i in range(len(made['tokens']))]


def _displayed(views, like: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Images of a recipe in [0, 1] again: what it makes of black and of white tells its normalisation,
  which may depend on more than its mean and std (grey images get theirs weighted)."""
  extremes = np.stack([np.zeros_like(like), np.full_like(like, 255)])
  black, white = np.asarray(views.inputs({'image': extremes}), np.float32).mean(axis=(1, 2))
  return (np.asarray(images, np.float32) - black) / (white - black)
