"""Questions whose answer is a part of a text: SQuAD read, encoded in windows, measured.

A context that is too long for a row becomes several rows, windows that overlap; each word of it may
begin an answer in one of them only, that in which it has most context. The answer to a question is
the best of all its windows. Where questions may have no answer, [CLS] stands for it: a window
without the answer is trained to point there, and '' is answered where the lowest score that any
window gives to [CLS] is above that of the best answer. All this is google-research/bert
run_squad.py, in closed form.

References: Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822); Devlin et al. 2019
(arXiv:1810.04805), sections 4.2 and 4.3.
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.data.sources import DataError
from ssl_jax.data.token_frames import Piece
from ssl_jax.data.tokenize import Tokenizer
from ssl_jax.evals.text_metrics import exact_match, span_f1
from ssl_jax.evals.text_rows import Measure, Rows, framed, own_tokens, pieces_of

QUESTION = 64  # tokens of a question at most, and half of a row
ANSWER = 30  # tokens of an answer at most
STRIDE = 128  # tokens between the beginnings of two windows

NO_ANSWER = 0  # the position of [CLS]
KINDS = {list: 'a list', str: 'a text', int: 'a number'}  # of JSON


class Question(NamedTuple):
  """answers: (text, number of its first character in the context) of each; () where there is none.

  The first is the one that is trained on.
  """

  id: str
  text: str
  context: str
  answers: tuple[tuple[str, int], ...]


class Questions(NamedTuple):
  """N questions. unanswerable: whether some may have no answer."""

  questions: list[Question]
  unanswerable: bool = False

  @property
  def count(self) -> int:
    return len(self.questions)

  def take(self, rows: np.ndarray) -> 'Questions':
    """These questions alone, in this order."""
    return self._replace(questions=[self.questions[i] for i in rows])


class Window(NamedTuple):
  """What is needed to read an answer from the outputs of a row.

  first: where in the row the context begins.
  offsets: the characters of each token of the context, int32 [n, 2].
  begins: whether an answer may begin there, bool [n].
  context, answers: texts.
  """

  first: int
  offsets: np.ndarray
  begins: np.ndarray
  context: str
  answers: tuple[str, ...]


# --- reading --------------------------------------------------------------------------------------


def read_squad(path: str | pathlib.Path, *, unanswerable: bool = False) -> Questions:
  """The questions of a JSON file of SQuAD.

  Args:
    path: of the file.
    unanswerable: it is of v2.0, where questions may be 'is_impossible'.

  Raises:
    FileNotFoundError: there is no such file.
    DataError: no JSON, another structure, an answer that does not stand where it is said to, or a
      question without an answer that is not said to be impossible; named by its place in the file.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise FileNotFoundError(2, 'no such file', str(path))
  try:
    found = json.loads(path.read_text('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path}: expected the JSON of SQuAD, but it is damaged: {error}') from error
  questions = [_question(own, context, unanswerable, where)
               for own, context, where in _each(found, str(path))]
  if not questions:
    raise DataError(f'{path} holds no questions')
  return Questions(questions, unanswerable)


def _each(found: Any, where: str) -> Iterator[tuple[Any, str, str]]:
  """(question, context, place)"""
  for i, article in enumerate(_member(found, 'data', list, where)):
    at = f'{where}: data[{i}]'
    for j, paragraph in enumerate(_member(article, 'paragraphs', list, at)):
      inner = f'{at}.paragraphs[{j}]'
      context = _member(paragraph, 'context', str, inner)
      for k, own in enumerate(_member(paragraph, 'qas', list, inner)):
        yield own, context, f'{inner}.qas[{k}]'


def _member(found: Any, name: str, kind: type, where: str) -> Any:
  if isinstance(found, dict) and type(found.get(name)) is kind:
    return found[name]
  got = type(found).__name__
  if isinstance(found, dict):
    value = f'{found[name]!r}'[:60] if name in found else None
    got = f'one with {", ".join(found) or "nothing"}' if value is None else f'{name!r}: {value}'
  raise DataError(f"{where}: expected an object with {name!r}, {KINDS[kind]}, as SQuAD's files "
                  f'have it; got {got}')


def _question(own: Any, context: str, unanswerable: bool, where: str) -> Question:
  text = _member(own, 'question', str, where)
  impossible = own.get('is_impossible') is True
  if impossible and not unanswerable:
    raise DataError(f"{where} has no answer ('is_impossible'): the file is of SQuAD v2.0, expected "
                    'v1.1; use --task=squad2')
  answers = [] if impossible else _member(own, 'answers', list, where)
  if not answers and not impossible:
    raise DataError(f"{where} has no answers; expected at least one, or 'is_impossible': true")
  return Question(str(own.get('id', '')), text, context, tuple(
    _answer(one, context, f'{where}.answers[{i}]') for i, one in enumerate(answers)))


def _answer(found: Any, context: str, where: str) -> tuple[str, int]:
  text, first = _member(found, 'text', str, where), _member(found, 'answer_start', int, where)
  there = context[first:first + len(text)] if first >= 0 else ''
  if not text or there != text:
    raise DataError(f'{where}: expected the answer {text!r} at character {first} of the context '
                    f'({len(context)} long), where {there!r} stands')
  return text, first


# --- encoding -------------------------------------------------------------------------------------


def encode_spans(questions: Sequence[Question], tokenizer: Tokenizer, *, length: int,
                 stride: int = STRIDE, types: bool = False) -> tuple[dict[str, np.ndarray], int]:
  """Rows [CLS] question [SEP] context [SEP], one per window; the label is of the first answer.

  Args:
    questions: at least one; they are cut at 64 tokens, and at half a row.
    tokenizer, length, types: as `text_rows.encode`.
    stride: tokens from the beginning of one window to that of the next; less where windows are
      shorter, so that no token is left out.

  Returns:
    (rows, how many answers no window holds as a whole). 'label' is `NO_ANSWER` twice where a window
    does not hold the answer. Besides, rows have 'group', int32 [W]: the number of the question, and
    'window', objects [W]: `Window`.

  Raises:
    ValueError: as `text_rows.encode`; a stride below 1.
  """
  if stride < 1:
    raise ValueError(f'stride must be at least 1 token, got {stride}')
  if not questions:
    raise ValueError('there are no questions to encode')
  room = length - own_tokens(tokenizer, pair=True)
  asked = [_first(piece, min(QUESTION, room // 2))
           for piece in pieces_of([one.text for one in questions], tokenizer)]
  told = _contexts(questions, tokenizer)
  pairs, labels, groups, windows, lost = [], [], [], [], 0
  for i, (question, piece) in enumerate(zip(questions, asked)):
    tokens, offsets = told[question.context]
    answer = _tokens_of(offsets, *question.answers[0]) if question.answers else None
    first, held = own_tokens(tokenizer, pair=True) - 1 + len(piece.tokens), False
    for span, begins in _spans(len(tokens), max(room - len(piece.tokens), 1), stride):
      inside = answer is not None and span.start <= answer[0] and answer[1] < span.stop
      held = held or inside
      pairs.append((piece, Piece(tokens[span], np.ones(span.stop - span.start, bool))))
      labels.append([first + at - span.start for at in answer] if inside else [NO_ANSWER] * 2)
      groups.append(i)
      windows.append(Window(first, offsets[span], begins, question.context,
                            tuple(text for text, _ in question.answers)))
    lost += bool(question.answers) and not held
  rows = framed(pairs, tokenizer, length, types)
  rows['label'], rows['group'] = np.array(labels, np.int32), np.array(groups, np.int32)
  rows['window'] = np.empty(len(windows), object)
  for i, window in enumerate(windows):  # An array made of tuples would have more dimensions.
    rows['window'][i] = window
  return rows, lost


def _first(piece: Piece, count: int) -> Piece:
  return Piece(*(array[:count] for array in piece))


def _contexts(questions: Sequence[Question], tokenizer: Tokenizer,
              ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{context: (tokens, offsets)}; several questions are about each."""
  texts, found = list(dict.fromkeys(one.context for one in questions)), []
  for begin in range(0, len(texts), 256):
    found += tokenizer.encode_with_offsets(texts[begin:begin + 256])
  return dict(zip(texts, found))


def _tokens_of(offsets: np.ndarray, text: str, first: int) -> tuple[int, int] | None:
  """The first and last token with characters of the answer; None where there are none."""
  inside = np.flatnonzero((offsets[:, 1] > first) & (offsets[:, 0] < first + len(text)))
  return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _spans(count: int, room: int, stride: int) -> list[tuple[slice, np.ndarray]]:
  """Windows over `count` tokens, and which tokens of each have nowhere more context than there."""
  firsts = [0]
  while firsts[-1] + room < count:
    firsts.append(firsts[-1] + min(room, stride))
  spans = [slice(first, min(first + room, count)) for first in firsts]
  context = np.full((len(spans), count), -np.inf)
  for own, span in zip(context, spans):
    n = span.stop - span.start
    own[span] = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.01 * n
  best = context.argmax(0) if count else np.zeros(0, int)
  return [(span, best[span] == i) for i, span in enumerate(spans)]


# --- measuring ------------------------------------------------------------------------------------


def measure_spans(unanswerable: bool = False) -> Measure:
  """{'exact_match', 'span_f1'} of outputs [W, L, 2]; all windows of a question are one answer."""
  def measure(outputs, rows):
    found = answers_of(outputs, rows, unanswerable)
    windows = dict(zip(rows['group'].tolist(), rows['window']))
    sides = list(found.values()), [windows[group].answers for group in found]
    return dict(span_f1=span_f1(*sides, unanswerable=unanswerable),
                exact_match=exact_match(*sides, unanswerable=unanswerable))

  return measure


def answers_of(outputs: np.ndarray, rows: Rows, unanswerable: bool = False) -> dict[int, str]:
  """The text of the best span of each question; '' where `unanswerable` and [CLS] scores more."""
  best, null = {}, {}
  for scores, window, group in zip(outputs, rows['window'], rows['group'].tolist()):
    score, text = _best_span(scores, window)
    if group not in best or score > best[group][0]:
      best[group] = score, text
    null[group] = min(null.get(group, np.inf), float(scores[NO_ANSWER].sum()))
  return {group: '' if unanswerable and null[group] > score else text
          for group, (score, text) in best.items()}


def _best_span(scores: np.ndarray, window: Window) -> tuple[float, str]:
  """Begin before end, at most 30 tokens, within the context."""
  n = len(window.offsets)
  begin, end = scores[window.first:window.first + n].astype(np.float64).T
  best, where = -np.inf, None
  for more in range(min(ANSWER, n)):
    total = np.where(window.begins[:n - more], begin[:n - more] + end[more:], -np.inf)
    at = int(total.argmax())
    if total[at] > best:
      best, where = float(total[at]), (window.offsets[at, 0], window.offsets[at + more, 1])
  return best, '' if where is None else window.context[where[0]:where[1]].strip()
