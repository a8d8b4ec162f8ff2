"""Attention against its formula, one token of one head of one example after the other."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax.models import fused_attention
from ssl_jax.models.attention import attention
from ssl_jax.models.dropout import Drop
from ssl_jax.parallel import make_mesh
from ssl_jax.plan import compiler
from ssl_jax.plan.hardware import parse
from ssl_jax.types import Mode

# 256 tokens in three documents and padding, for the TPU kernel: its length is a multiple of 128.
DOCUMENTS = np.array([[1] * 100 + [2] * 60 + [3] * 70 + [0] * 26, [1] * 256], np.int32)
SEEN = {'everything': {}, 'causal': {'causal': True}, 'window': {'window': 5},
        'causal window': {'causal': True, 'window': 5}}
each_mask = pytest.mark.parametrize('seen', SEEN.values(), ids=SEEN)


def operands(queries=5, keys=6):
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, queries, 3, 4)), *rng.normal(size=(2, 2, keys, 3, 4))


def sees(i, j, segments, causal=False, window=None):
  return (segments[i] == segments[j] and not (causal and j > i)
          and not (window is not None and abs(i - j) > window // 2))


def expected(q, k, v, segments=None, drop=None, **seen):
  y = np.zeros_like(q)
  for example, i, head in np.ndindex(q.shape[:3]):
    weights = np.exp(k[example, :, head] @ q[example, i, head] / np.sqrt(q.shape[-1]))
    if segments is not None:
      weights = weights * [sees(i, j, segments[example], **seen) for j in range(k.shape[1])]
    weights /= weights.sum()
    if drop is not None:
      weights = weights * drop[example, head, i]
    y[example, i, head] = weights @ v[example, :, head]
  return y


def test_equals_the_formula():
  q, k, v = operands()
  with jax.enable_x64(True):
    np.testing.assert_allclose(attention(*map(jnp.asarray, (q, k, v))), expected(q, k, v),
                               rtol=1e-12)


def test_half_precision_has_a_softmax_in_float32():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in operands())
  got = attention(q, k, v)
  assert got.dtype == jnp.bfloat16
  wide = expected(*(np.asarray(x, np.float64) for x in (q, k, v)))
  np.testing.assert_allclose(got.astype(jnp.float32), wide, atol=2e-2)
  # 300 and 301 are one number in bfloat16, whose exponentials differ.
  q = jnp.ones((1, 1, 1, 2), jnp.bfloat16)
  k = jnp.array([[150, 150], [150, 151]], jnp.bfloat16).reshape(1, 2, 1, 2)
  v = jnp.array([0., 1.], jnp.bfloat16).reshape(1, 2, 1, 1).repeat(2, -1)
  share = 1 / (1 + np.exp(-1 / np.sqrt(2)))
  np.testing.assert_allclose(attention(q, k, v)[0, 0, 0, 0], share, atol=4e-3)


@each_mask
@pytest.mark.parametrize('implementation', ['plain', 'xla', 'auto'])
def test_documents_causality_and_windows(seen, implementation):
  q, k, v = (x.astype(np.float32) for x in operands(8, 8))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8], np.int32)
  got = attention(*map(jnp.asarray, (q, k, v)), segments=jnp.asarray(segments), **seen,
                  implementation=implementation)
  np.testing.assert_allclose(got, expected(q, k, v, segments, **seen), atol=2e-6)


DROP = Drop(jax.random.key(3), .25, jnp.arange(7, 9, dtype=jnp.uint32))


@pytest.mark.parametrize('implementation', ['auto', 'plain'])
def test_dropped_weights_are_not_normalised_again(implementation):
  q, k, v = operands()
  with jax.enable_x64(True):
    drop = np.asarray(DROP.factors((3, 5, 6)))
    got = attention(*map(jnp.asarray, (q, k, v)), drop=DROP, implementation=implementation)
  assert 0 < (drop == 0).sum() < drop.size
  np.testing.assert_allclose(got, expected(q, k, v, drop=drop), rtol=1e-12)


@pytest.mark.parametrize('implementation', ['xla', 'cudnn', 'splash'])
def test_others_do_not_drop(implementation):
  q, k, v = map(jnp.asarray, operands())
  with pytest.raises(ValueError, match=f'implementation plain or fused, not {implementation}'):
    attention(q, k, v, drop=DROP, implementation=implementation)


def test_wrong_arguments_are_refused():
  q, k, v = map(jnp.asarray, operands(6))
  with pytest.raises(ValueError, match="one of .*'splash'.*, not 'flash'"):
    attention(q, k, v, implementation='flash')
  with pytest.raises(ValueError, match='multiple of 128, not 6'):
    attention(q, k, v, implementation='splash')
  with pytest.raises(ValueError, match='a multiple of 64, .* not 6 queries and 6 keys'):
    attention(q, k, v, drop=DROP, implementation='fused')
  with pytest.raises(ValueError, match='not 5 queries and 6 keys'):
    attention(q[:, :5], k, v, implementation='fused')


# --- the kernels of TPUs --------------------------------------------------------------------------


def value_and_gradients(implementation, qkvg, mesh=None, **arguments):
  *qkv, g = qkvg
  way = partial(attention, implementation=implementation, mode=Mode(mesh=mesh), **arguments)
  total = lambda *qkv: (way(*qkv) * g).sum()
  return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*qkv)


def assert_equal_to_plain(implementation, shape, mesh=None, **arguments):
  qkvg = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
  jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
               value_and_gradients(implementation, qkvg, mesh, **arguments),
               value_and_gradients('plain', qkvg, **arguments))


@pytest.mark.parametrize('seen', [
  {}, {'window': 32}, {'causal': True, 'window': 33}], ids=str)
def test_splash_interpreted_equals_plain_attention(seen, monkeypatch):
  monkeypatch.setattr(splash, 'make_splash_mha_single_device', partial(
    splash.make_splash_mha_single_device, interpret=True))
  assert_equal_to_plain('splash', (2, 256, 1, 64), segments=jnp.asarray(DOCUMENTS), **seen)


@pytest.fixture
def interpreted(monkeypatch):
  pallas = fused_attention.pl
  monkeypatch.setattr(pallas, 'pallas_call', partial(pallas.pallas_call, interpret=True))


def drop_of(rows, rate=.1):
  return Drop(jax.random.key(3), rate, jnp.arange(rows, dtype=jnp.uint32))


@pytest.mark.parametrize('seen, rate', [
  ({}, None), ({'segments': DOCUMENTS}, None), ({'causal': True}, None), ({'window': 33}, None),
  ({'segments': DOCUMENTS, 'causal': True, 'window': 32}, .1)],
  ids=lambda value: ' '.join(value) if isinstance(value, dict) else str(value))
def test_fused_interpreted_equals_plain_attention(seen, rate, interpreted):
  """The same weights are dropped, too."""
  seen = dict(seen, segments=jnp.asarray(seen['segments'])) if 'segments' in seen else seen
  assert_equal_to_plain('fused', (2, 256, 1, 64), drop=rate and drop_of(2, rate), **seen)


@pytest.mark.parametrize('shape, rate', [
  ((1, 197, 3, 64), None),  # a ViT's, three heads in one program
  ((2, 64, 2, 128), .5),    # quarters of 16 rows
  ((1, 64, 8, 32), None),   # four heads fill the lanes
  ((1, 384, 2, 128), None),  # three chunks in a loop
  ((1, 1024, 1, 64), .1),   # four chunks of each quarter in a loop
], ids=str)
def test_fused_takes_many_shapes(shape, rate, interpreted):
  assert_equal_to_plain('fused', shape, drop=rate and drop_of(shape[0], rate))


@pytest.mark.parametrize('mesh', [{'data': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}], ids=str)
def test_fused_on_several_devices(mesh, interpreted):
  """Rows spread over a mesh have the draws of one device."""
  mesh = make_mesh(mesh)
  rows = jax.device_put(jnp.ones((16, 64), jnp.int32), NamedSharding(mesh, PartitionSpec('data')))
  assert_equal_to_plain('fused', (16, 64, 1, 64), mesh, drop=drop_of(16), segments=rows)


def test_fused_in_half_precision(interpreted):
  """As near to float64 as the plain form."""
  qkvg = np.random.default_rng(0).normal(size=(4, 2, 128, 2, 64)).astype(np.float32)
  with jax.enable_x64(True):
    exact = jax.tree.map(np.asarray, value_and_gradients('plain', qkvg.astype(np.float64)))
  errors = [
    [np.abs(np.asarray(x, np.float64) - y).max() for x, y in zip(
      jax.tree.leaves(value_and_gradients(way, jnp.asarray(qkvg, jnp.bfloat16))),
      jax.tree.leaves(exact))] for way in ('fused', 'plain')]
  assert all(fused < 1.5 * plain + 1e-3 for fused, plain in zip(*errors)), errors


def compiled(machine, shape, drop=False, **arguments):
  """The program of the gradients, rows spread over the devices of a TPU that is not there."""
  pytest.importorskip('libtpu')
  devices = compiler.devices(parse(machine))
  mesh = make_mesh({'data': len(devices)}, devices)
  place = lambda shape, dtype: jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, PartitionSpec('data')))
  q, segments = place(shape, jnp.bfloat16), place(shape[:2], jnp.int32)

  def total(q, k, v, segments):
    return attention(q, k, v, segments=segments, drop=drop_of(shape[0]) if drop else None,
                     implementation='auto', mode=Mode(mesh=mesh), **arguments).astype(jnp.float32).sum()

  return compiler.compiled(jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, q, q, segments))


@pytest.mark.parametrize('shape, drop, kernel, bytes_each', [
  ((8, 4096, 12, 64), False, 'splash', 40), ((8, 512, 12, 64), True, 'fused_attention', 8),
  ((8, 197, 6, 64), False, 'fused_attention', 8)], ids=str)
def test_a_tpu_has_no_weights_in_memory(shape, drop, kernel, bytes_each):
  """Compiled for a v5e: the temporaries of a gradient are some arrays like q. With plain attention
  the first two take 517 and 48 bytes for each element of q."""
  program = compiled('v5e-1', shape, drop)
  text = program.as_text()
  assert 'tpu_custom_call' in text and kernel in text
  assert program.memory_analysis().temp_size_in_bytes < bytes_each * math.prod(shape)


def test_kernels_on_several_tpus_move_nothing_between_them():
  for text in (compiled('v5e:2x4', (16, 1024, 2, 64), window=128).as_text(),
               compiled('v5e:2x4', (16, 128, 2, 64), drop=True).as_text()):
    assert 'tpu_custom_call' in text
    assert not any(name in text for name in ('all-gather(', 'all-to-all(', 'all-reduce('))


def test_auto_is_plain_where_no_kernel_is_known_to_do():
  """On CPUs, for lengths that no kernel takes, and where nothing tells how rows lie."""
  def calls(length, mesh, drop=False, heads=2):
    q = jax.ShapeDtypeStruct((4, length, heads, 64), jnp.bfloat16)
    traced = jax.make_jaxpr(partial(attention, implementation='auto', mode=Mode(mesh=mesh),
                                    drop=drop_of(4) if drop else None))(q, q, q)
    return 'pallas_call' in str(traced)

  pytest.importorskip('libtpu')
  tpu = make_mesh({'data': 4}, compiler.devices(parse('v5e-4')))
  rows = PartitionSpec('data')
  checked = jax.shard_map(lambda q: attention(q, q, q, implementation='auto', mode=Mode(mesh=tpu)),
                          mesh=tpu, in_specs=rows, out_specs=rows)
  assert 'pallas_call' not in str(jax.make_jaxpr(checked)(jnp.ones((4, 512, 1, 64))))
  assert calls(512, tpu) and calls(512, tpu, drop=True) and calls(197, tpu) and calls(1024, tpu)
  assert not calls(300, tpu) and not calls(197, tpu, drop=True) and not calls(4096, tpu, drop=True)
  assert calls(197, tpu, heads=3) and not calls(1024, tpu, drop=True, heads=25)  # GPT-2 XL's
  old = make_mesh({'data': 8}, compiler.devices(parse('v3-8')))
  assert not calls(512, old) and not calls(1024, old)
  assert not calls(512, None) and not calls(512, make_mesh({'data': 4}, jax.devices()[:4]))
