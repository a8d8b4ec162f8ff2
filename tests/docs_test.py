"""What the documents show is what is executed."""

import importlib.util
import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax import build, cli
from ssl_jax.models.transformer import ARCHITECTURES
from ssl_jax.views import masks

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = (ROOT / 'examples' / 'reuse.py').read_text()
README = (ROOT / 'README.md').read_text()
DOCS = sorted((ROOT / 'docs').glob('*.md'))


def excerpts() -> dict[str, str]:
  """The functions of examples/reuse.py by the tag of the comment above each."""
  found = re.findall(r'^# \[(\w+)\][^\n]*\n(def .*?)\n\n\n', EXAMPLE, re.S | re.M)
  return {tag: code for tag, code in found}


def test_the_examples_run_and_agree(monkeypatch, capsys):
  example = runpy.run_path(str(ROOT / 'examples' / 'reuse.py'))
  example['main']()
  assert capsys.readouterr().out.count('loss after 3 steps') == 4


@pytest.mark.parametrize('tag', ['pmap', 'shard_map', 'dict', 'equinox'])
def test_the_documents_show_the_example_that_runs(tag):
  assert excerpts()[tag] in (ROOT / 'docs' / 'reuse.md').read_text()
  assert tag != 'pmap' or excerpts()[tag] in README
  assert excerpts()[tag].count('\n') <= 16  # ten lines or so


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')
# Configs of published encoders.
RECIPES = ('bert_base_wikipedia', 'roberta_base', 'electra_small', 'modernbert_base',
           'bert_large_lamb_mlperf')
EXECUTED = ('contrastive', 'data', 'recipes', 'evaluation', 'reuse', 'sweeps',
            pytest.param('plan', marks=needs_libtpu),
            pytest.param('text', marks=pytest.mark.slow))
# Of the others blocks without a kind are drawings and lists of commands, which are looked at below.
NAMES = {name if isinstance(name, str) else name.values[0] for name in EXECUTED}


def blocks(text: str) -> list[tuple[str, str]]:
  """(kind, code) of every block."""
  return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.S | re.M)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
  """A run for the documents that use one: two steps of the demo."""
  folder = tmp_path_factory.mktemp('docs') / 'runs' / 'demo'
  assert cli.main([
    'train', f'--config={ROOT}/configs/simclr_fashion_mnist.py:smoke', f'--workdir={folder}',
    '--config.steps=2', '--config.evaluate.every=None', '--config.evaluate.health_every=None']) == 0
  return folder


@pytest.mark.parametrize('name', EXECUTED)
def test_the_code_of_the_documents_runs(name, tmp_path, monkeypatch, request):
  """Blocks in their order, in an empty folder: python in one namespace, sh by the shell.

  'text' is what cannot run here: output, or what takes an accelerator, a network or minutes.
  """
  found = blocks((ROOT / 'docs' / f'{name}.md').read_text())
  assert {kind for kind, _ in found} <= {'python', 'sh', 'text'} and found
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
  monkeypatch.setenv('PATH', os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']]))
  if 'runs/demo' in ''.join(code for kind, code in found if kind != 'text'):
    (tmp_path / 'runs').symlink_to(request.getfixturevalue('demo').parent)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  namespace = {}
  for kind, code in found:
    if kind == 'python':
      exec(compile(code, f'docs/{name}.md', 'exec'), namespace)
    elif kind == 'sh':
      done = subprocess.run(['bash', '-ec', code], capture_output=True, text=True)
      assert done.returncode == 0, f'{code}\n{done.stderr}'


# What stands in a block without a kind and is a command; the rest of it is a drawing.
COMMAND = re.compile(r'^(python|make|git|pip|\.venv/bin/\w+|nohup|export|gcloud)\b')


@pytest.mark.parametrize('path', [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *DOCS],
                         ids=lambda path: path.stem)
def test_every_block_is_executed_or_marked(path):
  """Python: above, or below for the README. `sh`: above, by tests/cli/hosts_test.py, or as a dry run
  by tests/launch. Commands without a kind: by `test_the_commands_of_the_documents_are_accepted`, or
  make knows them."""
  targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
  text = path.read_text()
  assert text.count('```') == 2 * len(blocks(text)), 'a block is not closed, or is indented'
  for kind, code in blocks(text):
    if path.stem in NAMES or kind == 'text':
      continue
    kinds = {'README': ('', 'python'), 'launch': ('sh',), 'hosts': ('sh',)}.get(path.stem, ('',))
    assert kind in kinds, f'{code}: neither executed nor marked with ```text'
    for line in code.replace('\\\n', ' ').splitlines() if kind == '' else ():
      if COMMAND.match(line):
        words = line.split('#')[0].split()
        known = (words[:3] == ['python', '-m', 'ssl_jax'] or words[:2] == ['git', 'clone']
                 or words[0] == '.venv/bin/ruff'
                 or words[0] == 'make' and set(words[1:]) <= {*targets})
        assert known, f'{line}: neither executed nor marked with ```text'


@pytest.fixture(scope='module')
def masked_lm(tmp_path_factory):
  folder = tmp_path_factory.mktemp('docs') / 'runs' / 'mlm'
  assert cli.main(['train', f'--config={ROOT}/configs/mlm_wordnet.py:smoke', f'--workdir={folder}',
                   '--config.steps=2', '--config.evaluate.every=None',
                   '--config.evaluate.health_every=None']) == 0
  return folder


PYTHON = [code for kind, code in blocks(README) if kind == 'python' and code not in EXAMPLE]


@pytest.mark.parametrize('code', [
  pytest.param(code, id=f'block {i}', marks=[pytest.mark.slow] * ('runs/mlm' in code))
  for i, code in enumerate(PYTHON)])
def test_the_python_of_the_readme_runs(code, tmp_path, monkeypatch, request):
  for name, run in (('runs/demo', 'demo'), ('runs/mlm', 'masked_lm')):
    if name in code:
      (tmp_path / 'runs').mkdir()
      (tmp_path / name).symlink_to(request.getfixturevalue(run))
  monkeypatch.chdir(tmp_path)
  namespace = {'images': np.zeros((3, 28, 28, 1), np.uint8)}
  exec(compile(code, 'README.md', 'exec'), namespace)
  assert namespace['z'].ndim == 2 and np.isfinite(namespace['z']).all()


def profile_rows() -> list[str]:
  """The table of masking profiles in docs/text.md."""
  yes = {False: 'no', True: 'yes'}
  return [
    f'| `{name}` | {p.rate:g} | {p.count} | '
    f'{p.masked:g} / {p.changed:g} / {1 - p.masked - p.changed:.2g} | {yes[p.exact]} | '
    f"{yes[p.repeats]} | {'can be chosen' if p.special else 'never'} | {p.drawn} |"
    for name, p in masks.PROFILES.items()]


def test_the_tables_of_text_are_those_of_the_code():
  text = (ROOT / 'docs' / 'text.md').read_text()
  assert '\n'.join(profile_rows()) in text
  for name in (*ARCHITECTURES, *build.TEXT, *(f'{kind}.py' for kind in RECIPES)):
    assert f'{name}`' in text, name


def commands() -> list[list[str]]:
  """Every `python -m ssl_jax ...` line of the documents that can run as it stands."""
  texts = [README, *(path.read_text() for path in DOCS)]
  text = '\n'.join(texts).replace('\\\n', ' ')
  lines = re.findall(r'^python -m ssl_jax (.*)$', text, re.M)
  return [line.split('#')[0].split() for line in lines if '[' not in line and 'FOLDER' not in line]


def test_the_commands_of_the_documents_are_accepted(monkeypatch, capsys):
  """With --help after the options, which therefore are parsed, and a config is loaded."""
  monkeypatch.chdir(ROOT)
  assert len(commands()) >= 8
  for words in commands():
    words = [word.strip('\'"') for word in words]
    assert words[0] in cli.COMMANDS
    with pytest.raises(SystemExit) as stop:
      cli.main([*words, '--help'])
    assert stop.value.code == 0, f'{words}\n{capsys.readouterr().err}'


@pytest.mark.parametrize(
  'name', ['README.md', 'CONTRIBUTING.md', *(f'docs/{path.name}' for path in DOCS)])
def test_links_and_files_that_are_named_exist(name):
  text = (ROOT / name).read_text()
  links = [link for link in re.findall(r'\]\(([^)#]+)\)', text) if '://' not in link]
  named = re.findall(r'`((?:tests|configs|docs|examples|benchmarks|ssl_jax)/[\w/]+\.\w+)', text)
  for link in links:
    assert (ROOT / name).parent.joinpath(link).exists(), link
  for path in named:
    assert (ROOT / path).exists() or 'vicreg' in path, path


def test_no_placeholder_is_left():
  assert '@@' not in README
