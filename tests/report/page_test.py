"""The page as a whole: well formed, nothing loaded, nothing injected, nothing needed."""

import html.parser
import re

import numpy as np
import pytest

from ssl_jax.report.charts import Classes
from ssl_jax.report.html import VOID
from ssl_jax.report.images import Augmented, Nearest, Neighbours
from ssl_jax.report.page import (
  Curve,
  Embedding,
  Evaluation,
  Missing,
  Panel,
  Report,
  Tile,
  render,
)
from ssl_jax.report.texts import Masked, Word

EVIL = '<script>alert("x")</script>'
RNG = np.random.default_rng(0)
MISSING = Missing('Not there <yet>.', 'python -m ssl_jax evaluate')
EMPTY = Report(
  title='run', lead='', tiles=[], curves=MISSING, evaluation=MISSING, embedding=MISSING,
  neighbours=MISSING, augmentations=MISSING, config=[], defaults_left=[], environment={},
  environment_note='', footer='')


def images(*shape):
  return RNG.integers(0, 256, shape, np.uint8)


def full() -> Report:
  accuracies = {'random init': dict(knn20=0.7464, labels10=0.5641, labels10_std=0.0163),
                EVIL: dict(knn20=0.8095, labels10=0.6972, labels10_std=0.0239, custom=0.4321)}
  health = {'random init': dict(effective_rank=58.66, alignment=float('nan')),
            EVIL: dict(effective_rank=35.461, spread=0.4461)}
  protocols = [dict(protocol=EVIL, accuracy=0.91234, selection='held-out tenth', details={'k': 20}),
               dict(protocol='dino_knn', accuracy=None)]
  panels = [Panel(EVIL, RNG.normal(size=(30, 2)), 'x', EVIL)]
  return Report(
    title=EVIL, lead=EVIL, tiles=[Tile(EVIL, '0.697', EVIL), Tile('method', EVIL)],
    curves=[Curve('loss', 'nats', np.arange(40), np.append(RNG.normal(size=39), np.nan), noisy=True),
            Curve(EVIL, EVIL, np.array([3]), np.array([1.2345]))],
    evaluation=Evaluation(accuracies, health, protocols, EVIL, EVIL),
    embedding=Embedding(panels, Classes((EVIL, 'dog'), RNG.integers(-1, 2, 30)),
                        {EVIL: np.array([0.6, 0.4, 0]), 'random init': np.array([0.7, 0.3])}, 30, 5),
    neighbours=Neighbours(images(1, 6, 6, 1), [EVIL], [
      Nearest(EVIL, images(1, 2, 6, 6, 1), np.ones((1, 2)), [[EVIL, 'dog']], 0.7583)]),
    augmentations=[Augmented(images(6, 6, 3), {EVIL: np.zeros((2, 6, 6, 3))})],
    config=[('views.area', (0.2, 1.0), (0.08, 1.0)), ('views.blur', 0.5, 0.5), ('seed', EVIL, ...)],
    defaults_left=[(EVIL, EVIL)], environment={EVIL: EVIL}, environment_note=EVIL, footer=EVIL)


class Checker(html.parser.HTMLParser):
  """Every element is closed in order; collects names, attributes and visible text."""

  def __init__(self, page):
    super().__init__()
    self.open, self.tags, self.text = [], [], ''
    self.feed(page)
    self.close()
    assert not self.open

  def handle_starttag(self, name, attributes):
    assert name not in VOID, f'{name} must close itself'
    self.open.append(name)
    self.tags.append((name, dict(attributes)))

  def handle_startendtag(self, name, attributes):
    assert name in VOID
    self.tags.append((name, dict(attributes)))

  def handle_endtag(self, name):
    assert self.open.pop() == name

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.text += data


@pytest.mark.parametrize('report', [full(), EMPTY], ids=['full', 'empty'])
def test_the_page_is_well_formed_and_loads_nothing(report):
  page = render(report)
  found = Checker(page)
  for name, attributes in found.tags:
    for key in ('src', 'href', 'xlink:href'):
      value = attributes.get(key) or ''
      assert value.startswith(('#', 'data:image/png;base64,')) or not value, (name, value)
    assert not any(key.startswith('on') for key in attributes)
  assert 'url(' not in page and '@import' not in page and 'http' not in page
  ids = [attributes['id'] for _, attributes in found.tags if 'id' in attributes]
  targets = [attributes['href'][1:] for name, attributes in found.tags if name == 'a']
  assert targets == ids and len(set(ids)) == 8


def test_what_users_wrote_stays_text():
  page = render(full())
  assert page.count('<script>') == 1 and EVIL not in page
  assert Checker(page).text.count(EVIL) >= 15


def test_the_numbers_are_on_the_page():
  text = Checker(render(full())).text
  for number in ('0.697', '0.809', '± 0.024', '0.746', '0.432', '0.9123', '35.5', '0.446', '75.8%',
                 'held-out tenth', 'k 20', '5 other classes', '(0.2, 1)', '(0.08, 1)', '1.234',
                 '1 values not finite'):
    assert number in text, number


def test_a_part_that_is_missing_names_the_command():
  text = Checker(render(EMPTY)).text
  assert text.count('Not there <yet>.') == 6  # health needs what evaluation and embedding need
  assert text.count('python -m ssl_jax evaluate') == 6


def test_health_shows_what_there_is():
  without = Checker(render(full()._replace(evaluation=MISSING))).text
  assert 'spectrum of the features' in without and without.count('Not there <yet>.') == 2
  table = Checker(render(full()._replace(embedding=MISSING))).text
  assert 'spectrum' not in table and '35.5' in table


def test_only_what_differs_from_its_default_is_marked():
  page = render(full())
  rows = re.findall(r'<tr( class="changed")?><td><code>([^<]*)</code>', page)
  assert [name for mark, name in rows if mark] == ['views.area']
  assert {'views.blur', 'seed'} <= {name for mark, name in rows if not mark}


def test_data_without_labels_have_one_colour():
  embedding = full().embedding._replace(classes=None)
  text = Checker(render(full()._replace(embedding=embedding))).text
  assert 'no labels' in text


def test_texts_are_called_texts():
  """No word of images on the page of a language model."""
  texts = ['the cat sat', EVIL]
  report = full()._replace(
    embedding=full().embedding._replace(kind='text'),
    neighbours=Neighbours(texts, ['cat', 'dog'], [
      Nearest('masked_lm', [texts, texts[::-1]], np.ones((2, 2)), [['cat', 'dog']] * 2, 0.25)]),
    augmentations=[Masked((Word('the'), Word('[MASK]', EVIL)))])
  found = Checker(render(report))
  assert 'image' not in found.text and 'picture' not in found.text
  assert '30 test texts' in found.text and 'Masked texts' in found.text
  assert 'img' not in {name for name, _ in found.tags} and found.text.count('the cat sat') == 3


def test_numbers_and_names_have_rows_of_their_own():
  tiles = [Tile('loss', '−1.5'), Tile('method', 'simclr'), Tile('last', 'nan')]
  page = render(EMPTY._replace(tiles=tiles))
  words, numbers = re.findall('<dl class="tiles">(.*?)</dl>', page)
  assert 'simclr' in words and '−1.5' in numbers and 'nan' in numbers
