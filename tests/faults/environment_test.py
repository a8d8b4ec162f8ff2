"""Faults 43 to 50: configs that cannot be, and machines that lack something."""

import os
import pathlib
import random
import re
import subprocess
import sys
import time

import jax
import pytest
from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.cli import devices, explain, main, memory
from ssl_jax.cli import train as command
from ssl_jax.cli.options import load_config, override
from ssl_jax.data import folders, shards
from ssl_jax.data.batches import batches
from ssl_jax.data.sources import fashion_mnist_12k
from ssl_jax.schema import ConfigError
from ssl_jax.train.metrics import Progress, read_lines

ROOT = pathlib.Path(__file__).parents[2]
DEMO = f'{ROOT}/configs/simclr_fashion_mnist.py:smoke'
QUIET = ('--config.evaluate.every=None', '--config.evaluate.health_every=None')
NAN, INF = float('nan'), float('inf')


def train(workdir, *arguments, config=DEMO):
  return main(['train', f'--config={config}', f'--workdir={workdir}', '--cache_dir=none', *QUIET,
               *arguments])


@pytest.fixture
def config():
  return load_config(DEMO)


@pytest.fixture
def no_work(monkeypatch):
  """Nothing may be compiled or put on a device."""
  def work(program):
    raise AssertionError('too late: the step is being compiled')
  monkeypatch.setattr(command, '_start_compiling', work)


# --- 43: configs that cannot be -------------------------------------------------------------------


@pytest.mark.parametrize('argument, words', [
  ('--config.batch_sizee=3', ['config.batch_sizee is unknown', 'did you mean config.batch_size?']),
  ('--config.mehtod.temperature=3', ['did you mean config.method.temperature?']),
  ('--config.method.temprature=3', ['temprature is unknown', "did you mean 'temperature'?"]),
  ('--config.batch_size=many', ['config.batch_size must be int', "'many'"]),
  ('--config.batch_size=1.5', ['must be int']),
  ('--config.batch_size=true', ['must be int']),
  ('--config.method=3', ['is a section', 'config.method.temperature']),
  ('--config.evaluate.evry=3', ['did you mean config.evaluate.every?']),
  ('--config.evaluate={"evry": 3}', ['config.evaluate.evry is unknown', "did you mean 'every'?"]),
  ('--config.method={"temperature": 3}', ['config.method needs a name']),
  ('--config.method.temperature=1e999', ['config.method.temperature must be finite, got inf']),
  ('--config.optimizer.b2=1', ['config.optimizer.b2 must be in [0, 1), got 1']),
  ('--config.schedule.learning_rate=-1', ['schedule.learning_rate must be in [0, inf), got -1']),
  ('--config.head.out=0', ['config.head.out must be in [1, inf), got 0']),
  ('--config.network.dtype=bflaot16', ["config.network.dtype 'bflaot16'", "did you mean 'bfloat16'?"]),
  ('--config.network.channels=("a",8,8)', ['config.network.channels must be Sequence[int]']),
  ('--config.epochs=3', ['give either config.steps or config.epochs']),
  ('--config.steps=3000000000', ['config.steps must be at most 2,147,483,647']),
])
def test_43_a_mistake_on_the_command_line_is_exit_2_before_any_work(argument, words, tmp_path, capsys,
                                                                   no_work):
  assert train(tmp_path / 'run', argument) == 2
  err = capsys.readouterr().err
  assert all(word in err for word in words), err
  assert 'Traceback' not in err and not (tmp_path / 'run').exists()


def changed(config, changes):
  """As a file would have it: without the checks of types that the command line makes."""
  with config.unlocked(), config.ignore_type():
    for key, value in changes.items():
      *section, leaf = key.split('.')
      place = config[section[0]] if section else config
      with place.unlocked(), place.ignore_type():
        place[leaf] = ConfigDict(value) if isinstance(value, dict) else value
  return config


@pytest.mark.parametrize('changes, words', [
  ({'method.temprature': 0.1}, ['config.method.temprature is unknown', "did you mean 'temperature'"]),
  ({'method.temperature': 'warm'}, ['config.method.temperature must be float', "'warm'"]),
  ({'method.temperature': -1.0}, ['config.method.temperature', '(0, inf)', '-1.0']),
  ({'method.temperature': 0}, ['config.method.temperature', '(0, inf)', 'got 0']),
  ({'method.temperature': NAN}, ['config.method.temperature must be finite, got nan']),
  ({'optimizer.weight_decay': INF}, ['config.optimizer.weight_decay must be finite, got inf']),
  ({'optimizer.b1': -0.5}, ['config.optimizer.b1 must be in [0, 1), got -0.5']),
  ({'optimizer.clip_norm': 0}, ['config.optimizer.clip_norm must be in (0, inf), got 0']),
  ({'views.area': (0.2, NAN)}, ['config.views.area must be finite, got nan']),
  ({'network.batch_norm': {'momentum': NAN}}, ['config.network.batch_norm.momentum must be finite']),
  ({'network.channels': (8, 0, 8)}, ['config.network.channels must be in [1, inf), got 0']),
  ({'schedule.learning_rate': NAN}, ['config.schedule.learning_rate must be finite, got nan']),
  ({'schedule.warmup_epochs': -1.0}, ['config.schedule.warmup_epochs', '[0, inf)']),
  ({'schedule.warmup_steps': 9}, ['config.schedule', 'warmup']),
  ({'method.name': 'simcrl'}, ["did you mean 'simclr'"]),
  ({'network.name': 'resnet81'}, ["did you mean 'resnet18'"]),
  ({'optimizer.name': 'adam'}, ["did you mean 'adamw'"]),
  ({'optimizer.exclude': 'everything'}, ['config.optimizer', 'bias_and_norm']),
  ({'data.name': 'no_module.of_mine'}, ['not a module with a build function']),
  ({'data.split': 'validation'}, ['config.data', 'validation', 'train', 'test']),
  ({'data.name': 'image_folder', 'data.path': '.', 'data.crop': 'hots'},
   ["config.data.crop must be one of 'host', 'device', got 'hots'; did you mean 'host'?"]),
  ({'batch_size': 0}, ['at least 1']),
  ({'network.batch_norm': {'groupsize': 4}}, ['groupsize']),
  ({'steps': None}, ['either config.steps or config.epochs']),
  ({'epochs': 3.0}, ['either config.steps or config.epochs']),
  ({'steps': None, 'epochs': INF}, ['config.epochs must be a number above 0 and at most']),
  ({'mesh': {'data': 3}}, ['config.mesh', '8 devices']),
  ({'mesh': {'data': 'all'}}, ["config.mesh.data must be a number of devices, or -1", "'all'"]),
  ({'seed': -1}, ['config.seed', 'at least 0']),
  ({'seed': 1 << 32}, ['config.seed must be at most 4,294,967,295']),
  ({'log_every': 0}, ['config.log_every', 'at least 1']),
  ({'patience': NAN}, ['config.patience must be a whole number of at least 1, got nan']),
  ({'checkpoint.keep': 0}, ['config.checkpoint.keep must be a whole number of at least 1, got 0']),
])
def test_43_a_mistake_in_a_file_is_answered(config, changes, words):
  with pytest.raises(ConfigError) as caught:
    build.experiment(changed(config, changes))
  assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize('section', ['data', 'views', 'network', 'head', 'method', 'optimizer',
                                     'schedule', 'mesh', 'checkpoint', 'evaluate'])
@pytest.mark.parametrize('value', [None, 3, 'simclr', ()])
def test_43_a_section_that_is_none_is_answered(config, section, value):
  with pytest.raises(ConfigError, match=rf'config\.{section} must be a section, such as dict\('):
    build.complete(changed(config, {section: value}))


def test_43_unknown_and_missing_sections():
  for config, words in [
      (ConfigDict(dict(seeed=0)), 'seeed is unknown; did you mean'),
      (ConfigDict(dict(seed=0)), 'config.data is missing')]:
    with pytest.raises(ConfigError, match=words):
      build.complete(config)


def test_43_values_at_the_ends_of_their_ranges_are_taken(config):
  build.experiment(override(config, [
    '--config.optimizer.weight_decay=0', '--config.optimizer.b1=0', '--config.schedule.final=0',
    '--config.schedule.learning_rate=0', '--config.views.flip=1', '--config.seed=4294967295',
    '--config.checkpoint.every=0', '--config.workers=0']))


# --- 44: numbers that must divide -----------------------------------------------------------------


@pytest.mark.parametrize('changes, words', [
  ({'batch_size': 12}, 'config.batch_size is 12, which does not split over 8 devices; use 8 or 16'),
  ({'batch_size': 4}, 'config.batch_size is 4, which does not split over 8 devices; use 8'),
  ({'batch_size': 20_000}, 'only 10000 examples; use at most 10000'),
  ({'microbatch': 12}, 'config.microbatch is 12, which does not split over 8 devices; use 8 or 16'),
  ({'batch_size': 48, 'microbatch': 32}, 'does not divide the batch of 48; use 16 or 24'),
  ({'network.batch_norm': {'group_size': 3}},
   'group_size is 3, which does not divide the 32 rows that the network sees at once; use 2 or 4'),
  ({'mesh': {'data': -1, 'fsdp': 3}}, 'does not fit 8 devices'),
])
def test_44_what_does_not_divide_is_answered_with_the_nearest_that_does(config, changes, words):
  with pytest.raises(ConfigError) as caught:
    build.experiment(changed(config, changes))
  assert words in str(caught.value)


@pytest.mark.parametrize('name, argument, words', [
  ('moco', '--config.method.queue=100', 'a queue of 100 rows does not take whole batches of 16 rows; '
   'use 96 or 112'),
  ('swav', '--config.method.queue=100', 'a queue of 100 rows does not take whole batches'),
])
def test_44_a_queue_takes_whole_batches(name, argument, words, tmp_path, capsys):
  assert train(tmp_path / 'run', argument,
               config=f'{ROOT}/configs/{name}_fashion_mnist.py:smoke') == 2
  err = capsys.readouterr().err
  assert words in err and 'Traceback' not in err


def test_44_heads_divide_the_width():
  config = load_config(f'{ROOT}/configs/mlm_wordnet.py:smoke')
  with pytest.raises(ConfigError, match='config.network: 3 heads do not divide the width 32'):
    build.module(override(config, ['--config.network.heads=3']))


# --- 45: accelerators that are not there ----------------------------------------------------------


def test_45_cpus_beside_an_accelerator_are_refused(tmp_path, monkeypatch, capsys, no_work):
  monkeypatch.setattr(devices, 'accelerator', lambda: '/dev/nvidia0')
  monkeypatch.delenv('JAX_PLATFORMS')
  assert train(tmp_path / 'run') == 2
  err = capsys.readouterr().err
  assert '(/dev/nvidia0), but JAX sees only CPUs' in err and "pip install -U 'jax[cuda13]'" in err
  assert 'JAX_PLATFORMS=cpu in the environment' in err and not (tmp_path / 'run').exists()
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  devices.check()  # on purpose
  monkeypatch.setattr(devices, 'accelerator', lambda: None)
  monkeypatch.delenv('JAX_PLATFORMS')
  devices.check()  # there is nothing better


@pytest.mark.parametrize('platform', ['tpu', 'cuda', 'no_such'])
def test_45_devices_that_are_asked_for_and_not_there_are_exit_2(platform, tmp_path):
  run = in_a_process(f'train --config={DEMO} --workdir={tmp_path}/run', JAX_PLATFORMS=platform)
  assert run.returncode == 2 and 'Traceback' not in run.stderr, run.stderr
  assert f'JAX_PLATFORMS={platform} asks for devices that JAX cannot use here' in run.stderr
  assert "'jax[tpu]'" in run.stderr and not (tmp_path / 'run').exists()


def in_a_process(arguments, *, before='', **variables):
  """`python -m ssl_jax` after some lines of Python, with only these variables."""
  code = f'{before}\nimport sys\nfrom ssl_jax.cli import main\nsys.exit(main(sys.argv[1:]))'
  variables = dict(PATH=os.environ['PATH'], PYTHONPATH=str(ROOT)) | variables
  return subprocess.run([sys.executable, '-c', code, *arguments.split(' ')], env=variables, text=True,
                        encoding='utf-8', capture_output=True, stdin=subprocess.DEVNULL, timeout=300)


def test_45_other_commands_answer_too():
  error = RuntimeError("Unable to initialize backend 'tpu': NOT_FOUND: no device")
  code, (text,) = explain(error)
  assert code == 2 and 'NOT_FOUND' in text


# --- 46: memory -----------------------------------------------------------------------------------

EXHAUSTED = jax.errors.JaxRuntimeError(
  'RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.\nand much more')


@pytest.mark.parametrize('when', ['compiling', 'running'])
def test_46_a_device_without_memory_is_explained(when, tmp_path, monkeypatch, capsys):
  def fails(*_):
    raise EXHAUSTED

  monkeypatch.setattr(command, '_start_compiling',
                      lambda program: fails if when == 'compiling' else lambda *_: fails)
  assert train(tmp_path / 'run') == 2
  err = capsys.readouterr().err
  assert 'Out of memory while trying to allocate 17179869184 bytes' in err and 'Traceback' not in err
  assert '2 of the 16 examples' in err and 'params/backbone/Conv_2/kernel' in err
  computed = err[err.index('the largest arrays that the step computes'):]
  assert re.search(r'MB  float32\[.*\]  (models|views)/\w+\.py:\d+ \w+', computed), computed
  assert '--config.microbatch=8:' in err and '--config.batch_size=8,' in err and 'fsdp' in err


def test_46_sizes_are_those_of_a_device_and_knobs_those_of_the_config():
  config = load_config(f'{ROOT}/configs/mlm_wordnet.py:smoke')
  experiment = build.abstract(config, build.Shape(100, {
    name: jax.ShapeDtypeStruct((32,), 'int32')
    for name in ('tokens', 'segments', 'positions', 'words')}), jax.devices())
  text = memory.shortage(config, experiment.program(config), 'RESOURCE_EXHAUSTED: no')
  assert '1.0 MB  float32[8192, 32]  params/backbone/embed/tokens/embedding' in text
  assert 'losses/prediction.py:' in text and '--config.network.remat=full' in text


def test_46_other_errors_are_left_alone():
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    with memory.explained(None, None):
      raise jax.errors.JaxRuntimeError('INTERNAL: a bug')


# --- 47: the compilation cache --------------------------------------------------------------------

COMPILE = '''
import sys, jax, jax.numpy as jnp
from ssl_jax.cli.setup import use_compilation_cache
use_compilation_cache(sys.argv[1])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(64))))
'''


def compile_with(cache):
  run = subprocess.run([sys.executable, '-c', COMPILE, str(cache)], text=True, capture_output=True,
                       env=dict(os.environ, PYTHONPATH=str(ROOT)), timeout=120)
  assert run.returncode == 0, run.stderr
  return float(run.stdout), run.stderr


def test_47_a_damaged_or_unusable_compilation_cache_is_a_warning(tmp_path):
  want, err = compile_with(tmp_path / 'cache')
  entries = [file for file in (tmp_path / 'cache').iterdir() if file.name.endswith('-cache')]
  assert entries and 'cache' not in err
  for file in entries:
    file.write_bytes(file.read_bytes()[:100])
  got, err = compile_with(tmp_path / 'cache')
  assert got == want and 'Error reading persistent compilation cache entry' in err
  (tmp_path / 'file').write_text('')  # also for root, who may write into what is read-only
  got, err = compile_with(tmp_path / 'file' / 'cache')
  assert got == want and 'persistent compilation cache entry' in err


def uninstall(monkeypatch, module):
  """Importing it fails."""
  for name in [name for name in sys.modules if name.partition('.')[0] == module]:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, module, None)


# --- 48: what a machine may lack ------------------------------------------------------------------


def test_48_without_tensorboard_and_a_terminal_training_goes_on(tmp_path, monkeypatch, capsys):
  uninstall(monkeypatch, 'tensorboardX')
  assert train(tmp_path / 'run') == 0
  err = capsys.readouterr().err
  assert 'nothing is written for TensorBoard: pip install tensorboardX' in err and '\x1b' not in err
  assert len(read_lines(tmp_path / 'run' / 'metrics.jsonl')) == 4


def test_48_a_user_without_a_home_has_a_cache(monkeypatch):
  def nobody():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.setattr(pathlib.Path, 'home', nobody)
  assert str(folders.user_cache()).endswith(f'cache-{os.getuid()}/ssl_jax')


@pytest.mark.slow
def test_48_a_bare_environment_is_enough(tmp_path):
  """No terminal, LANG=C, a home that cannot be written, no TensorBoard, odd names."""
  blind = "import sys; sys.modules['tensorboardX'] = sys.modules['wandb'] = None"
  run = in_a_process(f'train --config={DEMO} --workdir={tmp_path}/lauf-ü', before=blind, LANG='C',
                     LC_ALL='POSIX', HOME='/dev/null/none', JAX_PLATFORMS='cpu')
  assert run.returncode == 0, run.stderr
  assert 'done: 4 steps' in run.stdout and 'step 4/4' in run.stderr
  run = in_a_process(f'evaluate --workdir={tmp_path}/lauf-ü', LANG='C', LC_ALL='POSIX',
                     HOME='/dev/null/none', JAX_PLATFORMS='cpu', PYTHONIOENCODING='ascii')
  assert run.returncode == 0 and 'random init' in run.stdout, run.stderr


# --- 49: packages that are not installed ----------------------------------------------------------


@pytest.mark.parametrize('path, package', [('gs://bucket/photos', 'gcsfs'), ('s3://bucket/x', 's3fs')])
def test_49_a_remote_path_without_its_package_is_answered(path, package, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, package, None)  # Importing it fails.
  assert main(['pack', f'--folder={path}', f'--out={tmp_path}/out']) == 2
  assert f'pip install {package}' in capsys.readouterr().err


@pytest.mark.parametrize('module, package, use', [
  ('grain', 'grain', lambda: next(batches(fashion_mnist_12k(), batch_size=8, seed=0, workers=1))),
  ('array_record', 'array-record', lambda: shards.writer(pathlib.Path('/dev/null/none'))),
  ('tensorflow_datasets', 'tensorflow-datasets', lambda: build.DATA['tfds'](builder='cifar10')),
])
def test_49_the_package_is_named_as_pip_knows_it(module, package, use, monkeypatch):
  uninstall(monkeypatch, module)
  with pytest.raises(ModuleNotFoundError) as caught:
    use()
  code, (text,) = explain(caught.value)
  assert code == 2 and text.endswith(f'this needs the package {package}, which is not installed: '
                                     f'pip install {package}')


def test_49_our_own_mistakes_are_no_missing_packages():
  for name in ('ssl_jax.no_such_module', 'os.no_such', ''):
    assert explain(ModuleNotFoundError('No module named x', name=name))[0] == 1


# --- 50: clocks that jump -------------------------------------------------------------------------


def test_50_a_clock_that_jumps_disturbs_nothing(tmp_path, monkeypatch, capsys):
  """By years, after every step: speed, ETA and the seconds of the metrics are of another clock."""
  clock, jumps, now, show = time.time, random.Random(0), [0], Progress.__call__

  def jump(self, *step):
    now[0] = jumps.choice([-3e8, 3e8])
    show(self, *step)

  monkeypatch.setattr(Progress, '__call__', jump)
  monkeypatch.setattr(time, 'time', lambda: clock() + now[0])
  assert train(tmp_path / 'run', '--config.checkpoint.every=0') == 0
  err = capsys.readouterr().err
  written = [line['seconds'] for line in read_lines(tmp_path / 'run' / 'metrics.jsonl')]
  assert len(written) == 4 and written == sorted(written) and 0 <= written[-1] < 600
  for line in err.splitlines():
    if 'ETA' in line:
      minutes, seconds = line.rpartition('ETA ')[2].split(':')
      assert 0 <= int(minutes) < 10 and 0 <= int(seconds) < 60


def test_50_progress_survives_a_clock_that_stands(monkeypatch, capsys):
  monkeypatch.setattr(time, 'monotonic', lambda: 5.0)
  progress = Progress(4, batch_size=8, every=1)
  for step in range(1, 5):
    progress(step, {'loss': 1.0})
  assert capsys.readouterr().err.count('ETA 0:00') == 4
