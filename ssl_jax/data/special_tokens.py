"""Which tokens of a vocabulary are special, and how they frame one text or two."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers

PIECES = dict(pad='[PAD]', unk='[UNK]', cls='[CLS]', sep='[SEP]', mask='[MASK]')
# What the roles are called where no file beside the tokenizer says so: BERT's, RoBERTa's, GPT-2's.
CONVENTIONS = dict(
  pad=('[PAD]', '<pad>'), unk=('[UNK]', '<unk>'), cls=('[CLS]', '<s>'),
  sep=('[SEP]', '</s>', '<|endoftext|>'), mask=('[MASK]', '<mask>'))


class Vocabulary(NamedTuple):
  """The ids that masking and packing need; None for a token that the vocabulary has not.

  size: one more than the largest id.
  sep: what ends a text; <|endoftext|> in GPT-2's.
  special: ids of all special tokens, ascending.
  separators: how many `sep` stand between two texts: 1 as in BERT's rows, 2 as in RoBERTa's.
  """

  size: int
  pad: int | None
  unk: int | None
  cls: int | None
  sep: int | None
  mask: int | None
  special: tuple[int, ...]
  separators: int = 1


def vocabulary_of(inner: tokenizers.Tokenizer, pieces: Mapping[str, str]) -> Vocabulary:
  """The vocabulary of a tokenizer whose special tokens are {'mask': '[MASK]', ...}."""
  ids = {role: inner.token_to_id(pieces[role]) if role in pieces else None for role in PIECES}
  special = {i for i, token in inner.get_added_tokens_decoder().items() if token.special}
  special |= {i for i in ids.values() if i is not None}
  size = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
  return Vocabulary(size=size, special=tuple(sorted(special)),
                    separators=_separators(inner, pieces), **ids)


def _separators(inner: tokenizers.Tokenizer, pieces: Mapping[str, str]) -> int:
  """As its post-processor puts two texts together; else 2 if the special tokens are RoBERTa's."""
  processor = inner.post_processor
  steps = [] if processor is None else _steps(json.loads(processor.__getstate__()))
  said = [found for found in map(_between, steps) if found is not None]
  if said:
    return max(said[-1].count(pieces.get('sep')), 1)
  return 2 if (pieces.get('cls'), pieces.get('sep')) == ('<s>', '</s>') else 1


def _steps(processor: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  if processor['type'] != 'Sequence':
    return [processor]
  return [step for one in processor['processors'] for step in _steps(one)]


def _between(processor: Mapping[str, Any]) -> list[str] | None:
  """The special tokens between two texts; None of a processor that does not add any."""
  if processor['type'] in ('BertProcessing', 'RobertaProcessing'):
    return [processor['sep'][0]] * (1 + (processor['type'] == 'RobertaProcessing'))
  if processor['type'] != 'TemplateProcessing':
    return None
  names = [part.get('SpecialToken', {}).get('id') for part in processor['pair']]
  texts = [i for i, name in enumerate(names) if name is None]
  return names[texts[0] + 1:texts[1]] if len(texts) > 1 else None


def named_pieces(inner: tokenizers.Tokenizer,
                 settings: list[Mapping[str, Any]]) -> dict[str, str]:
  """{'mask': '[MASK]', ...}: as the files beside it name them, else by convention."""
  named = {key: value.get('content') if isinstance(value, dict) else value
           for one in settings for key, value in one.items() if key.endswith('_token')}
  if named.get('bos_token') != named.get('eos_token'):
    named.setdefault('cls_token', named.get('bos_token'))
  named.setdefault('sep_token', named.get('eos_token'))
  found = {}
  for role, conventions in CONVENTIONS.items():
    for piece in (named.get(f'{role}_token'), *conventions):
      if isinstance(piece, str) and inner.token_to_id(piece) is not None:
        found.setdefault(role, piece)
  if found.get('unk') == '<|endoftext|>':
    del found['unk']  # GPT-2's files name one, but bytes are never unknown.
  return found
