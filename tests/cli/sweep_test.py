"""What a sweep runs, in which order, what it does when runs end badly, and what it concludes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from ssl_jax.cli import explain, sweep
from ssl_jax.cli.child import Child
from ssl_jax.cli.grid import axis_names, plan, split, value_name
from ssl_jax.cli.options import load_config
from ssl_jax.schema import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
DEMO = f'{ROOT}/configs/simclr_fashion_mnist.py:smoke'
RATES = '--grid.schedule.learning_rate=0.1,0.3'


# --- the plan -------------------------------------------------------------------------------------


def test_all_settings_come_before_the_next_seed():
  jobs = plan(load_config(DEMO), {'schedule.learning_rate': '0.10,3e-1', 'batch_size': '16,32'}, 2)
  assert [job.folder for job in jobs[:5]] == [
    'learning_rate=0.1/batch_size=16/seed=0', 'learning_rate=0.1/batch_size=32/seed=0',
    'learning_rate=0.3/batch_size=16/seed=0', 'learning_rate=0.3/batch_size=32/seed=0',
    'learning_rate=0.1/batch_size=16/seed=1']
  assert len(jobs) == 8 and jobs[4].name == 'learning_rate=0.1, batch_size=16 seed=1'
  assert jobs[5].values == {'schedule.learning_rate': 0.1, 'batch_size': 32}
  assert jobs[2].overrides == ['--config.schedule.learning_rate=3e-1', '--config.batch_size=16',
                               '--config.seed=0']


def test_without_a_grid_there_are_only_seeds():
  base = load_config(DEMO)
  base.seed = 7
  assert [job.folder for job in plan(base, {}, 3)] == ['seed=7', 'seed=8', 'seed=9']


@pytest.mark.parametrize('text, pieces', [
  ('0.1,0.3', ['0.1', '0.3']), ('(0.2,1.0),(0.5,1.0)', ['(0.2,1.0)', '(0.5,1.0)']),
  ('{"group_size": 4}, none', ['{"group_size": 4}', 'none']), ("'a,b',c", ["'a,b'", 'c']),
  ('[(1,2),(3,4)]', ['[(1,2),(3,4)]']), ('1,', ['1', ''])])
def test_values_are_split_outside_of_brackets(text, pieces):
  assert split(text) == pieces


@pytest.mark.parametrize('fields, names', [
  (['schedule.learning_rate'], ['learning_rate']),
  (['network.name', 'optimizer.name'], ['network', 'optimizer']),
  (['network.width', 'head.width'], ['network.width', 'head.width']),
  (['views.seed'], ['views.seed'])])
def test_fields_have_the_shortest_names_that_tell_them_apart(fields, names):
  assert list(axis_names(fields).values()) == names


@pytest.mark.parametrize('value, name', [
  (0.3, '0.3'), (1e-5, '1e-05'), (-1, '-1'), (True, 'True'), (None, 'None'), ('simclr', 'simclr'),
  ((0.2, 1.0), '0.2,1.0')])
def test_plain_values_are_their_own_name(value, name):
  assert value_name(value) == name


def test_unsafe_values_have_names_that_are_safe_and_different():
  names = [value_name(text) for text in ('gs://bucket/a', 'gs://bucket-a', '../..', '', 'x' * 200)]
  assert len(set(names)) == 5
  for name in names:
    assert not set(name) & set('/:*?"<>| ') and len(name) < 80 and name.strip('.') == name
  assert value_name('../..') == value_name('../..')


@pytest.mark.parametrize('grid, words', [
  ({'batch_sise': '1,2'}, 'did you mean config.batch_size'),
  ({'batch_size': '1.5'}, 'config.batch_size must be int'),
  ({'batch_size': '16,'}, 'empty value'),
  ({'batch_size': ''}, 'empty value'),
  ({'batch_size': '16,16'}, 'same name'),
  ({'views.name': 'simclr,SimCLR'}, 'same name'),
  ({'seed': '0,1'}, 'use --seeds'),
])
def test_wrong_grids(grid, words):
  with pytest.raises(ConfigError, match=words):
    plan(load_config(DEMO), grid, 2)


def test_every_setting_is_checked_before_any_is_run():
  settings = {f'temperature={t}': [f'--config.method.temperature={t}'] for t in (0.1, -1.0)}
  with pytest.raises(ConfigError, match='temperature=-1.0: config.method.temperature must be in'):
    sweep.steps_of(DEMO, settings, True)
  with pytest.raises(ConfigError, match='checkpoint.every is none'):
    sweep.steps_of(DEMO, {'': ['--config.checkpoint.every=none']}, True)
  assert sweep.steps_of(DEMO, {'': ['--config.steps=none', '--config.epochs=2']}, False) == {'': 1250}


def test_settings_whose_data_cannot_be_evaluated_are_refused_unless_that_is_wanted(tmp_path):
  np.save(tmp_path / 'image.npy', np.zeros((32, 28, 28, 1), np.uint8))
  data = [f'--config.data={{"name": "array_files", "path": "{tmp_path}"}}',
          '--config.evaluate.test_split=train']
  with pytest.raises(ConfigError, match='evaluation needs labels'):
    sweep.steps_of(DEMO, {'': data}, True)
  assert sweep.steps_of(DEMO, {'': data}, False) == {'': 4}


# --- running, with commands that only leave files ---------------------------------------------------


class World:
  """Stands for the child processes: `codes` are exit codes by a part of the command line."""

  def __init__(self, left, folder):
    self.run, self.evaluation = left
    self.folder, self.calls, self.codes = folder, [], {}

  def __call__(self, command):
    what, options = command[3], command[4:]
    workdir = next(word for word in options if word.startswith('--workdir=')).partition('=')[2]
    name = str(pathlib.Path(workdir).relative_to(self.folder))
    self.calls.append(f'{what} {name}')
    code = next((code for part, code in self.codes.items() if part in self.calls[-1]), 0)
    if code == 0 and what == 'train':
      self.run(workdir, [word for word in options if word.startswith('--config.')])
    if code == 0 and what == 'evaluate':
      self.evaluation(workdir, **accuracies(name))
    if code == 4:
      os.makedirs(workdir)
      (pathlib.Path(workdir) / 'config.json').write_text(load_config(DEMO).to_json())
      (pathlib.Path(workdir) / 'non_finite.json').write_text('{"step": 3}')
      (pathlib.Path(workdir) / 'metrics.jsonl').write_text('{"step": 3, "loss": "nan"}')
    return code


def accuracies(name):
  """Higher for the rate 0.3, and higher for higher seeds."""
  seed = int(name[-1])
  return dict(knn20=(0.8 if '0.3' in name else 0.7) + seed / 100, labels10=0.6 + seed / 100)


@pytest.fixture
def world(left, tmp_path):
  return World(left, tmp_path)


def go(world, *arguments, seeds=2):
  """(exit code, what was run)"""
  world.calls = []
  code = sweep.run(
    [f'--config={DEMO}', f'--workdir={world.folder}', f'--seeds={seeds}', *arguments],
    execute=world, examine=lambda spec, settings, evaluated: dict.fromkeys(settings, 4))
  return code, world.calls


def test_runs_are_trained_and_evaluated_once(world, capsys):
  code, calls = go(world, RATES)
  assert code == 0
  assert calls[:4] == ['train learning_rate=0.1/seed=0', 'evaluate learning_rate=0.1/seed=0',
                       'train learning_rate=0.3/seed=0', 'evaluate learning_rate=0.3/seed=0']
  assert len(calls) == 8
  assert '[3/4] learning_rate=0.1 seed=1 (about 0:0' in capsys.readouterr().err
  assert go(world, RATES) == (0, [])


def test_seeds_and_values_may_be_added(world):
  go(world, RATES, seeds=1)
  _, calls = go(world, '--grid.schedule.learning_rate=0.03,0.1,0.3', seeds=2)
  assert [name for name in calls if name.startswith('train')] == [
    'train learning_rate=0.03/seed=0', 'train learning_rate=0.03/seed=1',
    'train learning_rate=0.1/seed=1', 'train learning_rate=0.3/seed=1']


@pytest.mark.parametrize('arguments, seeds, words', [
  (['--grid.schedule.learning_rate=0.1'], 2, '--grid.schedule.learning_rate had the value 0.3 too'),
  ([RATES], 1, 'there was the seed 1 too'),
  ([], 2, '--grid.schedule.learning_rate is missing'),
  ([RATES, '--grid.batch_size=8'], 2, '--grid.batch_size is new'),
  ([RATES, '--config.seed=1'], 2, 'there was the seed 0 too'),
  ([RATES, '--config.batch_size=8'], 2, 'config.batch_size was 16, is 8'),
  ([RATES, '--config.evaluate.test_split=train'], 2, "test_split was 'test', is 'train'"),
  ([RATES, '--init_from=other'], 2, "--init_from was None, is 'other'"),
])
def test_another_sweep_in_the_folder_is_refused(world, arguments, seeds, words):
  go(world, RATES)
  with pytest.raises(ConfigError, match='this is not the sweep') as caught:
    go(world, *arguments, seeds=seeds)
  assert words in str(caught.value) and explain(caught.value)[0] == 2
  assert not world.calls


def test_what_does_not_change_the_result_may_change(world):
  go(world, RATES)
  assert go(world, RATES, '--config.workers=1', '--config.log_every=2')[0] == 0


def test_an_interrupted_sweep_goes_on(world, capsys):
  world.codes = {'train learning_rate=0.3/seed=0': 42}
  code, calls = go(world, RATES)
  assert code == 42 and len(calls) == 3
  out, err = capsys.readouterr()
  assert f'sweep --config={DEMO} --workdir={world.folder} --seeds=2 {RATES}' in err
  assert '3 of 4 runs are not finished' in out
  world.codes = {}
  code, calls = go(world, RATES)
  assert code == 0 and calls[0] == 'train learning_rate=0.3/seed=0' and len(calls) == 6


def test_what_a_kill_leaves_is_finished(world, left):
  run, evaluation = left
  run(world.folder / 'seed=0', ['--config.seed=0'], step=2)  # in the middle of training
  run(world.folder / 'seed=1', ['--config.seed=1'])  # before evaluation
  run(world.folder / 'seed=2', ['--config.seed=2'])  # evaluated in the middle, by hand
  evaluation(world.folder / 'seed=2', step=2, knn20=0.5)
  run(world.folder / 'seed=3', ['--config.seed=3'])
  evaluation(world.folder / 'seed=3', knn20=0.5)
  world.run = lambda *_: left[0](world.folder / 'ignored')
  _, calls = go(world, seeds=4)
  assert calls == ['train seed=0', 'evaluate seed=0', 'evaluate seed=1', 'evaluate seed=2']


@pytest.mark.parametrize('code, returned', [(2, 2), (3, 3), (1, 1), (-9, 1)])
def test_other_failures_stop_the_sweep(world, code, returned, capsys):
  world.codes = {'train learning_rate=0.3/seed=0': code}
  assert go(world, RATES)[0] == returned and len(world.calls) == 3
  assert ('SIGKILL (out of memory?)' if code < 0 else f'exit code {code}') in capsys.readouterr().err


def test_a_run_that_diverges_is_recorded_and_the_sweep_goes_on(world, capsys):
  world.codes = {'train learning_rate=0.3/seed=1': 4}
  code, calls = go(world, RATES)
  assert code == 0 and len(calls) == 7
  out = capsys.readouterr().out
  assert 'Failed (loss or gradient not finite): learning_rate=0.3 seed=1.' in out
  assert '| 1 of 2 |' in out
  last = json.loads((world.folder / 'sweep.jsonl').read_text().splitlines()[1])['runs']
  assert [(one['state'], one['loss']) for one in last] == [('evaluated', 2.5), ('failed', None)]
  assert go(world, RATES) == (0, [])
  assert f'delete {world.folder}/learning_rate=0.3/seed=1' in capsys.readouterr().err
  world.codes = {'train': 4}
  world.folder /= 'all fail'
  assert go(world, RATES)[0] == 4


def test_evaluation_is_optional_and_can_follow(world, capsys):
  assert go(world, '--no-evaluate') == (0, ['train seed=0', 'train seed=1'])
  assert 'final loss' in capsys.readouterr().out
  assert go(world) == (0, ['evaluate seed=0', 'evaluate seed=1'])
  assert go(world, '--no-evaluate') == (0, [])


def test_an_evaluation_that_was_interrupted_is_done_again(world):
  go(world)
  path = world.folder / 'seed=1' / 'evaluation.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(pending=['dino_knn'])))
  assert go(world) == (0, ['evaluate seed=1'])


def test_other_weights_are_for_fresh_starts_only(world, left):
  left[0](world.folder / 'seed=0', step=2)
  commands = []
  sweep.run([f'--config={DEMO}', f'--workdir={world.folder}', '--seeds=2', '--init_from=other',
             '--no-evaluate', '--cache_dir=none'],
            execute=lambda command: commands.append(command) or 0, examine=lambda *_: {'': 4})
  assert ['--init_from=other' in command for command in commands] == [False, True]
  assert all('--cache_dir=none' in command for command in commands)


def test_a_dry_run_only_tells(world, left, capsys):
  left[0](world.folder / 'seed=0')
  assert go(world, '--dry_run') == (0, [])
  assert capsys.readouterr().out.splitlines() == [
    f'trained    {world.folder}/seed=0', f'new        {world.folder}/seed=1']
  assert not (world.folder / 'sweep.json').exists()


def test_the_table_has_mean_spread_and_interval(world, capsys):
  go(world, RATES, seeds=3)
  out = capsys.readouterr().out
  assert (world.folder / 'sweep.md').read_text() == out.rstrip('\n') + '\n'
  values = np.array([0.8, 0.81, 0.82])
  half = 4.302653 * values.std(ddof=1) / np.sqrt(3)
  assert f'0.810 ± {values.std(ddof=1):.3f} [{0.81 - half:.3f}, {0.81 + half:.3f}]' in out
  assert '* kNN-20: learning_rate=0.3 with 0.810' in out and 'told apart' in out
  assert "reported, 'test': its number is optimistic" in out
  lines = [json.loads(line) for line in (world.folder / 'sweep.jsonl').read_text().splitlines()]
  assert [line['values'] for line in lines] == [{'schedule.learning_rate': 0.1},
                                                {'schedule.learning_rate': 0.3}]
  assert lines[1]['summary']['knn20']['mean'] == pytest.approx(0.81)
  assert lines[1]['summary']['labels10_gain']['mean'] == pytest.approx(0.11)
  assert lines[1]['runs'][2]['accuracies']['knn20'] == pytest.approx(0.82)


def test_a_single_setting_is_not_called_the_best(world, capsys):
  go(world)
  assert 'optimistic' not in capsys.readouterr().out


@pytest.mark.parametrize('arguments, words', [
  (['--grid.batch_size=8', '--grid.batch_size=16'], 'given twice'),
  (['--evaluate.workdir=x'], 'the sweep itself sets this'),
  (['--evaluate.protocols=simclr_linaer'], "did you mean 'simclr_linear'")])
def test_wrong_arguments(world, arguments, words):
  with pytest.raises(ConfigError, match=words):
    go(world, *arguments)


@pytest.mark.parametrize('arguments, words', [
  (['--workdir=x'], 'needs --config'), ([f'--config={DEMO}', '--workdir=x', '--seeds=0'], 'at least 1'),
  ([f'--config={DEMO}', '--workdir=x', '--seed=0'], 'did you mean --seeds?')])
def test_wrong_options_exit_with_2(arguments, words, capsys):
  with pytest.raises(SystemExit) as caught:
    sweep.run(arguments)
  assert caught.value.code == 2 and words in capsys.readouterr().err


# --- processes ------------------------------------------------------------------------------------


SAVES = '''
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(42)))
pathlib.Path('ready').touch()
time.sleep(60)
'''


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_child_which_saves(number, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = signal.getsignal(number)

  def interrupt():
    while not (tmp_path / 'ready').exists():
      time.sleep(0.01)
    os.kill(os.getpid(), number)

  with Child(tmp_path) as child:
    threading.Thread(target=interrupt, daemon=True).start()
    assert child([sys.executable, '-S', '-c', SAVES]) == 42
    assert child(['false']) == 42  # nothing is started any more
  assert (tmp_path / 'saved').exists()
  assert signal.getsignal(number) == before


def test_exit_codes_of_children_and_the_lock(tmp_path):
  with Child(tmp_path) as child:
    assert child([sys.executable, '-S', '-c', 'raise SystemExit(3)']) == 3
    with pytest.raises(ConfigError, match='another sweep'):
      Child(tmp_path).__enter__()
  with Child(tmp_path):
    pass


ORPHAN = '''
import pathlib, sys
from ssl_jax.cli.child import Child
sleeps = "import os, pathlib, time; pathlib.Path('pid').write_text(f'{os.getpid()} '); time.sleep(60)"
with Child(pathlib.Path('.')) as child:
  child([sys.executable, '-S', '-c', sleeps])
'''


def test_the_folder_is_taken_until_the_child_of_a_killed_sweep_has_ended(tmp_path):
  pid = tmp_path / 'pid'
  parent = subprocess.Popen([sys.executable, '-c', ORPHAN], cwd=tmp_path,
                            env={**os.environ, 'PYTHONPATH': str(ROOT)})
  try:
    while not (pid.exists() and pid.read_text().endswith(' ')):
      assert parent.poll() is None
      time.sleep(0.02)
  finally:
    parent.kill()
    parent.wait()
  with pytest.raises(ConfigError, match='another sweep, or a run that one left'):
    Child(tmp_path).__enter__()
  os.kill(int(pid.read_text()), signal.SIGKILL)
  deadline = time.monotonic() + 20
  while True:
    try:
      Child(tmp_path).__enter__().__exit__()
      break
    except ConfigError:
      assert time.monotonic() < deadline
      time.sleep(0.02)


# A TPU that the parent has opened is lost for the runs.
PARENT = '''
import sys
from jax._src import xla_bridge
from ssl_jax.cli import sweep
code = sweep.run(sys.argv[1:])
sys.exit('the sweep itself has opened the devices' if xla_bridge._backends else code)
'''


@pytest.mark.slow
def test_a_sweep_of_real_runs_survives_a_stop_and_a_kill(tmp_path):
  rng = np.random.default_rng(0)
  for name, count in (('train', 120), ('test', 60)):
    label = np.arange(count) % 3
    image = (40 * label[:, None, None, None] + rng.integers(0, 99, (count, 8, 8, 1))).astype(np.uint8)
    np.savez(tmp_path / f'{name}.npz', image=image, label=label)
  folder = tmp_path / 'sweep'
  data = {'name': 'array_files', 'path': f'{tmp_path}/{{split}}.npz', 'split': 'train'}
  network = {'name': 'convnet', 'channels': (4, 8), 'strides': (1, 2)}
  arguments = [f'--config={DEMO}', f'--workdir={folder}', '--seeds=2', '--config.views.size=8',
               f'--config.data={data}', f'--config.network={network}', '--config.evaluate.every=none',
               '--config.steps=40', f'--cache_dir={tmp_path}/cache', '--evaluate.seed=1']

  def start():
    return subprocess.Popen([sys.executable, '-c', PARENT, *arguments], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

  def wait_for(path):
    deadline = time.monotonic() + 200
    while not path.exists():
      assert time.monotonic() < deadline and process.poll() is None, process.communicate()
      time.sleep(0.02)

  process = start()
  wait_for(folder / 'seed=0' / 'metrics.jsonl')
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=200)
  assert process.returncode == 42 and 'this goes on' in err

  process = start()
  wait_for(folder / 'seed=1' / 'config.json')
  process.kill()
  process.communicate()  # returns once the orphaned child, which holds the pipes too, has ended

  process = start()
  out, err = process.communicate(timeout=400)
  assert process.returncode == 0, err
  assert '[1/2]' not in err and '[2/2] seed=1' in err  # the first one was finished
  accuracies = [json.loads((folder / f'seed={seed}' / 'evaluation.json').read_text())
                ['accuracies']['simclr']['knn20'] for seed in (0, 1)]
  assert f'{np.mean(accuracies):.3f} ± {np.std(accuracies, ddof=1):.3f}' in out
  assert json.loads((folder / 'seed=1' / 'evaluation.json').read_text())['protocol']['seed'] == 1
