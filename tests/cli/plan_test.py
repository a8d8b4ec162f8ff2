"""`python -m ssl_jax plan`, with the compiler for TPUs where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SMOKE = '--config=configs/simclr_fashion_mnist.py:smoke'
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')


def plan(root, *arguments):
  environment = {key: value for key, value in os.environ.items() if key != 'JAX_PLATFORMS'}
  return subprocess.run([sys.executable, '-m', 'ssl_jax', 'plan', *arguments], cwd=root, text=True,
                        env=environment, capture_output=True, timeout=300)


@needs_libtpu
def test_in_words_and_with_sources(root):
  result = plan(root, SMOKE, '--topology=v5e-4', '--explain')
  assert result.returncode == 0, result.stderr
  for words in ('v5e:2x2', '4 chips', 'fits', 'roofline: at least', 'chip-hours', 'assumes',
                'largest arrays', 'highest bound'):
    assert words in result.stdout
  assert 'Error' not in result.stderr and 'WARNING' not in result.stderr


@needs_libtpu
def test_as_json_over_two_slices(root):
  """The gradient crosses the network of the data centre."""
  result = plan(root, SMOKE, '--topology=v5e-4', '--slices=2', '--json', '--config.batch_size=64')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found['fits'] and found['devices'] == 8 and found['batch_size'] == 64
  kinds = set(found['collectives'])
  assert 'all-reduce between slices or hosts' in kinds and not any('all-to-all' in k for k in kinds)
  assert found['roofline']['network'] > 0
  assert 0.95 < found['useful_flops'] / found['flops'] < 1.05
  assert found['memory']['donated'] > 0.9 * found['memory']['outputs']


@needs_libtpu
def test_what_does_not_fit_is_told(root):
  result = plan(root, SMOKE, '--topology=v5e-1', '--config.batch_size=4000000')
  assert result.returncode == 2 and 'does NOT fit' in result.stdout and 'GiB too much' in result.stdout


@needs_libtpu
def test_a_program_that_jaxlib_cannot_read(root):
  """libtpu's for TPU7x has operations that jaxlib 0.10.2 does not know: memory and FLOPs are known."""
  result = plan(root, SMOKE, '--topology=tpu7x:2x2x1', '--json')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found['fits'] and found['memory']['peak'] > 0 and found['flops'] > 1e6
  assert bool(found['unread']) == (not found['collectives'])


@needs_libtpu
@pytest.mark.slow
def test_search_and_sweep(root):
  result = plan(root, SMOKE, '--sweep=v5e-1,v6e-4')
  assert result.returncode == 0 and '| v6e:2x2 | 4 | 64 |' in result.stdout
  result = plan(root, SMOKE, '--topology=v5e-1', '--fit', '--chunk', '--json')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert '--config.microbatch=8' in found['tried'] and found['best'] in found['tried']


@pytest.mark.parametrize('arguments, says', [
  ((SMOKE,), 'needs --config=FILE.py and --topology=NAME'),
  ((SMOKE, '--topology=v5e-5'), 'there are v5e-1, v5e-4'),
  ((SMOKE, '--topology=v5e-4', '--remat'), '--remat belongs to --fit'),
  ((SMOKE, '--topology=v5e-4', '--sweep=v5e-4'), 'leave out --topology'),
  ((SMOKE, '--topology=v5e-4', '--fit', '--explain'), '--explain is about one program'),
  ((SMOKE, '--topology=v5e-4', '--examples=0'), '--examples must be at least 1'),
  (('--config=configs/simclr_folder.py', '--topology=v5e-4'), 'add --examples=NUMBER'),
])
def test_a_mistake_is_answered(root, arguments, says):
  result = plan(root, *arguments)
  assert result.returncode == 2 and says in result.stderr and 'Traceback' not in result.stderr


def test_gpus_without_their_compiler(root):
  if importlib.util.find_spec('jax_cuda13_plugin') is not None:
    pytest.skip('the compiler is installed')
  result = plan(root, SMOKE, '--topology=8xH100')
  assert result.returncode == 2 and 'pip install jax-cuda13-plugin' in result.stderr
