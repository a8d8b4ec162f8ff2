"""Attention against its formula, one token of one head of one example after the other."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from ssl_jax.models.attention import attention
from ssl_jax.models.dropout import Drop
from ssl_jax.parallel import make_mesh

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
@pytest.mark.parametrize('implementation', ['plain', 'rows', 'xla', 'auto'])
def test_documents_causality_and_windows(seen, implementation):
  q, k, v = (x.astype(np.float32) for x in operands(8, 8))
  segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8], np.int32)
  got = attention(*map(jnp.asarray, (q, k, v)), segments=jnp.asarray(segments), **seen,
                  implementation=implementation)
  np.testing.assert_allclose(got, expected(q, k, v, segments, **seen), atol=2e-6)


DROP = Drop(jax.random.key(3), .25, jnp.arange(7, 9, dtype=jnp.uint32))


@pytest.mark.parametrize('implementation', ['auto', 'plain', 'rows'])
def test_dropped_weights_are_not_normalised_again(implementation):
  q, k, v = operands()
  with jax.enable_x64(True):
    drop = np.asarray(DROP.factors((3, 5, 6)))
    got = attention(*map(jnp.asarray, (q, k, v)), drop=DROP, implementation=implementation)
  assert 0 < (drop == 0).sum() < drop.size
  np.testing.assert_allclose(got, expected(q, k, v, drop=drop), rtol=1e-12)


@pytest.mark.parametrize('implementation', ['xla', 'cudnn', 'splash'])
def test_only_the_plain_forms_drop(implementation):
  q, k, v = map(jnp.asarray, operands())
  with pytest.raises(ValueError, match=f'implementation plain or rows, not {implementation}'):
    attention(q, k, v, drop=DROP, implementation=implementation)


@pytest.mark.parametrize('mesh', [None, {'data': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}], ids=str)
def test_row_by_row_equals_plain_attention(mesh):
  """Value and gradient, 16 rows of 12 tokens, on one device and spread."""
  mesh = mesh and make_mesh(mesh)
  rng = np.random.default_rng(0)
  q, k, v, g = rng.normal(size=(4, 16, 12, 2, 4)).astype(np.float32)
  segments = rng.integers(0, 3, (16, 12))
  drop = Drop(jax.random.key(1), .1, jnp.arange(16, dtype=jnp.uint32))

  def run(implementation, mesh):
    total = lambda *qkv: (attention(*qkv, segments=jnp.asarray(segments), causal=True, drop=drop,
                                    implementation=implementation, mesh=mesh) * g).sum()
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)

  close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, run('rows', mesh), run('plain', None))


def test_long_rows_with_dropout_go_one_by_one_on_a_tpu():
  def loops(length, platform):
    shapes = [jax.ShapeDtypeStruct((4, length, 2, 64), jnp.bfloat16)] * 3
    drop = Drop(jax.random.key(0), .1, jnp.arange(4, dtype=jnp.uint32))
    return jax.jit(partial(attention, implementation='auto', drop=drop)).trace(*shapes).lower(
      lowering_platforms=(platform,)).as_text().count('stablehlo.while')

  assert loops(512, 'tpu') == 0 < loops(1024, 'tpu')
  assert loops(512, 'cpu') == loops(1024, 'cpu')  # those of the random numbers


def test_wrong_arguments_are_refused():
  q, k, v = map(jnp.asarray, operands(6))
  with pytest.raises(ValueError, match="one of .*'splash'.*, not 'flash'"):
    attention(q, k, v, implementation='flash')
  with pytest.raises(ValueError, match='multiple of 128, not 6'):
    attention(q, k, v, implementation='splash')


# --- the TPU kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize('seen', [
  {}, {'window': 32}, {'causal': True, 'window': 33}], ids=str)
def test_the_kernel_interpreted_equals_plain_attention(seen, monkeypatch):
  monkeypatch.setattr(splash, 'make_splash_mha_single_device', partial(
    splash.make_splash_mha_single_device, interpret=True))
  rng = np.random.default_rng(0)
  q, k, v, g = rng.normal(size=(4, 2, 256, 1, 64)).astype(np.float32)

  def run(implementation):
    total = lambda *qkv: (attention(*qkv, segments=jnp.asarray(DOCUMENTS), **seen,
                                    implementation=implementation) * g).sum()
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)

  close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, run('splash'), run('plain'))


COMPILE_FOR_TPU = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from ssl_jax.models.attention import attention
from ssl_jax.models.dropout import Drop
from ssl_jax.parallel import make_mesh
from ssl_jax.parallel import make_mesh
def compiled(name, bounds, shape, **kwargs):
  devices = topologies.get_topology_desc(
    platform='tpu', topology_name=name, chips_per_host_bounds=bounds).devices
  mesh = make_mesh({'data': len(devices)}, devices)
  place = lambda shape, dtype: jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, P('data')))
  q, segments = place(shape, jnp.bfloat16), place(shape[:2], jnp.int32)
  total = lambda q, k, v, s: attention(
    q, k, v, segments=s, implementation='auto', mesh=mesh, **kwargs).astype(jnp.float32).sum()
  return jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, q, q, segments).compile()
long = compiled('v5e:1x1', [1, 1, 1], (8, 4096, 12, 64))
print('calls', long.as_text().count('tpu_custom_call'), long.memory_analysis().temp_size_in_bytes)
spread = compiled('v5e:2x4', [2, 4, 1], (16, 1024, 2, 64), window=128).as_text()
gathers = sum(spread.count(name) for name in ('all-gather(', 'all-to-all(', 'all-reduce('))
print('spread', spread.count('tpu_custom_call'), gathers)
"""


def test_long_rows_on_a_tpu_go_through_its_kernel(root):
  """The gradient for 8 rows of 4096 tokens on one chip, for 16 rows over 8 chips."""
  pytest.importorskip('libtpu')
  environment = os.environ | dict(
    JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1',
    PYTHONPATH=str(root))
  result = subprocess.run([sys.executable, '-c', COMPILE_FOR_TPU], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
  found = dict((line[0], list(map(int, line[1:]))) for line in map(str.split, re.findall(
    r'^(?:calls|spread) .*', result.stdout, re.MULTILINE)))
  assert set(found) == {'calls', 'spread'}, result.stderr[-2000:]
  assert found['calls'][0] and found['calls'][1] < 2**30  # plain attention: 9.2 GB
  assert found['spread'][0] and not found['spread'][1]


def test_short_rows_do_not():
  run = lambda length, platform: jax.jit(partial(attention, implementation='auto')).trace(
    *[jax.ShapeDtypeStruct((1, length, 1, 64), jnp.bfloat16)] * 3).lower(
      lowering_platforms=(platform,)).as_text()
  assert 'tpu_custom_call' in run(1024, 'tpu')
  assert 'tpu_custom_call' not in run(512, 'tpu') and 'tpu_custom_call' not in run(1024, 'cpu')
