"""Every variant of every config describes something that can be built, without its data."""

import inspect
import pathlib
import re

import jax
import numpy as np
import pytest

from ssl_jax import build, schema
from ssl_jax.cli import finetune
from ssl_jax.cli.options import load_config
from ssl_jax.evals.text_metrics import TASKS

ALL = sorted((pathlib.Path(__file__).parent.parent / 'configs').glob('*.py'))
FINETUNING = [path for path in ALL if path.stem.startswith('finetune_')]  # options, no experiments
CONFIGS = [path for path in ALL if path not in FINETUNING]


def variants(path: pathlib.Path) -> list[str]:
  """The variants that its docstring names."""
  return ['', *re.findall(r'`:(\w+)`', path.read_text().split('"""')[1])]


VARIANTS = [(path, variant) for path in CONFIGS for variant in variants(path)]
each_variant = pytest.mark.parametrize(
  'path, variant', VARIANTS, ids=[f'{path.stem}:{variant}' for path, variant in VARIANTS])


def fields_of(config) -> dict[str, jax.ShapeDtypeStruct]:
  """What an example of its data has."""
  number = jax.ShapeDtypeStruct((), np.int32)
  if config.network.name == 'transformer':
    row = jax.ShapeDtypeStruct((config.data.length,), np.int32)
    names = ['tokens', 'segments', 'positions', 'words']
    pairs = config.data.get('pairs') is not None
    return dict.fromkeys(names + ['types'] * pairs, row) | ({'next': number} if pairs else {})
  side, channels = config.data.get('size', 28), 1 if 'fashion_mnist' in config.data.name else 3
  fields = {'image': jax.ShapeDtypeStruct((side, side, channels), np.uint8), 'label': number}
  if config.data.name in build.IMAGE_TEXT:
    row = jax.ShapeDtypeStruct((config.data.length,), np.int32)
    fields |= dict.fromkeys(['tokens', 'segments'], row)
  return fields


@each_variant
def test_can_be_built(path, variant):
  config = load_config(f'{path}:{variant}')
  arguments = schema.signature(schema.find('data', config.data.name, build.DATA))
  assert set(config.data) - {'name'} <= set(arguments)
  experiment = build.embedder(config, build.Shape(10**6, fields_of(config)))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), experiment.batch['id'].shape[0]))
  batch = jax.eval_shape(experiment.views.prepare, keys, experiment.batch)
  params, state = jax.eval_shape(experiment.method.init, jax.random.key(0), batch)
  jax.eval_shape(experiment.tx.init, params)
  assert experiment.steps >= 1
  one_view = (jax.eval_shape(lambda views: views[:, 0], batch['views']) if 'views' in batch else
              jax.eval_shape(experiment.views.inputs, experiment.batch))
  embedding = jax.eval_shape(experiment.method.embed, params, state, one_view)
  assert embedding.ndim == 2 and embedding.dtype == np.float32


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_has_the_variants_that_all_have_and_refuses_others(path):
  assert {'smoke', 'local'} <= {variant for other, variant in VARIANTS if other == path}
  with pytest.raises(build.ConfigError, match='unknown variant'):
    load_config(f'{path}:nothing')


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_says_what_to_expect(path):
  text = inspect.cleandoc(path.read_text().split('"""')[1])
  assert 'Expected:' in text or 'demo of the README' in text
  assert f'python -m ssl_jax train --config=configs/{path.name}' in text


@pytest.mark.parametrize('path', FINETUNING, ids=lambda path: path.stem)
def test_of_fine_tuning_holds_options(path):
  for variant in variants(path):
    args = finetune.options([f'--config={path}:{variant}', '--workdir=x'])
    assert args.task == {'': 'mrpc', 'smoke': 'wordnet'}.get(variant, variant)
    assert args.config is None and args.learning_rates
  with pytest.raises(build.ConfigError, match='unknown variant'):
    finetune.options([f'--config={path}:nothing', '--workdir=x'])
  text = path.read_text().split('"""')[1]
  assert {'smoke', *TASKS} == set(variants(path)) - {''} and 'Expected' in text
  assert f'python -m ssl_jax finetune --config=configs/{path.name}' in text


def test_pairs_that_a_method_does_not_ask_for_are_refused():
  path = next(path for path in CONFIGS if path.stem == 'albert_wordnet')
  config = load_config(f'{path}:smoke')
  config.data.pairs = 'nsp'
  with pytest.raises(build.ConfigError, match="sop asks for config.data.pairs='sop'.*masked_lm_nsp"):
    build.experiment(config)
