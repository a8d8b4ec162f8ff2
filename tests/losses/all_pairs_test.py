"""Every implementation gives the number that plain formulas give, on any number of devices."""

import os
import pathlib
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.losses import all_pairs
from ssl_jax.losses.contrastive import clip, info_nce, nt_xent, queue_nce, siglip, sup_con
from ssl_jax.parallel import inside, make_mesh, over

pytestmark = pytest.mark.usefixtures('strict_dtypes')
# 5 rows on each of 8 devices, in blocks of 3: nothing divides anything.
ROWS, DIM, BLOCK = 40, 6, 3
ROOT = pathlib.Path(__file__).parent.parent.parent


def data(dtype=np.float64):
  r = np.random.default_rng(0)
  a = r.normal(size=(ROWS, DIM))
  return (a.astype(dtype), (a + r.normal(size=(ROWS, DIM))).astype(dtype),
          r.integers(0, 9, ROWS).astype(np.int32), r.random(ROWS).astype(dtype))


def unit(x):
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)


# Formulas from the papers with all pairs at once, in float64.


def without_itself(s):
  return jnp.where(jnp.eye(len(s), dtype=bool), -jnp.inf, s)


def plain_nt_xent(a, b, scale, labels, weights):
  z = jnp.concatenate([unit(a), unit(b)])
  s = z @ z.T * scale
  partner = jnp.roll(jnp.arange(len(z)), len(a))
  return jnp.mean(jax.nn.logsumexp(without_itself(s), 1) - s[jnp.arange(len(z)), partner])


def plain_info_nce(a, b, scale, labels, weights):
  s = unit(a) @ unit(b).T * scale
  return jnp.sum(weights * (jax.nn.logsumexp(s, axis=1) - jnp.diag(s))) / jnp.sum(weights)


def plain_clip(a, b, scale, labels, weights):
  s = unit(a) @ unit(b).T * scale
  return jnp.mean(jax.nn.logsumexp(s, 1) + jax.nn.logsumexp(s, 0) - 2 * jnp.diag(s)) / 2


def plain_siglip(a, b, scale, labels, weights):
  s = unit(a) @ unit(b).T * scale - 2.
  y = 2 * jnp.eye(len(a)) - 1
  return -jnp.mean(jnp.sum(jnp.log(1 / (1 + jnp.exp(-y * s))), axis=1))


def plain_sup_con(a, b, scale, labels, weights):
  s = unit(a) @ unit(a).T * scale
  positive = (labels[:, None] == labels[None]) & ~jnp.eye(len(a), dtype=bool)
  count = jnp.sum(positive, 1)
  log_p = s - jax.nn.logsumexp(without_itself(s), 1)[:, None]
  of_row = -jnp.sum(jnp.where(positive, log_p, 0), 1) / jnp.maximum(count, 1)
  return jnp.sum(weights * of_row) / jnp.sum(weights * (count > 0))


def plain_queue(a, b, scale, labels, weights):
  queue = jax.lax.stop_gradient(unit(b)[::-1])
  q, k = unit(a), jax.lax.stop_gradient(unit(b))
  logits = jnp.concatenate([jnp.sum(q * k, 1)[:, None], q @ queue.T], axis=1) * scale
  return jnp.mean(jax.nn.logsumexp(logits, 1) - logits[:, 0])


LOSSES = {
  'nt_xent': (plain_nt_xent, lambda a, b, scale, labels, weights, **k: nt_xent(
    a, b, temperature=1 / scale, **k)),
  'info_nce': (plain_info_nce, lambda a, b, scale, labels, weights, **k: info_nce(
    a, b, temperature=1 / scale, weights=weights, **k)),
  'clip': (plain_clip, lambda a, b, scale, labels, weights, **k: clip(a, b, scale=scale, **k)),
  'siglip': (plain_siglip, lambda a, b, scale, labels, weights, **k: siglip(
    a, b, scale=scale, bias=-2., **k)),
  'sup_con': (plain_sup_con, lambda a, b, scale, labels, weights, **k: sup_con(
    a, labels, temperature=1 / scale, weights=weights, **k)),
}


def gradient(loss, *arrays):
  """(value, gradients of a, b and the scale)."""
  return jax.value_and_grad(loss, argnums=(0, 1, 2))(*arrays)


@pytest.fixture(scope='module')
def expected():
  """{(loss, scale): value and gradients by the formulas}, in float64."""
  a, b, labels, weights = data()
  with jax.enable_x64(True):
    return {(name, scale): jax.device_get(jax.jit(partial(gradient, plain))(
              a, b, scale, labels, weights))
            for name, (plain, _) in LOSSES.items() for scale in (5., 100.)}


def assert_close(got, want, tolerance):
  np.testing.assert_allclose(got[0], want[0], rtol=tolerance)
  for name, g, w in zip(('a', 'b', 'scale'), got[1], want[1]):
    np.testing.assert_allclose(g, w, atol=tolerance * max(np.linalg.norm(want[1][0]), abs(want[1][2])),
                               err_msg=f'gradient of {name}')


def spread_over(mesh, loss, axes, **options):
  """(a, b, scale, labels, weights) -> loss, the scale on every device and the rest spread."""
  def head(a, b, scale, labels, weights):
    return loss(a, b, scale, labels, weights, axis_name=axes, **options)

  rows = P(axes)
  return jax.shard_map(head, mesh=mesh, in_specs=(rows, rows, P(), rows, rows), out_specs=P())


@pytest.mark.parametrize('scale', [5., 100.])
@pytest.mark.parametrize('implementation', ['gather', 'chunked'])
@pytest.mark.parametrize('name', sorted(LOSSES))
def test_one_device(expected, name, implementation, scale):
  """Also at CLIP's scale of 100, where exp underflows without a running maximum."""
  a, b, labels, weights = data(np.float32)
  loss = partial(LOSSES[name][1], implementation=implementation, block=BLOCK)
  got = jax.jit(partial(gradient, loss))(a, b, np.float32(scale), labels, weights)
  assert_close(got, expected[name, scale], 1e-5)


@pytest.mark.parametrize('implementation', ['chunked', 'ring', 'grid'])
@pytest.mark.parametrize('name', sorted(LOSSES))
def test_eight_devices(expected, name, implementation):
  a, b, labels, weights = data(np.float32)
  mesh = make_mesh({'data': 4, 'fsdp': 2})
  loss = spread_over(mesh, LOSSES[name][1], ('data', 'fsdp'), implementation=implementation,
                     block=BLOCK)
  got = jax.jit(partial(gradient, loss))(a, b, np.float32(5), labels, weights)
  assert_close(got, expected[name, 5.], 1e-5)


@pytest.mark.parametrize('implementation', ['chunked', 'ring', 'grid'])
def test_in_float64_to_the_last_digits(expected, implementation):
  a, b, labels, weights = data()
  mesh = make_mesh({'data': 2, 'fsdp': 4})
  with jax.enable_x64(True):
    loss = spread_over(mesh, LOSSES['clip'][1], ('data', 'fsdp'), implementation=implementation)
    assert_close(jax.jit(partial(gradient, loss))(a, b, 100., labels, weights),
                 expected['clip', 100.], 1e-12)


@pytest.mark.parametrize('name', ['nt_xent', 'clip'])
@pytest.mark.parametrize('implementation', ['chunked', 'ring'])
@pytest.mark.parametrize('door', ['vmap', 'pmap', 'no check_vma', 'check_vma'])
def test_a_whole_step_inside_an_axis(name, implementation, door):
  """What pmap, vmap and shard_map compute of each row's gradient, averaged as a step does."""
  a, b, labels, weights = data(np.float32)
  loss = partial(LOSSES[name][1], implementation=implementation, block=BLOCK)

  def step(w, scale, a, b, labels, weights):
    value, grads = jax.value_and_grad(lambda w, scale: loss(
      a @ w, b @ w, scale, labels, weights, axis_name='i'), argnums=(0, 1))(w, scale)
    return value, jax.lax.pmean(grads, 'i')

  w, scale = np.eye(DIM, dtype=np.float32), np.float32(5)
  local = jax.jit(jax.value_and_grad(
    lambda w, s: LOSSES[name][0](a @ w, b @ w, s, labels, weights), argnums=(0, 1)))(w, scale)
  parts = [x.reshape(8, -1, *x.shape[1:]) for x in (a, b, labels, weights)]
  axes = (None, None, 0, 0, 0, 0)
  if door == 'vmap':
    got = jax.jit(jax.vmap(step, in_axes=axes, axis_name='i'))(w, scale, *parts)
  elif door == 'pmap':
    got = jax.pmap(step, 'i', in_axes=axes)(w, scale, *parts)
  else:
    run = jax.shard_map(step, mesh=make_mesh_of('i'), in_specs=(P(), P(), *[P('i')] * 4),
                        out_specs=P(), check_vma=door == 'check_vma')
    got = jax.tree.map(lambda x: x[None], jax.jit(run)(w, scale, a, b, labels, weights))
  np.testing.assert_allclose(got[0][0], local[0], rtol=1e-5)
  norm = np.linalg.norm(local[1][0])
  np.testing.assert_allclose(got[1][0][0], local[1][0], atol=1e-5 * norm)
  np.testing.assert_allclose(got[1][1][0], local[1][1], atol=1e-5 * norm)


def make_mesh_of(axis):
  return jax.make_mesh((8,), (axis,), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize('implementation', ['gather', 'chunked', 'ring'])
@pytest.mark.parametrize('spread_queue', ['whole', 'over data', 'over tensor'])
def test_queue(implementation, spread_queue):
  """The queue on every device, spread as the queries are, or over an axis of its own."""
  a, b, labels, weights = data(np.float32)
  want = jax.jit(jax.value_and_grad(lambda a: plain_queue(a, b, 5., None, None)))(a)
  mesh = make_mesh({'data': 4, 'tensor': 2})
  axis = {'whole': None, 'over data': 'data', 'over tensor': 'tensor'}[spread_queue]
  queue = unit(b)[::-1]

  def head(a, b, queue):
    return queue_nce(a, b, queue, temperature=.2, axis_name='data', queue_axis=axis, block=BLOCK,
                     implementation=implementation)

  loss = jax.shard_map(head, mesh=mesh, in_specs=(P('data'), P('data'), P(axis)), out_specs=P())
  got, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(a, b, queue)
  np.testing.assert_allclose(got, want[0], rtol=1e-5)
  np.testing.assert_allclose(grads[0], want[1], atol=1e-5 * np.linalg.norm(want[1]))
  assert not grads[1].any() and not grads[2].any(), 'keys and queue carry no gradient'


def test_sup_con_of_two_views_is_nt_xent():
  a, b, _, _ = data(np.float32)
  ids = jnp.arange(ROWS, dtype=jnp.int32)
  both = jnp.stack([a, b], 1).reshape(-1, DIM)
  got = sup_con(both, jnp.repeat(ids, 2), temperature=.1)
  np.testing.assert_allclose(got, nt_xent(a, b, temperature=.1), rtol=1e-6)


def test_anchors_without_a_positive_do_not_count():
  a, _, _, _ = data(np.float32)
  alone = jnp.arange(ROWS, dtype=jnp.int32)
  assert sup_con(a, alone, temperature=.1, block=4, implementation='chunked') == 0
  some = alone.at[1].set(0)
  got = sup_con(a, some, temperature=.1)
  s = unit(a) @ unit(a).T / .1
  rows = [jax.nn.logsumexp(jnp.delete(s[i], i)) - s[0, 1] for i in (0, 1)]
  np.testing.assert_allclose(got, sum(rows) / 2, rtol=1e-5)


@pytest.mark.parametrize('implementation', ['gather', 'chunked', 'ring', 'grid'])
def test_bfloat16_is_summed_in_float32(implementation):
  a, b, labels, weights = data(np.float32)
  narrow = [jnp.asarray(x, jnp.bfloat16) for x in (a, b)]
  mesh = make_mesh({'data': 4, 'fsdp': 2})
  run = spread_over(mesh, LOSSES['clip'][1], ('data', 'fsdp'), implementation=implementation)
  got, grads = jax.jit(partial(gradient, run))(*narrow, np.float32(5), labels, weights)
  want, _ = gradient(LOSSES['clip'][0], *(x.astype(jnp.float32) for x in narrow), 5., None, None)
  assert got.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
  np.testing.assert_allclose(got, want, rtol=2e-3)


def largest(loss, rows, mesh, **options):
  """The largest array in the compiled gradient, in numbers."""
  axes = tuple(mesh.axis_names)
  x = jax.ShapeDtypeStruct((rows, DIM), np.float32, sharding=jax.NamedSharding(mesh, P(axes)))
  run = over(mesh, axes)(partial(loss, **options))
  text = jax.jit(jax.grad(run, argnums=(0, 1))).lower(x, x).compile().as_text()
  shapes = re.findall(r'[a-z]+\d+\[(\d+(?:,\d+)*)\]', text)
  return max(int(np.prod([int(n) for n in shape.split(',')])) for shape in shapes), text


@pytest.mark.parametrize('loss, options', [(nt_xent, dict(temperature=.1)), (clip, dict(scale=10.))])
def test_a_ring_holds_its_own_rows_times_a_block_and_gathers_nothing(loss, options):
  views = 2 if loss is nt_xent else 1
  size, text = largest(loss, 512, make_mesh({'data': 8}), implementation='ring', block=16, **options)
  assert size <= max(views * 512 // 8 * 16, views * 512 * DIM)
  assert 'all-gather' not in text and 'collective-permute' in text


def test_one_set_needs_no_collective_for_its_gradient():
  """One gather of rows and one of the log-sum-exp (with its weight); no reduce-scatter."""
  _, text = largest(nt_xent, 512, make_mesh({'data': 8}), implementation='chunked', block=64,
                    temperature=.1)
  assert 'reduce-scatter' not in text and 'all-to-all' not in text
  reduced = re.findall(r'= (\S+?)\[([\d,]*)\]\S* all-reduce', text)
  assert all(dims == '' for _, dims in reduced), f'only the mean is all-reduced, found {reduced}'


def test_the_default_follows_the_sizes():
  found = []

  def note(x):
    found.append(all_pairs.spread(None, None, x, x, 'i'))
    return x

  def chosen(rows, dim):
    run = jax.shard_map(note, mesh=make_mesh_of('i'), in_specs=P('i'), out_specs=P('i'))
    jax.eval_shape(run, jax.ShapeDtypeStruct((rows, dim), np.float32))
    return found.pop()

  assert [chosen(8 * rows, 8).block for rows in (1 << 10, 1 << 11, 1 << 14)] == [1024, 512, 64]
  assert all_pairs.GATHERED_BYTES == 4 * (1 << 14) * 1024
  assert chosen(1 << 14, 1024).ring is None and chosen(1 << 15, 1024).ring == 'i'


@pytest.mark.parametrize('options, message', [
  (dict(implementation='rings'), "implementation must be one of .*got 'rings'"),
  (dict(implementation='chunked', block=0), 'block must be at least 1, got 0'),
  (dict(implementation='grid'), 'two mesh axes'),
])
def test_what_cannot_be_is_refused(options, message):
  a, b, _, _ = data(np.float32)
  with pytest.raises(ValueError, match=message):
    nt_xent(a, b, temperature=.1, **options)


def test_vmap_inside_is_the_local_loss():
  a, b, _, _ = data(np.float32)
  split = [x.reshape(4, -1, DIM) for x in (a, b)]
  head = inside('i')(partial(nt_xent, temperature=.1, implementation='ring'))
  np.testing.assert_allclose(jax.vmap(head, axis_name='i')(*split),
                             np.full(4, nt_xent(a, b, temperature=.1)), rtol=1e-6)


# name of the case in benchmarks/contrastive_memory.py -> limit of HBM temporaries in MiB, and the
# collectives that its program must be free of.
BUDGETS = {
  ('NT-Xent', 1 << 19, 'ring'): (1, ('all-gather', 'reduce-scatter', 'all-to-all')),
  ('NT-Xent', 1 << 19, 'grid'): (330, ('all-to-all',)),
  ('CLIP', 1 << 15, 'ring'): (1, ('all-gather', 'reduce-scatter', 'all-to-all')),
  ('CLIP', 1 << 20, 'ring'): (340, ('all-gather', 'reduce-scatter', 'all-to-all')),
}
TOO_LARGE = 'NT-Xent', 1 << 19, 'gather'


@pytest.fixture(scope='module')
def on_tpu_slices():
  """{case: cells of the benchmark's table}: compiled for v5e:16x16 and v5e:4x8, nothing is run."""
  pytest.importorskip('libtpu')
  environment = os.environ | dict(
    JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1')
  names = ['-'.join(map(str, case)) for case in (*BUDGETS, TOO_LARGE)]
  result = subprocess.run([sys.executable, '-m', 'benchmarks.contrastive_memory', *names],
                          timeout=300, cwd=ROOT, env=environment, capture_output=True, text=True)
  lines = [[cell.strip() for cell in line.strip('|').split('|')]
           for line in result.stdout.splitlines()[2:]]
  assert len(lines) == len(names), result.stderr[-2000:]
  return {(loss, int(rows.replace(',', '')), implementation): cells
          for loss, rows, _, _, implementation, *cells in lines}


@pytest.mark.parametrize('case', BUDGETS, ids=lambda case: '-'.join(map(str, case)))
def test_memory_of_a_million_rows_on_a_tpu(on_tpu_slices, case):
  limit, absent = BUDGETS[case]
  temporaries, *_, collectives, _ = on_tpu_slices[case]
  assert float(temporaries.removesuffix(' MiB')) <= limit
  assert not [name for name in absent if name in collectives]


def test_gathering_everything_does_not_fit(on_tpu_slices):
  assert on_tpu_slices[TOO_LARGE][0].startswith('does not fit')


def test_a_rings_memory_does_not_grow_with_the_number_of_devices():
  """256 rows on each of 2 or of 8 devices: the same temporaries of a device (1.1 times at most)."""
  def temporaries(devices, implementation):
    mesh = make_mesh({'data': devices}, jax.devices()[:devices])
    rows = jax.ShapeDtypeStruct((256 * devices, 64), np.float32,
                                sharding=jax.NamedSharding(mesh, P('data')))
    run = over(mesh)(partial(nt_xent, temperature=.1, implementation=implementation, block=64))
    compiled = jax.jit(jax.grad(run, argnums=(0, 1))).lower(rows, rows).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporaries(8, 'ring') <= 1.1 * temporaries(2, 'ring')
  assert temporaries(8, 'chunked') > 1.1 * temporaries(2, 'chunked'), 'what is gathered is counted'
