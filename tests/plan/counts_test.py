# ruff: noqa: E501  (lines of compiled programs)
"""What a compiled program does, read off its text and compared with what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax.parallel import make_mesh
from ssl_jax.plan import hlo
from ssl_jax.plan.counts import count, replica_groups, trip_count

ROWS, WHOLE = PartitionSpec('data'), PartitionSpec()


def compiled(function, *shapes, **options):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return jax.jit(function, **options).lower(*arguments).compile()


def counted(program, islands=()):
  return count(hlo.parse(program.as_text()), islands)[0]


def test_products_and_convolutions_equal_xlas_count_without_loops():
  def f(x, w, k):
    y = lax.conv_general_dilated(x, k, (2, 2), [(1, 1), (1, 1)],
                                 dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jnp.sum(y.reshape(4, -1) @ w)

  program = compiled(f, (4, 16, 16, 8), (8 * 8 * 16, 10), (3, 3, 8, 16))
  own = 2 * (4 * 16 * 8 * 23 ** 2 + 4 * 1024 * 10)
  assert counted(program).flops == own
  # XLA adds one FLOP for each element that is summed, and leaves padding out as well.
  np.testing.assert_allclose(program.cost_analysis()['flops'], own, rtol=1e-3)


def test_a_loop_counts_as_often_as_it_runs():
  def f(x, w):
    return lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=17)[0]

  once = compiled(lambda x, w: jnp.tanh(x @ w), (32, 64), (64, 64))
  loop = counted(compiled(f, (32, 64), (64, 64)))
  assert loop.flops == 17 * 2 * 32 * 64 * 64 and loop.unknown_loops == 0
  assert 17 <= loop.moved / counted(once).moved <= 30


def test_a_loop_whose_length_depends_on_the_data_is_told():
  def f(x):
    return lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: x @ x, x)

  found = counted(compiled(f, (16, 16)))
  assert found.unknown_loops == 1 and found.flops == 2 * 16 ** 3


def test_a_slice_reads_what_it_takes_and_an_update_writes_what_is_new():
  def read(x, i):
    return jnp.sin(lax.dynamic_index_in_dim(x, i, keepdims=False))

  program = jax.jit(read).lower(jax.ShapeDtypeStruct((100, 1000), jnp.float32), 3).compile()
  assert counted(program).moved < 20_000  # of 400,000 bytes

  def write(x, y):
    return lax.dynamic_update_index_in_dim(x, jnp.sin(y), 5, 0)

  program = compiled(write, (100, 1000), (1000,), donate_argnums=0)
  assert counted(program).moved < 20_000


def test_collectives():
  mesh = make_mesh({'data': 8})
  rows, whole = NamedSharding(mesh, ROWS), NamedSharding(mesh, WHOLE)

  def f(x, w):
    def inside(x, w):
      y = lax.all_gather(x, 'data', axis=0, tiled=True)
      z = lax.ppermute(x, 'data', [(i, (i + 1) % 8) for i in range(8)])
      s = lax.psum_scatter(y, 'data', tiled=True)
      return lax.psum(jnp.sum((y @ w) ** 2) + jnp.sum(z ** 2) + jnp.sum(s ** 2), 'data')

    return jax.shard_map(inside, mesh=mesh, in_specs=(ROWS, WHOLE), out_specs=WHOLE)(x, w)

  program = jax.jit(f).lower(jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows),
                             jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=whole)).compile()
  found = {c.kind: c for c in counted(program).collectives}
  assert {'all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute'} == set(found)
  assert found['all-gather'].size == found['reduce-scatter'].size == 64 * 16 * 4
  assert found['collective-permute'].size == 8 * 16 * 4
  assert found['all-reduce'].size == 4 and found['all-reduce'].group == 8
  across = counted(program, islands=[0] * 4 + [1] * 4)
  assert {c.islands for c in across.collectives} == {2}


@pytest.mark.parametrize('text, groups', [
  ('replica_groups={{0,1},{2,3}}, use', [[0, 1], [2, 3]]),
  ('replica_groups=[2,4]<=[8], x', [[0, 1, 2, 3], [4, 5, 6, 7]]),
  ('replica_groups=[4,2]<=[2,4]T(1,0), x', [[0, 4], [1, 5], [2, 6], [3, 7]]),
  ("replica_groups=mesh['axis_0'=4] {'axis_0'}, x", [[0, 1, 2, 3]]),
  ("replica_groups=mesh['a'=2,'b'=3] {'a'}, x", [[0, 3], [1, 4], [2, 5]]),
  ("replica_groups=mesh['a'=2,'b'=3] {'b'}, x", [[0, 1, 2], [3, 4, 5]]),
  ("replica_groups={}, x", [[0, 1, 2, 3]]),
])
def test_groups_in_all_spellings(text, groups):
  np.testing.assert_array_equal(replica_groups(text, 4), groups)


TPU_LOOP = '''HloModule m, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %z = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %one = s32[]{:T(128)} constant(STEP)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%next, %z)
}

%cond (q: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(LIMIT)
  %q = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %zero = s32[]{:T(128)} constant(2)
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %x)
  %loop = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%state), condition=%cond, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
'''


@pytest.mark.parametrize('limit, step, times', [
  ('12', '1', 10), ('12', '3', 4), ('-5', '1', 0), ('1e+06', '1', None)])
def test_length_of_a_loop_that_is_told_only_by_its_condition(limit, step, times):
  """As libtpu writes them; it starts from 2."""
  program = hlo.parse(TPU_LOOP.replace('LIMIT', limit).replace('STEP', step))
  entry = program.computations[program.entry]
  assert trip_count(program, entry, entry.instructions['loop']) == times


START = '''HloModule m, is_scheduled=true

ENTRY %main (x: f32[8,128], y: f32[4,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = f32[4,128]{1,0} parameter(1)
  %p = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %q = f32[8,128]{1,0:T(8,128)} collective-permute-done(%p)
  %g = ((f32[8,128]{1,0}, f32[4,128]{1,0}), (f32[16,128]{1,0}, f32[8,128]{1,0})) all-gather-start(%q, %y), replica_groups={{0,1}}
  %h = (f32[16,128]{1,0}, f32[8,128]{1,0}) all-gather-done(%g)
  %r = (f32[8,128]{1,0}, f32[4,128]{1,0}) all-reduce-start(%q, %y), replica_groups={{0,1}}, to_apply=%add
  ROOT %s = f32[8,128]{1,0} get-tuple-element(%h), index=1
}
'''


def test_starts_of_asynchronous_collectives():
  """Their types name operands before results; an all-reduce's does not."""
  totals, works = count(hlo.parse(START), [0, 0])
  row = 128 * 4
  assert [(c.kind, c.size) for c in totals.collectives] == [
    ('collective-permute', 8 * row), ('all-gather', 24 * row), ('all-reduce', 12 * row)]
  assert [w.moved for w in works] == [16 * row, 36 * row, 24 * row]


def test_arrays_of_a_type():
  padded, on_chip, flags = hlo.arrays_of(
    '(bf16[16,100,3]{2,1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)S(1)}, u32[]{:S(2)})')
  assert (padded.shape, padded.size, padded.on_chip) == ((16, 100, 3), 16 * 104 * 128 * 2, False)
  assert on_chip.on_chip and on_chip.size == 8 * 128 * 4 and flags.on_chip
  batch_last, = hlo.arrays_of('f32[256,28,28,1]{0,2,1,3:T(8,128)}')
  assert batch_last.size == 256 * 32 * 28 * 4


def test_sources_of_operations():
  def f(x):
    return jnp.tanh(x @ x)  # the line that is looked for

  program = hlo.parse(compiled(f, (64, 64)).as_text())
  works = count(program)[1]
  assert any(program.source(work.instruction, __file__).startswith(__file__) for work in works)


SPLIT = '''HloModule m, is_scheduled=true

%part (p: f32[8,128], q: f32[64,128]) -> (f32[8,128], f32[64,128]) {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %g = f32[64,128]{1,0:T(8,128)} all-gather(%p), channel_id=1, replica_groups={{GROUP}}, CONFIG
  ROOT %t = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) tuple(%p, %g)
}

ENTRY %main (x: f32[8,128], y: f32[64,128]) -> f32[64,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = f32[64,128]{1,0:T(8,128)} parameter(1)
  %a = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) fusion(%x, %y), kind=kCustom, calls=%part
  %b = f32[64,128]{1,0:T(8,128)} get-tuple-element(%a), index=1
  %c = (f32[8,128]{1,0:T(8,128)}, f32[64,128]{1,0:T(8,128)}) fusion(%x, %b), kind=kCustom, calls=%part
  ROOT %d = f32[64,128]{1,0:T(8,128)} get-tuple-element(%c), index=1
}
'''


def test_a_collective_beside_other_work_counts_once():
  """libtpu writes it into each operation that it goes on in."""
  text = SPLIT.replace('GROUP', '0,1,2,3,4,5,6,7').replace(
    'CONFIG', 'backend_config={"async_collective_fusion_config":{"flag_start":"1"}}')
  totals, works = count(hlo.parse(text), [0] * 8)
  gathered, = totals.collectives
  assert (gathered.kind, gathered.size, gathered.times) == ('all-gather', 64 * 128 * 4, 1)
  assert works[1].moved < works[0].moved
