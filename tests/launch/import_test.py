"""The launcher needs Python alone: no JAX, no ssl_jax, no installed package."""

import pathlib
import subprocess
import sys

import launch

FOLDER = pathlib.Path(launch.__file__).parent


def test_only_the_standard_library_is_imported():
  names = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != '__init__')
  code = f'''
import sys
sys.path.insert(0, {str(FOLDER.parent)!r})
import importlib
for name in {names}: importlib.import_module('launch.' + name)
others = {{name.split('.')[0] for name in sys.modules}} - set(sys.stdlib_module_names) - {{'launch'}}
assert not {{name for name in others if not name.startswith('__')}}, others'''
  # Isolated and without site-packages: an import of anything else fails.
  subprocess.run([sys.executable, '-I', '-S', '-c', code], check=True)


def test_pins_cover_the_requirements():
  def names(path):
    lines = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
    return {line.replace('>', '=').split('=')[0].split('[')[0].lower().replace('_', '-')
            for line in lines if line}
  pins = names(FOLDER / 'constraints.txt')
  assert names(FOLDER.parent / 'requirements.txt') <= pins
  assert {'jax', 'jaxlib', 'libtpu'} <= pins
