"""Folders as transformers and sentence-transformers write them, as files."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import tokenizers
from safetensors.numpy import save_file
from tokenizers import processors

from ssl_jax.data.tokenize import Tokenizer, Vocabulary, load
from ssl_jax.models.transformer import Architecture
from ssl_jax.weights.families import WeightsError

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_DTYPES = ('F64', 'F32', 'F16', 'BF16')
_POOLING = dict(cls='token', mean='mean', lasttoken='last')
# Older than 'pooling_mode'; sentence-transformers reads both.
_LEGACY = dict(
  pooling_mode_cls_token='cls', pooling_mode_mean_tokens='mean', pooling_mode_max_tokens='max',
  pooling_mode_mean_sqrt_len_tokens='mean_sqrt_len_tokens',
  pooling_mode_weightedmean_tokens='weightedmean', pooling_mode_lasttoken='lasttoken')


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
  """Raises FileNotFoundError, and WeightsError for what is no JSON of this kind."""
  if not path.is_file():
    raise FileNotFoundError(2, 'no such file', str(path))
  try:
    value = json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise WeightsError(f'{path} is damaged: {error}') from error
  if not isinstance(value, kind):
    raise WeightsError(f'{path} must hold a {kind.__name__}, got a {type(value).__name__}')
  return value


# --- tensors --------------------------------------------------------------------------------------


class Tensors:
  """The tensors of a folder, in one file or in several; each is read when it is asked for."""

  def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
    """Raises FileNotFoundError, and WeightsError for files that are damaged."""
    self._files = {}
    for path in _files(folder):
      try:
        file = stack.enter_context(safetensors.safe_open(path, framework='numpy'))
      except safetensors.SafetensorError as error:
        raise WeightsError(f'{path} is damaged: {error}') from error
      self._files.update({name: file for name in file.keys()})

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def shape(self, name: str) -> tuple[int, ...]:
    return tuple(self._files[name].get_slice(name).get_shape())

  def read(self, name: str) -> np.ndarray:
    """In float32. Raises WeightsError for what is no floating-point number."""
    dtype = self._files[name].get_slice(name).get_dtype()
    if dtype not in _DTYPES:
      raise WeightsError(f'{name} is {dtype}; only {", ".join(_DTYPES)} are read')
    return np.asarray(self._files[name].get_tensor(name), np.float32)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  if (folder / WEIGHTS).is_file():
    return [folder / WEIGHTS]
  if (folder / INDEX).is_file():
    names = sorted(set(read_json(folder / INDEX)['weight_map'].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
      raise FileNotFoundError(2, f'files named in {INDEX} are missing', str(folder / missing[0]))
    return [folder / name for name in names]
  if (folder / 'pytorch_model.bin').is_file():
    raise WeightsError(f'{folder} has pytorch_model.bin, which needs torch; save it as {WEIGHTS} '
                       'with save_pretrained of transformers first')
  raise FileNotFoundError(2, f'neither {WEIGHTS} nor {INDEX}', str(folder))


@contextlib.contextmanager
def replacing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A temporary folder beside, which becomes `folder` when nothing was raised.

  Raises:
    FileExistsError: `folder` has something in it.
  """
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise FileExistsError(17, 'not overwritten; give a new or an empty folder', str(folder))
  partial = folder.parent / f'.{folder.name}.{os.getpid()}.partial'
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    partial.replace(folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def write_model(folder: pathlib.Path, config: Mapping[str, Any],
                tensors: Mapping[str, np.ndarray]) -> None:
  save_file(dict(tensors), folder / WEIGHTS, {'format': 'pt'})
  write_json(folder / 'config.json', config)


def write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')


# --- sentence-transformers ------------------------------------------------------------------------


def read_modules(folder: pathlib.Path) -> tuple[pathlib.Path, str | None]:
  """The folder of the Transformer, and how its tokens are pooled, None where nothing says so.

  Raises:
    WeightsError: modules that we have not, or another pooling.
  """
  if not (folder / 'modules.json').is_file():
    return folder, None
  found = {module['type'].rsplit('.', 1)[-1]: folder / module['path']
           for module in read_json(folder / 'modules.json', list)}
  # Normalize changes the length of an embedding alone, which is left to the caller.
  unknown = sorted(set(found) - {'Transformer', 'Pooling', 'Normalize'})
  if unknown or 'Transformer' not in found:
    raise WeightsError(f'{folder}/modules.json: expected Transformer, Pooling and perhaps '
                       f'Normalize, got {", ".join(found)}')
  if 'Pooling' not in found:
    return found['Transformer'], None
  return found['Transformer'], _pooling(found['Pooling'] / 'config.json')


def _pooling(path: pathlib.Path) -> str:
  config = read_json(path)
  modes = config.get('pooling_mode', [mode for key, mode in _LEGACY.items() if config.get(key)])
  modes = [modes] if isinstance(modes, str) else modes
  if len(modes) != 1 or modes[0] not in _POOLING:
    raise WeightsError(f'{path}: pooling must be one of {", ".join(_POOLING)}, '
                       f'not {" and ".join(modes) or None}')
  return _POOLING[modes[0]]


def write_modules(folder: pathlib.Path, a: Architecture, pool: str) -> None:
  """What makes SentenceTransformer(folder) pool as we do."""
  kinds = (('', 'Transformer'), ('1_Pooling', 'Pooling'))
  write_json(folder / 'modules.json', [
    dict(idx=i, name=str(i), path=path, type=f'sentence_transformers.models.{kind}')
    for i, (path, kind) in enumerate(kinds)])
  (folder / '1_Pooling').mkdir()
  modes = {key: _POOLING.get(mode) == pool for key, mode in _LEGACY.items()}
  write_json(folder / '1_Pooling' / 'config.json', dict(word_embedding_dimension=a.width, **modes))


# --- tokenizers -----------------------------------------------------------------------------------


def write_tokenizer(folder: pathlib.Path, tokenizer: Tokenizer, a: Architecture) -> None:
  """tokenizer.json and what AutoTokenizer wants beside it.

  Our tokenizers add no special tokens, since batches do; transformers' do, so a tokenizer that
  would not gets BERT's [CLS] ... [SEP].
  """
  path = folder / 'tokenizer.json'
  tokenizer.save(path)
  inner = tokenizers.Tokenizer.from_file(str(path))
  roles = read_json(folder / 'special_tokens_map.json')
  if inner.post_processor is None and not a.causal and {'cls_token', 'sep_token'} <= set(roles):
    inner.post_processor = _template(roles['cls_token'], roles['sep_token'], tokenizer.vocabulary,
                                     a.types)
    path.write_text(inner.to_str(pretty=True) + '\n', 'utf-8')
  inputs = ['input_ids', 'token_type_ids', 'attention_mask']
  write_json(folder / 'tokenizer_config.json', dict(
    tokenizer_class='PreTrainedTokenizerFast', model_max_length=a.length - a.first_position,
    # GPT-2 would add the embedding of token 0, ModernBERT refuses them.
    model_input_names=inputs if a.types > 1 else [inputs[0], inputs[2]], **roles))


def _template(cls: str, sep: str, vocabulary: Vocabulary, types: int):
  second, between = 1 if types > 1 else 0, ' '.join([sep] * vocabulary.separators)
  return processors.TemplateProcessing(
    single=f'{cls} $A {sep}', pair=f'{cls} $A {between} $B:{second} {sep}:{second}',
    special_tokens=[(cls, vocabulary.cls), (sep, vocabulary.sep)])


def read_tokenizer(path: str | os.PathLike, a: Architecture) -> Tokenizer:
  """Raises WeightsError for one with more tokens than the model has."""
  tokenizer = load(path)
  if tokenizer.vocabulary.size > a.vocabulary:
    raise WeightsError(f'{path} has {tokenizer.vocabulary.size} tokens, the model only '
                       f'{a.vocabulary}')
  return tokenizer
