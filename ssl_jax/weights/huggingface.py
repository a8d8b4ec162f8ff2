"""Folders of Hugging Face's transformers (config.json, safetensors) as our language models."""

import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np

from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.models.transformer import POOLS, Architecture, LanguageModel, Transformer
from ssl_jax.weights import folders
from ssl_jax.weights.families import (
  FAMILIES,
  HEADS,
  Family,
  WeightsError,
  read_config,
  write_config,
)
from ssl_jax.weights.layout import Entry, entries, flattened, nested

NAMED = 10  # tensors that an error names


def from_huggingface(
    folder: str | os.PathLike, *, architecture: str | None = None, pool: str | None = None,
    scan: bool = False, dtype: Any = None) -> tuple[LanguageModel, dict[str, Any]]:
  """Reads a model of BERT's, RoBERTa's, ELECTRA's, DistilBERT's, GPT-2's or ModernBERT's kind.

  What a file may have and the model has not is dropped: masks and position numbers that are no
  weights, tied copies (which must be equal), the pooler of an encoder, and of an encoder with other
  heads these heads. `weights.families` lists them. Padding must be given as 'segments' 0.

  Args:
    folder: with config.json and model.safetensors, or model.safetensors.index.json and its files;
      or of sentence-transformers, whose pooling is read.
    architecture: the class of transformers to read it as, such as 'BertModel' for the encoder
      alone; None is the first of config.json's.
    pool: 'mean', 'token' or 'last'; None is that of sentence-transformers, or the mean.
    scan: blocks stacked for `Transformer(scan=True)`.
    dtype: of the computation.

  Returns:
    (module, variables): a LanguageModel, and {'params': float32 arrays in the host's memory}.

  Raises:
    FileNotFoundError: a file is missing.
    WeightsError: a model that we have not; tensors that are missing, left over or of another shape.
  """
  folder, pooling = folders.read_modules(pathlib.Path(folder).expanduser())
  pool = pool or pooling or 'mean'
  if pool not in POOLS:
    raise WeightsError(f'pool must be one of {", ".join(POOLS)}, not {pool!r}')
  config = folders.read_json(folder / 'config.json')
  family, head, a = read_config(config, architecture)
  if scan and (a.window is not None or not a.first_norm):
    raise WeightsError('the blocks of this model differ and cannot be scanned; use scan=False')
  module = LanguageModel(Transformer(a, pool, dtype=dtype), HEADS[head](dtype=dtype))
  with ExitStack() as stack:
    tensors = folders.Tensors(folder, stack)
    flat = _read(tensors, family, head, entries(family, head, module), folder)
  module = module.clone(backbone=module.backbone.clone(scan=scan))
  return module, {'params': nested(flat, a.depth, scan)}


def to_huggingface(
    module: LanguageModel, variables: Mapping[str, Any], folder: str | os.PathLike, *,
    tokenizer: str | os.PathLike | None = None) -> None:
  """Writes a folder that AutoModel (AutoModelForMaskedLM ...) and SentenceTransformer load.

  BertModel and RobertaModel have a pooler, of ours only the head with logits of sentences has it:
  else the identity is written, so that AutoModel misses nothing and its pooler_output is
  tanh(first token).

  Args:
    module: a LanguageModel of a Transformer and a head of `models.language_heads`.
    variables: {'params': ...} of it, scanned or not.
    folder: new or empty; it appears complete or not at all.
    tokenizer: a file, or a folder with one, that `data.tokenize.load` reads; written beside.

  Raises:
    FileExistsError: the folder is not empty.
    WeightsError: no model of transformers is this function, or `variables` are not of this module.
  """
  if not isinstance(module, LanguageModel):
    raise WeightsError(f'expected a LanguageModel, got {type(module).__name__}')
  a = module.backbone.architecture
  kind, head, _ = write_config(a, module.head)
  wanted = entries(FAMILIES[kind], head, module)
  flat = _checked(flattened(variables['params']), wanted)
  tokens = None if tokenizer is None else folders.read_tokenizer(tokenizer, a)
  ids = _special_ids(tokens)
  if kind == 'roberta':
    a, flat = _after_padding(a, flat, ids['pad_token_id'])
    ids['pad_token_id'] = a.first_position - 1
  _, _, config = write_config(a, module.head)
  tensors = _tensors(FAMILIES[kind], head, flat, wanted)
  with folders.replacing(pathlib.Path(folder).expanduser()) as new:
    folders.write_model(new, {**config, **ids}, tensors)
    folders.write_modules(new, a, module.backbone.pool)
    if tokens is not None:
      folders.write_tokenizer(new, tokens, a)


# --- reading --------------------------------------------------------------------------------------


def _read(tensors: folders.Tensors, family: Family, head: str, wanted: list[Entry],
          folder: pathlib.Path) -> dict[tuple[str, ...], np.ndarray]:
  """Our arrays by path."""
  names, written = _names(tensors, family, head)
  if head != 'encoder':
    _drop_tied(names, tensors, family)
  dropped = re.compile('|'.join(family.dropped.get(head, ())) or '(?!)')
  names = {name: stored for name, stored in names.items() if not dropped.fullmatch(name)
           and (head != 'encoder' or name.startswith(f'{family.prefix}.'))}
  expected = {name: entry.stored for entry in wanted for name in entry.names}
  _compare(expected, {name: tensors.shape(stored) for name, stored in names.items()},
           str(folder), written)
  return {entry.path: entry.join([tensors.read(names[name]) for name in entry.names])
          for entry in wanted}


def _names(tensors: Iterable[str], family: Family, head: str,
           ) -> tuple[dict[str, str], Callable[[str], str]]:
  """By the name in a model with a head, that in the file; and how the file spells any such name.

  A file of an encoder alone lacks the prefix; the oldest models call LayerNorm's arrays otherwise.
  """
  prefix = f'{family.prefix}.'
  bare = not any(name.startswith(prefix) for name in tensors)
  modules = [f'{module}.' for module in family.named(head).values()]
  outside = tuple(name for name in (*modules, *family.tied) if not name.startswith(prefix))
  names = {}
  for stored in tensors:
    name = re.sub(r'\.gamma$', '.weight', re.sub(r'\.beta$', '.bias', stored))
    names[prefix + name if bare and not name.startswith(outside) else name] = stored
  return names, lambda name: name.removeprefix(prefix) if bare else name


def _drop_tied(names: dict[str, str], tensors: folders.Tensors, family: Family) -> None:
  """Takes the copies out of `names`. Raises WeightsError for one that differs."""
  for copy, original in family.tied.items():
    if copy not in names:
      continue
    stored = names.pop(copy)
    if original not in names:
      continue
    if not np.array_equal(tensors.read(stored), tensors.read(names[original])):
      raise WeightsError(f'{stored} is not equal to {names[original]}; our output layer is the '
                         'embedding itself')


def _compare(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]],
             where: str, written: Callable[[str], str] = str) -> None:
  """Raises WeightsError for names or shapes that differ."""
  wrong = {
    'missing': [f'{written(name)} {list(shape)}' for name, shape in expected.items()
                if name not in found],
    'not expected': [f'{written(name)} {list(shape)}' for name, shape in found.items()
                     if name not in expected],
    'of another shape': [
      f'{written(name)} {list(found[name])}, expected {list(shape)}'
      for name, shape in expected.items() if found.get(name, shape) != shape]}
  lines = [f'{len(names)} {kind}: {"; ".join(sorted(names)[:NAMED])}{" ..." * (len(names) > NAMED)}'
           for kind, names in wrong.items() if names]
  if lines:
    raise WeightsError(f'{where} does not hold the tensors of this model\n  ' + '\n  '.join(lines))


# --- writing --------------------------------------------------------------------------------------


def _checked(flat: Mapping[tuple[str, ...], Any], wanted: list[Entry],
             ) -> dict[tuple[str, ...], np.ndarray]:
  """`flat` in float32 on the host. Raises WeightsError where it is not what the module has."""
  _compare({'/'.join(entry.path): entry.shape for entry in wanted},
           {'/'.join(path): np.shape(value) for path, value in flat.items()}, "variables['params']")
  return {path: np.asarray(value, np.float32) for path, value in flat.items()}


def _tensors(family: Family, head: str, flat: Mapping[tuple[str, ...], np.ndarray],
             wanted: list[Entry]) -> dict[str, np.ndarray]:
  """By name, what is in the file."""
  tensors = {}
  for entry in wanted:
    tensors.update(entry.split(flat[entry.path]))
  if family.pooler and head != 'sentence':
    width = flat['backbone', 'block1', 'proj', 'kernel'].shape[-1]
    tensors[f'{family.pooler}.weight'] = np.eye(width, dtype=np.float32)
    tensors[f'{family.pooler}.bias'] = np.zeros(width, np.float32)
  if head != 'encoder':
    return tensors
  return {name.removeprefix(f'{family.prefix}.'): tensor for name, tensor in tensors.items()}


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
  """Without a tokenizer none: the defaults of transformers may lie outside of the vocabulary."""
  roles = dict(pad='pad', bos='cls', eos='sep', cls='cls', sep='sep')
  ids = {f'{name}_token_id': getattr(tokenizer and tokenizer.vocabulary, role, None)
         for name, role in roles.items()}
  if ids['bos_token_id'] is None:
    ids['bos_token_id'] = ids['eos_token_id']  # GPT-2's one token is both.
  return ids


def _after_padding(a: Architecture, flat: dict[tuple[str, ...], np.ndarray], pad: int | None,
                   ) -> tuple[Architecture, dict[tuple[str, ...], np.ndarray]]:
  """The same function with positions that start behind `pad`, as RoBERTa's in transformers must."""
  path = ('backbone', 'embed', 'positions', 'embedding')
  if pad is None or pad + 1 == a.first_position:
    return a, flat
  used = flat[path][a.first_position:]
  table = np.concatenate([np.zeros((pad + 1, used.shape[1]), used.dtype), used])
  return a._replace(first_position=pad + 1, length=len(table)), {**flat, path: table}
