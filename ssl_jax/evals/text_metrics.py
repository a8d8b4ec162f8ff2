"""Metrics of labelled text, and GLUE's tasks with the metrics that each is measured by.

Everything is plain NumPy on what was predicted and what is right. Predictions that are constant, as
those of an encoder that learned nothing often are, have a defined value: where a formula divides by
zero it is 0, as in scikit-learn; Pearson's and Spearman's too, which in scipy are NaN. Nothing to
measure at all is a ValueError.

References: Wang et al. 2019, GLUE (arXiv:1804.07461); Rajpurkar et al. 2016, SQuAD
(arXiv:1606.05250), and 2018, SQuAD v2.0 (arXiv:1806.03822); Tjong Kim Sang and De Meulder 2003,
CoNLL (arXiv:cs/0306050).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

# --- classes --------------------------------------------------------------------------------------


def accuracy(predictions: np.ndarray, targets: np.ndarray) -> float:
  """The share of predictions [N] that equal targets [N].

  Raises (here and below):
    ValueError: no examples, or not as many predictions as targets.
  """
  predictions, targets = _pair(predictions, targets)
  return float(np.mean(predictions == targets))


def f1(predictions: np.ndarray, targets: np.ndarray, positive: int = 1) -> float:
  """2 TP / (2 TP + FP + FN) of the class `positive`; 0 where it is neither predicted nor there."""
  predictions, targets = _pair(predictions, targets)
  return _f1(predictions == positive, targets == positive)


def macro_f1(predictions: np.ndarray, targets: np.ndarray) -> float:
  """The mean of `f1` over all classes that are predicted or there."""
  predictions, targets = _pair(predictions, targets)
  classes = np.union1d(predictions, targets)
  return float(np.mean([_f1(predictions == c, targets == c) for c in classes]))


def matthews(predictions: np.ndarray, targets: np.ndarray) -> float:
  """Matthews' correlation of two or more classes (R_K, Gorodkin 2004); 0 for a constant side."""
  predictions, targets = _pair(predictions, targets)
  classes = np.union1d(predictions, targets)
  a, b = (side[:, None] == classes[None] for side in (predictions, targets))
  # The correlation of the indicator vectors, about their means.
  a, b = a - a.mean(0), b - b.mean(0)
  scale = np.sqrt((a * a).sum() * (b * b).sum())
  return float((a * b).sum() / scale) if scale else 0.


def _f1(predicted: np.ndarray, right: np.ndarray) -> float:
  return _ratio(2 * np.sum(predicted & right), np.sum(predicted) + np.sum(right))


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else 0.


def _pair(predictions, targets) -> tuple[np.ndarray, np.ndarray]:
  predictions, targets = np.asarray(predictions), np.asarray(targets)
  if predictions.ndim != 1 or predictions.shape != targets.shape or not targets.size:
    raise ValueError(f'expected predictions [N] and targets [N] with N >= 1, got '
                     f'{predictions.shape} and {targets.shape}')
  return predictions, targets


# --- numbers --------------------------------------------------------------------------------------


def pearson(predictions: np.ndarray, targets: np.ndarray) -> float:
  """The linear correlation of two vectors [N]; 0 where one of them is constant."""
  a, b = (np.asarray(side, np.float64) for side in _pair(predictions, targets))
  if np.ptp(a) == 0 or np.ptp(b) == 0:  # Rounding leaves a little of the mean otherwise.
    return 0.
  a, b = a - a.mean(), b - b.mean()
  return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def spearman(predictions: np.ndarray, targets: np.ndarray) -> float:
  """`pearson` of the ranks; equal values share the mean of theirs."""
  return pearson(*map(_ranks, _pair(predictions, targets)))


def _ranks(values: np.ndarray) -> np.ndarray:
  _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[which]


# --- answers --------------------------------------------------------------------------------------


def normalised_answer(text: str) -> str:
  """In lower case, without ASCII punctuation and articles, single spaces: SQuAD v1.1's script."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def exact_match(predictions: Sequence[str], answers: Sequence[Sequence[str]], *,
                unanswerable: bool = False) -> float:
  """The share of predictions that equal one of their answers, normalised.

  Args:
    predictions: N texts.
    answers: of each, at least one.
    unanswerable: SQuAD v2.0's script: without answers (or with none that is more than articles and
      punctuation), '' is right.

  Raises:
    ValueError: no predictions, not as many as answers, or a question without any.
  """
  return _best(_same, predictions, _or_none(answers) if unanswerable else answers)


def span_f1(predictions: Sequence[str], answers: Sequence[Sequence[str]], *,
            unanswerable: bool = False) -> float:
  """The mean over predictions of the best F1 of words with one of their answers, normalised.

  Without a word in common it is 0, also where both are empty, as in SQuAD v1.1's script; in v2.0's
  (`unanswerable`) two empty ones are 1. Arguments and errors as `exact_match`.
  """
  if unanswerable:
    return _best(_common_or_none, predictions, _or_none(answers))
  return _best(_common, predictions, answers)


def _or_none(answers: Sequence[Sequence[str]]) -> list[Sequence[str]]:
  return [[text for text in own if normalised_answer(text)] or [''] for own in answers]


def _best(score: Callable[[str, str], float], predictions, answers) -> float:
  if len(predictions) != len(answers) or not len(answers) or not all(map(len, answers)):
    raise ValueError(f'expected N predictions and at least one answer to each, got '
                     f'{len(predictions)} and {len(answers)}')
  return float(np.mean([max(score(normalised_answer(text), normalised_answer(one)) for one in some)
                        for text, some in zip(predictions, answers)]))


def _same(prediction: str, answer: str) -> float:
  return float(prediction == answer)


def _common_or_none(prediction: str, answer: str) -> float:
  return _common(prediction, answer) if prediction and answer else _same(prediction, answer)


def _common(prediction: str, answer: str) -> float:
  prediction, answer = prediction.split(), answer.split()
  shared = (Counter(prediction) & Counter(answer)).total()
  return _ratio(2 * shared, len(prediction) + len(answer)) if shared else 0.


# --- entities -------------------------------------------------------------------------------------


def chunks(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """{(type, first word, last word + 1)} of IOB2 tags: 'B-PER', 'I-PER', 'O'.

  As conlleval and seqeval (not strict): an 'I-' that continues nothing of its type begins a chunk.

  Raises:
    ValueError: a tag of another form.
  """
  found, kind, begin = set(), None, 0
  for i, tag in enumerate([*tags, 'O']):
    mark, _, name = tag.partition('-')
    if mark not in ('B', 'I', 'O') or (mark == 'O') != (tag == 'O'):
      raise ValueError(f"expected IOB2 tags such as 'B-PER', 'I-PER' and 'O', got {tag!r}")
    if kind is not None and (mark != 'I' or name != kind):
      found.add((kind, begin, i))
      kind = None
    if kind is None and mark != 'O':
      kind, begin = name, i
  return found


def entity_f1(predictions: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
  """F1 of whole chunks over all sentences together (micro); 0 where no side has one.

  Raises:
    ValueError: no sentences, or a sentence with other than one tag per word.
  """
  if len(predictions) != len(targets) or not len(targets):
    raise ValueError(f'expected the tags of N sentences twice, got {len(predictions)} and '
                     f'{len(targets)}')
  shared = total = 0
  for i, (one, other) in enumerate(zip(predictions, targets)):
    if len(one) != len(other):
      raise ValueError(f'sentence {i} has {len(one)} predicted tags, expected {len(other)}')
    predicted, right = chunks(one), chunks(other)
    shared, total = shared + len(predicted & right), total + len(predicted) + len(right)
  return _ratio(2 * shared, total)


# --- GLUE -----------------------------------------------------------------------------------------


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = MappingProxyType(dict(
  accuracy=accuracy, f1=f1, macro_f1=macro_f1, matthews=matthews, pearson=pearson,
  spearman=spearman))


class Task(NamedTuple):
  """A task of GLUE, as its official TSV files and TFDS have it.

  folder: of the files in the official archive.
  texts: columns of the text or of the two texts.
  label: column of the label.
  values: what stands there for each class; () where the label is a number to be predicted.
  classes: their names, in the order of TFDS.
  metrics: names in `METRICS`.
  features: of TFDS, for `texts`.
  header: False where training and validation files have no header: then columns are numbers.
  validation: {name of the split in TFDS: file}.
  test: the same, without labels.
  """

  folder: str
  texts: tuple[str | int, ...]
  label: str | int
  values: tuple[str, ...]
  classes: tuple[str, ...]
  metrics: tuple[str, ...]
  features: tuple[str, ...]
  header: bool = True
  validation: Mapping[str, str] = MappingProxyType(dict(validation='dev.tsv'))
  test: Mapping[str, str] = MappingProxyType(dict(test='test.tsv'))

  @property
  def regression(self) -> bool:
    return not self.values

  @property
  def pair(self) -> bool:
    return len(self.texts) == 2


_TWO = ('sentence1', 'sentence2')
_ENTAILED = ('entailment', 'not_entailment')
_MNLI = ('entailment', 'neutral', 'contradiction')

# WNLI, the ninth, is left out of averages since BERT: its development set contradicts its training
# set. MRPC's TSV files are made by GLUE's download script, from Microsoft's.
TASKS: Mapping[str, Task] = MappingProxyType(dict(
  cola=Task('CoLA', (3,), 1, ('0', '1'), ('unacceptable', 'acceptable'), ('matthews',),
            ('sentence',), header=False),
  sst2=Task('SST-2', ('sentence',), 'label', ('0', '1'), ('negative', 'positive'), ('accuracy',),
            ('sentence',)),
  mrpc=Task('MRPC', ('#1 String', '#2 String'), 'Quality', ('0', '1'),
            ('not_equivalent', 'equivalent'), ('accuracy', 'f1'), _TWO),
  qqp=Task('QQP', ('question1', 'question2'), 'is_duplicate', ('0', '1'),
           ('not_duplicate', 'duplicate'), ('accuracy', 'f1'), ('question1', 'question2')),
  stsb=Task('STS-B', _TWO, 'score', (), (), ('pearson', 'spearman'), _TWO),
  mnli=Task('MNLI', _TWO, 'gold_label', _MNLI, _MNLI, ('accuracy',), ('premise', 'hypothesis'),
            validation=MappingProxyType(dict(validation_matched='dev_matched.tsv',
                                             validation_mismatched='dev_mismatched.tsv')),
            test=MappingProxyType(dict(test_matched='test_matched.tsv',
                                       test_mismatched='test_mismatched.tsv'))),
  qnli=Task('QNLI', ('question', 'sentence'), 'label', _ENTAILED, _ENTAILED, ('accuracy',),
            ('question', 'sentence')),
  rte=Task('RTE', _TWO, 'label', _ENTAILED, _ENTAILED, ('accuracy',), _TWO)))
