"""Tables and warnings of `compare`, from folders of which everything is known."""

import json

import numpy as np
import pytest

from ssl_jax.cli import explain
from ssl_jax.cli.compare import gather, page, read, run, training
from ssl_jax.data.sources import DataError
from ssl_jax.schema import ConfigError


@pytest.fixture
def make(left, tmp_path):
  """make(name, overrides, accuracies) -> folder of a run; accuracies None: not evaluated."""
  def make(name, overrides=(), accuracies=None, seed=0, source='d8d1b556de913ff1', step=4):
    left[0](tmp_path / name, [f'--config.{text}' for text in overrides], source=source, step=step)
    if accuracies is not None:
      left[1](tmp_path / name, seed=seed, **accuracies)
    return tmp_path / name
  return make


@pytest.fixture
def sweep(make, tmp_path):
  """Two settings x three seeds: the rate 0.3 is 0.02, 0.021, 0.022 better on every seed."""
  listed = []
  for rate, gain in ((0.1, 0.), (0.3, 0.02)):
    for seed, base in enumerate((0.7, 0.75, 0.8)):
      name = f'learning_rate={rate}/seed={seed}'
      make(f'sweep/{name}', [f'schedule.learning_rate={rate}', f'seed={seed}'],
           dict(knn20=base + gain * (1 + 0.05 * seed), labels10=0.6))
      listed.append(dict(folder=name, setting=f'learning_rate={rate}', seed=seed))
  listed.append(dict(folder='learning_rate=0.1/seed=3', setting='learning_rate=0.1', seed=3))
  (tmp_path / 'sweep' / 'sweep.json').write_text(json.dumps({'runs': listed}))
  return tmp_path / 'sweep'


def rows(text, title):
  """Cells of the table under a heading, by the first cell."""
  lines = text.partition(f'## {title}')[2].split('\n## ')[0].splitlines()
  cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines if line[:1] == '|']
  return {line[0]: line[1:] for line in cells}


def test_a_run_is_read_from_its_files(make):
  one = read(make('a', ['method.temperature=0.5'], dict(knn20=0.7, labels10=0.62, linear=0.8)))
  assert one.accuracies == dict(knn20=0.7, labels10=0.62, linear=0.8,
                                labels10_gain=pytest.approx(0.12))
  assert (one.step, one.data['length'], one.health['spread']) == (4, 10_000, 0.45)
  assert one.config['method.temperature'] == 0.5
  assert one.config['method.separate_views'] is False  # a default that config.json does not hold
  assert one.training == dict(loss=2.5, seconds=5.)  # four steps do not tell a speed


def test_the_protocols_of_the_literature_are_columns_too(make):
  folder = make('a', accuracies=dict(knn20=0.7))
  saved = json.loads((folder / 'evaluation.json').read_text())
  saved['protocols'] = [dict(protocol='dino_knn', accuracy=0.66, selection='none', details={})]
  (folder / 'evaluation.json').write_text(json.dumps(saved))
  assert read(folder).accuracies['dino_knn'] == 0.66
  text = page(gather([folder]))
  assert rows(text, 'Accuracy per run')['a'] == ['1', '0.700', '0.660']
  assert text.count('dino_knn: selection none') == 1


def test_speed_leaves_evaluation_and_one_slow_save_out():
  lines = [dict(step=k, loss=1., seconds=float(k)) for k in range(1, 28)]
  lines += [dict(step=27, knn20=0.5, seconds=100.),
            *(dict(step=k, loss=1., seconds=73. + k) for k in range(28, 38)),
            dict(step=47, loss='nan', seconds=160.)]
  found = training(lines, 32)
  assert found['images_per_second'] == 32. and found['seconds'] == 160. and np.isnan(found['loss'])
  assert training([], 32) == {} and training([dict(step=1, seconds=2.)], 32) == {'seconds': 2.}


def test_lines_written_at_once_are_no_speed():
  """A step that ends training is told of beside the one before it: 30 microseconds, not 1 s."""
  lines = [dict(step=1, loss=1., seconds=9.), dict(step=2, loss=1., seconds=9.00003)]
  assert 'images_per_second' not in training(lines, 32)
  pauses = [dict(step=k, loss=1., seconds=k - k % 2 + 3e-5) for k in range(1, 42)]
  assert training(pauses, 32)['images_per_second'] == pytest.approx(32, rel=0.1)


def test_runs_beside_each_other(make, tmp_path, capsys):
  a = make('a', accuracies=dict(knn20=0.7, labels10=0.6))
  b = make('b', ['method.temperature=0.5', 'seed=1'], dict(knn20=0.8))
  assert run([str(a), str(b), f'--out={tmp_path}/new/table.md']) == 0
  text = capsys.readouterr().out
  assert (tmp_path / 'new' / 'table.md').read_text() == text
  table = rows(text, 'Accuracy per run')
  assert table['a'] == ['1', '0.700', '0.600', '+0.100'] and table['b'] == ['1', '0.800', '-', '-']
  configs = rows(text, 'Configs')
  assert configs['field'] == ['a', 'b'] and configs['seed'] == ['0', '1']
  assert configs['method.temperature'] == ['0.2', '0.5']
  assert rows(text, 'Training and health')['a'] == [
    '4', '2.5', '0:05', '-', '40.000', '0.450', '0.250', '-0.750']
  assert 'Accuracy per setting' not in text and '## Mind' not in text


def test_only_differing_fields_are_shown(make):
  text = page(gather([make('a'), make('b', ['method.temperature=0.5'])]))
  assert {name for name in rows(text, 'Configs') if '.' in name} == {'method.temperature'}
  # A default that one of them writes out is no difference.
  same = page(gather([make('c'), make('d', ['method.separate_views=false'])]))
  assert 'No field differs.' in same


def test_a_sweep_is_grouped_by_setting_with_a_paired_difference(sweep):
  text = page(gather([sweep]))
  settings = rows(text, 'Accuracy per setting')
  assert settings['learning_rate=0.1'][:2] == ['3', '0.750 ± 0.050 [0.626, 0.874]']
  # Between settings a seed's part cancels: 0.020, 0.021, 0.022 have std 0.001, t(2) = 4.303.
  difference = rows(text, 'Difference from learning_rate=0.1')['learning_rate=0.3']
  assert difference[:2] == ['3', '+0.021 ± 0.001 [+0.019, +0.023] *']
  assert difference[2] == '+0.000 ± 0.000 [+0.000, +0.000]'
  assert 'learning_rate=0.3, seed 2' in rows(text, 'Accuracy per run')
  assert rows(text, 'Configs')['schedule.learning_rate'] == ['0.1', '0.3']
  assert 'seed' not in rows(text, 'Configs')


def test_a_sweep_and_a_run_have_names_that_tell_them_apart(sweep, make):
  text = page(gather([sweep, make('alone', ['seed=1'], dict(knn20=0.7))]))
  assert {'sweep: learning_rate=0.1', 'sweep: learning_rate=0.3', 'alone'} <= set(
    rows(text, 'Accuracy per setting'))
  assert 'alone' not in rows(text, 'Difference from')  # a single pair has no spread
  other = make('elsewhere/alone', accuracies=dict(knn20=0.7))
  assert str(other) in page(gather([sweep, other]))


@pytest.mark.parametrize('options, words', [
  (dict(source='another source'), ['the training data differs', 'd8d1b556de91..., 10000 examples: a',
                                   'another sour..., 10000 examples: b']),
  (dict(seed=1), ['the protocol (seed) differs (0: a; 1: b)']),
  (dict(overrides=['evaluate.test_split=train']), ["the split that is measured differs ('test': a; "
                                                   "'train': b)"]),
])
def test_what_is_not_comparable_is_said(make, options, words):
  a, b = make('a', accuracies=dict(knn20=0.7)), make('b', accuracies=dict(knn20=0.7), **options)
  text = page(gather([a, b]))
  for word in ['accuracies are not comparable', *words]:
    assert word in text


def named(folder, **row):
  """What `evaluate --protocols=dino_knn` leaves."""
  row = dict(protocol='dino_knn', accuracy=0.6, selection='none', details={}) | row
  (folder / 'evaluation.json').write_text(json.dumps(dict(step=4, protocols=[row])))
  return folder


def test_what_differs_is_said_of_named_protocols_too(make):
  a, b = named(make('a'), seed=0), named(make('b', source='another source'), seed=5)
  text = page(gather([a, b]))
  assert 'the training data differs' in text and 'the seed of dino_knn differs (0: a; 5: b)' in text
  assert '* dino_knn: selection none (seed 0)' in text and '(seed 5)' in text
  same = page(gather([a, named(make('c'), seed=0)]))
  assert 'differs (' not in same and '(seed' not in same
  old = page(gather([a, named(make('d'))]))
  assert "the seed of dino_knn differs (0: a; 'not recorded': d)" in old


def test_what_is_missing_is_said_with_the_command(make, left):
  bare, short = make('bare'), make('short', step=2)
  stale = make('stale', accuracies=dict(knn20=0.7))
  left[1](stale, step=2, knn20=0.7)
  text = page(gather([bare, short, stale]))
  assert f'bare: is not evaluated: python -m ssl_jax evaluate --workdir={bare}' in text
  assert 'short: stopped at step 2 of 4' in text
  assert 'stale: was evaluated at step 2, the newest is 4' in text
  assert rows(text, 'Accuracy per run')['bare'] == ['0 of 1', '-']
  assert rows(text, 'Training and health')['stale'][-1] == '-'  # health of another step


def test_a_run_without_a_checkpoint_is_said(make, tmp_path):
  folder = make('a')
  (folder / 'checkpoints').rename(tmp_path / 'away')
  assert 'a: has no checkpoint yet' in page(gather([folder]))


def test_folders_that_are_no_runs_are_refused(tmp_path, make):
  with pytest.raises(ConfigError, match='not the folder of a run'):
    gather([tmp_path])
  (tmp_path / 'sweep.json').write_text('{"runs": []}')
  with pytest.raises(ConfigError, match='no run of the sweep'):
    gather([tmp_path])
  folder = make('a')
  (folder / 'evaluation.json').write_text('{"step": ')
  with pytest.raises(DataError, match='evaluation.json is damaged') as caught:
    gather([folder])
  assert explain(caught.value)[0] == 3


def test_no_folder_is_a_wrong_option(capsys):
  with pytest.raises(SystemExit) as caught:
    run([])
  assert caught.value.code == 2 and 'needs the folders' in capsys.readouterr().err
