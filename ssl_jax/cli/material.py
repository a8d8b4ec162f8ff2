"""What the protocols of `ssl_jax.evals.protocols` work on, made from a run and its data."""

import sys
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import build, runs
from ssl_jax.data.batches import batches, in_order
from ssl_jax.data.sources import Source
from ssl_jax.evals.features import embed_all
from ssl_jax.evals.protocols import Material, Trainable
from ssl_jax.parallel import batch_axes, batch_sharding
from ssl_jax.train.step import example_keys
from ssl_jax.types import Batch, Mode
from ssl_jax.views import supervised

# Protocols that look at images again instead of at features that were embedded once.
ON_IMAGES = ('finetune', 'percent_1', 'percent_10')


def material(run: runs.Run, data: runs.Splits, classes: int, names: Sequence[str],
             seed: int) -> Material:
  """Features of both splits by the calibrated encoder, and what else `names` need.

  `percent_1` and `percent_10` fine-tune the network, as published.
  """
  workers = run.config.workers
  print(f'embedding by {run.config.method.name} ...', file=sys.stderr, flush=True)
  state = runs.calibrated(run.experiment, run.params, run.state, data.train, workers)
  train, test = (runs.embed_split(run.experiment, run.params, state, s, workers) for s in data)
  crop = random_crop(run, seed)
  return Material(
    *train, *test, classes=classes,
    mesh=run.experiment.mesh if run.experiment.mesh.size > 1 else None,
    augmented=lambda epoch: [embed_all(
      run.experiment.method.embed, run.params, state,
      _of_epoch(runs.feed(data.train, run.experiment.mesh, workers), epoch), inputs=crop)],
    layers=_layers(run, state, data) if 'dinov2_grid' in names else {},
    trainable=_trainable(run, state, data, crop, len(train[0])) if (
      set(names) & set(ON_IMAGES)) else None)


def random_crop(run: runs.Run, seed: int) -> Callable[[Batch], jax.Array]:
  """batch -> inputs: a random crop and flip of each 'image', from (seed, epoch, id)."""
  side = run.experiment.views.inputs
  size = jax.eval_shape(side, {'image': _one_image(run)}).shape[1]
  views = supervised.build(size=size, mean=None, std=None)
  key = jax.random.key(seed)

  def crop(batch: Batch) -> jax.Array:
    keys = example_keys(key, batch['epoch'], batch['id'])
    cropped = views.prepare(keys, {'image': batch['image']})['views'][:, 0]
    # Through the run's own normalisation, which takes images of 8 bits as they are at this size.
    return run.experiment.views.inputs({'image': jnp.round(cropped * 255).astype(jnp.uint8)})

  return crop


def _one_image(run: runs.Run) -> jax.ShapeDtypeStruct:
  """As evaluation sees it: where a host crops, batches of training have no 'image'."""
  fields = run.experiment.batch
  if 'image' in fields:
    return fields['image']
  size, channels = run.config.data.get('size', 256), fields['crops'].shape[-1]
  return jax.ShapeDtypeStruct((1, size, size, channels), np.uint8)


def _of_epoch(passes: Iterator[dict], epoch: int) -> Iterator[dict]:
  for batch in passes:
    yield batch | {'epoch': jnp.full_like(batch['id'], epoch)}


def _layers(run: runs.Run, state, data: runs.Splits) -> dict:
  """For a ViT the class token beside the mean of the patches, as DINOv2's grid has it."""
  if not run.config.network.name.startswith('vit_') or run.config.network.get('pool') == 'mean':
    return {}
  network = build.network(run.config)

  def both(params, state, inputs):
    tokens = network.features(*run.method.encoder(params, state), inputs, ('tokens',))['tokens']
    return jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)

  pairs = (embed_all(both, run.params, state, runs.feed(source, run.experiment.mesh,
                                                        run.config.workers),
                     inputs=run.experiment.views.inputs)[0] for source in data)
  return {'class token and mean of patches': tuple(pairs)}


def _readable(source: Source, count: int, workers: int) -> np.ndarray:
  """Numbers of the `count` examples that can be read: the rows of the features."""
  if count == len(source):
    return np.arange(count)
  return np.concatenate([batch['id'][batch['weight'] > 0] for batch in in_order(
    source, batch_size=min(500, len(source)), workers=workers)])


def _trainable(run: runs.Run, state, data: runs.Splits, crop, rows: int) -> Trainable:
  config = run.config.copy_and_resolve_references()
  config.microbatch = None
  network, mesh = build.network(config), run.experiment.mesh
  shards = int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))
  readable = _readable(data.train, rows, config.workers)

  def encode(params, state, inputs, *, train):
    key = jax.random.key(0) if train else None
    (representation, _), state = network.apply(params, state, inputs, Mode(train=train), key=key)
    return representation, state

  def train_batches(rows, *, batch_size, seed):
    stream = batches(Subset(data.train, readable[rows]), batch_size=batch_size, seed=seed,
                     workers=config.workers)
    for batch in stream:
      spread = batch_size % shards == 0
      yield jax.device_put(batch, batch_sharding(mesh)) if spread else batch

  return Trainable(
    encode, *run.method.encoder(run.params, state), train_batches=train_batches,
    test_batches=lambda: runs.feed(data.test, mesh, config.workers),
    train_inputs=crop, inputs=run.experiment.views.inputs, batch_size=config.batch_size)


class Subset:
  """Some rows of a source, read as evaluation reads them: whole images."""

  def __init__(self, source: Source, rows: np.ndarray):
    self._source, self._rows = source, np.asarray(rows)
    self.unreadable = getattr(source, 'unreadable', 0.0)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return self._source[int(self._rows[index])]

  def fingerprint(self) -> str:
    return f'{len(self._rows)} rows of {self._source.fingerprint()}'
