"""What is recorded of a start, and that a revision is only that of the code itself."""

import subprocess

import jax
import pytest

from ssl_jax.report import environment


def test_every_start_is_one_record(tmp_path):
  assert environment.read(tmp_path) == []
  environment.record(tmp_path, ['train', '--config=a b.py'], ['cpu', 'cpu'])
  environment.record(tmp_path, ['train'], ['TPU v5e'])
  with (tmp_path / environment.STARTS).open('a') as file:
    file.write('{"cut')
  first, second = environment.read(tmp_path)
  assert first['command'] == "python -m ssl_jax train '--config=a b.py'"
  assert (first['devices'], second['devices']) == ('2 x cpu', '1 x TPU v5e')
  assert first['jax'] == jax.__version__


@pytest.fixture
def repository(tmp_path):
  def git(*arguments):
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', '-C', str(tmp_path), *who, *arguments], check=True, capture_output=True)
  try:
    git('init')
  except FileNotFoundError:
    pytest.skip('needs git')
  (tmp_path / 'code').mkdir()
  (tmp_path / 'code' / 'a.py').write_text('1')
  git('add', '.')
  git('commit', '-m', 'first')
  return tmp_path


def test_a_revision_says_whether_files_differ_from_it(repository):
  clean = environment.revision(repository / 'code')
  assert len(clean) == 40
  (repository / 'code' / 'a.py').write_text('2')
  assert environment.revision(repository / 'code') == f'{clean} (dirty: 1 changed files)'


def test_an_installed_package_has_no_revision(repository, tmp_path):
  installed = repository / 'site-packages'
  installed.mkdir()
  (installed / 'a.py').write_text('1')  # inside a work tree, but git does not track it
  assert environment.revision(installed) is None
