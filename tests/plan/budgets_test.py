"""Budgets of the cheap cases, and the watch for broken promises itself."""

import importlib.util
import json

import pytest

from benchmarks import budgets
from ssl_jax.plan import counts, hlo, report
from ssl_jax.plan.hardware import parse
from ssl_jax.plan.measure import Plan

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu')


@needs_libtpu
@pytest.mark.parametrize('name', [name for name, case in budgets.CASES.items() if case.cheap])
def test_cheap_cases_keep_their_budget(name):
  allowed = json.loads(budgets.FILE.read_text()).get(budgets.versions())
  if allowed is None:
    pytest.skip(f'no budgets for {budgets.versions()}')
  config, plan = budgets.planned(budgets.CASES[name])
  assert budgets.grown(budgets.figures(plan), allowed[name]) == []
  assert budgets.broken_promises(plan, config) == []


def test_budgets_are_of_cases_that_there_are():
  cheap = {name for name, case in budgets.CASES.items() if case.cheap}
  for recorded in json.loads(budgets.FILE.read_text()).values():
    assert cheap <= set(recorded) <= set(budgets.CASES)


def test_growth_is_told_from_noise():
  allowed = dict.fromkeys(budgets.FIGURES, 1e6)
  assert budgets.grown(allowed | dict(flops=1.019e6), allowed) == []
  found, = budgets.grown(allowed | dict(flops=1.021e6), allowed)
  assert found == 'flops: 1,021,000, budget 1,000,000 (+2.1%)'


TABLES = '''HloModule m, is_scheduled=true

FileNames
1 "{package}losses/contrastive.py"
2 "{package}views/crops.py"
3 "{package}models/mlp.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=1 end_line=1 column=4 end_column=42}}
2 {{file_name_id=2 function_name_id=1 line=1 end_line=1 column=4 end_column=42}}
3 {{file_name_id=3 function_name_id=1 line=1 end_line=1 column=4 end_column=42}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=1}}
3 {{file_location_id=3 parent_frame_id=1}}

'''
LOSS, VIEWS, MODEL = (f', metadata={{stack_frame_id={n}}}' for n in (1, 2, 3))
DOT = '%z = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}'
GATHER = '%z = f32[64,1]{1,0} gather(%x, %x), offset_dims={1}'
SUM = '%z = f32[{n},100]{{1,0}} all-reduce(%x), replica_groups={{{{0,1,2,3}}}}, to_apply=%add'
PROGRAM = '''
%add (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

ENTRY %main (x: f32[64,32]) -> f32[64,32] {{
  %x = f32[64,32]{{1,0}} parameter(0)
  {line}
  ROOT %y = f32[64,32]{{1,0}} copy(%x)
}}
'''


class _Config:
  class views:
    name, vocabulary = 'simclr', 1000

  class data:
    length = 16


class _Text(_Config):
  class views:
    name, vocabulary = 'masks', 1000


def broken(line, config=_Config):
  """Of a program with one line of its own, on 4 devices with a batch of 64 and 1,000 parameters."""
  program = hlo.parse(TABLES.format(package=report.PACKAGE) + PROGRAM.format(line=line))
  totals, works = counts.count(program, [0] * 4)
  plan = Plan(parse('v5e-4'), 1, 64, 1, parameters=1000, useful=1.0, counts=totals,
              works=tuple(works), program=program)
  return budgets.broken_promises(plan, config)


@pytest.mark.parametrize('line, says', [
  ('%z = f32[64,32]{1,0} all-to-all(%x), replica_groups={{0,1,2,3}}', 'an all-to-all'),
  (DOT + LOSS, '(global batch) x (global batch)'),
  (GATHER + VIEWS, 'a gather in the views'),
  (SUM.format(n=20), 'reduced more than once'),
])
def test_a_broken_promise_is_seen(line, says):
  found, = broken(line)
  assert says in found


@pytest.mark.parametrize('line', [
  DOT + MODEL,  # a wide layer
  GATHER + LOSS,
  SUM.format(n=10),  # the gradient, once
  '%z = f32[100000]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add',  # statistics
])
def test_what_is_allowed_is_not(line):
  assert broken(line) == []


def test_logits_of_all_positions_are_seen():
  """16 rows of 16 tokens on each device."""
  line = '%z = f32[{n},1000]{{1,0}} broadcast(%x), dimensions={{}}'
  assert broken(line.format(n=255), _Text) == []
  found, = broken(line.format(n=256), _Text)
  assert '(tokens) x (vocabulary)' in found
