"""Makes ssl_jax/data/embedded/wordnet_glosses/wordnet_glosses.npz, bit for bit.

The input is Debian's package `wordnet-base` (apt-get install wordnet-base), WordNet 3.0:
  python tools/make_wordnet_glosses.py --output=wordnet_glosses.npz
Every gloss is kept as it stands, in the order nouns, verbs, adjectives, adverbs and of the files in
each; beside it stand where its sentences begin and end, its classes, and its split.
"""

import argparse
import collections
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

FOLDER = pathlib.Path('/usr/share/wordnet')
# Version 1:3.0-37 of the package.
INPUTS = {
  'data.noun': 'fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2',
  'data.verb': 'adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2',
  'data.adj': 'c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7',
  'data.adv': '444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139',
}
# Satellites ('s') are adjectives of the cluster around a head.
PARTS = {'n': 0, 'v': 1, 'a': 2, 's': 2, 'r': 3}
TRAIN, VALIDATION, TEST = 0, 1, 2
HELD_OUT = 0.05  # share of each class in 'validation', and as much in 'test'
# A group may exceed the share by so much; larger ones stay in 'train'.
ROOM = 1.5


class Synset(NamedTuple):
  """One line of a data file (wndb(5WN)); `id` is 'n02084071': part of speech and offset."""

  id: str
  lexicographer: int
  part_of_speech: int
  pointers: tuple[tuple[str, str], ...]  # (symbol, id)
  gloss: str


def read(folder: pathlib.Path) -> list[Synset]:
  """All synsets, in the order of the files."""
  found = []
  for name, want in INPUTS.items():
    data = (folder / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != want:
      raise ValueError(f'{folder / name} has SHA-256 {digest}, expected {want}: '
                       'another version of the package?')
    # The licence stands at the top, indented.
    found += [parse(line) for line in data.decode('ascii').splitlines() if line[0] != ' ']
  return found


def parse(line: str) -> Synset:
  head, gloss = line.split('|', 1)
  offset, lexicographer, kind, words, *rest = head.split()
  rest = rest[2 * int(words, 16):]
  pointers = [rest[1 + 4 * i:4 + 4 * i] for i in range(int(rest[0]))]
  return Synset(_id(kind, offset), int(lexicographer), PARTS[kind],
                tuple((symbol, _id(part, target)) for symbol, target, part in pointers),
                gloss.strip())


def _id(kind: str, offset: str) -> str:
  return ('a' if kind == 's' else kind) + offset


# --- sentences ------------------------------------------------------------------------------------

# An example, and who said so: '"..." - Shakespeare', '"..." (British usage)', '"..." H.L.Mencken'.
EXAMPLE = re.compile(r'"(.*)"(\s*-.*|\s*\([^"]*\)?|\s+[A-Z][^"]*|\s+or|\.)?')
# What ends in a whole example, so that the next one may follow after a comma, or nothing.
COMPLETE = re.compile(r'"[^"]*"\s*([,.:]|or)?\s*')


def sentences(gloss: str) -> list[tuple[int, int]]:
  """Where the sentences of a gloss begin and end: the definition, then the examples.

  Quotes around an example and the name of its author are left out, quotes within are not. Remarks
  after the first example are sentences too: '(`soft' is nonstandard)'.
  """
  parts = _parts(gloss)
  first = next((i for i, part in enumerate(parts) if i and _is_example(gloss[slice(*part)])),
               len(parts))
  spans = [(parts[0][0], parts[first - 1][1]), *parts[first:]]
  spans = [_inner(gloss, *span) for span in spans]
  return [(start, end) for start, end in spans if start < end]


def _parts(gloss: str) -> list[tuple[int, int]]:
  """Cuts at semicolons outside of quotes, and before examples that no semicolon precedes."""
  cuts, start, quoted = [], 0, False
  for i, character in enumerate(gloss):
    if character == ';' and not quoted:
      cuts.append(i + 1)
      start = i + 1
    if character == '"':
      before = gloss[start:i]
      if _opens(gloss, i) and (not quoted or before.rstrip().endswith(';')):
        if _example_may_begin_after(before):
          cuts.append(i)
          start = i
        quoted = True
      else:
        quoted = False
  edges = [0, *cuts, len(gloss)]
  return [(a, b) for a, b in zip(edges, edges[1:]) if gloss[a:b].strip(' ;')]


def _opens(gloss: str, i: int) -> bool:
  """Whether the quote at i is an opening one, by its neighbours: some glosses lack the other."""
  before, after = gloss[i - 1:i] or ' ', gloss[i + 1:i + 2] or ' '
  return (before in ' (;:,"' or gloss[:i].endswith('--')) and after not in ' ;,.)'


def _example_may_begin_after(text: str) -> bool:
  if text.lstrip().startswith('"'):
    return bool(COMPLETE.fullmatch(text.strip())) or text.rstrip().endswith(';')
  return text.rstrip().endswith((',', ':', ';')) and text.count('(') == text.count(')')


def _is_example(part: str) -> bool:
  part = part.strip(' ;,.:')
  return part.startswith('"') or (part.endswith('"') and part.count('"') == 1)


def _inner(gloss: str, start: int, end: int) -> tuple[int, int]:
  """Without blanks and separators, and without the quotes of an example."""
  start, end = _stripped(gloss, start, end, ' ;', ' ;,:')
  text = gloss[start:end]
  example = EXAMPLE.fullmatch(text)
  if example and text.count('"') != 4:  # '"I know," he said, "but ..."' needs its quotes.
    return _stripped(gloss, start + 1, start + 1 + len(example[1]), ' ', ' ;')
  if text.count('"') == 1:  # Its partner is missing.
    return _stripped(gloss, start + text.startswith('"'), end - text.endswith('"'), ' ', ' ;')
  return start, end


def _stripped(gloss: str, start: int, end: int, left: str, right: str) -> tuple[int, int]:
  while start < end and gloss[start] in left:
    start += 1
  while start < end and gloss[end - 1] in right:
    end -= 1
  return start, end


# --- splits ---------------------------------------------------------------------------------------


def groups(synsets: Sequence[Synset]) -> list[list[int]]:
  """Numbers of synsets that must not be separated.

  Nouns and verbs that share an immediate hypernym, adjectives and their satellites, adverbs and the
  adjectives they come from, and whatever has a sentence in common; transitively.
  """
  parent = {}

  def find(x):
    parent.setdefault(x, x)
    while parent[x] != x:
      parent[x] = x = parent[parent[x]]
    return x

  for synset in synsets:
    for key in (synset.id, *_shared(synset)):
      parent[find(key)] = find(synset.id)
  members = collections.defaultdict(list)
  for i, synset in enumerate(synsets):
    members[find(synset.id)].append(i)
  return list(members.values())


def _shared(synset: Synset) -> Iterable[str]:
  """What a synset has in common with those in its group."""
  for start, end in sentences(synset.gloss):
    yield f'says {synset.gloss[start:end].casefold()}'
  for symbol, target in synset.pointers:
    if symbol in ('@', '@i'):  # hypernym, class of an instance
      yield f'under {target}'
    if symbol == '&' or (symbol == '\\' and synset.part_of_speech == PARTS['r']):
      yield target


def split(synsets: Sequence[Synset]) -> np.ndarray:
  """uint8 [N]: TRAIN, VALIDATION or TEST; whole groups, in an order by hash, shares per class."""
  totals = collections.Counter(synset.lexicographer for synset in synsets)
  taken = {TEST: collections.Counter(), VALIDATION: collections.Counter()}
  result = np.full(len(synsets), TRAIN, np.uint8)
  for group in sorted(groups(synsets), key=lambda group: _hash(synsets[group[0]].id)):
    counts = collections.Counter(synsets[i].lexicographer for i in group)
    main = min(counts, key=lambda c: (-counts[c], c))
    for where, already in taken.items():
      if already[main] < HELD_OUT * totals[main] and all(
          already[c] + counts[c] <= max(1, ROOM * HELD_OUT * totals[c]) for c in counts):
        result[group] = where
        already.update(counts)
        break
  return result


def _hash(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()


# --- the file -------------------------------------------------------------------------------------


def arrays_of(synsets: Sequence[Synset]) -> dict[str, np.ndarray]:
  """What is stored, see README.md beside the file."""
  spans = [sentences(synset.gloss) for synset in synsets]
  edges = np.array([edge for found in spans for edge in found], np.uint16)
  return {
    'text': np.frombuffer('\n'.join(synset.gloss for synset in synsets).encode('ascii'), np.uint8),
    'sentences': np.array([len(found) for found in spans], np.uint8),
    'start': edges[:, 0], 'end': edges[:, 1],
    'offset': np.array([int(synset.id[1:]) for synset in synsets], np.uint32),
    'label': np.array([synset.lexicographer for synset in synsets], np.uint8),
    'part_of_speech': np.array([synset.part_of_speech for synset in synsets], np.uint8),
    'split': split(synsets),
  }


def write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """As the images that ship are written."""
  tool = pathlib.Path(__file__).with_name('make_fashion_mnist.py')
  spec = importlib.util.spec_from_file_location(tool.stem, tool)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  module.write_npz(path, arrays)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER, help='of the Debian package')
  parser.add_argument('--output', type=pathlib.Path, required=True)
  args = parser.parse_args()
  arrays = arrays_of(read(args.folder))
  write_npz(args.output, arrays)
  print(f'{hashlib.sha256(args.output.read_bytes()).hexdigest()}  {args.output}')
  for name, array in arrays.items():
    print(f'{hashlib.sha256(array.tobytes()).hexdigest()}  {name} {array.dtype} {array.shape}')


if __name__ == '__main__':
  main()
