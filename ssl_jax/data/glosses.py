"""WordNet's glosses, the text that ships with the package."""

import hashlib
import io
import pathlib

import numpy as np

from ssl_jax.data.documents import Document, in_range

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

_WORDNET = pathlib.Path(__file__).parent / 'embedded' / 'wordnet_glosses' / 'wordnet_glosses.npz'
_WORDNET_SPLITS = ('train', 'validation', 'test')


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
    begin = self._begins[in_range(i, len(self))]
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
