"""A run on disk, and how to use what it learned.

  workdir/config.json         the config of the run
  workdir/example.json        shapes of the data, so that a run can be used without them
  workdir/tokenizer/          of a run on text
  workdir/checkpoints/<step>  see ssl_jax.train.checkpoint
  workdir/metrics.jsonl       see ssl_jax.train.metrics
  workdir/starts.jsonl        command, revision, versions of every start
  workdir/evaluation.json     written by `python -m ssl_jax evaluate`
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.data.batches import in_order
from ssl_jax.data.sources import DataError, Renumbered, Source
from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.data.tokenize import load as load_tokenizer
from ssl_jax.evals import texts
from ssl_jax.evals.features import calibrate, embed_all
from ssl_jax.parallel import batch_axes, batch_sharding, local_rows, to_global
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import CheckpointError, Checkpoints
from ssl_jax.train.step import make_program
from ssl_jax.types import Method, PyTree, TrainState

CONFIG, EXAMPLE, TOKENIZER, CHECKPOINTS, METRICS, EVALUATION = (
  'config.json', 'example.json', 'tokenizer', 'checkpoints', 'metrics.jsonl', 'evaluation.json')


class Run(NamedTuple):
  """A trained run.

  Attributes:
    config: as it was trained.
    experiment: the objects it describes.
    method: pure functions; `method.embed(params, state, inputs)`.
    step: of the checkpoint.
    params, state: of the method; `variables` in Flax's words.
    embed: images uint8 [N, H, W, C], or a list of N texts -> representations float32 [N, D], as
      NumPy arrays.
    tokenizer: of a run on text, or on images and texts.
    similarity: of a run on images and texts: (N images, a list of M texts) -> cosines float32 [N, M].
  """

  config: ConfigDict
  experiment: build.Experiment
  method: Method
  step: int
  params: PyTree
  state: PyTree
  embed: Callable[[np.ndarray], np.ndarray]
  tokenizer: Tokenizer | None = None
  similarity: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None

  @property
  def variables(self) -> dict[str, PyTree]:
    return {'params': self.params, 'state': self.state}

  @property
  def module(self) -> nn.Module:
    """Backbone and head as a Linen module, of `method.encoder(params, state)`; for export."""
    return build.module(self.config)

  def fill_masks(self, text: str, count: int = 5) -> list[list[texts.Guess]]:
    """The `count` most probable tokens for each '[MASK]' in `text`, of a masked language model."""
    network = build.network(self.config)
    if self.tokenizer is None or network.readout is None:
      raise ValueError(f'{self.config.method.name} is no language model')
    params, state = self.method.encoder(self.params, self.state)
    return texts.fill_masks(network, params, state, self.tokenizer, text, count=count,
                            length=self.config.data.get('length', 128))


def folder_to_train(text: str) -> pathlib.Path:
  """The folder of a run, as a user named it; it need not be there.

  Raises:
    ConfigError: it is no folder of this machine, or lies among the checkpoints of a run.
  """
  if '://' in text:
    raise ConfigError(f'--workdir={text}: a run is written to a folder; mount the bucket and pass '
                      'where, or use a local folder and copy it')
  path = pathlib.Path(text).expanduser()
  if path.exists() and not path.is_dir():
    raise ConfigError(f'--workdir={text} is a file; pass the folder of a run')
  if (run := _around(path)) and path.absolute().is_relative_to(run.absolute() / CHECKPOINTS):
    raise ConfigError(f'--workdir={text} is inside a run; pass {run}')
  return path if path.name not in ('', '..') else path.resolve()  # it may be renamed


def read_config(workdir: str | pathlib.Path) -> ConfigDict:
  """The config of a run.

  Raises:
    ConfigError: the folder is not a run's.
  """
  workdir = pathlib.Path(workdir).expanduser()
  path = workdir / CONFIG
  if not path.is_file():
    if run := _around(workdir):
      raise ConfigError(f'{workdir} is inside a run; pass the folder that holds {CONFIG}: {run}')
    why = f'it has no {CONFIG}' if workdir.exists() else 'it does not exist'
    raise ConfigError(f'{workdir} is not the folder of a run: {why}')
  try:
    return build.complete(ConfigDict(json.loads(path.read_text())))
  except (ValueError, TypeError, AttributeError) as error:
    if isinstance(error, ConfigError):
      raise
    raise CheckpointError(f'{path} is damaged: {error}') from error


def _around(path: pathlib.Path) -> pathlib.Path | None:
  """The run that a path is inside of."""
  return next((parent for parent in path.absolute().parents if (parent / CONFIG).is_file()), None)


def write_config(workdir: pathlib.Path, config, shape: build.Shape) -> None:
  """What `load` needs besides a checkpoint."""
  if (tokenizer := build.tokenizer(config)) is not None:
    (workdir / TOKENIZER).mkdir(exist_ok=True)
    tokenizer.save(workdir / TOKENIZER / 'tokenizer.json')
  _write(workdir / CONFIG, config.to_json(indent=2))
  fields = {name: [str(x.dtype), list(x.shape)] for name, x in shape.fields.items()}
  _write(workdir / EXAMPLE, json.dumps({'length': shape.length, 'fields': fields}))


def _write(path: pathlib.Path, text: str) -> None:
  """Whole or not at all: every start writes them, and any may be killed."""
  draft = path.with_suffix('.partial')
  draft.write_text(text + '\n')
  draft.replace(path)


def _read_shape(workdir: pathlib.Path, config) -> build.Shape:
  path = workdir / EXAMPLE
  if not path.is_file():
    return build.shape_of(build.source(config, crops=build.image_views(config).crops))
  saved = json.loads(path.read_text())
  return build.Shape(saved['length'], {
    name: jax.ShapeDtypeStruct(tuple(shape), dtype)
    for name, (dtype, shape) in saved['fields'].items()})


def load(workdir: str | pathlib.Path, *, step: int | None = None, devices=None) -> Run:
  """Loads a run from its folder.

  Args:
    workdir: the folder given to `train`.
    step: which checkpoint; the newest intact one by default.
    devices: where to put it; all by default, however many it was trained on.

  Raises:
    ConfigError: the folder is not a run's.
    CheckpointError: there is no intact checkpoint.
  """
  config = read_config(workdir)
  folder = pathlib.Path(workdir).expanduser()
  experiment = build.embedder(config, _read_shape(folder, config), devices)
  checkpoints = Checkpoints(folder / CHECKPOINTS)
  abstract = _program(config, experiment).state
  if step is None and not checkpoints.steps():
    raise CheckpointError(f'{workdir} has no checkpoint yet')
  try:
    # Whoever looks at a run leaves it as it is: it may be at work.
    step, ts = (checkpoints.restore_latest(abstract, set_aside=False) if step is None else
                (step, checkpoints.restore(step, abstract)))
  except ValueError as error:  # the code has changed since, or config.json was edited
    raise CheckpointError(f'{workdir}: {error}') from error
  made = config, experiment, experiment.method, step, ts.params, ts.state
  images = _embedder(experiment, experiment.method.embed, ts.params, ts.state)
  if not (folder / TOKENIZER).is_dir():
    return Run(*made, images)
  tokenizer = load_tokenizer(folder / TOKENIZER)
  if build.has_text_tower(config):
    return Run(*made, images, tokenizer, _similarity(config, experiment, ts, tokenizer))
  return Run(*made, texts.embedder(experiment.method.embed, ts.params, ts.state, tokenizer,
                                   config.data.get('length', 128)), tokenizer)


def initial_state(run: Run) -> TrainState:
  """Where the run started, from its seed."""
  return _program(run.config, run.experiment).init()


def _program(config, experiment: build.Experiment):
  return make_program(experiment.method, experiment.tx, experiment.batch, seed=config.seed,
                      mesh=experiment.mesh, prepare=experiment.views.prepare)


# --- whole splits ---------------------------------------------------------------------------------


class Splits(NamedTuple):
  """The sources that evaluation trains its probes on, and measures them on."""

  train: Source
  test: Source


def splits(config) -> Splits:
  """Both splits, their labels numbered alike.

  Raises:
    DataError: a class of the test split that training does not have, or names of classes in one
      split only.
  """
  train, test = (build.source(config, split) for split in
                 (config.evaluate.train_split, config.evaluate.test_split))
  classes, others = (tuple(getattr(source, 'classes', ())) for source in (train, test))
  if not (classes and others) and classes != others and all(
      getattr(source, 'labels', None) is not None for source in (train, test)):
    raise DataError('the labels of one split are names, those of the other are numbers: '
                    f'{classes or others}')
  if classes and others and classes != others:
    test = Renumbered(test, classes)
  return Splits(train, test)


def labels(source: Source, split: str) -> np.ndarray:
  """int [N]; reads images only where the source cannot tell its labels without them.

  Raises:
    ConfigError: there are none, or only one class.
  """
  found = getattr(source, 'labels', None)
  if found is None:
    example = source[0]
    if 'label' not in example:
      raise ConfigError(f'evaluation needs labels, and the {split} split has only '
                        f'{", ".join(example)}; set config.evaluate.every=None, or use `embed`')
    found = np.array([source[i]['label'] for i in range(len(source))])
  if len(np.unique(found)) < 2:
    raise ConfigError(f'evaluation needs at least two classes; all labels of the {split} split are '
                      f'{found[0]}')
  return found


def calibrated(experiment, params: PyTree, state: PyTree, source: Source,
               workers: int = 0, each: Callable[[], None] = lambda: None) -> PyTree:
  """`state` with normalisation statistics set by one pass over `source`; `each` as in `feed`."""
  if experiment.method.calibrate is None:
    return state
  whole = _without_padding(feed(source, experiment.mesh, workers, each=each),
                           len(source))
  return calibrate(experiment.method.calibrate, params, state, whole,
                   inputs=experiment.views.inputs)


def _without_padding(batches: Iterator[dict], length: int) -> Iterator[dict]:
  """Batches of `length` examples that are not filled up. Where an image could not be read another
  stands in its place, which statistics do not mind: one such image must not cost its batch."""
  seen = 0
  for batch in batches:
    seen += len(batch['id'])
    if seen <= length:
      yield {name: x for name, x in batch.items() if name != 'weight'}


def embed_split(experiment, params: PyTree, state: PyTree, source: Source, workers: int = 0,
                each: Callable[[], None] = lambda: None):
  """(representations float32 [N, D], labels int32 [N] or None) of every readable example; `each` as
  in `feed`."""
  return embed_all(experiment.method.embed, params, state,
                   feed(source, experiment.mesh, workers, each=each),
                   inputs=experiment.views.inputs)


def feed(source: Source, mesh, workers: int = 0, rows: int = 500,
         each: Callable[[], None] = lambda: None) -> Iterator[dict]:
  """One pass over `source` as global arrays; at most `rows` at once, spread over the devices.

  `each` is called before every batch; what it raises ends the pass.
  """
  shards = int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))
  size = max(1, min(rows, len(source)) // shards) * shards
  sharding = batch_sharding(mesh)
  mine = local_rows(sharding, size)
  for batch in in_order(source, batch_size=size, workers=workers):
    each()
    yield to_global({name: x[mine] for name, x in batch.items()}, sharding, size)


def _similarity(config, experiment: build.Experiment, ts: TrainState, tokenizer: Tokenizer
                ) -> Callable:
  towers = build.image_text_towers(config, experiment.mesh)
  images = _embedder(experiment, towers.image, ts.params, ts.state)
  words = texts.embedder(towers.text, ts.params, ts.state, tokenizer, config.data.length)
  return lambda some, captions: images(some) @ words(captions).T


def _embedder(experiment: build.Experiment, embed: Callable, params, state, chunk: int = 256
              ) -> Callable:
  inputs = experiment.views.inputs
  run = jax.jit(lambda images: embed(params, state, inputs({'image': images})))

  def embed_images(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
      raise ValueError(f'images must be uint8 [N, H, W, C], got {images.dtype}{images.shape}')
    if images.ndim == 3:
      images = images[..., None]
    pieces = []
    for start in range(0, len(images), chunk):
      piece = images[start:start + chunk]
      padding = [(0, chunk - len(piece))] + [(0, 0)] * 3
      pieces.append(np.asarray(run(np.pad(piece, padding)))[:len(piece)])
    return np.concatenate(pieces)

  return embed_images
