"""The commands end to end, in this process, on eight virtual devices."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ssl_jax
from ssl_jax import runs
from ssl_jax.cli import main
from ssl_jax.data.sources import ArraySource
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import read_lines

DEMO = str(pathlib.Path(__file__).parents[2] / 'configs' / 'simclr_fashion_mnist.py')
QUIET = ['--config.evaluate.every=None', '--config.evaluate.health_every=None']
CACHE = ['--cache_dir=none']  # conftest.py has set one already


def train(workdir, *arguments):
  return main(['train', f'--config={DEMO}:smoke', f'--workdir={workdir}', *QUIET, *CACHE, *arguments])


def final_state(workdir, step):
  config = runs.read_config(workdir)
  experiment = runs.build.experiment(config)
  return jax.device_get(
    Checkpoints(pathlib.Path(workdir) / 'checkpoints').restore(step, experiment.program(config).state))


def lines(workdir):
  return [{k: v for k, v in line.items() if k != 'seconds'}
          for line in read_lines(pathlib.Path(workdir) / 'metrics.jsonl')]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed run'
  assert train(workdir, '--config.steps=8', '--config.checkpoint.every=3') == 0
  return workdir


def test_a_run_leaves_what_it_promises(undisturbed):
  assert [line['step'] for line in lines(undisturbed)] == list(range(1, 9))
  assert {'loss', 'grad_norm', 'learning_rate'} <= set(lines(undisturbed)[0])
  assert Checkpoints(undisturbed / 'checkpoints').steps() == [6, 8]  # keep=2
  assert list((undisturbed / 'tensorboard').glob('events*'))
  assert runs.read_config(undisturbed).batch_size == 16


def test_a_run_that_lost_its_last_steps_repeats_them_bit_for_bit(undisturbed, tmp_path):
  """What a kill leaves: an older checkpoint and metrics beyond it."""
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '8')
  expected = final_state(undisturbed, 8)
  assert train(workdir, '--config.steps=8', '--config.checkpoint.every=3') == 0
  assert lines(workdir) == lines(undisturbed)
  jax.tree.map(np.testing.assert_array_equal, final_state(workdir, 8), expected)


def test_a_finished_run_is_left_alone(undisturbed, capsys):
  assert train(undisturbed, '--config.steps=8', '--config.checkpoint.every=3') == 0
  assert 'done: 8 steps' in capsys.readouterr().out
  assert len(lines(undisturbed)) == 8


@pytest.mark.parametrize('argument, words', [
  ('--config.seed=1', ['the data seed was 0, is 1', 'config.seed was 0, is 1']),
  ('--config.batch_size=32', ['the batch size was 16, is 32']),
  ('--config.schedule.learning_rate=0.5', ['config.schedule.learning_rate was 0.006, is 0.5']),
  ('--config.network.channels=(8, 16, 32)', ['config.network.channels was None, is [8, 16, 32]']),
])
def test_another_run_in_the_same_folder_is_refused(undisturbed, argument, words, capsys):
  assert train(undisturbed, '--config.steps=8', argument) == 2
  error = capsys.readouterr().err
  for word in words:
    assert word in error
  assert '--allow_changes' in error


def test_never_starts_over_and_keeps_the_earlier_run(tmp_path, undisturbed):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  assert train(workdir, '--resume=never', '--config.steps=2') == 0
  assert Checkpoints(workdir / 'checkpoints').steps() == [2]
  aside, = tmp_path.glob('run.before-*')
  assert Checkpoints(aside / 'checkpoints').steps() == [6, 8]


def test_resume_from_a_given_step(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  assert train(workdir, '--resume=6', '--config.steps=8', '--config.checkpoint.every=3') == 0
  assert lines(workdir) == lines(undisturbed)
  assert train(workdir, '--resume=5', '--config.steps=8') == 3


def test_init_from_takes_weights_only(undisturbed, tmp_path, capsys):
  donor = final_state(undisturbed, 8).params
  for spec, names in (('', ['backbone', 'head']), (':backbone', ['backbone'])):
    workdir = tmp_path / f'new{len(spec)}'
    assert train(workdir, f'--init_from={undisturbed}{spec}', '--config.steps=1', '--config.seed=5',
                 '--config.schedule.learning_rate=0.0') == 0
    params = final_state(workdir, 1).params
    for name in ('backbone', 'head'):
      equal = jax.tree.map(lambda a, b: bool((a == b).all()), params[name], donor[name])
      assert all(jax.tree.leaves(equal)) == (name in names)
  assert train(tmp_path / 'x', f'--init_from={undisturbed}:backbon') == 2
  assert 'no subtree' in capsys.readouterr().err


@pytest.mark.slow
def test_profile_writes_a_trace(tmp_path):
  assert train(tmp_path, '--config.steps=4', '--profile=2:3') == 0
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_evaluate_embed_and_load(undisturbed, tmp_path, capsys):
  assert main(['evaluate', f'--workdir={undisturbed}', *CACHE]) == 0
  table = capsys.readouterr().out
  for word in ('raw pixels', 'random init', 'simclr', 'kNN-20', '10 labels per class', 'linear'):
    assert word in table
  written = json.loads((undisturbed / 'evaluation.json').read_text())
  assert set(written['accuracies']) == {'raw pixels', 'random init', 'simclr'}

  for name in ('z.npz', 'z.safetensors'):
    assert main(['embed', f'--workdir={undisturbed}', f'--output={tmp_path / name}', *CACHE]) == 0
  z = np.load(tmp_path / 'z.npz')
  np.testing.assert_array_equal(load_file(tmp_path / 'z.safetensors')['embedding'], z['embedding'])
  assert z['embedding'].shape == (2000, 128) and z['label'].shape == (2000,)

  run = ssl_jax.load(undisturbed)
  assert run.step == 8 and set(run.variables) == {'params', 'state'}
  images = runs.splits(run.config).test.take(np.arange(300))['image']
  np.testing.assert_allclose(run.embed(images), z['embedding'][:300], rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match='uint8'):
    run.embed(images / 255)


@pytest.mark.parametrize('arguments', [
  ['--config.microbatch=8'],
  ['--config.network.batch_norm.group_size=8', '--config.head.batch_norm.group_size=8',
   '--config.microbatch=8'],
], ids=['chunks', 'chunks of groups'])
def test_chunked_runs_are_watched_and_used(tmp_path, arguments):
  workdir = tmp_path / 'run'
  assert main(['train', f'--config={DEMO}:smoke', f'--workdir={workdir}', *CACHE, *arguments,
               '--config.steps=2']) == 0
  names = set().union(*lines(workdir))
  assert {'knn20', 'effective_rank', 'loss'} <= names


def test_a_sharded_run_is_used_elsewhere_without_its_data(tmp_path, monkeypatch):
  """Trained on a 4 x 2 mesh from a file; loaded on one device after the file is gone."""
  r = np.random.default_rng(0)
  np.savez(tmp_path / 'mine.npz', image=r.integers(0, 256, (64, 28, 28, 1), np.uint8))
  workdir = tmp_path / 'run'
  assert train(workdir, '--config.data.name=array_files', f'--config.data.path={tmp_path}/mine.npz',
               '--config.mesh.fsdp=2', '--config.sharding=(("kernel$", "fsdp"),)') == 0
  images = np.load(tmp_path / 'mine.npz')['image']
  (tmp_path / 'mine.npz').unlink()
  all_devices = ssl_jax.load(workdir).embed(images)
  one = ssl_jax.load(workdir, devices=jax.devices()[:1]).embed(images)
  np.testing.assert_allclose(one, all_devices, rtol=1e-4, atol=1e-5)


def test_debug_nans_stops_at_the_operation(tmp_path, capsys):
  code = train(tmp_path, '--debug_nans', '--config.optimizer.name=sgd',
               '--config.schedule.learning_rate=1e38')
  jax.config.update('jax_debug_nans', False)
  assert code == 4
  assert 'Traceback' in capsys.readouterr().err


def test_embed_of_other_images(undisturbed, tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), np.uint8)
  np.savez(tmp_path / 'mine.npz', image=images)
  assert main(['embed', f'--workdir={undisturbed}', f'--data={tmp_path}/mine.npz',
               f'--output={tmp_path}/z.npz', *CACHE]) == 0
  assert np.load(tmp_path / 'z.npz')['embedding'].shape == (20, 128)


def arrays(path, **fields):
  np.savez(path, **fields)
  return ['--config.data.name=array_files', f'--config.data.path={path}']


GREY = np.zeros((32, 28, 28, 1), np.uint8)


@pytest.mark.parametrize('fields, extra, words', [
  (dict(image=np.zeros((32, 28, 28, 4), np.uint8)), [], 'C = 1 or 3'),
  (dict(picture=GREY), [], "has no 'image'"),
  (dict(image=GREY, label=np.zeros(32, int)), ['--config.evaluate.every=2'], "split 'test'"),
  (dict(image=GREY), ['--config.views.views=3'], 'cannot be built'),
  (dict(image=GREY), ['--config.network.dtype=bfloat17'], 'bfloat17'),
  (dict(image=GREY), ['--config.mesh.dta=1'], 'config.mesh.dta is unknown'),
  (dict(image=GREY), ['--config.sharding=(("kernel$","fsdp"),)'], "names axis 'fsdp'"),
  (dict(image=GREY), ['--config.head.batch_norm.group_size=3'], 'config.head.batch_norm.group_size'),
  (dict(image=GREY), ['--config.network.batch_norm.group_size="8"'], 'config.network.batch_norm'),
  (dict(image=GREY), ['--config.steps=None', '--config.epochs=-1'], 'config.epochs'),
], ids=lambda value: value if isinstance(value, str) else '')
def test_data_and_config_that_do_not_fit_exit_with_2(fields, extra, words, tmp_path, capsys):
  assert train(tmp_path / 'run', *arrays(tmp_path / 'x.npz', **fields), *extra) == 2
  error = capsys.readouterr().err
  assert words in error and 'Traceback' not in error


def test_labels_that_cannot_be_evaluated():
  for fields, words in ((dict(image=GREY), 'needs labels'),
                        (dict(image=GREY, label=np.zeros(32, int)), 'at least two classes')):
    with pytest.raises(runs.ConfigError, match=words):
      runs.labels(ArraySource(fields), 'train')


def test_missing_data_exits_with_3(tmp_path, capsys):
  code = main(['train', f'--config={DEMO}:smoke', f'--workdir={tmp_path}/run', *CACHE,
               '--config.data.name=array_files', f'--config.data.path={tmp_path}/none.npz'])
  assert code == 3
  assert 'none.npz' in capsys.readouterr().err


def test_doctor_is_content_here(tmp_path, capsys):
  assert main(['doctor', f'--workdir={tmp_path}']) == 0
  out = capsys.readouterr().out
  assert 'all well' in out and 'fashion_mnist_12k' in out
