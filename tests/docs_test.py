"""What the documents show is what is executed."""

import pathlib
import re
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = (ROOT / 'examples' / 'reuse.py').read_text()
README = (ROOT / 'README.md').read_text()


def excerpts() -> dict[str, str]:
  """The functions of examples/reuse.py by the tag of the comment above each."""
  found = re.findall(r'^# \[(\w+)\][^\n]*\n(def .*?)\n\n\n', EXAMPLE, re.S | re.M)
  return {tag: code for tag, code in found}


def test_the_examples_run_and_agree(monkeypatch, capsys):
  example = runpy.run_path(str(ROOT / 'examples' / 'reuse.py'))
  example['main']()
  assert capsys.readouterr().out.count('loss after 3 steps') == 4


@pytest.mark.parametrize('tag', ['pmap', 'shard_map', 'dict', 'equinox'])
def test_the_readme_shows_the_example_that_runs(tag):
  assert excerpts()[tag] in README
  assert excerpts()[tag].count('\n') <= 16  # ten lines or so


def commands() -> list[list[str]]:
  """Every `python -m ssl_jax ...` line of the documents that can run as it stands."""
  texts = [(ROOT / name).read_text() for name in ('README.md', 'docs/evaluation.md')]
  lines = re.findall(r'^python -m ssl_jax (.*)$', '\n'.join(texts), re.M)
  return [line.split() for line in lines if '[' not in line and 'FOLDER' not in line]


def test_the_commands_of_the_documents_are_accepted():
  assert len(commands()) >= 2
  for words in commands():
    if words[0] == 'train':
      words = [*words, '--help']
    else:
      words = [words[0], '--help']
    out = subprocess.run([sys.executable, '-m', 'ssl_jax', *words], cwd=ROOT, capture_output=True,
                         text=True)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize(
  'name', ['README.md', 'CONTRIBUTING.md', 'docs/design.md', 'docs/evaluation.md', 'docs/results.md'])
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
