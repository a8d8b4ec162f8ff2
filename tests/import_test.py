"""Imports point down: a module imports its own folder or a lower rank, methods import no method."""

import ast
import pathlib

import pytest

RANK = dict(
  types=0, parallel=0, losses=1, models=1, views=1, data=1, memory=1.5, methods=2, train=2, weights=2,
  evals=3, testing=3, report=3, schema=3, build=4, runs=5, plan=5, cli=6, __init__=7, __main__=7,
)
PACKAGE = pathlib.Path(__file__).resolve().parent.parent / 'ssl_jax'
FILES = sorted(PACKAGE.rglob('*.py'))


def layer(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_names(source: str) -> list[str]:
  names = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return names


def faults(here: str, source: str, is_method: bool = False) -> list[str]:
  """What a module of layer `here` imports that it must not."""
  bad = []
  for name in imported_names(source):
    if here == 'data' and name.split('.')[0] in ('jax', 'flax'):
      bad.append(name)
    if not name.startswith('ssl_jax.'):
      continue
    target = name.split('.')[1]
    if target == '__version__':
      continue
    if target not in RANK or (target != here and RANK[target] >= RANK[here]):
      # Two rank-0 files: parallel may import types.
      if (here, target) != ('parallel', 'types'):
        bad.append(name)
    if is_method and target == 'methods':
      bad.append(name)
  return bad


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
  here = layer(path)
  assert here in RANK, f'{path} has no rank: add it to docs/design.md and to this test'
  if here != '__init__':
    is_method = here == 'methods' and path.stem != '__init__'
    assert not faults(here, path.read_text(), is_method)


def test_the_test_itself_finds_upward_imports():
  assert faults('losses', 'from ssl_jax.methods import simclr') == ['ssl_jax.methods.simclr']
  assert faults('data', 'import jax.numpy') == ['jax.numpy']
  assert faults('methods', 'from ssl_jax.methods.moco import build', True)
  assert not faults('methods', 'from ssl_jax.losses.contrastive import nt_xent')
