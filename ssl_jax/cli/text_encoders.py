"""Text encoders that `finetune` starts from: of a run, or of a folder of weights."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from ssl_jax import build, runs
from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import Tokenizer, load
from ssl_jax.evals.text_heads import Encode
from ssl_jax.evals.text_rows import STEP
from ssl_jax.models.transformer import Transformer
from ssl_jax.parallel import make_mesh
from ssl_jax.schema import ConfigError, call
from ssl_jax.types import Mode, PyTree

LENGTH = 128  # tokens, of weights from elsewhere


class Pretrained(NamedTuple):
  """An encoder to start from.

  name: for the table.
  backbone: the module; `params` are its own, `pooler` those of a tanh layer on the first token.
  start: () -> params as they were initialised.
  tokenizer, length: of rows.
  about: for the result: the run and its step, or the folder of weights.
  """

  name: str
  backbone: Transformer
  params: PyTree
  pooler: PyTree | None
  start: Callable[[], PyTree]
  tokenizer: Tokenizer
  length: int
  mesh: Mesh | None
  about: dict[str, Any]


def pretrained(args) -> Pretrained:
  """The encoder of --workdir or --weights, with the dropout of fine-tuning.

  Raises:
    ConfigError: no run on text, a tokenizer or a length that does not fit the encoder.
    DataError: weights that cannot be read.
  """
  found = _of_run(args) if args.workdir else _of_weights(args)
  a = found.backbone.architecture
  most = a.length - a.first_position if a.position == 'learned' else None
  if most is not None and (args.length or 0) > most:
    raise ConfigError(f'--length={args.length} is longer than the {most} positions of the encoder')
  if args.length and args.length > found.length:
    print(f'rows of {args.length} tokens, longer than the {found.length} of pretraining',
          file=sys.stderr)
  size = found.tokenizer.vocabulary.size
  if size > a.vocabulary:
    raise ConfigError(f'the tokenizer has {size:,} tokens, the encoder knows {a.vocabulary:,}; '
                      'give the one of pretraining with --tokenizer=FILE')
  a = a._replace(dropout=args.dropout, attention_dropout=args.dropout)
  mesh = found.mesh if found.mesh.size > 1 else None
  return found._replace(backbone=found.backbone.clone(architecture=a), mesh=mesh,
                        length=args.length or min(found.length, most or found.length),
                        pooler=found.pooler if args.pool == 'token' else None)


def _of_run(args) -> Pretrained:
  config = runs.read_config(args.workdir)
  backbone = call('network', config.network, build.NETWORKS)
  if not isinstance(backbone, Transformer):
    raise ConfigError(f'{args.workdir} is no run on text; `python -m ssl_jax evaluate '
                      '--protocols=finetune` is for images')
  run = runs.load(args.workdir, step=args.step)
  tokenizer = load(args.tokenizer) if args.tokenizer else run.tokenizer or build.tokenizer(config)
  if tokenizer is None:
    raise ConfigError(f'{config.data.name} has no tokenizer; give --tokenizer=FILE')
  params, _ = run.method.encoder(run.params, run.state)

  def start():
    first = runs.initial_state(run)
    return run.method.encoder(first.params, first.state)[0]['backbone']

  return Pretrained(
    config.method.name, backbone, params['backbone'], params.get('head', {}).get('pooler'), start,
    tokenizer, config.data.get('length', LENGTH), run.experiment.mesh,
    dict(workdir=str(args.workdir), step=run.step))


def _of_weights(args) -> Pretrained:
  try:
    from ssl_jax.weights import WeightsError, from_huggingface
  except ImportError as error:
    raise ConfigError(f'--weights: this version of ssl_jax reads no weights ({error})') from error
  try:
    module, variables = from_huggingface(args.weights)
  except WeightsError as error:
    raise DataError(str(error)) from error
  params, backbone = variables['params'], module.backbone

  def start():
    tokens = dict(tokens=np.zeros((1, STEP), np.int32))
    return backbone.init(jax.random.key(0), tokens, Mode())['params']

  return Pretrained(
    pathlib.Path(args.weights).resolve().name, backbone, params['backbone'],
    params.get('head', {}).get('pooler'), start, load(args.tokenizer or args.weights), LENGTH,
    make_mesh(), dict(weights=str(args.weights)))


def encode_with(backbone: nn.Module, mesh: Mesh | None) -> Encode:
  """What `evals.text_finetune.finetune` wants of an encoder."""
  def encode(params, inputs, *, key):
    mode = Mode(train=key is not None, mesh=mesh)
    rngs = {} if key is None else dict(dropout=key)
    return backbone.apply({'params': params}, inputs, mode, rngs=rngs)

  return encode
