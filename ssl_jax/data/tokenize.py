"""Text to tokens and back: WordPiece, BPE and Unigram, trained or loaded, of `tokenizers`.

Whole-word masking needs to know which tokens form a word. A word is what the tokenizer's own
pre-tokeniser holds together: BERT's '##' pieces join theirs; in byte-level BPE a word begins with
its space, and a contraction ('t) or a run of punctuation is a word. Moreover CJK characters are a
word each, as in BERT, whatever the tokenizer, unless one token covers several.

Text is only text: the characters '[MASK]' or '<|endoftext|>' in it become ordinary pieces.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from ssl_jax.data.sources import DataError
from ssl_jax.data.special_tokens import PIECES, Vocabulary, named_pieces, vocabulary_of
from ssl_jax.data.vocabulary_training import train_bpe, train_unigram, train_wordpiece, wordpiece

__all__ = ['Encoded', 'Tokenizer', 'Tokens', 'Vocabulary', 'chunks', 'load', 'tokenised', 'train']

# Part of every fingerprint: raise it when tokens or words of the same text change.
VERSION = 1
# What is tokenised at a time, in documents and characters: the library takes 100 bytes for each of
# the latter. Longer texts are cut, at a space, into parts.
CHUNK, CHUNK_CHARACTERS, PART = 1024, 1 << 20, 1 << 16

# The blocks that BERT takes for Chinese characters (google-research/bert tokenization.py:265-290).
_CJK = re.compile('[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df'
                  '\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]')


class Encoded(NamedTuple):
  """tokens: uint32 [n]; words: int32 [n], the number of each token's word within the text."""

  tokens: np.ndarray
  words: np.ndarray


class Tokens(NamedTuple):
  """Documents, one after the other.

  tokens: uint32 [n]; starts: bool [n], whether each begins a word.
  sentences: int32 [S], the tokens of each sentence; documents: int32 [N], the sentences of each.
  """

  tokens: np.ndarray
  starts: np.ndarray
  sentences: np.ndarray
  documents: np.ndarray


class Tokenizer:
  """A `tokenizers.Tokenizer` without truncation, padding, dropout and special tokens."""

  def __init__(self, inner: tokenizers.Tokenizer, pieces: Mapping[str, str]):
    """`pieces`: {'mask': '[MASK]', ...}, the roles that there are."""
    inner.no_truncation()  # Some files ship with both switched on.
    inner.no_padding()
    inner.encode_special_tokens = True
    if getattr(inner.model, 'dropout', None):
      inner.model.dropout = None  # The same text must always become the same tokens.
    self._inner = inner
    self._pieces = {role: piece for role, piece in pieces.items()
                    if inner.token_to_id(piece) is not None}
    self.vocabulary = vocabulary_of(inner, self._pieces)
    self._continues = _continuations(inner, self.vocabulary.size)

  def __reduce__(self):
    return _restored, (self._inner.to_str(), self._pieces)

  def encode(self, texts: Sequence[str]) -> list[Encoded]:
    """Tokens and words of each text, without special tokens; on all cores."""
    tokens, starts, lengths = self.encode_flat(texts)
    ends = np.cumsum(lengths).tolist()
    spans = [slice(begin, end) for begin, end in zip([0, *ends], ends)]
    return [Encoded(tokens[span], np.cumsum(starts[span], dtype=np.int32) - 1) for span in spans]

  def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of all texts, whether each begins a word, and the tokens of each text."""
    texts = list(texts)
    if self._continues is not None:
      encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
      tokens, lengths = _flat([one.ids for one in encodings])
      return tokens, ~self._continues[tokens], lengths
    encodings = self._inner.encode_batch(texts, add_special_tokens=False)
    tokens, lengths = _flat([one.ids for one in encodings])
    words, _ = _flat([one.word_ids for one in encodings])
    starts = np.diff(words.astype(np.int64), prepend=-1) != 0
    begins = np.cumsum(lengths) - lengths
    starts[begins[lengths > 0]] = True
    for begin, encoding, text in zip(begins.tolist(), encodings, texts):
      if not text.isascii() and _CJK.search(text):
        starts[begin:begin + len(encoding)] |= _cjk_starts(encoding.offsets, text)
    return tokens, starts, lengths

  def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens uint32 [n], first character and last + 1 of each, int32 [n, 2]) of each text."""
    found = self._inner.encode_batch(list(texts), add_special_tokens=False)
    return [(np.array(one.ids, np.uint32), np.array(one.offsets, np.int32).reshape(-1, 2))
            for one in found]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Text, with the names of special tokens in it."""
    return self._inner.decode([int(i) for i in ids], skip_special_tokens=False)

  def pieces(self) -> list[str]:
    """The vocabulary, by id: the lines of a vocab.txt."""
    return [self._inner.id_to_token(i) for i in range(self.vocabulary.size)]

  def fingerprint(self) -> str:
    """A digest of all that shapes tokens and words."""
    about = (VERSION, self._inner.to_str(), sorted(self._pieces.items()))
    return hashlib.sha256(repr(about).encode()).hexdigest()

  def save(self, path: str | pathlib.Path) -> None:
    """Writes Hugging Face's `tokenizer.json`, and special_tokens_map.json beside it."""
    path = pathlib.Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(self._inner.to_str(pretty=True) + '\n', 'utf-8')
    names = {f'{role}_token': piece for role, piece in sorted(self._pieces.items())}
    beside = path.parent / 'special_tokens_map.json'
    beside.write_text(json.dumps(names, indent=2) + '\n', 'utf-8')


def chunks(corpus: Iterable[Any]) -> Iterator[list[tuple[str, ...]]]:
  """The sentences of documents, in lists that are worth a call of the tokenizer."""
  chunk, characters = [], 0
  for document in corpus:
    chunk.append(tuple(document.sentences))
    characters += sum(map(len, document.sentences))
    if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
      yield chunk
      chunk, characters = [], 0
  if chunk:
    yield chunk


def tokenised(chunk: Sequence[tuple[str, ...]], tokenizer: Tokenizer) -> Tokens:
  """The tokens of documents given as sentences."""
  # A sentence after another stands behind a space, which byte-level BPE and Metaspace see.
  texts = [f' {text}' if i else text for sentences in chunk for i, text in enumerate(sentences)]
  parts = [_parts(text) for text in texts]
  found = [tokenizer.encode_flat(group) for group in _groups(chain.from_iterable(parts))]
  tokens, starts, lengths = map(np.concatenate, zip(*found or [tokenizer.encode_flat([])]))
  ends = np.append(0, np.cumsum(lengths))[np.cumsum([len(of_text) for of_text in parts], dtype=int)]
  return Tokens(tokens, starts, np.diff(ends, prepend=0).astype(np.int32),
                np.array([len(sentences) for sentences in chunk], np.int32))


def _parts(text: str) -> list[str]:
  """A text, cut before spaces: no pre-tokeniser holds anything together across one."""
  parts, begin = [], 0
  while len(text) - begin > PART:
    at = text.rfind(' ', begin + 1, begin + PART)
    at = at if at >= 0 else text.find(' ', begin + PART)
    if at < 0:
      break
    parts.append(text[begin:at])
    begin = at
  return [*parts, text[begin:]]


def _groups(parts: Iterable[str]) -> Iterator[list[str]]:
  group, characters = [], 0
  for part in parts:
    group.append(part)
    characters += len(part)
    if characters >= CHUNK_CHARACTERS:
      yield group
      group, characters = [], 0
  if group:
    yield group


def _flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """All numbers, uint32, and how many are in each list, int32."""
  lengths = np.fromiter(map(len, lists), np.int32, len(lists))
  return np.fromiter(chain.from_iterable(lists), np.uint32, int(lengths.sum())), lengths


def _continuations(inner: tokenizers.Tokenizer, size: int) -> np.ndarray | None:
  """Which ids are '##' pieces, where these alone tell words apart; None where they do not.

  BERT's normaliser puts CJK characters apart itself, so nothing but ids is needed, and the library
  is a third faster when it need not keep track of words.
  """
  if not (isinstance(inner.model, models.WordPiece)
          and isinstance(inner.normalizer, normalizers.BertNormalizer)
          and inner.normalizer.handle_chinese_chars
          and isinstance(inner.pre_tokenizer, pre_tokenizers.BertPreTokenizer)):
    return None
  continues = np.zeros(size, bool)
  for piece, i in inner.get_vocab().items():
    continues[i] = piece.startswith(inner.model.continuing_subword_prefix)
  return continues


def _cjk_starts(offsets: Sequence[tuple[int, int]], text: str) -> np.ndarray:
  """Which tokens begin or follow a CJK character, and are not within it, bool."""
  starts = np.zeros(len(offsets), bool)
  for i in range(1, len(offsets)):
    (first, last), (begin, _) = offsets[i - 1], offsets[i]
    if begin >= last > first and not text[first:last].isspace():
      starts[i] = bool(_CJK.match(text[begin]) or _CJK.match(text[last - 1]))
  return starts


def _restored(text: str, pieces: Mapping[str, str]) -> Tokenizer:
  return Tokenizer(tokenizers.Tokenizer.from_str(text), pieces)


# --- files ----------------------------------------------------------------------------------------


def load(path: str | pathlib.Path, *, require_mask: bool = False) -> Tokenizer:
  """A tokenizer from a file.

  Args:
    path: Hugging Face's `tokenizer.json`, BERT's `vocab.txt`, or a folder that holds one of them.
      What special tokens are called is read from special_tokens_map.json or tokenizer_config.json
      beside it, else known for BERT, RoBERTa and GPT-2; vocab.txt is uncased unless
      tokenizer_config.json says otherwise.
    require_mask: whether a tokenizer without a mask token is refused.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: it is no tokenizer, or has no mask token.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_dir():
    names = [name for name in ('tokenizer.json', 'vocab.txt') if (path / name).is_file()]
    if not names:
      raise DataError(f'{path} holds neither tokenizer.json nor vocab.txt')
    path = path / names[0]
  if not path.is_file():
    raise FileNotFoundError(2, 'no such tokenizer', str(path))
  settings = {name: _settings(path.parent / name)
              for name in ('tokenizer_config.json', 'special_tokens_map.json')}
  read = _read_vocabulary if path.suffix == '.txt' else _read_json
  inner = read(path, settings['tokenizer_config.json'])
  tokenizer = Tokenizer(inner, named_pieces(inner, list(settings.values())))
  if require_mask and tokenizer.vocabulary.mask is None:
    raise DataError(f'{path} has no mask token, which masked-language modelling needs; expected '
                    f'[MASK] or <mask>, or a "mask_token" in {path.parent}/tokenizer_config.json')
  return tokenizer


def _settings(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise DataError(f'{path} is damaged: {error}') from error
  if not isinstance(found, dict):
    raise DataError(f'{path} must hold a JSON object, got {type(found).__name__}')
  return found


def _read_json(path: pathlib.Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
  try:
    inner = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The library raises nothing more special.
    raise DataError(f'{path} is no tokenizer.json of the `tokenizers` library: {error}') from error
  if not inner.get_vocab_size():
    raise DataError(f'{path} has an empty vocabulary: it was never trained')
  return inner


def _read_vocabulary(path: pathlib.Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
  try:
    lines = path.read_text('utf-8').split('\n')  # Not splitlines: U+2028 is a piece of mBERT.
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is no vocab.txt: {error}') from error
  pieces = [line.rstrip('\r') for line in (lines[:-1] if lines[-1] == '' else lines)]
  number = {}
  for i, piece in enumerate(pieces):
    if piece in number:
      raise DataError(f'{path}: line {i + 1} repeats {piece!r} of line {number[piece] + 1}')
    number[piece] = i
  if '[UNK]' not in number:
    raise DataError(f'{path} is no vocab.txt: expected one piece per line, among them [UNK]; got '
                    f'{len(pieces):,} lines, the first is {pieces[0][:40] if pieces else ""!r}')
  inner = wordpiece(number, lowercase=settings.get('do_lower_case', True),
                    strip_accents=settings.get('strip_accents'),
                    handle_chinese_chars=settings.get('tokenize_chinese_chars', True))
  inner.add_special_tokens([piece for piece in PIECES.values() if piece in number])
  return inner


# --- training -------------------------------------------------------------------------------------


def train(texts: Iterable[str], *, kind: Literal['wordpiece', 'bpe', 'unigram'] = 'wordpiece',
          size: int, lowercase: bool = True) -> Tokenizer:
  """Learns a vocabulary.

  'wordpiece' (BERT's normaliser and pre-tokeniser) and 'bpe' (byte-level) give the same vocabulary
  for the same text. 'unigram' (Metaspace) does not: the library sums likelihoods and breaks ties
  in the order of a hash table, so two runs differ in some scores and rare pieces. Keep the file.

  Args:
    texts: read once. For 'wordpiece' the normalised text waits in a temporary file while its
      characters are counted, so memory is that of the distinct words.
    kind: of the model.
    size: of the vocabulary, with its five special tokens; a short text may give fewer.
    lowercase: whether upper case is the same; 'wordpiece' then also drops accents.

  Raises:
    ValueError: an unknown kind, or a size that the characters of the text alone exceed.
    DataError: there is no text.
  """
  trained = dict(wordpiece=train_wordpiece, bpe=train_bpe, unigram=train_unigram)
  if kind not in trained:
    raise ValueError(f'kind must be one of {", ".join(map(repr, trained))}, got {kind!r}')
  if size <= len(PIECES):
    raise ValueError(f'size must be more than the {len(PIECES)} special tokens, got {size}')
  return Tokenizer(trained[kind](_some(texts), size, lowercase), PIECES)


def _some(texts: Iterable[str]) -> Iterator[str]:
  empty = True
  for text in texts:
    empty = empty and not text.strip()
    yield text
  if empty:
    raise DataError('there is no text to learn a vocabulary from')
