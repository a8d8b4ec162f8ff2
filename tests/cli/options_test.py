"""Every mistake in a config or on the command line is answered with what to do, and exit code 2."""

import pathlib
import sys

import pytest
from ml_collections import ConfigDict

from ssl_jax import build
from ssl_jax.cli import main
from ssl_jax.cli.options import help_text, load_config, override
from ssl_jax.schema import ConfigError

DEMO = str(pathlib.Path(__file__).parents[2] / 'configs' / 'simclr_fashion_mnist.py')


@pytest.fixture
def config():
  return load_config(f'{DEMO}:smoke')


def test_overrides_keep_types(config):
  changed = override(config, [
    '--config.batch_size=32', '--config.method.temperature', '1', '--config.data.split=test',
    '--config.views.area=(0.5, 1.0)', '--config.microbatch=8', '--config.sharding=(("k","data"),)',
    '--config.mesh.fsdp=2', '--config.evaluate={"every": 3}'])
  assert dict(changed.mesh) == {'data': -1, 'fsdp': 2} and changed.evaluate.every == 3
  assert changed.batch_size == 32 and changed.microbatch == 8
  assert changed.method.temperature == 1.0 and isinstance(changed.method.temperature, float)
  assert changed.data.split == 'test' and changed.views.area == (0.5, 1.0)
  assert config.batch_size == 16  # the original is untouched


def test_a_string_can_be_unset():
  config = load_config(str(pathlib.Path(DEMO).with_name('bert_base_wikipedia.py')) + ':phase2')
  assert config.network.remat == 'dots'
  assert override(config, ['--config.network.remat=none']).network.remat is None


def test_an_argument_of_the_named_function_can_be_set_though_the_file_does_not(config):
  changed = override(config, ['--config.method.separate_views=true'])
  build.experiment(changed)
  assert changed.method.separate_views is True


@pytest.mark.parametrize('argument, words', [
  ('--config.batch_sizee=3', ['config.batch_sizee is unknown', 'did you mean config.batch_size?']),
  ('--config.mehtod.temperature=3', ['did you mean config.method.temperature?']),
  ('--config.batch_size=many', ['config.batch_size must be int', "'many'"]),
  ('--config.batch_size=1.5', ['must be int']),
  ('--config.batch_size=true', ['must be int']),
  ('--config.method=3', ['is a section', 'config.method.temperature']),
  ('--config.evaluate.evry=3', ['did you mean config.evaluate.every?']),
])
def test_wrong_overrides(config, argument, words):
  with pytest.raises(ConfigError) as caught:
    override(config, [argument])
  for word in words:
    assert word in str(caught.value)


@pytest.mark.parametrize('changes, words', [
  ({'method.temprature': 0.1}, ['config.method.temprature is unknown', "did you mean 'temperature'"]),
  ({'method.temperature': 'warm'}, ['config.method.temperature must be float', "'warm'"]),
  ({'method.temperature': -1.0}, ['config.method', 'positive']),
  ({'method.name': 'simcrl'}, ["did you mean 'simclr'"]),
  ({'network.name': 'resnet81'}, ["did you mean 'resnet18'"]),
  ({'optimizer.name': 'adam'}, ["did you mean 'adamw'"]),
  ({'optimizer.exclude': 'everything'}, ['config.optimizer', 'bias_and_norm']),
  ({'data.name': 'no_module.of_mine'}, ['not a module with a build function']),
  ({'data.split': 'validation'}, ['config.data', 'validation', 'train', 'test']),
  ({'batch_size': 12}, ['does not split over 8 devices', '8 or 16']),
  ({'batch_size': 20_000}, ['only 10000 examples']),
  ({'batch_size': 0}, ['at least 1']),
  ({'microbatch': 12}, ['does not split over 8 devices']),
  ({'batch_size': 48, 'microbatch': 32}, ['does not divide', '16 or 24']),
  ({'network.batch_norm': {'group_size': 3}}, ['group_size is 3']),
  ({'network.batch_norm': {'groupsize': 4}}, ['groupsize']),
  ({'steps': None}, ['either config.steps or config.epochs']),
  ({'epochs': 3.0}, ['either config.steps or config.epochs']),
  ({'mesh': {'data': 3}}, ['config.mesh', '8 devices']),
  ({'schedule.warmup_steps': 9}, ['config.schedule', 'warmup']),
  ({'seed': -1}, ['config.seed', 'at least 0']),
  ({'log_every': 0}, ['config.log_every', 'at least 1']),
])
def test_wrong_configs(config, changes, words):
  with config.unlocked(), config.ignore_type():
    for key, value in changes.items():
      *section, leaf = key.split('.')
      place = config[section[0]] if section else config
      with place.unlocked(), place.ignore_type():
        place[leaf] = ConfigDict(value) if isinstance(value, dict) else value
  with pytest.raises(ConfigError) as caught:
    build.experiment(config)
  for word in words:
    assert word in str(caught.value)


def test_unknown_and_missing_sections():
  for config, words in [
      (ConfigDict(dict(seeed=0)), 'seeed is unknown; did you mean'),
      (ConfigDict(dict(seed=0)), 'config.data is missing')]:
    with pytest.raises(ConfigError, match=words):
      build.complete(config)


@pytest.mark.parametrize('argv, words', [
  (['train', '--config=configs/nothing.py', '--workdir=x'], 'no config file'),
  (['train', f'--config={DEMO}:smokey', '--workdir=x'], "unknown variant 'smokey'"),
  (['train', f'--config={DEMO}:smoke', '--workdir=x', '--config.sed=1'], 'did you mean config.seed?'),
  (['evaluate', '--workdir=/nowhere'], 'not the folder of a run'),
  (['embed', '--workdir=/nowhere', '--output=x.npz'], 'not the folder of a run'),
])
def test_a_mistake_exits_with_2_and_no_traceback(argv, words, capsys):
  assert main(argv) == 2
  error = capsys.readouterr().err
  assert words in error and 'Traceback' not in error


@pytest.mark.parametrize('argv, words', [
  (['train'], 'needs --config=FILE.py and --workdir=FOLDER'),
  (['train', f'--config={DEMO}', '--wrokdir=x'], 'did you mean --workdir?'),
  (['train', f'--config={DEMO}', '--workdir=x', '--resume=perhaps'], 'auto, never or a step'),
  (['embed', '--workdir=x', '--output=x.csv'], '.npz or .safetensors'),
  (['trian'], "invalid choice: 'trian'"),
])
def test_a_wrong_option_exits_with_2(argv, words, capsys):
  with pytest.raises(SystemExit) as caught:
    main(argv)
  assert caught.value.code == 2
  assert words in capsys.readouterr().err


@pytest.mark.parametrize('text, words', [
  ('import no_such_module', 'ModuleNotFoundError'), ('get_config = lambda: None', 'TypeError'),
  ('x = 1', 'no function get_config')])
def test_a_config_file_with_a_fault_is_answered(text, words, tmp_path, capsys):
  (tmp_path / 'mine.py').write_text(text)
  assert main(['train', f'--config={tmp_path}/mine.py', '--workdir=x']) == 2
  assert words in capsys.readouterr().err


@pytest.mark.parametrize('path, package', [('gs://bucket/photos', 'gcsfs'), ('s3://bucket/x', 's3fs')])
def test_a_remote_path_without_its_package_is_answered(path, package, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, package, None)  # Importing it fails.
  assert main(['pack', f'--folder={path}', f'--out={tmp_path}/out']) == 3
  assert f'pip install {package}' in capsys.readouterr().err


def test_help_lists_the_fields_with_values_and_defaults(config, capsys):
  text = help_text(config)
  assert '--config.batch_size=16' in text
  assert '--config.method.temperature=0.2' in text
  assert '--config.method.separate_views=False' in text  # a default the file leaves alone
  assert 'on_batch' not in text
  with pytest.raises(SystemExit) as caught:
    main(['train', f'--config={DEMO}', '--help'])
  assert caught.value.code == 0
  assert '--config.batch_size=256' in capsys.readouterr().out
