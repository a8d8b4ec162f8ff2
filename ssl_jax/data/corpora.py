"""Where documents of text come from: random access by number, sentences out.

The public functions of this module are what a config may name as its corpus; they take keyword
arguments and return a `Corpus`. Tokenising and batching are not done here. A file is never held in
memory: it is scanned once for where its documents begin and end, and each is read when asked for.

What becomes of odd text, everywhere: bytes that are no UTF-8 become U+FFFD, as do unpaired
surrogates of JSON; NUL becomes a space; a byte order mark at the beginning of a file is dropped;
'\\n' and '\\r\\n' end lines; white space around a sentence is dropped, within it is kept.
"""

import array
import codecs
import functools
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from etils import epath

from ssl_jax.data.sources import DataError
from ssl_jax.data.tensorflow_datasets import _builder, _check_prepared

# Of the label; numbered as WordNet numbers its lexicographer files, lexnames(5WN).
WORDNET_CLASSES = (
  'adj.all', 'adj.pert', 'adv.all', 'noun.Tops', 'noun.act', 'noun.animal', 'noun.artifact',
  'noun.attribute', 'noun.body', 'noun.cognition', 'noun.communication', 'noun.event',
  'noun.feeling', 'noun.food', 'noun.group', 'noun.location', 'noun.motive', 'noun.object',
  'noun.person', 'noun.phenomenon', 'noun.plant', 'noun.possession', 'noun.process',
  'noun.quantity', 'noun.relation', 'noun.shape', 'noun.state', 'noun.substance', 'noun.time',
  'verb.body', 'verb.change', 'verb.cognition', 'verb.communication', 'verb.competition',
  'verb.consumption', 'verb.contact', 'verb.creation', 'verb.emotion', 'verb.motion',
  'verb.perception', 'verb.possession', 'verb.social', 'verb.stative', 'verb.weather', 'adj.ppl')
PARTS_OF_SPEECH = ('noun', 'verb', 'adjective', 'adverb')

VERSION = 1
# Bytes of one document; more is a file of another kind, such as one without line breaks.
LARGEST = 1 << 28

_WORDNET = pathlib.Path(__file__).parent / 'embedded' / 'wordnet_glosses' / 'wordnet_glosses.npz'
_WORDNET_SPLITS = ('train', 'validation', 'test')
_SURROGATE = re.compile('[\ud800-\udfff]')
# Progress of a scan is said so often.
SLOW = 5.0  # seconds


class Document(NamedTuple):
  """Its sentences; one where the source does not split."""

  sentences: tuple[str, ...]


class Corpus(Protocol):
  """Documents by number; must survive pickling, because workers receive a copy.

  labels: {} or {'label': int32 [N], ...}.
  classes: the names of 'label'; () where it has none.
  """

  labels: Mapping[str, np.ndarray]
  classes: tuple[str, ...]

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Document: ...

  def fingerprint(self) -> str:
    """A digest of everything that shapes the documents, equal in every process and machine."""
    ...


# --- text that ships ------------------------------------------------------------------------------


class Glosses:
  """One split of WordNet's glosses; travels to workers as its name."""

  def __init__(self, split: str):
    data = _WORDNET.read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      arrays = dict(archive)
    chosen = np.flatnonzero(arrays['split'] == _WORDNET_SPLITS.index(split))
    last = np.cumsum(arrays['sentences'], dtype=np.int64)
    self._split = split
    self._fingerprint = hashlib.sha256(split.encode() + data).hexdigest()
    self._text = arrays['text'].tobytes()
    self._begins = np.append(0, np.flatnonzero(arrays['text'] == ord('\n')) + 1)[chosen]
    self._sentences = np.stack([last - arrays['sentences'], last], 1)[chosen]
    self._spans = np.stack([arrays['start'], arrays['end']], 1).astype(np.int64)
    self._offsets = arrays['offset'][chosen]
    self.labels = {name: arrays[name][chosen].astype(np.int32)
                   for name in ('label', 'part_of_speech')}
    self.classes = WORDNET_CLASSES

  def __reduce__(self):
    return type(self), (self._split,)

  def __len__(self) -> int:
    return len(self._begins)

  def __getitem__(self, i: int) -> Document:
    begin = self._begins[_in_range(i, len(self))]
    first, last = self._sentences[i]
    return Document(tuple(self._text[begin + start:begin + end].decode('ascii')
                          for start, end in self._spans[first:last]))

  def name(self, i: int) -> str:
    """Part of speech and offset of the synset in Debian's WordNet 3.0: 'n02084071'."""
    return f'{"nvar"[self.labels["part_of_speech"][i]]}{self._offsets[i]:08d}'

  def fingerprint(self) -> str:
    """SHA-256 of the file that ships, and of the split."""
    return self._fingerprint


def wordnet_glosses(*, split: str = 'train') -> Glosses:
  """The 117,659 glosses of WordNet 3.0 (Princeton University), which ship with the package.

  A document is a gloss: its definition, then its example sentences without their quotes. Labels:
  'label', the lexicographer file (WORDNET_CLASSES), and 'part_of_speech' (PARTS_OF_SPEECH).
  'train', 'validation' and 'test' hold about 90, 5 and 5 % of each class. Nouns and verbs with a
  common hypernym, adjectives with their satellites, adverbs with their adjectives and glosses with
  a common sentence are in one split (embedded/wordnet_glosses/README.md).
  """
  if split not in _WORDNET_SPLITS:
    raise ValueError(f"wordnet_glosses has the splits {', '.join(map(repr, _WORDNET_SPLITS))}, "
                     f'not {split!r}')
  return Glosses(split)


# --- files ----------------------------------------------------------------------------------------


class Index(NamedTuple):
  """Where the documents of some files are.

  paths, sizes: of the files, in bytes.
  firsts: number of each file's first document, int64 [files].
  begins, ends: position of each document in its file, int64 [N].
  invalid: how many lines hold bytes that are no UTF-8.
  sha256: of the files' contents, in their order.
  """

  paths: tuple[str, ...]
  sizes: tuple[int, ...]
  firsts: np.ndarray
  begins: np.ndarray
  ends: np.ndarray
  invalid: int
  sha256: str


class FileCorpus:
  """Documents read from their place in files; the index travels to workers, 16 bytes a document."""

  def __init__(self, index: Index, parse: Callable[[str], tuple[str, ...]], about: tuple,
               labels: Mapping[str, np.ndarray], classes: tuple[str, ...]):
    """`parse` makes sentences of a document's text; `about` says how, for the fingerprint."""
    self._index, self._parse, self._about = index, parse, about
    self.labels, self.classes = labels, classes

  @property
  def invalid(self) -> int:
    """How many lines hold bytes that are no UTF-8, which are read as U+FFFD."""
    return self._index.invalid

  def __len__(self) -> int:
    return len(self._index.begins)

  def __getitem__(self, i: int) -> Document:
    index = self._index
    begin, end = index.begins[_in_range(i, len(self))], index.ends[i]
    file = int(np.searchsorted(index.firsts, i, side='right')) - 1
    data = _read(index.paths[file], index.sizes[file], int(begin), int(end))
    return Document(self._parse(data.decode('utf-8', 'replace')))

  def fingerprint(self) -> str:
    """SHA-256 of the files' contents, in the order of their names, and of how they are read."""
    about = (VERSION, self._about, self._index.sha256, self.classes)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def text_files(*, path: str, split: str = 'train',
               documents: Literal['line', 'blank'] = 'line') -> FileCorpus:
  """Plain text, UTF-8.

  Lines of white space (or NUL) alone are empty. What becomes of bytes that are no UTF-8, NUL, line
  ends and byte order marks is said at the top of this module; `invalid` counts the lines with the
  first. A last line without a line end counts as a line.

  Args:
    path: a file, or a pattern: 'books/*.txt', '**' for folders below; in the order of their names,
      hidden ones left out. '{split}' in it is replaced. Remote ones ('gs://...') are read by
      etils.epath, and their patterns know no '**'.
    split: only 'train' exists where `path` has no '{split}'.
    documents: 'line', each line that is not empty is a document of one sentence; 'blank', BERT's
      input format, a line is a sentence and empty lines stand between documents. A document does
      not go on in the next file.

  Raises:
    FileNotFoundError: there is no such file, or none that matches.
    ValueError: a folder, a split that the path does not name, or another kind of documents.
    DataError: a file holds no documents, is compressed or UTF-16, or a document is over 256 MiB.
  """
  if documents not in ('line', 'blank'):
    raise ValueError("documents must be 'line' (a document per line) or 'blank' (a sentence per "
                     f'line, empty lines between documents), not {documents!r}')
  find, parse = (_each_line, _whole) if documents == 'line' else (_between_blanks, _each_sentence)
  return FileCorpus(_scan(_files(path, split), find), parse, ('text', documents), {}, ())


def jsonl(*, path: str, split: str = 'train', field: str = 'text',
          label: str | None = None) -> FileCorpus:
  """JSON Lines: an object per line, its `field` the document: a string, or a list of sentences.

  Every line is parsed when the corpus is made, so that a damaged one is known at the beginning.
  Empty lines, and objects whose text is empty, are no documents.

  Args:
    path, split: as `text_files`.
    field: the key of the text.
    label: the key of a label: integers, which become int32 as they are, or strings, which are
      numbered in their alphabetical order (`classes`). The numbers of two splits agree only if all
      classes occur in both: compare `classes`.

  Raises:
    FileNotFoundError: there is no such file, or none that matches.
    ValueError: a folder, or a split that the path does not name.
    DataError: a line is no JSON object or lacks a field, named by file and line; else as
      `text_files`.
  """
  labels = _Labels()
  find = functools.partial(_each_object, field=field, label=label, labels=labels)
  index = _scan(_files(path, split), find)
  found, classes = labels.result() if label is not None else ({}, ())
  return FileCorpus(index, functools.partial(_text_of, field=field, where=path),
                    ('jsonl', field, label), found, classes)


def _files(path: str, split: str) -> list[epath.Path]:
  """The file that `path` names, or the files that match it, in the order of their names."""
  path = str(path)
  if '{split}' not in path and split != 'train':
    raise ValueError(f"{path!r} is the 'train' split; to have a split {split!r}, write '{{split}}' "
                     "in the path, as in 'my_{split}.txt'")
  file = epath.Path(path.replace('{split}', split)).expanduser()
  if file.is_dir():
    raise ValueError(f"{file} is a folder; name the files in it, as in '{file}/*.txt'")
  if file.exists():
    return [file]
  if not glob.has_magic(str(file)):
    raise FileNotFoundError(2, 'no such file of text', str(file))
  found = _matches(str(file))
  if not found:
    raise FileNotFoundError(2, 'no file of text matches', str(file))
  return found


def _matches(pattern: str) -> list[epath.Path]:
  """In the order of their names, without folders and what is hidden."""
  if '://' not in pattern:
    names = sorted(glob.glob(pattern, recursive=True))
    return [epath.Path(name) for name in names if not os.path.isdir(name)]
  if '**' in pattern:
    raise ValueError(f"'**' in {pattern!r} would ask the storage for every folder; use '*'")
  base, _, rest = pattern[:re.search(r'[*?[]', pattern).start()].rpartition('/')
  found = [file for file in epath.Path(base).glob(rest + pattern[len(base) + 1 + len(rest):])
           if not file.name.startswith('.')]
  return sorted(found, key=str)


def _read(path: str, size: int, begin: int, end: int) -> bytes:
  """Opened for each document: nothing to be shared between threads and processes."""
  if '://' in path:
    stream = epath.Path(path).open('rb')
  else:
    stream = open(path, 'rb')
  with stream:
    if stream.seek(0, 2) != size:
      raise DataError(f'{path} has changed since it was scanned: it was {size:,} bytes long')
    stream.seek(begin)
    return stream.read(end - begin)


def _in_range(i: int, length: int) -> int:
  if not 0 <= i < length:
    raise IndexError(f'document {i} of {length}')
  return i


# --- scanning -------------------------------------------------------------------------------------


class _Line(NamedTuple):
  """A line of a file, cleaned; `text` is '' where there is nothing in it."""

  where: tuple[str, int]  # path, number from 1
  begin: int
  end: int
  text: str


# The lines of one file -> where its documents begin and end.
Finder = Callable[[Iterable[_Line]], Iterator[tuple[int, int]]]


def _scan(files: list[epath.Path], find: Finder) -> Index:
  begins, ends, firsts, sizes = array.array('q'), array.array('q'), [], []
  digest, invalid, said = hashlib.sha256(), [], time.monotonic()
  for file in files:
    firsts.append(len(begins))
    lines = _Lines(file)
    for begin, end in find(lines):
      begins.append(begin)
      ends.append(end)
      if len(begins) % 65536 == 0 and time.monotonic() - said > SLOW:
        said = time.monotonic()
        print(f'{file}: {len(begins):,} documents so far ...', file=sys.stderr, flush=True)
    if len(begins) == firsts[-1]:
      raise DataError(f'{file} holds no documents: it is empty, or all of its lines are')
    digest.update(lines.digest.digest())
    sizes.append(lines.size)
    invalid.append(lines.invalid)
  if sum(invalid):
    worst = files[int(np.argmax(invalid))]
    print(f'{sum(invalid):,} lines hold bytes that are no UTF-8, which are read as U+FFFD; '
          f'{max(invalid):,} of them in {worst}', file=sys.stderr, flush=True)
  return Index(tuple(map(str, files)), tuple(sizes), np.array(firsts, np.int64),
               np.array(begins, np.int64), np.array(ends, np.int64), sum(invalid),
               digest.hexdigest())


class _Lines:
  """The lines of a file, one at a time; after the last, its size, digest and what was invalid."""

  def __init__(self, file: epath.Path):
    self._file, self.size, self.invalid, self.digest = file, 0, 0, hashlib.sha256()

  def __iter__(self) -> Iterator[_Line]:
    path = str(self._file)
    with self._file.open('rb') as stream:
      # A limit, lest a file of another kind is read as a single line.
      for number, data in enumerate(iter(lambda: stream.readline(LARGEST + 1), b''), 1):
        _check_size(len(data), f'{path}, line {number}')
        self.digest.update(data)
        begin, self.size = self.size, self.size + len(data)
        if number == 1:
          _check_kind(path, data)
          if data.startswith(codecs.BOM_UTF8):
            data, begin = data[3:], begin + 3
        yield _Line((path, number), begin, self.size, self._decoded(data))

  def _decoded(self, data: bytes) -> str:
    try:
      return _clean(data.decode())
    except UnicodeDecodeError:
      self.invalid += 1
      return _clean(data.decode('utf-8', 'replace'))


def _clean(text: str) -> str:
  return text.replace('\0', ' ').strip()


def _check_size(size: int, where: str) -> None:
  if size > LARGEST:
    raise DataError(f'{where}: a document of more than {LARGEST:,} bytes; are there line ends '
                    "('\\n'), or empty lines for documents='blank'?")


def _check_kind(path: str, data: bytes) -> None:
  kinds = {codecs.BOM_UTF16_LE: 'UTF-16', codecs.BOM_UTF16_BE: 'UTF-16', b'\x1f\x8b': 'gzip',
           b'\xfd7zXZ': 'xz', b'BZh': 'bzip2', b'\x28\xb5\x2f\xfd': 'zstd', b'PK\x03\x04': 'zip'}
  for start, kind in kinds.items():
    if data.startswith(start):
      raise DataError(f'{path} is {kind}, expected plain text in UTF-8: convert or unpack it first')


# --- kinds of documents ---------------------------------------------------------------------------


def _each_line(lines: Iterable[_Line]) -> Iterator[tuple[int, int]]:
  return ((line.begin, line.end) for line in lines if line.text)


def _whole(text: str) -> tuple[str, ...]:
  return (_clean(text),)


def _between_blanks(lines: Iterable[_Line]) -> Iterator[tuple[int, int]]:
  begin = end = None
  for line in lines:
    if line.text:
      begin, end = line.begin if begin is None else begin, line.end
      _check_size(end - begin, f'{line.where[0]}, line {line.where[1]}')
    elif begin is not None:
      yield begin, end
      begin = None
  if begin is not None:
    yield begin, end


def _each_sentence(text: str) -> tuple[str, ...]:
  return tuple(filter(None, map(_clean, text.split('\n'))))


def _each_object(lines: Iterable[_Line], *, field: str, label: str | None,
                 labels: '_Labels') -> Iterator[tuple[int, int]]:
  for line in lines:
    if not line.text:
      continue
    where = f'{line.where[0]}, line {line.where[1]}'
    found = _object(line.text, where)
    if not _sentences(_member(found, field, where), f'{where}: {field!r}'):
      continue
    if label is not None:
      labels.add(_member(found, label, where), where)
    yield line.begin, line.end


def _text_of(text: str, *, field: str, where: str) -> tuple[str, ...]:
  """The sentences of a line of JSON."""
  return _sentences(_member(_object(_clean(text), where), field, where), f'{where}: {field!r}')


def _object(text: str, where: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{where}: expected a JSON object, but it is damaged: {error}') from error
  if not isinstance(found, dict):
    raise DataError(f'{where}: expected a JSON object, got {type(found).__name__}')
  return found


def _member(found: dict[str, Any], field: str, where: str) -> Any:
  if field not in found:
    raise DataError(f'{where}: there is no field {field!r}, but {", ".join(found) or "nothing"}')
  return found[field]


def _sentences(value: Any, what: str) -> tuple[str, ...]:
  """Of a string or a list of strings, which TFDS gives as bytes."""
  parts = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
  if not all(isinstance(part, (str, bytes)) for part in parts):
    raise DataError(f'{what} must be text, or a list of texts; got {type(value).__name__}')
  parts = (part.decode('utf-8', 'replace') if isinstance(part, bytes) else part for part in parts)
  return tuple(filter(None, (_clean(_SURROGATE.sub('\ufffd', part)) for part in parts)))


class _Labels:
  """Labels as they are met, held as numbers."""

  def __init__(self):
    self._values, self._codes, self._kind = {}, array.array('i'), None

  def add(self, value: Any, where: str) -> None:
    kind = type(value)
    if kind not in (int, str) or self._kind not in (None, kind) or (
        kind is int and not -2**31 <= value < 2**31):
      raise DataError(f'{where}: labels must be all integers (of 32 bits) or all strings; got '
                      f'{value!r}')
    self._kind = kind
    self._codes.append(self._values.setdefault(value, len(self._values)))

  def result(self) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(labels, classes)."""
    values, classes = list(self._values), ()
    if self._kind is str:
      classes = tuple(sorted(values))
      values = [classes.index(value) for value in values]
    numbers = np.array(values, np.int32)
    return {'label': numbers[np.array(self._codes, np.int64)]}, classes


# --- TFDS -----------------------------------------------------------------------------------------


class TfdsTexts:
  """One split of a prepared dataset; travels to workers as the arguments of `tfds_text`."""

  def __init__(self, records: Any, full_name: str, classes: tuple[str, ...], arguments: dict):
    self._records, self._full_name, self.classes = records, full_name, classes
    self._arguments, self._field, self._label = arguments, arguments['field'], arguments['label']

  def __reduce__(self):
    return functools.partial(tfds_text, **self._arguments), ()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> Document:
    value = self._records[_in_range(i, len(self))][self._field]
    return Document(_sentences(value, f'{self._full_name}[{i}]: {self._field!r}'))

  @functools.cached_property
  def labels(self) -> dict[str, np.ndarray]:
    """{'label': int32 [N]} or {}; one pass over the records when first asked for."""
    if self._label is None:
      return {}
    found = (self._records[i][self._label] for i in range(len(self)))
    return {'label': np.fromiter(found, np.int32, len(self))}

  def fingerprint(self) -> str:
    """SHA-256 over name, version, split, number of examples and fields; not the bytes."""
    about = (VERSION, self._full_name, len(self), self._field, self._label, self.classes)
    return hashlib.sha256(repr(about).encode()).hexdigest()


def tfds_text(*, dataset: str, split: str = 'train', data_dir: str | None = None,
              field: str = 'text', label: str | None = None) -> TfdsTexts:
  """A text dataset of TFDS, prepared as ArrayRecord, without TensorFlow; nothing is downloaded.

  Documents keep the numbers of their records: one whose text is empty has no sentences.

  Args:
    dataset: 'imdb_reviews', 'glue/sst2:2.0.0'.
    split: as TFDS writes them: 'train', 'train[:90%]', 'train+test'.
    data_dir: where datasets are prepared; None is TFDS's own, ~/tensorflow_datasets.
    field: the feature with the text; a sequence of texts is taken for sentences.
    label: the feature with the label; None for data without.

  Raises:
    ValueError: an unknown dataset, split or feature, or one that is no text or no integer.
    DataError: the dataset is not prepared, or not as ArrayRecord; says how to.
  """
  arguments = dict(locals())
  found = _builder(dataset, data_dir)
  _check_prepared(found, dataset, data_dir)
  features = found.info.features
  for name, what in ((field, 'field'), (label, 'label')):
    if name is not None and name not in features:
      raise ValueError(f'{dataset} has no feature {name!r} to be the {what}, but '
                       f'{", ".join(sorted(features))}')
  if not _holds(features[field], np.object_):
    raise ValueError(f'the feature {field!r} of {dataset} is no text, but {features[field]}')
  if label is not None and not _holds(features[label], np.integer):
    raise ValueError(f'the feature {label!r} of {dataset} is no integer, but {features[label]}')
  try:
    records = found.as_data_source(split=split)
  except ValueError as error:
    raise ValueError(f'{dataset}: {error}') from error
  classes = tuple(getattr(features[label], 'names', None) or ()) if label is not None else ()
  return TfdsTexts(records, f'{found.info.full_name}/{split}', classes, arguments)


def _holds(feature: Any, kind: type) -> bool:
  """Whether a feature of TFDS is of a NumPy type; nested ones have a dict of them."""
  return not isinstance(feature.np_dtype, dict) and np.issubdtype(feature.np_dtype, kind)
