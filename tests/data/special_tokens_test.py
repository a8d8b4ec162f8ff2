"""Special tokens by convention, by the files beside, and how many stand between two texts."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from ssl_jax.data.tokenize import load

CORPUS = 9 * ['the cat sat on the mat, 中国人民 unhappily', "don't sit; the happy cat can't",
              '中国 tea']


def bpe_file(folder, special: list[str], **more):
  """A byte-level tokenizer.json that ships with what a user would not expect."""
  inner = tokenizers.Tokenizer(models.BPE(dropout=more.pop('dropout', None)))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.train_from_iterator(CORPUS, tokenizers.trainers.BpeTrainer(
    vocab_size=300, show_progress=False, special_tokens=special,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  inner.enable_truncation(4)
  inner.enable_padding(length=128)
  file = folder / 'tokenizer.json'
  inner.save(str(file))
  return file


def test_special_tokens_by_convention(tmp_path):
  roberta = load(bpe_file(tmp_path, ['<s>', '<pad>', '</s>', '<unk>', '<mask>'])).vocabulary
  assert roberta == (300, 1, 3, 0, 2, 4, (0, 1, 2, 3, 4), 2)
  gpt2 = load(bpe_file(tmp_path, ['<|endoftext|>'])).vocabulary
  assert gpt2 == (300, None, None, None, 0, None, (0,), 1)
  bert = load(bpe_file(tmp_path, ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'])).vocabulary
  assert bert == (300, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4), 1)


def test_special_tokens_as_the_files_beside_name_them(tmp_path):
  file = bpe_file(tmp_path, ['<start>', '<end>', '<blank>', '<other>'])
  assert load(file).vocabulary[1:-1] == (None, None, None, None, None, (0, 1, 2, 3))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(dict(
    bos_token='<start>', eos_token={'content': '<end>'}, mask_token='<other>')))
  (tmp_path / 'special_tokens_map.json').write_text(
    '{"mask_token": "<blank>", "pad_token": "<no>"}')
  assert load(file).vocabulary[1:-1] == (None, None, 0, 1, 2, (0, 1, 2, 3))
  gpt2 = dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>')
  file = bpe_file(tmp_path, ['<|endoftext|>'])
  (tmp_path / 'special_tokens_map.json').write_text(json.dumps(gpt2))
  (tmp_path / 'tokenizer_config.json').unlink()
  assert load(file).vocabulary[1:-1] == (None, None, None, 0, None, (0,))


ROBERTA = ('</s>', 1), ('<s>', 0)


@pytest.mark.parametrize('names, processor, want', [
  ('[CLS] [SEP]', None, 1), ('<s> </s>', None, 2), ('</s> <|endoftext|>', None, 1),
  ('<s> </s>', processors.ByteLevel(), 2), ('<s> </s>', processors.RobertaProcessing(*ROBERTA), 2),
  ('<s> </s>', processors.BertProcessing(*ROBERTA), 1),
  ('[CLS] [SEP]', processors.RobertaProcessing(('[SEP]', 1), ('[CLS]', 0)), 2),
  ('<s> </s>', processors.TemplateProcessing(
    single='<s> $A </s>', pair='<s> $A </s> </s> $B </s>',
    special_tokens=[('<s>', 0), ('</s>', 1)]), 2),
  ('<s> </s>', processors.TemplateProcessing(
    single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 0)]), 1),
  ('<s> </s>', processors.Sequence([
    processors.ByteLevel(), processors.RobertaProcessing(*ROBERTA)]), 2)])
def test_separators_between_two_texts(names, processor, want, tmp_path):
  inner = tokenizers.Tokenizer(models.WordLevel(
    {name: i for i, name in enumerate([*names.split(), '[UNK]'])}, unk_token='[UNK]'))
  inner.add_special_tokens(names.split())
  if processor is not None:
    inner.post_processor = processor
  inner.save(str(tmp_path / 'tokenizer.json'))
  assert load(tmp_path).vocabulary.separators == want
