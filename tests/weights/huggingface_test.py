"""Hugging Face's folders: transformers' values for its weights, both ways, and what is refused.

golden/ holds random models of transformers 5.24.0 (torch 2.13.0) as its save_pretrained wrote them,
and in expected.safetensors what they compute; made by `benchmarks/weights_parity.py --write`.
"""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from ssl_jax.data import tokenize
from ssl_jax.models import language_heads
from ssl_jax.models.network import from_linen
from ssl_jax.models.transformer import ARCHITECTURES, LanguageModel, transformer
from ssl_jax.types import Mode
from ssl_jax.weights import WeightsError, families, from_huggingface, to_huggingface

GOLDEN = pathlib.Path(__file__).parent / 'golden'
NAMES = sorted(path.name for path in GOLDEN.iterdir())
SCANNED = [name for name in NAMES if not name.startswith('modernbert')]


def outputs(module, variables, given):
  """'hidden' [B, T, D], 'pooled' [B, D], and with a head 'logits', 'sentence'."""
  net = from_linen(module)
  inputs = {'tokens': given['input_ids'], 'segments': given['attention_mask']}
  if 'token_type_ids' in given:
    inputs['types'] = given['token_type_ids']

  @jax.jit
  def run(params):
    (pooled, output), _ = net.apply(params, {}, inputs, Mode())
    found = {'hidden': net.features(params, {}, inputs, ['tokens'])['tokens'], 'pooled': pooled}
    if isinstance(output, tuple):
      output, found['sentence'] = output
    matrix, bias = net.readout(params)
    if 'logits' in given:
      found['logits'] = output if output.ndim == 2 else output @ matrix.T
      found['logits'] += 0 if bias is None else bias[None, None]
    return found

  return run(variables['params'])


def assert_equal_outputs(found, expected):
  real = expected['attention_mask'].astype(bool)
  for name in set(found) & set(expected):
    rows = real if name in ('hidden', 'logits') else slice(None)
    np.testing.assert_allclose(found[name][rows], expected[name][rows], rtol=0, atol=1e-5,
                               err_msg=name)


def equal(a, b) -> bool:
  return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(
    jax.tree.map(np.array_equal, a, b))


@pytest.fixture
def copy(tmp_path):
  """Of a golden folder, its tensors and config changed by functions."""
  def make(name, tensors=lambda x: x, config=lambda x: x):
    folder = tmp_path / name
    shutil.copytree(GOLDEN / name, folder)
    path = folder / 'model.safetensors'
    save_file(tensors(load_file(path)), path)
    path = folder / 'config.json'
    path.write_text(json.dumps(config(json.loads(path.read_text()))))
    return folder

  return make


# --- transformers' values, names and shapes -------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
def test_equals_transformers(name):
  expected = load_file(GOLDEN / name / 'expected.safetensors')
  found = outputs(*from_huggingface(GOLDEN / name), expected)
  assert set(expected) - set(found) <= {'input_ids', 'attention_mask', 'token_type_ids'}
  assert_equal_outputs(found, expected)


@pytest.mark.parametrize('name', ['bert', 'gpt2_lm'])
def test_scanned_equals_transformers(name):
  expected = load_file(GOLDEN / name / 'expected.safetensors')
  module, variables = from_huggingface(GOLDEN / name, scan=True)
  assert module.backbone.scan
  assert variables['params']['backbone']['scanned']['qkv']['kernel'].shape == (2, 16, 48)
  assert_equal_outputs(outputs(module, variables, expected), expected)


def test_shapes_are_those_of_init():
  module, variables = from_huggingface(GOLDEN / 'bert', scan=True)
  inputs = {'tokens': jnp.zeros((1, 4), jnp.int32)}
  expected = jax.eval_shape(lambda key: module.init(key, inputs, Mode()), jax.random.key(0))
  assert equal(jax.tree.map(jnp.shape, variables), jax.tree.map(jnp.shape, dict(expected)))
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize('name, scan', [(name, False) for name in NAMES]
                         + [(name, True) for name in SCANNED])
def test_there_and_back(name, scan, tmp_path):
  """What is written are transformers' own tensors, to the bit, and it reads as the same model."""
  module, variables = from_huggingface(GOLDEN / name, scan=scan)
  to_huggingface(module, variables, tmp_path / 'new')
  theirs, ours = (load_file(folder / 'model.safetensors')
                  for folder in (GOLDEN / name, tmp_path / 'new'))
  if name == 'gpt2':  # Its output layer is tied: the same model with a head.
    theirs = {f'transformer.{key}': value for key, value in theirs.items()}
  poolers = {key for key in ours if 'pooler' in key and name != 'bert'}
  assert {*ours} - poolers == {*theirs} - poolers
  for key in {*ours} - poolers:
    np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
  for key in poolers:
    np.testing.assert_array_equal(ours[key], np.eye(16) if 'weight' in key else np.zeros(16))
  again, read = from_huggingface(tmp_path / 'new', scan=scan)
  assert again == module and equal(read, variables)


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_published_architectures_survive_a_config(name):
  a = ARCHITECTURES[name]
  head = language_heads.tied() if a.causal else language_heads.masked_lm()
  model_type, _, config = families.write_config(a, head)
  pad = {'pad_token_id': a.first_position - 1} if model_type == 'roberta' else {}
  _, _, read = families.read_config({**json.loads(json.dumps(config)), **pad}, None)
  assert read._replace(init=a.init) == a


def test_modernbert_as_transformers_4_wrote_it():
  """The settings of answerdotai/ModernBERT-base that shape the function."""
  config = dict(
    architectures=['ModernBertForMaskedLM'], model_type='modernbert', vocab_size=50368,
    hidden_size=768, num_hidden_layers=22, num_attention_heads=12, intermediate_size=1152,
    max_position_embeddings=8192, norm_eps=1e-5, norm_bias=False, local_attention=128,
    global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0,
    hidden_activation='gelu', classifier_activation='gelu', position_embedding_type='absolute')
  _, head, a = families.read_config(config, None)
  assert head == 'masked' and a == ARCHITECTURES['modernbert_base']


# --- what files may have --------------------------------------------------------------------------


def test_shards(copy):
  folder = copy('bert')
  tensors = load_file(folder / 'model.safetensors')
  halves = [dict(sorted(tensors.items())[i::2]) for i in range(2)]
  for i, half in enumerate(halves):
    save_file(half, folder / f'model-{i}.safetensors')
  index = {name: f'model-{i}.safetensors' for i, half in enumerate(halves) for name in half}
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  (folder / 'model.safetensors').unlink()
  assert equal(from_huggingface(folder)[1], from_huggingface(GOLDEN / 'bert')[1])
  (folder / 'model-1.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='model-1'):
    from_huggingface(folder)


def test_names_and_extras_of_old_files(copy):
  """As bert-base-uncased has them: gamma and beta, tied copies, numbers of positions, a pooler."""
  def age(tensors):
    old = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'): value for name, value in tensors.items()}
    return {**old, 'bert.embeddings.position_ids': np.arange(10)[None],
            'cls.predictions.decoder.weight': old['bert.embeddings.word_embeddings.weight'],
            'cls.predictions.decoder.bias': old['cls.predictions.bias']}

  folder = copy('bert', age, lambda config: {**config, 'architectures': ['BertForMaskedLM']})
  _, variables = from_huggingface(folder)
  _, expected = from_huggingface(GOLDEN / 'bert')
  for name in ('pooler', 'sentence'):
    del expected['params']['head'][name]
  assert equal(variables, expected)


def test_masks_in_old_files_of_gpt2(copy):
  folder = copy('gpt2', lambda x: {**x, 'h.0.attn.bias': np.ones((1, 1, 10, 10), np.float32),
                                   'h.0.attn.masked_bias': np.full((), -1e4, np.float32)})
  assert equal(from_huggingface(folder)[1], from_huggingface(GOLDEN / 'gpt2')[1])


def test_the_encoder_alone(copy):
  module, variables = from_huggingface(GOLDEN / 'bert', architecture='BertModel')
  assert module.head == language_heads.tied() and set(variables['params']) == {'backbone'}
  assert equal(variables['params']['backbone'],
               from_huggingface(GOLDEN / 'bert')[1]['params']['backbone'])
  nameless = copy('bert', config=lambda config: {**config, 'architectures': None})
  assert equal(from_huggingface(nameless)[1], variables)


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(dtype, copy):
  folder = copy('roberta', lambda x: {name: value.astype(dtype) for name, value in x.items()})
  _, variables = from_huggingface(folder)
  _, expected = from_huggingface(GOLDEN / 'roberta')
  assert equal(variables, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), expected))


# --- sentence-transformers ------------------------------------------------------------------------


def set_pooling(folder, config):
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(config))


def test_pooling(copy):
  folder = copy('bert_sentence')
  assert from_huggingface(folder)[0].backbone.pool == 'token'
  set_pooling(folder, dict(pooling_mode_cls_token=False, pooling_mode_mean_tokens=True))
  assert from_huggingface(folder)[0].backbone.pool == 'mean'
  set_pooling(folder, dict(pooling_mode='lasttoken'))
  assert from_huggingface(folder)[0].backbone.pool == 'last'
  assert from_huggingface(folder, pool='mean')[0].backbone.pool == 'mean'
  set_pooling(folder, dict(pooling_mode=['cls', 'max']))
  with pytest.raises(WeightsError, match='not cls and max'):
    from_huggingface(folder)


def test_modules_that_we_have_not(copy):
  folder = copy('bert_sentence')
  modules = json.loads((folder / 'modules.json').read_text())
  modules.append(dict(idx=2, name='2', path='2_Dense', type='sentence_transformers.models.Dense'))
  (folder / 'modules.json').write_text(json.dumps(modules))
  with pytest.raises(WeightsError, match='Transformer, Pooling, Dense'):
    from_huggingface(folder)


# --- what is refused ------------------------------------------------------------------------------


def test_missing_extra_and_misshapen_tensors_are_named(copy):
  def spoil(tensors):
    tensors['encoder.layer.1.intermediate.dense.bias'] = np.zeros(3, np.float32)
    tensors['embeddings.position_embeddings.weight'] = np.zeros((9, 16), np.float32)
    del tensors['encoder.layer.0.attention.self.key.weight']
    return tensors

  with pytest.raises(WeightsError) as error:
    from_huggingface(copy('bert_sentence', spoil))
  message = str(error.value)
  assert '1 missing: encoder.layer.0.attention.self.key.weight [16, 16]' in message
  assert '1 not expected: encoder.layer.1.intermediate.dense.bias [3]' in message
  assert ('1 of another shape: embeddings.position_embeddings.weight [9, 16], expected [10, 16]'
          in message)


def test_many_missing_tensors_are_counted(copy):
  keep = lambda tensors: {'bert.embeddings.LayerNorm.bias':
                          tensors['bert.embeddings.LayerNorm.bias']}
  with pytest.raises(WeightsError, match=r'45 missing: ([^;\n]+; ){9}[^;\n]+ \.\.\.$'):
    from_huggingface(copy('bert', keep))


@pytest.mark.parametrize('name, change, message', [
  ('bert', dict(model_type='t5'), "unknown model_type 't5'; known: bert, roberta"),
  ('bert', dict(architectures=['BertForQuestionAnswering']), "architecture='BertModel' reads"),
  ('bert', dict(position_embedding_type='relative_key'), 'position_embedding_type must be'),
  ('bert', dict(hidden_act='relu'), "hidden_act must be one of gelu, .*not 'relu'"),
  ('bert', dict(num_attention_heads=3), '3 heads do not divide'),
  ('bert', dict(num_hidden_layers='two'), 'num_hidden_layers must be an integer'),
  ('bert', dict(num_hidden_layers=1), r'16 not expected: bert\.encoder\.layer\.1\.'),
  ('roberta_masked_lm', dict(hidden_act='gelu_new'), 'exact GELU'),
  ('roberta', dict(pad_token_id=None), 'pad_token_id must be an integer'),
  ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx must be'),
  ('modernbert', dict(norm_bias=True), 'norm_bias must be False'),
  ('modernbert', dict(layer_types=['sliding_attention', 'full_attention']), 'from the first'),
  ('modernbert', dict(rope_parameters={'full_attention': {'rope_type': 'yarn'}}), 'rope_type')])
def test_settings_that_we_have_not(name, change, message, copy):
  with pytest.raises(WeightsError, match=message):
    from_huggingface(copy(name, config=lambda config: {**config, **change}))


@pytest.mark.parametrize('name, copied', [
  ('bert', 'cls.predictions.decoder.weight'), ('gpt2_lm', 'lm_head.weight')])
def test_an_output_layer_of_its_own(name, copied, copy):
  untied = np.zeros((36, 16), np.float32)
  with pytest.raises(WeightsError, match=f'{copied} is not equal to'):
    from_huggingface(copy(name, lambda tensors: {**tensors, copied: untied}))


def test_damaged_and_absent_files(copy):
  folder = copy('gpt2')
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(WeightsError, match='damaged'):
    from_huggingface(folder)
  path.rename(folder / 'pytorch_model.bin')
  with pytest.raises(WeightsError, match='needs torch'):
    from_huggingface(folder)
  (folder / 'pytorch_model.bin').unlink()
  with pytest.raises(FileNotFoundError):
    from_huggingface(folder)
  (folder / 'config.json').write_text('{')
  with pytest.raises(WeightsError, match='damaged'):
    from_huggingface(folder)
  (folder / 'config.json').write_text('[]')
  with pytest.raises(WeightsError, match='must hold a dict, got a list'):
    from_huggingface(folder)
  (folder / 'config.json').unlink()
  with pytest.raises(FileNotFoundError, match='config.json'):
    from_huggingface(folder)


def test_quantised_weights(copy):
  with pytest.raises(WeightsError, match='wte.weight is I8'):
    from_huggingface(copy('gpt2', lambda x: {**x, 'wte.weight': x['wte.weight'].astype(np.int8)}))


def test_options(copy):
  with pytest.raises(WeightsError, match='cannot be scanned'):
    from_huggingface(GOLDEN / 'modernbert', scan=True)
  with pytest.raises(WeightsError, match='pool must be one of'):
    from_huggingface(GOLDEN / 'bert', pool='max')


# --- writing --------------------------------------------------------------------------------------


def started(head=None, **options):
  """A small model of ours and its initial variables."""
  options = dict(width=16, depth=1, heads=2, vocabulary=64, length=12) | options
  module = LanguageModel(transformer(**options), head or language_heads.masked_lm())
  inputs = {'tokens': jnp.zeros((1, 4), jnp.int32)}
  return module, module.init(jax.random.key(0), inputs, Mode())


class Other(nn.Module):

  def __call__(self, tokens, first, a, mode):
    return tokens


@pytest.mark.parametrize('options, message', [
  (dict(types=0, architecture='roberta_base'), 'roberta: a table of sentence types is needed'),
  (dict(head=Other()), 'bert: no model with this head'),
  (dict(architecture='gpt2', head=language_heads.masked_lm()), 'gpt2: no model with this head'),
  (dict(activation='geglu'), "bert: activation must be gelu or gelu_tanh, not 'geglu'")])
def test_models_that_transformers_has_not(options, message, tmp_path):
  module, variables = started(**options)
  with pytest.raises(WeightsError, match=message):
    to_huggingface(module, variables, tmp_path / 'new')
  assert not list(tmp_path.iterdir())


def test_parameters_of_another_module(tmp_path):
  module, variables = started()
  other, _ = started(depth=2)
  with pytest.raises(WeightsError, match='12 missing: backbone/block2/fc1/bias'):
    to_huggingface(other, variables, tmp_path / 'new')
  with pytest.raises(WeightsError, match='expected a LanguageModel, got Transformer'):
    to_huggingface(module.backbone, variables, tmp_path / 'new')


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path, monkeypatch):
  module, variables = started()
  folder = tmp_path / 'new'
  monkeypatch.setattr('ssl_jax.weights.folders.write_modules', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    to_huggingface(module, variables, folder)
  assert not list(tmp_path.iterdir())
  monkeypatch.undo()
  folder.mkdir()
  to_huggingface(module, variables, folder)
  assert [path.name for path in tmp_path.iterdir()] == ['new']
  with pytest.raises(FileExistsError):
    to_huggingface(module, variables, folder)


def test_a_discriminator_as_wide_as_its_embedding(tmp_path):
  module, variables = started(language_heads.replaced_token())
  to_huggingface(module, variables, tmp_path / 'new')
  config = json.loads((tmp_path / 'new' / 'config.json').read_text())
  assert config['architectures'] == ['ElectraForPreTraining'] and config['embedding_size'] == 16
  assert equal(from_huggingface(tmp_path / 'new')[1], jax.device_get(dict(variables)))


@pytest.fixture
def tokenizer(tmp_path):
  path = tmp_path / 'words' / 'tokenizer.json'
  tokenize.train(['the cat sat on the mat', 'a dog ran'], size=48).save(path)
  return path


def test_a_tokenizer_is_written_beside(tokenizer, tmp_path):
  module, variables = started()
  to_huggingface(module, variables, tmp_path / 'new', tokenizer=tokenizer)
  written = tmp_path / 'new' / 'tokenizer.json'
  tokens = tokenize.load(written).encode(['the cat'])[0].tokens
  np.testing.assert_array_equal(tokens, tokenize.load(tokenizer).encode(['the cat'])[0].tokens)
  # What AutoTokenizer runs adds the special tokens, as our batches do.
  inner = tokenize.tokenizers.Tokenizer.from_file(str(written))
  vocabulary = tokenize.load(tokenizer).vocabulary
  assert inner.encode('the cat').ids == [vocabulary.cls, *tokens, vocabulary.sep]
  settings = json.loads((tmp_path / 'new' / 'tokenizer_config.json').read_text())
  assert settings['model_max_length'] == 12 and settings['mask_token'] == '[MASK]'
  assert 'token_type_ids' in settings['model_input_names']
  config = json.loads((tmp_path / 'new' / 'config.json').read_text())
  assert (config['pad_token_id'], config['eos_token_id']) == (vocabulary.pad, vocabulary.sep)


def test_a_tokenizer_with_more_tokens_than_the_model(tokenizer, tmp_path):
  module, variables = started(vocabulary=20)
  with pytest.raises(WeightsError, match='the model only 20'):
    to_huggingface(module, variables, tmp_path / 'new', tokenizer=tokenizer)


def test_positions_of_roberta_start_behind_padding(tokenizer, tmp_path):
  """transformers counts from the id of padding, 0 here; ours began at 2: the same function."""
  module, variables = started(architecture='roberta_base')
  to_huggingface(module, variables, tmp_path / 'new', tokenizer=tokenizer)
  other, read = from_huggingface(tmp_path / 'new')
  assert other.backbone.architecture.first_position == 1
  assert other.backbone.architecture.length == 11
  inputs = {'tokens': np.arange(10)[None]}
  h, _ = module.apply(variables, inputs, Mode())
  np.testing.assert_array_equal(other.apply(read, inputs, Mode())[0], h)


def test_files_are_those_of_torch(tmp_path):
  """Older versions of transformers ask for the metadata."""
  to_huggingface(*started(), tmp_path / 'new')
  with safetensors.safe_open(tmp_path / 'new' / 'model.safetensors', 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
