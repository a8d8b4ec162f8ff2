"""Metrics against scikit-learn and scipy; entities and answers against another derivation."""

import collections
import itertools
import re

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from ssl_jax.evals.text_metrics import (
  METRICS,
  TASKS,
  accuracy,
  chunks,
  entity_f1,
  exact_match,
  f1,
  macro_f1,
  matthews,
  normalised_answer,
  pearson,
  span_f1,
  spearman,
)


@pytest.mark.parametrize('classes', [2, 5])
def test_classes_equal_scikit_learn(classes):
  rng = np.random.default_rng(classes)
  for n in (1, 2, 7, 200):
    for _ in range(20):
      y, p = rng.integers(classes, size=(2, n))
      if rng.random() < .5:
        p = np.where(rng.random(n) < .7, y, p)
      assert accuracy(p, y) == pytest.approx(sklearn.metrics.accuracy_score(y, p))
      assert macro_f1(p, y) == pytest.approx(
        sklearn.metrics.f1_score(y, p, average='macro', zero_division=0.))
      assert f1(p, y) == pytest.approx(sklearn.metrics.f1_score(
        y == 1, p == 1, zero_division=0.))
      if len(np.union1d(y, p)) > 1:  # scikit-learn warns of a single label
        assert matthews(p, y) == pytest.approx(sklearn.metrics.matthews_corrcoef(y, p), abs=1e-12)


def test_correlations_equal_scipy():
  rng = np.random.default_rng(0)
  for n in (3, 10, 500):
    x, y = rng.normal(size=(2, n)).astype(np.float32)
    tied = np.round(x + y)
    assert pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x.astype(float), y)[0], abs=1e-9)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0], abs=1e-12)
    if np.ptp(tied):
      assert spearman(tied, y) == pytest.approx(scipy.stats.spearmanr(tied, y)[0], abs=1e-12)
  assert pearson(x, 3 * x + 1) == pytest.approx(1) and spearman(x, -np.exp(x)) == pytest.approx(-1)


def test_constant_predictions_are_worth_nothing():
  y, constant = np.array([0, 1, 1, 0]), np.full(4, .1)
  for metric in (pearson, spearman, matthews):
    assert metric(constant, y) == metric(y, constant) == 0
  zeros = np.zeros(4, int)
  assert f1(zeros, y) == f1(zeros, zeros) == matthews(zeros, y) == 0
  assert macro_f1(zeros, zeros) == accuracy(zeros, zeros) == 1
  assert matthews(zeros, zeros) == 0


def test_mistakes_are_answered():
  for metric in METRICS.values():
    with pytest.raises(ValueError, match=r'N >= 1, got \(0,\) and \(0,\)'):
      metric([], [])
    with pytest.raises(ValueError, match=r'\(1,\) and \(2,\)'):
      metric([1], [1, 2])
  with pytest.raises(ValueError, match='at least one answer'):
    span_f1(['a'], [[]])
  with pytest.raises(ValueError, match='N sentences'):
    entity_f1([], [])
  with pytest.raises(ValueError, match='sentence 0 has 1 predicted tags, expected 2'):
    entity_f1([['O']], [['O', 'O']])
  with pytest.raises(ValueError, match="got 'E-PER'"):
    chunks(['E-PER'])


# --- answers --------------------------------------------------------------------------------------


def squad_words(text):
  """The words that count, read off SQuAD's rules one character at a time."""
  kept = [c.lower() for c in text if not re.fullmatch(r'[!-/:-@\[-`{-~]', c)]
  return [word for word in ''.join(kept).split() if word not in ('a', 'an', 'the')]


def test_answers_are_normalised_as_by_squad():
  for text in ('The  Cat,\tsat!', 'an A-team', 'U.S.A.', "it's", 'Theatre', 'a', '', 'naïve (o)'):
    assert normalised_answer(text).split() == squad_words(text)
  assert normalised_answer('A "Norman" king') == 'norman king'
  # Only ASCII punctuation goes, and an article between hyphens is glued to its neighbours first.
  assert normalised_answer('jack-of-the-trades') == 'jackofthetrades'
  assert normalised_answer('« the sea »') == '« sea »'


def test_span_f1_and_exact_match():
  answers = [['Denver Broncos', 'The Denver Broncos'], ['gold'], ['in 1990']]
  predictions = ['the Broncos of Denver', 'Gold.', 'silver']
  one = 2 * (2 / 3) * 1 / (2 / 3 + 1)  # precision 2 of 3, recall 2 of 2
  assert span_f1(predictions, answers) == pytest.approx((one + 1 + 0) / 3)
  assert exact_match(predictions, answers) == pytest.approx(1 / 3)
  assert span_f1([''], [['the']]) == 0 and exact_match([''], [['the']]) == 1


def test_questions_without_an_answer():
  """SQuAD v2.0's script: F1 of two texts is 1 or 0 where one has no words."""
  predictions = ['', 'gold', '', 'the', 'a gold ring']
  answers = [[], [], ['gold'], ['a', '!'], ['the', 'gold']]
  assert exact_match(predictions, answers, unanswerable=True) == pytest.approx(2 / 5)
  want = [1, 0, 0, 1, 2 * (1 / 2) * 1 / (1 / 2 + 1)]
  assert span_f1(predictions, answers, unanswerable=True) == pytest.approx(np.mean(want))
  with pytest.raises(ValueError, match='at least one answer'):
    exact_match(predictions, answers)
  for p, y in (('gold ring', 'a ring'), ('in 1990', 'silver'), ('x', 'x')):
    assert span_f1([p], [[y]], unanswerable=True) == span_f1([p], [[y]])


def test_span_f1_counts_words_as_often_as_they_occur():
  rng = np.random.default_rng(0)
  for _ in range(50):
    p, y = (' '.join(rng.choice(list('bcd'), size=rng.integers(1, 6))) for _ in range(2))
    shared = sum(min(p.split().count(w), y.split().count(w)) for w in set(p.split()))
    precision, recall = shared / len(p.split()), shared / len(y.split())
    want = 2 * precision * recall / (precision + recall) if shared else 0
    assert span_f1([p], [[y]]) == pytest.approx(want)


# --- entities -------------------------------------------------------------------------------------


def conlleval(tags):
  """Chunks by conlleval's two predicates: does one end before a word, does one begin at it?"""
  found, padded = [], ['O', *tags, 'O']
  for i, (before, now) in enumerate(itertools.pairwise(padded)):
    mark, kind = now[0], now[2:]
    ends = before != 'O' and (mark in 'BO' or before[2:] != kind)
    begins = mark == 'B' or (mark == 'I' and (before == 'O' or before[2:] != kind))
    if ends:
      found[-1].append(i)
    if begins:
      found.append([kind, i])
  return {tuple(chunk) for chunk in found}


def test_chunks_are_those_of_conlleval():
  for tags in itertools.product(['O', 'B-x', 'I-x', 'B-y', 'I-y'], repeat=4):
    assert chunks(tags) == conlleval(tags)
  assert chunks(['B-PER', 'I-PER', 'O', 'I-LOC']) == {('PER', 0, 2), ('LOC', 3, 4)}
  assert chunks([]) == set()


def test_entity_f1_is_over_all_sentences():
  rng = np.random.default_rng(0)
  draw = lambda: [list(rng.choice(['O', 'B-x', 'I-x', 'B-y'], size=6)) for _ in range(8)]
  for _ in range(20):
    p, y = draw(), draw()
    number = lambda tags: collections.Counter(
      (i, *chunk) for i, one in enumerate(tags) for chunk in conlleval(one))
    found, right = number(p), number(y)
    precision, recall = (len(found & right) / len(side) for side in (found, right))
    want = 2 * precision * recall / (precision + recall) if found & right else 0
    assert entity_f1(p, y) == pytest.approx(want)
  assert entity_f1([['O']], [['O']]) == 0 and entity_f1([['B-x']], [['B-x']]) == 1


# --- GLUE -----------------------------------------------------------------------------------------


def test_tasks_are_those_of_glue():
  """Names, metrics and classes against TFDS's own definition of the data set."""
  package = pytest.importorskip('tensorflow_datasets')
  configs = {config.name: config for config in package.text.glue.Glue.BUILDER_CONFIGS}
  assert set(TASKS) == set(configs) - {'ax', 'wnli', 'mnli_matched', 'mnli_mismatched'}
  for name, task in TASKS.items():
    config = configs[name]
    assert list(task.classes) == list(config.label_classes or [])
    assert set(task.features) == set(config.text_features)
    if task.header and name != 'mrpc':  # TFDS reads Microsoft's own files of MRPC
      assert [config.text_features[name] for name in task.features] == list(task.texts)
      assert config.label_column == task.label
    assert task.regression == (name == 'stsb') and set(task.metrics) <= set(METRICS)
    assert len(task.values) == len(task.classes) and task.pair == (name not in ('cola', 'sst2'))
