"""Cross-entropy over a vocabulary in chunks, against softmax written out in NumPy."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.prediction import (
  masked_cross_entropy,
  masked_prediction,
  sample_tokens,
  token_log_probability,
  token_sums,
)
from ssl_jax.parallel import make_mesh, over

ROWS, SLOTS, DIM, ENTRIES = 8, 3, 6, 52
CHUNKS = (1, 7, 51, 52, None)


def operands(dtype=np.float32, entries=ENTRIES):
  """(hidden, embedding, bias, targets, weights); device i of 8 has one row, of unequal weight."""
  r = np.random.default_rng(0)
  arrays = [r.normal(size=shape) for shape in ((ROWS, SLOTS, DIM), (entries, DIM), (entries,))]
  targets = r.integers(0, entries, (ROWS, SLOTS)).astype(np.int32)
  targets[:2] = [[0, entries - 1, 1], [entries // 2, entries // 2 - 1, entries - 2]]
  weights = np.array([[1, 1, 1], [1, 2, 0], [1, 0, 0], [0, 0, 0], [.5, .5, 0]] + [[1, 1, 0]] * 3)
  return (*(x.astype(dtype) for x in arrays), targets, weights.astype(np.float32))


def by_formula(hidden, embedding, bias, targets, weights):
  """(loss, accuracy, gradient of hidden, of embedding, of bias) in float64."""
  h, e, b, w = (np.asarray(x, np.float64) for x in (hidden, embedding, bias, weights))
  logits = h @ e.T + b
  top = logits.max(-1, keepdims=True)
  log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
  own = np.eye(len(e))[targets]
  d = (np.exp(log_p) - own) * w[..., None] / w.sum()
  loss = -(w * (log_p * own).sum(-1)).sum() / w.sum()
  accuracy = (w * (logits.argmax(-1) == targets)).sum() / w.sum()
  rows = d.reshape(-1, len(e))
  return loss, accuracy, d @ e, rows.T @ h.reshape(len(rows), -1), rows.sum(0)


def run(loss, hidden, embedding, bias, *rest):
  """(loss, accuracy, gradients) of a loss that returns (loss, accuracy)."""
  grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
  (value, accuracy), grads = grad(hidden, embedding, bias, *rest)
  return value, accuracy, *grads


def check(got, expected, tolerance=1e-6):
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=tolerance,
                               atol=tolerance * np.linalg.norm(b))


@pytest.mark.parametrize('chunk', CHUNKS)
def test_value_and_gradient_are_those_of_softmax(chunk, strict_dtypes):
  check(run(partial(masked_prediction, chunk=chunk), *operands()), by_formula(*operands()))


@pytest.mark.parametrize('chunk', [7, None])
def test_float64(chunk):
  with jax.enable_x64(True):
    got = run(partial(masked_prediction, chunk=chunk), *operands(np.float64))
    assert {x.dtype for x in got} == {np.dtype('float64')}
    check(got, by_formula(*operands(np.float64)), 1e-13)


@pytest.mark.parametrize('chunk', [7, None])
def test_bfloat16_is_summed_in_float32(chunk):
  *arrays, targets, weights = operands()
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  value, accuracy, *grads = run(partial(masked_prediction, chunk=chunk), *arrays, targets, weights)
  assert value.dtype == jnp.float32 and {g.dtype for g in grads} == {jnp.dtype(jnp.bfloat16)}
  expected = by_formula(*(np.float32(x) for x in arrays), targets, weights)
  np.testing.assert_allclose(value, expected[0], rtol=1e-6)
  check([np.float32(g) for g in grads], expected[2:], 8e-3)
  # Parameters in float32 have gradients in float32.
  grad = jax.jit(jax.grad(partial(masked_cross_entropy, chunk=chunk), 1))
  got = grad(arrays[0], np.float32(arrays[1]), arrays[2], targets, weights)
  assert got.dtype == jnp.float32
  check([got], expected[3:4], 8e-3)


@pytest.mark.parametrize('chunk', [7, None])
@pytest.mark.parametrize('garbage', [np.inf, np.nan])
def test_unused_slots_may_hold_anything(chunk, garbage):
  hidden, embedding, bias, targets, weights = operands()
  expected = by_formula(hidden, embedding, bias, targets, weights)
  unused = weights == 0
  dirty = np.where(unused[..., None], np.float32(garbage), hidden)
  targets = np.where(unused, -7, targets)
  got = run(partial(masked_prediction, chunk=chunk), dirty, embedding, bias, targets, weights)
  check(got, expected)


def test_no_weight_at_all_is_zero():
  hidden, embedding, bias, targets, weights = operands()
  got = run(partial(masked_prediction, chunk=7), hidden, embedding, bias, targets, 0 * weights)
  for x in got:
    assert not np.any(x)


@pytest.mark.parametrize('chunk', [7, None])
@pytest.mark.parametrize('target', [-1, ENTRIES])
def test_a_target_outside_the_vocabulary_is_nan(chunk, target):
  *arrays, targets, weights = operands()
  targets[0, 0] = target
  assert np.isnan(masked_cross_entropy(*arrays, targets, weights, chunk=chunk))


@pytest.mark.parametrize('chunk', [3, 4, None])
def test_of_equal_entries_the_first_is_the_most_probable(chunk):
  embedding = np.array([[0.], [2.], [1.], [0.], [2.], [2.]], np.float32)
  hidden = np.array([[1.], [0.], [-1.]], np.float32)
  log_p, best = token_log_probability(hidden, embedding, None, np.array([4, 5, 0]), chunk=chunk)
  np.testing.assert_array_equal(best, [1, 0, 0])
  np.testing.assert_allclose(log_p[1], -np.log(6), rtol=1e-6)
  weights = np.array([1., 3., 4.], np.float32)
  for targets, accuracy in (([1, 0, 3], .5), ([4, 5, 3], 0.), ([1, 0, 0], 1.), ([4, 0, 0], 7 / 8)):
    got = masked_prediction(hidden, embedding, None, np.array(targets), weights, chunk=chunk)[1]
    np.testing.assert_allclose(got, accuracy)


@pytest.mark.parametrize('chunk', [7, None])
def test_large_logits(chunk):
  hidden, embedding, bias, targets, weights = operands()
  hidden = 1e4 * hidden
  got = run(partial(masked_prediction, chunk=chunk), hidden, embedding, bias, targets, weights)
  expected = by_formula(hidden, embedding, bias, targets, weights)
  assert expected[0] > 1e4
  check(got, expected, 1e-5)


@pytest.mark.parametrize('chunk', [20, None])
def test_entries_that_cannot_occur(chunk):
  """A bias of -inf, for a vocabulary filled up to a round number: probability 0, loss inf."""
  hidden, embedding, bias, targets, weights = operands()
  bias[40:] = -np.inf
  targets = targets % 40
  value = masked_cross_entropy(hidden, embedding, bias, targets, weights, chunk=chunk)
  expected = by_formula(hidden, embedding[:40], bias[:40], targets, weights)[0]
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  targets[0, 0] = 45
  assert np.isposinf(masked_cross_entropy(hidden, embedding, bias, targets, weights, chunk=chunk))


def test_sums_of_parts_of_the_data_make_the_whole():
  hidden, embedding, bias, targets, weights = operands()
  expected = by_formula(hidden, embedding, bias, targets, weights)
  parts = [token_sums(h, embedding, bias, t, w, chunk=7)
           for h, t, w in zip(hidden, targets, weights)]
  for i, name in enumerate(('loss', 'accuracy')):
    total, weight = np.sum([part[name] for part in parts], axis=0)
    np.testing.assert_allclose(total / weight, expected[i], rtol=1e-6)


# --- several devices ------------------------------------------------------------------------------


def manual(mesh, axes, vocabulary_axis=None, check_vma=True, chunk=7):
  """masked_prediction in shard_map, as a function of global arrays."""
  spread, entries = P(axes), P(vocabulary_axis)
  return jax.shard_map(
    partial(masked_prediction, chunk=chunk, axis_name=axes, vocabulary_axis=vocabulary_axis),
    mesh=mesh, in_specs=(spread, entries, entries, spread, spread), out_specs=P(),
    check_vma=check_vma)


def by_vmap(hidden, embedding, bias, targets, weights):
  each = jax.vmap(partial(masked_prediction, chunk=7, axis_name='i'), (0, None, None, 0, 0),
                  axis_name='i')
  split = (x.reshape(4, 2, *x.shape[1:]) for x in (hidden, targets, weights))
  hidden, targets, weights = split
  return jax.tree.map(jnp.mean, each(hidden, embedding, bias, targets, weights))


def ways():
  flat, grid = make_mesh({'data': 8}), make_mesh({'data': 4, 'fsdp': 2})
  mixed = make_mesh({'data': 2, 'v': 4})
  return {
    'over(mesh), one chunk': _over(flat, None),
    'over(mesh), chunks': _over(grid, 7),
    'check_vma=True': manual(flat, 'data'),
    'check_vma=False': manual(flat, 'data', check_vma=False),
    'vmap': by_vmap,
    'vocabulary over 2': manual(make_mesh({'v': 2}, jax.devices()[:2]), None, 'v'),
    'vocabulary over 4, one chunk each': manual(make_mesh({'v': 4}, jax.devices()[:4]), None, 'v',
                                                chunk=None),
    'data x vocabulary': manual(mixed, 'data', 'v'),
    'data x vocabulary, check_vma=False': manual(mixed, 'data', 'v', check_vma=False),
  }


def _over(mesh, chunk):
  """As methods do: the arguments of a token first, the output layer shared."""
  def predict(hidden, targets, weights, matrix, bias, *, axis_name):
    return masked_prediction(hidden, matrix, bias, targets, weights, chunk=chunk,
                             axis_name=axis_name)

  return lambda h, e, b, t, w: over(mesh)(predict, shared=2)(h, t, w, e, b)


@pytest.mark.parametrize('way', list(ways()))
def test_devices_with_unequal_weights_equal_one(way):
  check(run(ways()[way], *operands()), by_formula(*operands()))


def test_a_mean_of_the_devices_means_is_something_else():
  hidden, embedding, bias, targets, weights = operands()
  each = [by_formula(h, embedding, bias, t, w)[0]
          for h, t, w in zip(hidden, targets, weights) if w.sum()]
  assert abs(np.mean(each) - by_formula(hidden, embedding, bias, targets, weights)[0]) > .05


def test_a_whole_step_in_pmap():
  hidden, embedding, bias, targets, weights = operands()

  def step(matrix, hidden, bias, targets, weights):
    loss = lambda m: masked_cross_entropy(hidden @ m, embedding, bias, targets, weights, chunk=7,
                                          axis_name='i')
    value, grad = jax.value_and_grad(loss)(matrix)
    return value, lax.pmean(grad, 'i')

  m = np.eye(DIM, dtype=np.float32)
  split = [x[:, None] for x in (hidden, targets, weights)]
  value, grad = jax.pmap(step, 'i', in_axes=(None, 0, None, 0, 0))(m, split[0], bias, *split[1:])
  expected = by_formula(hidden, embedding, bias, targets, weights)
  np.testing.assert_allclose(value, np.full(8, expected[0]), rtol=1e-6)
  check([grad[3]], [np.einsum('bki,bkj->ij', hidden, expected[2])])


def test_vocabulary_over_devices_without_a_bias():
  hidden, embedding, bias, targets, weights = operands()
  spread = jax.shard_map(
    lambda h, e: masked_cross_entropy(h, e, None, targets, weights, chunk=7, vocabulary_axis='v'),
    mesh=make_mesh({'v': 4}, jax.devices()[:4]), in_specs=(P(), P('v')), out_specs=P())
  value, grads = jax.jit(jax.value_and_grad(spread, argnums=(0, 1)))(hidden, embedding)
  expected = by_formula(hidden, embedding, 0 * bias, targets, weights)
  check([value, *grads], [expected[0], *expected[2:4]])


# --- memory ---------------------------------------------------------------------------------------


def test_no_array_of_tokens_and_vocabulary():
  tokens, entries, dim = 96, 1000, 8
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (
    ((tokens, dim), 'float32'), ((entries, dim), 'float32'), ((entries,), 'float32'),
    ((tokens,), 'int32'), ((tokens,), 'float32'))]

  def largest(chunk):
    loss = partial(masked_cross_entropy, chunk=chunk)
    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    text = grad.lower(*shapes).compile().as_text()
    found = re.findall(r'\[(\d+(?:,\d+)+)\]', text)
    return max(np.prod([int(n) for n in dims.split(',')]) for dims in found)

  assert largest(entries) == tokens * entries
  assert largest(100) == max(tokens * 100, entries * dim)


COMPILE_HEAD = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from ssl_jax.losses.prediction import masked_cross_entropy
topology = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:1x1', chips_per_host_bounds=[1, 1, 1])
one = jax.sharding.SingleDeviceSharding(topology.devices[0])
place = lambda *args: jax.ShapeDtypeStruct(*args, sharding=one)
def head(hidden, slots, *rest):
  return masked_cross_entropy(jnp.take_along_axis(hidden, slots[..., None], 1), *rest)
for dtype in (jnp.bfloat16, jnp.float32):
  args = (place((64, 512, 768), jnp.bfloat16), place((64, 80), jnp.int32),
          place((30528, 768), dtype), place((30528,), dtype),
          place((64, 80), jnp.int32), place((64, 80), jnp.float32))
  compiled = jax.jit(jax.value_and_grad(head, argnums=(0, 2, 3))).lower(*args).compile()
  print('temporary', compiled.memory_analysis().temp_size_in_bytes)
"""


def test_the_head_of_bert_on_a_tpu_takes_10_mib(root):
  """64 x 512 tokens of which 80 are masked; the logits of all of them would be 5,724 MiB."""
  pytest.importorskip('libtpu')
  environment = os.environ | dict(
    JAX_PLATFORMS='cpu', ALLOW_MULTIPLE_LIBTPU_LOAD='1', TPU_SKIP_MDS_QUERY='1',
    PYTHONPATH=str(root))
  result = subprocess.run([sys.executable, '-c', COMPILE_HEAD], env=environment,
                          capture_output=True, text=True, timeout=300, check=False)
  found = list(map(int, re.findall(r'temporary (\d+)', result.stdout)))
  assert len(found) == 2, result.stderr[-2000:]
  assert max(found) <= 10 * 2**20, found  # parameters in bfloat16, in float32


# --- drawing tokens -------------------------------------------------------------------------------


def test_tokens_are_drawn_from_softmax():
  hidden, embedding, bias, *_ = operands()
  rows = np.broadcast_to(hidden[:1, :1], (400, 40, DIM))
  drawn = np.asarray(sample_tokens(jax.random.key(0), rows, embedding, bias, chunk=7))
  logits = hidden[0, 0] @ embedding.T + bias
  p = np.exp(logits) / np.exp(logits).sum()
  counts = np.bincount(drawn.ravel(), minlength=ENTRIES)
  statistic = ((counts - p * drawn.size) ** 2 / (p * drawn.size)).sum()
  assert statistic < 95  # the 99.98 % quantile of chi-square with 51 degrees of freedom


@pytest.mark.parametrize('check_vma', [True, False])
def test_drawn_tokens_do_not_depend_on_devices(check_vma, monkeypatch):
  # So that chunks that are chosen by the number of tokens would differ.
  monkeypatch.setattr('ssl_jax.losses.prediction.LOGITS_AT_ONCE', 0)
  monkeypatch.setattr('ssl_jax.losses.prediction.CHUNK_LOGITS', ROWS * SLOTS * 128)
  hidden, embedding, bias, *_ = operands(entries=1000)
  expected = sample_tokens(jax.random.key(0), hidden, embedding, bias)
  assert len(np.unique(expected)) > 5
  spread = jax.shard_map(
    lambda h, e, b: sample_tokens(jax.random.key(0), h, e, b, axis_name='data'), mesh=make_mesh(),
    in_specs=(P('data'), P(), P()), out_specs=P('data'), check_vma=check_vma)
  np.testing.assert_array_equal(jax.jit(spread)(hidden, embedding, bias), expected)


def test_wrong_arguments_are_refused():
  *arrays, targets, weights = operands()
  with pytest.raises(ValueError, match='chunk must be at least 1, got 0'):
    masked_cross_entropy(*arrays, targets, weights, chunk=0)
  with pytest.raises(AssertionError, match='shape'):
    masked_cross_entropy(*arrays, targets, weights[:, :1])
  with pytest.raises(AssertionError, match='shape'):
    token_log_probability(*arrays, targets[:, :2])
