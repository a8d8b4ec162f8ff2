"""What is said of a plan, for one that is put together by hand."""

import json

import pytest

from ssl_jax.plan import counts, hlo, report
from ssl_jax.plan.compiler import Memory
from ssl_jax.plan.hardware import parse
from ssl_jax.plan.measure import Plan
from ssl_jax.plan.roofline import roofline

GIB = 1 << 30
PROGRAM = f'''HloModule m, is_scheduled=true

FileNames
1 "{report.PACKAGE}models/mlp.py"
2 "{report.PACKAGE}views/crops.py"
3 "/elsewhere/ssl_jax/.venv/flax/linear.py"

FunctionNames
1 "f"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=7 end_line=7 column=4 end_column=42}}
2 {{file_name_id=2 function_name_id=1 line=9 end_line=9 column=4 end_column=42}}
3 {{file_name_id=3 function_name_id=1 line=5 end_line=5 column=4 end_column=42}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=1}}
3 {{file_location_id=3 parent_frame_id=2}}

ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {{
  %x = f32[1024,1024]{{1,0}} parameter(0)
  %a = f32[1024,1024]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, metadata={{op_name="jit(f)/dense/dot" stack_frame_id=3}}
  %b = f32[1024,1024]{{1,0}} tanh(%a), metadata={{op_name="jit(f)/crop/tanh" stack_frame_id=2}}
  ROOT %c = f32[1024,1024]{{1,0}} all-reduce(%b), replica_groups={{{{0,1,2,3}}}}, to_apply=%add, metadata={{op_name="jit(f)/psum" stack_frame_id=1}}
}}
'''  # noqa: E501
MB4 = 4 * 1024 ** 2


@pytest.fixture
def plan() -> Plan:
  target, program = parse('v5e-4'), hlo.parse(PROGRAM)
  totals, works = counts.count(program, [0] * 4)
  return Plan(target, 1, 64, 1000, parameters=12345, useful=totals.flops / 2, arguments=GIB,
              memory=Memory(2 * GIB, GIB, GIB, 3 * GIB, 0), counts=totals, works=tuple(works),
              program=program, bound=roofline(totals.flops, totals.moved, totals.collectives, target))


def test_words(plan):
  text = report.text(plan, 'a.py', 'data')
  for words in ('a.py on v5e:2x2', '4 chips', 'fits, 10.75 GiB left', '2.15 GFLOP executed',
                '50.0%; the rest is computed again', 'all-reduce: 1 runs, 6.29 MB arrive',
                'bound by links', 'chip-hours', 'it assumes'):
    assert words in text


def test_what_does_not_fit(plan):
  short = plan._replace(memory=None, counts=None, bound=None, works=(),
                        shortage='... HLO temporaries (15.75G) exceeds available HBM (15.75G).')
  assert not short.fits and short.free == -GIB
  assert 'does NOT fit: it takes 16.75 GiB, 1.00 GiB too much' in report.text(short, 'a.py', 'data')
  assert report.as_json(short, 'a.py', 'data')['bytes_left'] == -GIB
  untold = short._replace(shortage='no room')
  assert 'does NOT fit' in report.text(untold, 'a.py', 'data') and not untold.fits
  tight = plan._replace(memory=Memory(16 * GIB, 0, 0, 0, 0))
  assert 'does NOT fit, 0.25 GiB too much' in report.text(tight, 'a.py', 'data')


def test_lines_of_the_package_are_shown_before_those_it_calls(plan):
  """Although the other file's path has the package's name in it."""
  text = report.explain(plan)
  assert 'models/mlp.py:7 jit(f)/dense/dot' in text and 'views/crops.py:9' in text
  assert 'linear.py' not in text


def test_parts(plan):
  found = report.parts(plan)
  assert set(found) == {'models', 'views'}
  assert found['views'][1] == pytest.approx(2 / 6) and found['models'][1] == pytest.approx(4 / 6)
  assert found['views'][0] == pytest.approx(2 * MB4 / 819e9)


def test_json(plan):
  found = json.loads(json.dumps(report.as_json(plan, 'a.py', 'data')))
  assert found['fits'] and found['hbm_bytes'] == 6 * MB4 and found['flops'] == 2 * 1024 ** 3
  assert found['roofline']['seconds'] == plan.bound.seconds


def test_scaling(plan):
  table = report.scaling([plan, plan._replace(target=parse('v5e-16'), batch_size=256)]).splitlines()
  assert '| v5e:2x2 | 4 | 64 |' in table[2] and '| 100% |' in table[2] and '| 100% |' in table[3]
