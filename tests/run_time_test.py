"""What a user's process imports: no TensorFlow, no torch, and nothing slow before it is needed."""

import subprocess
import sys

import pytest


def modules_after(code: str) -> set[str]:
  out = subprocess.run([sys.executable, '-c', f'{code}\nimport sys; print(*sys.modules)'],
                       capture_output=True, text=True, check=True)
  return {name.partition('.')[0] for name in out.stdout.split()}


@pytest.mark.parametrize('code', ['import ssl_jax.cli.train', 'import ssl_jax.cli.evaluate'])
def test_commands_need_neither_tensorflow_nor_torch(code):
  found = modules_after(code)
  assert 'jax' in found
  assert not found & {'tensorflow', 'torch', 'clu', 'equinox', 'tensorflow_datasets'}
  assert not found & {'orbax', 'grain', 'tensorboardX', 'matplotlib'}, 'start-up time'


def test_import_ssl_jax_alone_is_cheap():
  assert 'jax' not in modules_after('import ssl_jax, ssl_jax.cli')
