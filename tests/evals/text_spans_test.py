"""SQuAD's files read, contexts in windows, answers of all windows joined, or no answer."""

import json

import numpy as np
import pytest

from ssl_jax.data.sources import DataError
from ssl_jax.data.tokenize import train
from ssl_jax.evals.text_spans import (
  Question,
  answers_of,
  encode_spans,
  measure_spans,
  read_squad,
)

TEXT = ['the cat sat on the mat .', 'a dog , unhappily , ran home', 'Paris is in France']
CONTEXT = 'The unhappily dog ran home. Paris is in FRANCE, on the mat.'


@pytest.fixture(scope='module')
def tokenizer():
  return train(TEXT * 3, kind='wordpiece', size=120)


# --- reading --------------------------------------------------------------------------------------


def qa(text='dog', start=4, **more):
  return {'id': '7', 'question': 'Who?', 'answers': [{'text': text, 'answer_start': start}], **more}


def squad(path, *qas, context=CONTEXT):
  paragraphs = [{'context': context, 'qas': list(qas)}]
  path.write_text(json.dumps({'data': [{'title': 't', 'paragraphs': paragraphs}]}))
  return path


def test_squad_is_read(tmp_path):
  both = qa('unhappily', 4, answers=[{'text': 'unhappily', 'answer_start': 4},
                                     {'text': 'The unhappily', 'answer_start': 0}])
  found = read_squad(squad(tmp_path / 'a.json', both, qa('dog', 14)))
  assert found.count == 2 and not found.unanswerable
  assert found.questions[0] == Question(
    '7', 'Who?', CONTEXT, (('unhappily', 4), ('The unhappily', 0)))
  assert found.take(np.array([1])).questions[0].answers == (('dog', 14),)


def test_squad_2_has_questions_without_an_answer(tmp_path):
  path = squad(tmp_path / 'a.json', qa('dog', 14, is_impossible=False),
               {'id': '8', 'question': 'Where?', 'answers': [], 'is_impossible': True,
                'plausible_answers': [{'text': 'dog', 'answer_start': 14}]})
  found = read_squad(path, unanswerable=True)
  assert [one.answers for one in found.questions] == [(('dog', 14),), ()] and found.unanswerable
  with pytest.raises(DataError, match=r"qas\[1\] has no answer .* SQuAD v2.0, .* --task=squad2"):
    read_squad(path)


PLACE = r'a.json: data\[0\].paragraphs\[0\].qas\[0\]'


@pytest.mark.parametrize('own, words', [
  (qa('cat', 14), PLACE + r".answers\[0\]: expected the answer 'cat' at character 14 .* 'dog'"),
  (qa('dog', 13), "where ' do' stands"), (qa('dog', -1), "where '' stands"),
  (qa('dog', 999), r'\(59 long\), where .. stands'), (qa('', 3), "expected the answer ''"),
  (qa('dog', '14'), "answer_start', a number, as SQuAD's files have it; got 'answer_start': '14'"),
  (qa('dog', True), 'a number, .* got .answer_start.: True'),
  (qa(answers=[]), PLACE + " has no answers; expected at least one, or 'is_impossible'"),
  (qa(answers='dog'), "'answers', a list, .*; got 'answers': 'dog'"),
  (qa(question=None), PLACE + ": expected an object with 'question', a text, .* None"),
  ({'id': '7'}, "'question', a text, .*; got one with id"), ('Who?', 'got str')])
def test_broken_questions_are_named_by_their_place(tmp_path, own, words):
  with pytest.raises(DataError, match=words):
    read_squad(squad(tmp_path / 'a.json', own))


@pytest.mark.parametrize('text, words', [
  ('{"data": [', 'a.json: expected the JSON of SQuAD, but it is damaged: Expecting value: line 1'),
  ('[' * 100_000, 'but it is damaged'), ('[]', "expected an object with 'data', .* got list"),
  ('{"version": 1}', "'data', a list, as SQuAD's files have it; got one with version"),
  ('{"data": []}', 'a.json holds no questions'),
  ('{"data": [{"paragraphs": 3}]}', r"data\[0\]: expected .*'paragraphs', a list, .* got .* 3")])
def test_broken_files_are_answered(tmp_path, text, words):
  (tmp_path / 'a.json').write_text(text)
  with pytest.raises(DataError, match=words):
    read_squad(tmp_path / 'a.json')
  with pytest.raises(FileNotFoundError):
    read_squad(tmp_path / 'b.json')


# --- windows --------------------------------------------------------------------------------------


def ask(context, answer=None, question='is the cat ?'):
  """A question whose answer is where the text first stands."""
  return Question('', question, context, () if answer is None else (
    (answer, context.index(answer)),))


def pointing(rows):
  """Outputs that are right."""
  outputs = np.zeros((*rows['tokens'].shape, 2))
  for i, (begin, end) in enumerate(rows['label']):
    outputs[i, begin, 0] += 1
    outputs[i, end, 1] += 1
  return outputs


def test_spans_are_found_by_their_characters(tokenizer):
  answers = ['dog ran', 'Paris', 'FRANCE', 'mat.']
  rows, lost = encode_spans([ask(CONTEXT, text) for text in answers], tokenizer, length=64,
                            types=True)
  assert lost == 0 and (rows['types'].sum(1) > 0).all() and rows['group'].tolist() == [0, 1, 2, 3]
  for text, (begin, end), tokens, window in zip(
      answers, rows['label'], rows['tokens'], rows['window']):
    assert tokenizer.decode(tokens[begin:end + 1]) == tokenizer.decode(
      tokenizer.encode([text])[0].tokens)
    own = window.offsets
    assert CONTEXT[own[begin - window.first, 0]:own[end - window.first, 1]] == text
    assert window.begins.all()
  assert list(answers_of(pointing(rows), rows).values()) == answers
  assert measure_spans()(pointing(rows), rows) == dict(span_f1=1, exact_match=1)


def test_the_best_span_is_in_order_short_and_in_the_context(tokenizer):
  rows, _ = encode_spans([ask('cat ' * 40, 'cat', 'dog')], tokenizer, length=64)
  first = rows['window'][0].first
  outputs = np.zeros((1, rows['tokens'].shape[1], 2))
  outputs[0, 1, 0] = 9  # in the question
  outputs[0, first + 3, 0], outputs[0, first + 1, 1] = 3, 3  # in the wrong order
  outputs[0, first, 0], outputs[0, first + 35, 1] = 2.5, 2.5  # too long
  outputs[0, first + 5, 1] = 1
  assert answers_of(outputs, rows) == {0: 'cat cat'}  # 2.5 + 3
  outputs[0, first + 29, 1] = 2.6  # The longest that is allowed, from the first token on.
  outputs[0, first + 3, 0] = outputs[0, first + 1, 1] = 0
  assert answers_of(outputs, rows) == {0: ' '.join(['cat'] * 30)}


def run_squad(count, room, stride):
  """google-research/bert run_squad.py, token by token: windows and where each token may begin."""
  spans, start = [], 0
  while start < count:
    length = min(count - start, room)
    spans.append((start, length))
    if start + length == count:
      break
    start += min(length, stride)
  where = []
  for position in range(count):
    best = None
    for i, (start, length) in enumerate(spans):
      if start <= position < start + length:
        left, right = position - start, start + length - 1 - position
        score = min(left, right) + 0.01 * length
        if best is None or score > best[0]:
          best = score, i
    where.append(best[1])
  return spans, where


@pytest.mark.parametrize('count, length, stride', [
  (5, 32, 4), (90, 32, 8), (91, 32, 100), (90, 33, 27), (28, 32, 27), (29, 32, 27), (60, 32, 1)])
def test_windows_are_those_of_run_squad(tokenizer, count, length, stride):
  words = ('cat dog mat sat ran the home on in is'.split() * 10)[:count]
  rows, _ = encode_spans([ask(' '.join(words), None, 'cat')], tokenizer, length=length,
                         stride=stride)
  spans, where = run_squad(count, length - 4, stride)
  assert len(rows['window']) == len(spans) and (rows['group'] == 0).all()
  for i, (start, n) in enumerate(spans):
    window = rows['window'][i]
    own = window.offsets
    assert [window.context[a:b] for a, b in own] == words[start:start + n]
    shown = tokenizer.decode(rows['tokens'][i, window.first:window.first + n]).split()
    assert shown == words[start:start + n]
    assert np.flatnonzero(window.begins).tolist() == [
      k for k in range(n) if where[start + k] == i]


def test_the_answer_is_the_best_of_all_windows_and_others_point_to_cls(tokenizer):
  words = ['cat'] * 40
  words[33:35] = ['dog', 'ran']
  rows, lost = encode_spans([ask(' '.join(words), 'dog ran', 'mat'), ask('home', 'home', 'mat')],
                            tokenizer, length=24, stride=10)
  assert lost == 0 and rows['group'].tolist() == [0, 0, 0, 1]
  assert rows['label'].tolist()[:1] == [[0, 0]] and (rows['label'][2] > 0).all()
  outputs = pointing(rows)
  outputs[0, 4, 0], outputs[0, 4, 1] = .9, .9  # another window is less sure of another answer
  assert answers_of(outputs, rows) == {0: 'dog ran', 1: 'home'}
  outputs[0, 4, 0] = 1.2
  assert answers_of(outputs, rows)[0] == 'cat'
  assert measure_spans()(outputs, rows) == dict(span_f1=.5, exact_match=.5)
  held = {name: x[rows['group'] == 1] for name, x in rows.items()}
  assert measure_spans()(outputs[3:], held) == dict(span_f1=1, exact_match=1)


def test_no_answer_by_the_lowest_null_score(tokenizer):
  questions = [ask('cat ' * 30, None, 'mat'), ask('home', 'home', 'mat')]
  rows, lost = encode_spans(questions, tokenizer, length=24, stride=10)
  count = int((rows['group'] == 0).sum())
  assert lost == 0 and count > 1 and (rows['label'][:count] == 0).all()
  outputs = np.zeros((*rows['tokens'].shape, 2))
  outputs[:, 0] = 2.  # the null score is 4
  outputs[0, rows['window'][0].first + 1] = 1.9
  assert answers_of(outputs, rows, unanswerable=True) == {0: '', 1: ''}
  assert answers_of(outputs, rows) == {0: 'cat', 1: 'home'}
  assert measure_spans(unanswerable=True)(outputs, rows) == dict(span_f1=.5, exact_match=.5)
  outputs[1, 0] = 1.85  # Of one window: below 3.8, the score of the answer in another one.
  assert answers_of(outputs, rows, unanswerable=True)[0] == 'cat'
  outputs[1, 0] = 1.9  # Equal is not above.
  assert answers_of(outputs, rows, unanswerable=True)[0] == 'cat'


def test_answers_that_no_window_holds_are_counted(tokenizer):
  context = ' '.join(['cat'] * 30)
  rows, lost = encode_spans([ask(context, context, 'dog'), ask(context, 'cat', 'dog')], tokenizer,
                            length=24, stride=10)
  assert lost == 1 and (rows['label'][rows['group'] == 0] == 0).all()


def test_long_questions_and_empty_contexts(tokenizer):
  long = ask(CONTEXT, 'mat', 'cat ' * 90)
  rows, _ = encode_spans([long, ask(' ', None)], tokenizer, length=23, stride=2)
  assert rows['window'][0].first == 1 + 10 + 1
  assert answers_of(pointing(rows), rows)[0] == 'mat'
  assert answers_of(pointing(rows), rows)[1] == ''
  whole, _ = encode_spans([long], tokenizer, length=256)
  assert whole['window'][0].first == 1 + 64 + 1


def test_two_separators_where_the_tokenizer_has_them(tokenizer):
  roberta = train(TEXT * 3, kind='wordpiece', size=120)
  roberta.vocabulary = roberta.vocabulary._replace(separators=2)
  rows, _ = encode_spans([ask(CONTEXT, 'FRANCE')], roberta, length=64)
  tokens, first = rows['tokens'][0], rows['window'][0].first
  sep = roberta.vocabulary.sep
  assert tokens[first - 2:first].tolist() == [sep, sep] and (tokens == sep).sum() == 3
  assert answers_of(pointing(rows), rows) == {0: 'FRANCE'}


def test_spans_of_byte_level_tokens():
  bpe = train(TEXT, kind='bpe', size=300)
  rows, _ = encode_spans([ask(CONTEXT, 'FRANCE', 'dog')], bpe, length=96)
  assert answers_of(pointing(rows), rows) == {0: 'FRANCE'}


def test_mistakes_are_answered(tokenizer):
  with pytest.raises(ValueError, match='stride must be at least 1'):
    encode_spans([ask(CONTEXT)], tokenizer, length=64, stride=0)
  with pytest.raises(ValueError, match='no questions'):
    encode_spans([], tokenizer, length=64)
  with pytest.raises(ValueError, match='no space'):
    encode_spans([ask(CONTEXT)], tokenizer, length=4)
