"""Every mistake in a config or on the command line is answered with what to do, and exit code 2."""

import pathlib

import pytest

from ssl_jax import build
from ssl_jax.cli import main
from ssl_jax.cli.options import help_text, load_config, override

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
