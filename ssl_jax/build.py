"""A config becomes objects: the only file that knows both names and modules.

Every section with a `name` is a function call, see `ssl_jax.schema`.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax import methods, views
from ssl_jax.data import (
  array_records,
  folders,
  image_text,
  sources,
  tensorflow_datasets,
  token_sources,
)
from ssl_jax.data.batches import batches
from ssl_jax.data.sources import RESERVED
from ssl_jax.data.tokenize import Tokenizer, load
from ssl_jax.models import convnet, heads, language_heads, mlp, resnet, transformer, vit
from ssl_jax.models.network import chunked, fixed_parameters, from_linen, with_head
from ssl_jax.models.norm import BatchNormPolicy
from ssl_jax.models.towers import TextTower, Towers, towers
from ssl_jax.parallel import BATCH_AXES, Placement, batch_axes, local, make_mesh, over
from ssl_jax.schema import (
  ConfigError,
  call,
  did_you_mean,
  find,
  fits,
  functions,
  modules,
  plain,
  signature,
)
from ssl_jax.train import optimizers, schedules
from ssl_jax.train.spikes import skip_spikes
from ssl_jax.train.step import Program, make_program
from ssl_jax.types import Method, Network, Views

TEXT = functions(token_sources)
IMAGE_TEXT = functions(image_text)
DATA = {**functions(sources), 'image_folder': folders.image_folder,
        'tfds': tensorflow_datasets.tfds, 'array_record': array_records.array_record,
        **TEXT, **IMAGE_TEXT}
NETWORKS = {**functions(resnet), **functions(convnet), **functions(vit),
            'transformer': transformer.transformer}
HEADS = {**functions(mlp), **functions(heads)}
LANGUAGE_HEADS = functions(language_heads)


class Shape(NamedTuple):
  """What building needs to know of data: how many examples, and shape and dtype of each field."""

  length: int
  fields: Mapping[str, jax.ShapeDtypeStruct]


class Experiment(NamedTuple):
  """What a config describes, before anything is computed.

  Attributes:
    source: the training data; None in an experiment that only embeds.
    views, method, tx, schedule: what the step is made of.
    mesh: where it runs.
    batch: shapes and dtypes of a raw global batch.
    steps: of the whole run.
  """

  source: Any
  views: Views
  method: Method
  tx: optax.GradientTransformation
  schedule: Callable
  mesh: Mesh
  batch: Mapping[str, jax.ShapeDtypeStruct]
  steps: int

  def program(self, config) -> Program:
    """The train step on the mesh. Raises ConfigError where config and data do not fit together."""
    try:
      return make_program(
        self.method, self.tx, self.batch, seed=config.seed, mesh=self.mesh,
        prepare=self.views.prepare, rules=config.sharding)
    except KeyError as error:  # a method of images with text, or the other way round
      raise ConfigError(f'config.method {config.method.name} needs the field {error}, which '
                        f'config.views {config.views.name} does not give') from error
    except (ValueError, TypeError, AssertionError, OverflowError, ZeroDivisionError) as error:
      fields = ', '.join(f'{name} {x.dtype}{list(x.shape)}' for name, x in self.batch.items())
      raise ConfigError(f'config and data do not fit together: {error} (a batch is {fields})'
                        ) from error


def experiment(config, devices: Sequence[Any] | None = None) -> Experiment:
  """Builds everything that training by `config` (a ConfigDict) needs.

  Args:
    config: see configs/ for examples.
    devices: to run on; all of this process group by default.

  Raises:
    ConfigError: with what was expected, what came and what to do.
  """
  check_numbers(config)
  mesh = _mesh(config, devices)
  _check_batch(config, mesh)
  train = source(config, crops=image_views(config).crops, training=True)
  _check_enough(config, len(train), _shards(mesh))
  _check_labels(config, train)
  _check_pairs(config)
  _check_vocabulary(config, train)
  return _build(config, mesh, shape_of(train), train)


def embedder(config, shape: Shape, devices: Sequence[Any] | None = None) -> Experiment:
  """The same for using what was trained: on any number of devices, without the training data."""
  config = config.copy_and_resolve_references()
  with config.unlocked(), config.ignore_type():
    config.mesh, config.sharding, config.microbatch = ConfigDict({'data': -1}), (), None
  return _build(config, _mesh(config, devices), shape, None)


def abstract(config, shape: Shape, devices: Sequence[Any]) -> Experiment:
  """The experiment that trains, without its data: for compiling the program on devices that need not
  be there, such as those of a TPU slice."""
  check_numbers(config)
  mesh = _mesh(config, devices)
  _check_batch(config, mesh)
  return _build(config, mesh, shape, ())


def _build(config, mesh: Mesh, shape: Shape, train) -> Experiment:
  per_epoch = max(1, shape.length // config.batch_size)
  steps = _steps(config, per_epoch)
  schedule = _schedule(config, steps, per_epoch)
  rows = config.batch_size if train is not None else _shards(mesh)
  return Experiment(
    source=train, views=image_views(config), method=method(config, over(mesh), shape.length),
    tx=_optimizer(config, schedule, steps), schedule=schedule,
    mesh=mesh, batch=_abstract_batch(shape, rows), steps=steps)


def _optimizer(config, schedule: Callable, steps: int) -> optax.GradientTransformation:
  spec = plain(config.optimizer)
  known = signature(find('optimizer', spec['name'], optimizers.OPTIMIZERS)) if 'name' in spec else {}
  facts = {'steps': steps} if 'steps' in known else {}
  tx = call('optimizer', spec, optimizers.OPTIMIZERS, schedule, **facts)
  return tx if config.skip_spikes is None else skip_spikes(tx, config.skip_spikes)


def shape_of(source) -> Shape:
  """Of the batches that training reads, which is not `source[0]` where a host crops."""
  batch = next(batches(source, batch_size=1, seed=0))
  return Shape(len(source), {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
                             for name, x in batch.items() if name not in RESERVED})


def source(config, split: str | None = None, crops: Mapping[str, Any] | None = None,
           training: bool = False):
  """The data of `config.data`; `split` replaces its own.

  What only training wants: `crops`, the views' wishes (`Views.crops`) for data that crop while they
  decode, and `training`, for text that is packed or paired. Without them every example is one whole
  image or one document, which is what evaluation wants.
  """
  spec = dict(config.data)
  if split is not None:
    spec['split'] = split
  takes = signature(find('data', spec['name'], DATA)) if 'name' in spec else ()
  given = dict(crops=crops, training=training)
  return call('data', spec, DATA, **{key: value for key, value in given.items() if key in takes})


def tokenizer(config) -> Tokenizer | None:
  """What turned the text of `config.data` into tokens; None where the data are no text.

  Raises:
    FileNotFoundError, DataError: it is not there any more, or damaged.
  """
  data = plain(config.data)
  if data.get('name') not in TEXT | IMAGE_TEXT:
    return None
  beside = data.get('path') if data['name'] in TEXT else None  # records keep theirs
  return load(data.get('tokenizer') or beside or token_sources.WORDNET_VOCABULARY)


def image_views(config) -> Views:
  return call('views', config.views, modules(views))


def network(config) -> Network:
  """Backbone and head as one network, in chunks if `config.microbatch` says so."""
  net = from_linen(module(config))
  if not config.microbatch:
    return net
  count = _views_at_once(config)
  groups = [size for size in _group_sizes(config).values() if size]
  return chunked(net, config.microbatch * count, block=math.lcm(*groups) if groups else count)


def module(config) -> nn.Module:
  """Backbone and head as one Linen module."""
  backbone = call('network', config.network, NETWORKS)
  if not isinstance(backbone, transformer.Transformer):
    return with_head(backbone, call('head', config.head, HEADS))
  return transformer.LanguageModel(backbone, call('head', config.head, LANGUAGE_HEADS))


def method(config, on_batch: Placement = local, examples: int | None = None) -> Method:
  """The method, with its loss head placed by `on_batch`.

  Args:
    config: what it says of the method, the networks and the length of the run.
    on_batch: see `ssl_jax.parallel`.
    examples: in the training data; None is one batch, for looking at a method without data.
  """
  spec = plain(config.method)
  known = signature(find('method', spec['name'], modules(methods))) if 'name' in spec else {}
  # Networks beside that of config.network are sections of their own.
  others = {key: _second_network(f'method.{key}', spec.pop(key), config.microbatch)
            for key, parameter in known.items() if parameter.annotation is Network and key in spec}
  examples = examples or config.batch_size
  epoch = max(1, examples // config.batch_size)
  facts = dict(steps=_steps(config, epoch), steps_per_epoch=epoch, examples=examples)
  others |= {key: value for key, value in facts.items() if key in known}
  made = call('method', spec, modules(methods), network(config), on_batch=on_batch, **others)
  return _freeze(made, module(config))


def _second_network(section: str, spec, microbatch: int | None) -> Network:
  """{'name': 'transformer', ...} as a network with the head of a masked language model, or as a tower
  with the projection that a section 'head' in it describes, in chunks; a head, such as a predictor,
  as it is."""
  spec = plain(spec)
  if spec.get('name') in HEADS:
    return from_linen(call(section, spec, HEADS))
  head = spec.pop('head', None)
  backbone = call(section, spec, {'transformer': transformer.transformer})
  if head is None:
    return from_linen(transformer.LanguageModel(backbone, language_heads.masked_lm()))
  tower = from_linen(TextTower(backbone, call(f'{section}.head', head, HEADS)))
  return chunked(tower, microbatch) if microbatch else tower


def has_text_tower(config) -> bool:
  """Whether the method learns from images and texts together."""
  return isinstance(plain(config.method).get('text'), Mapping)


def image_text_towers(config, mesh: Mesh | None = None) -> Towers:
  """What compares images and texts in a method with a text tower, outside training."""
  return towers(from_linen(module(config)), _second_network('method.text', config.method.text, None),
                mesh=mesh)


def _freeze(made: Method, module: nn.Module) -> Method:
  """`made`, with what `module` never trains kept from the optimizer too, whose decay would act."""
  if not getattr(module, 'fixed', ()):
    return made

  def frozen(params, step):
    fixed = fixed_parameters(module, params)
    if made.frozen is None:
      return fixed
    return jax.tree.map(lambda a, b: a | b, fixed, made.frozen(params, step))

  return made._replace(frozen=frozen)


def _views_at_once(config) -> int:
  """Rows that go through the encoder together for each example."""
  if config.method.get('separate_views', _views_apart(config)):
    return 1
  views = image_views(config)
  if 'crops' in views.crops:
    return len(views.crops['crops'])
  return config.views.get('views', 2 if 'views' in signature(_views_builder(config)) else 1)


def _views_apart(config) -> bool:
  """Whether the method runs the network on one view after the other, as its module says."""
  builder = find('method', config.method.name, modules(methods))
  return getattr(sys.modules[builder.__module__], 'SEPARATE_VIEWS', False)


def _views_builder(config) -> Callable:
  return find('views', config.views.name, modules(views))


def defaults(config) -> list[tuple[str, Any]]:
  """(field, default) of everything that the named functions take and the config does not set."""
  choices = dict(
    data=DATA, views=modules(views), head=HEADS | LANGUAGE_HEADS, network=NETWORKS,
    method=modules(methods), optimizer=optimizers.OPTIMIZERS)
  found = []
  for section, known in choices.items():
    spec = plain(config.get(section) or {})
    if spec.get('name') in known:
      found += [(f'{section}.{key}', getattr(p.default, '__name__', p.default))
                for key, p in signature(known[spec['name']]).items()
                if key not in spec and key not in NOT_IN_CONFIGS and p.default is not p.empty]
  return found


# --- checks that need more than one section -------------------------------------------------------

# Axes of a mesh: 'data' and 'fsdp' hold parts of the batch, 'tensor' copies.
AXES = (*BATCH_AXES, 'tensor')

# Arguments that are no business of a config: build.py fills them in.
NOT_IN_CONFIGS = ('on_batch', 'crops', 'training', 'steps', 'steps_per_epoch', 'examples')

# Sections that are calls, see `ssl_jax.schema`.
NAMED = ('data', 'views', 'network', 'head', 'method', 'optimizer', 'schedule')
REQUIRED = ('seed', 'data', 'batch_size', 'views', 'network', 'head', 'method', 'optimizer',
            'schedule')
OPTIONAL = dict(
  steps=None,  # of the whole run; or
  epochs=None,
  microbatch=None,  # examples that go through the encoder at once; None: the whole batch
  mesh=dict(data=-1),  # axis -> devices; -1 takes all that are left
  sharding=(),  # (pattern, axis) pairs, see parallel.infer_sharding
  workers=0,  # processes that read data
  patience=10,  # steps in a row that may be not finite
  skip_spikes=None,  # standard deviations from which a step is undone, such as 6; None: never
  log_every=50,
  checkpoint=dict(every=1000, keep=3),
  evaluate=dict(every=None, health_every=100, train_split='train', test_split='test'),
)


# The step is counted in int32, keys are made of 32 bits.
LARGEST = dict(seed=2**32 - 1, steps=2**31 - 1)


def complete(config) -> ConfigDict:
  """`config` with every optional field present.

  Raises:
    ConfigError: a field is missing, unknown, or of the wrong kind.
  """
  full = ConfigDict(OPTIONAL)
  with full.ignore_type():
    for key, value in config.items():
      if key not in (*REQUIRED, *OPTIONAL):
        raise ConfigError(f'config.{key} is unknown{did_you_mean(key, (*REQUIRED, *OPTIONAL))}')
      _check_section(key, value)
      if key in ('checkpoint', 'evaluate'):
        for name, inner in value.items():
          if name not in OPTIONAL[key]:
            raise ConfigError(f'config.{key}.{name} is unknown{did_you_mean(name, OPTIONAL[key])}')
          full[key][name] = inner
      else:
        full[key] = value
  for key in REQUIRED:
    if key not in full:
      raise ConfigError(f'config.{key} is missing')
  return full


def _check_section(key: str, value) -> None:
  if key in (*NAMED, 'mesh', 'checkpoint', 'evaluate'):
    if not isinstance(value, (Mapping, ConfigDict)):
      example = 'name' if key in NAMED else next(iter(OPTIONAL[key]))
      raise ConfigError(f'config.{key} must be a section, such as dict({example}=...), got {value!r}')
    if key in NAMED and not isinstance(value.get('name'), str):
      raise ConfigError(f'config.{key} needs a name, got {dict(value)}')


def check_numbers(config) -> None:
  """Raises ConfigError for a count that is not a whole number, or too small."""
  counts = dict(seed=0, batch_size=1, steps=1, microbatch=1, workers=0, patience=1, log_every=1)
  periods = {'checkpoint.every': 0, 'checkpoint.keep': 1, 'evaluate.every': 0,
             'evaluate.health_every': 0}
  for key, low in {**counts, **periods}.items():
    section, _, name = key.rpartition('.')
    value = (config[section] if section else config)[name]
    if value is None and key not in ('seed', 'batch_size', 'workers', 'patience', 'log_every'):
      continue
    if type(value) is not int or value < low:
      raise ConfigError(f'config.{key} must be a whole number of at least {low}, got {value!r}')
    if value > LARGEST.get(key, value):
      raise ConfigError(f'config.{key} must be at most {LARGEST[key]:,}, got {value:,}')
  spikes = config.skip_spikes
  if spikes is not None and not (fits(spikes, float) and 0 < spikes < math.inf):
    raise ConfigError('config.skip_spikes must be a number of standard deviations above 0, such as '
                      f'6, or None, got {spikes!r}')


def _mesh(config, devices) -> Mesh:
  for axis in config.mesh:
    if axis not in AXES:
      raise ConfigError(f'config.mesh.{axis} is unknown{did_you_mean(axis, AXES)}')
    if type(config.mesh[axis]) is not int:
      raise ConfigError(f'config.mesh.{axis} must be a number of devices, or -1 for all that are left, '
                        f'got {config.mesh[axis]!r}')
  try:
    return make_mesh(config.mesh.to_dict(), devices)
  except ValueError as error:
    raise ConfigError(f'config.mesh: {error}') from error


def _check_batch(config, mesh: Mesh) -> None:
  """The batch and its chunks must split evenly over the devices that hold rows."""
  shards = _shards(mesh)
  for key in ('batch_size', 'microbatch'):
    n = config[key]
    if n and n % shards:
      lower, upper = n // shards * shards, (n // shards + 1) * shards
      nearest = f'{lower} or {upper}' if lower else f'{upper}'
      raise ConfigError(f'config.{key} is {n}, which does not split over {shards} devices; '
                        f'use {nearest}')
  chunk = config.microbatch
  if chunk and config.batch_size % chunk:
    raise ConfigError(f'config.microbatch is {chunk}, which does not divide the batch of '
                      f'{config.batch_size}; use {_divisors(config.batch_size, chunk, shards)}')
  rows = (chunk or config.batch_size) * _views_at_once(config)
  for section, group in _group_sizes(config).items():
    if group and rows % group:
      raise ConfigError(f'config.{section}.batch_norm.group_size is {group}, which does not divide '
                        f'the {rows} rows that the network sees at once; use {_divisors(rows, group)}')


def _divisors(n: int, near: int, multiple_of: int = 1) -> str:
  """The divisors of `n` that are nearest: '16 or 24'."""
  found = [d for d in range(multiple_of, n + 1, multiple_of) if n % d == 0]
  return ' or '.join(map(str, sorted(sorted(found, key=lambda d: abs(d - near))[:2])))


def _check_enough(config, count: int, shards: int) -> None:
  """Every batch is of examples that differ."""
  if count < shards:
    raise ConfigError(f'the data have only {count} examples, fewer than the {shards} devices that take '
                      f'part; use fewer')
  if count < config.batch_size:
    raise ConfigError(f'config.batch_size is {config.batch_size}, but the data have only {count} '
                      f'examples; use at most {count // shards * shards}')


def _check_labels(config, train) -> None:
  """A classifier needs an output for every class; known before training where labels are at hand."""
  if config.method.name != 'supervised':
    return
  labels = getattr(train, 'labels', None)
  if labels is None:
    return
  low, high = int(labels.min()), int(labels.max())
  if low < 0 or high >= config.head.out:
    raise ConfigError(f'config.head.out is {config.head.out}, but the labels of the data go from '
                      f'{low} to {high}; use config.head.out={high + 1}')


# What the second sentence of a pair is, for the methods that ask it; a batch of pairs does not say.
PAIRS = dict(masked_lm_nsp='nsp', sop='sop')


def _check_pairs(config) -> None:
  """A question about two sentences must be the one that the data were made for."""
  wanted, given = PAIRS.get(config.method.name), config.data.get('pairs')
  if wanted and given and given != wanted:
    raise ConfigError(f"config.method {config.method.name} asks for config.data.pairs='{wanted}', "
                      f"but it is '{given}'; change it, or use config.method.name="
                      f"{next(name for name, pairs in PAIRS.items() if pairs == given)}")


def _check_vocabulary(config, train) -> None:
  """The network's table and the masks must know the tokens that the data have."""
  known = getattr(train, 'vocabulary', None)
  if known is None:
    return
  facts = dict(vocabulary=known.size, mask=known.mask, special=known.special)
  sections = {'network': network_vocabulary(config)}
  if has_text_tower(config):
    sections['method.text'] = network_vocabulary(config, 'method.text')
  if config.views.name == 'masks':
    sections['views'] = dict(config.views)
    if known.mask is None:
      raise ConfigError('the tokenizer of config.data has no mask token, which masks need; add one, '
                        'or train a tokenizer with `python -m ssl_jax tokenizer train`')
  for section, given in sections.items():
    for name in sorted({*facts} & {*given}):
      value, expected = plain(given[name]), facts[name]
      fits = value >= expected if section != 'views' and name == 'vocabulary' else value == expected
      if not fits:
        raise ConfigError(f'config.{section}.{name} is {value}, but the tokenizer of config.data has '
                          f'{expected}; use config.{section}.{name}={expected}')


def network_vocabulary(config, section: str = 'network') -> dict[str, int]:
  """{'vocabulary': how many tokens the network of a section knows}, {} for networks of images."""
  spec = {key: value for key, value in config[section].items() if key != 'head'}
  backbone = call(section, spec, NETWORKS)
  architecture = getattr(backbone, 'architecture', None)
  return {} if architecture is None else {'vocabulary': architecture.vocabulary}


def _shards(mesh: Mesh) -> int:
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def _group_sizes(config) -> dict[str, int | None]:
  sizes = {}
  for section in ('network', 'head'):
    try:
      sizes[section] = BatchNormPolicy.of(plain(config[section].get('batch_norm'))).group_size
    except (ValueError, TypeError) as error:
      raise ConfigError(f'config.{section}.batch_norm: {error}') from error
  return sizes


def _steps(config, per_epoch: int) -> int:
  steps, epochs = config.steps, config.epochs
  if (steps is None) == (epochs is None):
    raise ConfigError(f'give either config.steps or config.epochs, got {steps} and {epochs}')
  if epochs is not None and not (fits(epochs, float) and 0 < epochs * per_epoch <= LARGEST['steps']):
    raise ConfigError(f'config.epochs must be a number above 0 and at most '
                      f'{LARGEST["steps"] // per_epoch:,}, got {epochs!r}')
  return steps or max(1, round(epochs * per_epoch))


def _schedule(config, steps: int, per_epoch: int) -> Callable:
  def scaled(learning_rate: float, scaling: str | None) -> float:
    return schedules.scale_learning_rate(learning_rate, batch_size=config.batch_size, rule=scaling)

  def warmup(warmup_steps: int | None, warmup_epochs: float) -> int:
    return round(warmup_epochs * per_epoch) if warmup_steps is None else warmup_steps

  def warmup_cosine(
      *, learning_rate: float, scaling: str | None = None, warmup_steps: int | None = None,
      warmup_epochs: float = 0.0, final: float = 0.0):
    return schedules.warmup_cosine(
      scaled(learning_rate, scaling), steps=steps, warmup_steps=warmup(warmup_steps, warmup_epochs),
      final=final)

  def warmup_linear(
      *, learning_rate: float, scaling: str | None = None, warmup_steps: int | None = None,
      warmup_epochs: float = 0.0, final: float = 0.0, form: str = 'after'):
    return schedules.warmup_linear(
      scaled(learning_rate, scaling), steps=steps, warmup_steps=warmup(warmup_steps, warmup_epochs),
      final=final, form=form)

  def constant(*, learning_rate: float, scaling: str | None = None):
    return schedules.constant(scaled(learning_rate, scaling))

  return call('schedule', config.schedule, dict(
    warmup_cosine=warmup_cosine, warmup_linear=warmup_linear, constant=constant))


def _abstract_batch(shape: Shape, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  batch = {name: jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for name, x in shape.fields.items()}
  counter = jax.ShapeDtypeStruct((size,), np.uint32)
  return {**batch, 'id': counter, 'epoch': counter}
