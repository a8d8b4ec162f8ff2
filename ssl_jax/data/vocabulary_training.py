"""Vocabularies learned from text: WordPiece, byte-level BPE and Unigram, of `tokenizers`.

`ssl_jax.data.tokenize.train` is what to call; here is how each kind is learned.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from ssl_jax.data.sources import DataError
from ssl_jax.data.special_tokens import PIECES

# WordPiece keeps so many characters, the most frequent; others become [UNK].
ALPHABET = 1000


def wordpiece(vocabulary: dict[str, int], **normalizer) -> tokenizers.Tokenizer:
  """BERT's tokenizer with a vocabulary; `normalizer` are arguments of BertNormalizer."""
  inner = tokenizers.Tokenizer(models.WordPiece(
    vocabulary, unk_token='[UNK]', max_input_chars_per_word=100))
  inner.normalizer = normalizers.BertNormalizer(**normalizer)
  inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  inner.decoder = decoders.WordPiece()
  return inner


def train_wordpiece(texts: Iterator[str], size: int, lowercase: bool) -> tokenizers.Tokenizer:
  """The library alone is not deterministic: it numbers characters as a hash table yields them.

  That number breaks ties between merges, so all characters and their '##' forms are given as
  special tokens, which are numbered first, and the tokenizer is put together again from the
  vocabulary. ValueError for a size below their number.
  """
  inner = wordpiece({}, lowercase=lowercase)
  with tempfile.TemporaryFile('w+', encoding='utf-8') as spool:
    counts = Counter()
    for text in texts:
      text = ' '.join(inner.normalizer.normalize_str(text).split())
      counts.update(text)
      spool.write(text + '\n')
    del counts[' ']
    kept = sorted(sorted(counts, key=lambda c: (-counts[c], c))[:ALPHABET])
    inside = [f'##{c}' for c in kept if len(inner.pre_tokenizer.pre_tokenize_str(f'a{c}')) == 1]
    first = [*PIECES.values(), *kept, *inside]
    _check_size(size, len(first))
    spool.seek(0)
    inner.train_from_iterator(spool, trainers.WordPieceTrainer(
      vocab_size=size, show_progress=False, special_tokens=first, initial_alphabet=kept,
      limit_alphabet=len(kept)))
  inner = wordpiece(inner.get_vocab(), lowercase=lowercase)
  inner.add_special_tokens(list(PIECES.values()))
  return inner


def train_bpe(texts: Iterator[str], size: int, lowercase: bool) -> tokenizers.Tokenizer:
  """Byte-level, as GPT-2's; ValueError for a size below that of the bytes."""
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  _check_size(size, len(PIECES) + len(alphabet))
  inner = tokenizers.Tokenizer(models.BPE())
  inner.normalizer = normalizers.Lowercase() if lowercase else None
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.train_from_iterator(texts, trainers.BpeTrainer(
    vocab_size=size, show_progress=False, special_tokens=list(PIECES.values()),
    initial_alphabet=alphabet))
  return inner


def train_unigram(texts: Iterator[str], size: int, lowercase: bool) -> tokenizers.Tokenizer:
  """SentencePiece's; ValueError for a size that the text does not give."""
  inner = tokenizers.Tokenizer(models.Unigram())
  inner.normalizer = normalizers.Sequence(
    [normalizers.NFKC()] + [normalizers.Lowercase()] * bool(lowercase))
  # Punctuation apart, or 'sat.' would be one word.
  inner.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
  inner.decoder = decoders.Metaspace()
  counts = Counter()
  try:
    inner.train_from_iterator(_counted(texts, counts), trainers.UnigramTrainer(
      vocab_size=size, show_progress=False, special_tokens=list(PIECES.values()),
      unk_token=PIECES['unk']))
  except DataError:
    raise
  except Exception as error:  # The library raises nothing more special.
    _check_size(size, len(PIECES) + len(counts))
    raise ValueError(f'no unigram vocabulary of {size} pieces: {error}') from error
  return inner


def _counted(texts: Iterator[str], counts: Counter) -> Iterator[str]:
  for text in texts:
    counts.update(text)
    yield text


def _check_size(size: int, least: int) -> None:
  if size < least:
    raise ValueError(f'a vocabulary of {size} pieces is too small: its special tokens and single '
                     f'characters are {least} already')
