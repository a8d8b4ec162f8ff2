"""Values and gradients of the contrastive losses against formulas written with NumPy loops."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from ssl_jax.losses.contrastive import info_nce, l2_normalize, nt_xent
from ssl_jax.parallel import inside, make_mesh, over

pytestmark = pytest.mark.usefixtures('strict_dtypes')
ROWS, DIM, T = 16, 6, 0.2


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def nt_xent_by_algorithm_1(z1, z2, temperature):
  """Algorithm 1 of arXiv:2002.05709, anchor by anchor."""
  z = unit(np.stack([z1, z2], 1).reshape(-1, z1.shape[1]).astype(np.float64))
  s = z @ z.T / temperature
  total = 0.0
  for i in range(len(z)):
    j = i + 1 if i % 2 == 0 else i - 1
    total += -s[i, j] + np.log(sum(np.exp(s[i, k]) for k in range(len(z)) if k != i))
  return total / len(z)


def info_nce_by_rows(q, k, temperature):
  s = unit(q.astype(np.float64)) @ unit(k.astype(np.float64)).T / temperature
  return np.mean([np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(len(q))])


def pair(rows=ROWS, dtype=np.float32):
  r = np.random.default_rng(0)
  z1 = r.normal(size=(rows, DIM))
  return z1.astype(dtype), (z1 + 0.5 * r.normal(size=(rows, DIM))).astype(dtype)


@pytest.mark.parametrize('loss, formula', [
  (nt_xent, nt_xent_by_algorithm_1), (info_nce, info_nce_by_rows)])
@pytest.mark.parametrize('temperature', [0.07, 0.5])
def test_value_is_the_papers(loss, formula, temperature):
  z1, z2 = pair()
  np.testing.assert_allclose(
    loss(z1, z2, temperature=temperature), formula(z1, z2, temperature), rtol=2e-6)


@pytest.mark.parametrize('loss, formula', [
  (nt_xent, nt_xent_by_algorithm_1), (info_nce, info_nce_by_rows)])
def test_gradient_is_the_formulas_difference_quotient(loss, formula):
  z1, z2 = pair(4, np.float64)
  with jax.enable_x64(True):
    grads = jax.grad(partial(loss, temperature=T), argnums=(0, 1))(jnp.array(z1), jnp.array(z2))
  for which, z in enumerate((z1, z2)):
    for i in np.ndindex(2, 3):
      d = np.zeros_like(z)
      d[i] = 1e-6
      shifted = [[z1 + d, z2], [z1, z2 + d]][which], [[z1 - d, z2], [z1, z2 - d]][which]
      slope = (formula(*shifted[0], T) - formula(*shifted[1], T)) / 2e-6
      np.testing.assert_allclose(grads[which][i], slope, rtol=1e-5, atol=1e-9)


def test_the_tensorflow_reference_is_twice_the_paper():
  """google-research/simclr sums a mean over N anchors of each view: exactly 2x Algorithm 1."""
  z1, z2 = pair()
  a, b = unit(z1.astype(np.float64)), unit(z2.astype(np.float64))
  mask = np.eye(ROWS) * 1e9

  def half(x, y):
    logits = np.concatenate([x @ y.T, x @ x.T - mask], 1) / T
    return np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits[:, :ROWS]))

  np.testing.assert_allclose(nt_xent(z1, z2, temperature=T), (half(a, b) + half(b, a)) / 2, rtol=2e-6)


def test_same_view_negatives_count_and_self_does_not():
  """With orthogonal samples and equal views the loss is log(e^{1/T} + 2N - 2) - 1/T."""
  z = np.eye(4, DIM, dtype=np.float32)
  expected = np.log(np.exp(1 / T) + 2 * 4 - 2) - 1 / T
  np.testing.assert_allclose(nt_xent(z, z, temperature=T), expected, rtol=1e-4)


def ways(loss):
  """Every way to run a loss over 8 devices, as (z1, z2) -> scalar of global arrays."""
  head = partial(loss, temperature=T)
  flat, grid = make_mesh({'data': 8}), make_mesh({'data': 4, 'fsdp': 2})

  def manual(mesh, axes, check_vma):
    return jax.shard_map(partial(head, axis_name=axes), mesh=mesh, in_specs=P(axes), out_specs=P(),
                         check_vma=check_vma)

  def by_vmap(z1, z2):
    split = lambda z: z.reshape(8, -1, z.shape[1])
    return jnp.mean(jax.vmap(inside('i')(head), axis_name='i')(split(z1), split(z2)))

  return {
    'global view': head,
    'over data': over(flat)(head),
    'over data x fsdp': over(grid)(head),
    'shard_map, check_vma=True': manual(flat, 'data', True),
    'shard_map, check_vma=False': manual(flat, 'data', False),
    'shard_map over two axes, check_vma=False': manual(grid, ('data', 'fsdp'), False),
    'vmap': by_vmap,
  }


@pytest.mark.parametrize('loss', [nt_xent, info_nce])
@pytest.mark.parametrize('way', list(ways(nt_xent)))
def test_value_and_gradient_are_equal_on_8_devices(loss, way):
  z1, z2 = pair()
  grad = jax.value_and_grad(partial(loss, temperature=T), argnums=(0, 1))
  value, grads = grad(z1, z2)
  got, got_grads = jax.jit(jax.value_and_grad(ways(loss)[way], argnums=(0, 1)))(z1, z2)
  np.testing.assert_allclose(got, value, rtol=1e-6)
  for a, b in zip(got_grads, grads):
    np.testing.assert_allclose(a, b, atol=1e-6 * float(jnp.linalg.norm(b)))


def linear_step(loss, axis_name, average):
  """The gradient a whole step inside an axis computes for a linear encoder."""
  def grads(w, x1, x2):
    g = jax.grad(lambda w: loss(x1 @ w, x2 @ w, temperature=T, axis_name=axis_name))(w)
    return lax.pmean(g, axis_name) if average else g
  return grads


@pytest.mark.parametrize('loss', [nt_xent, info_nce])
@pytest.mark.parametrize('door', ['pmap', 'check_vma', 'no check_vma'])
def test_a_whole_step_inside_an_axis_has_the_exact_gradient(loss, door):
  z1, z2 = pair()
  w = np.random.default_rng(1).normal(size=(DIM, DIM)).astype(np.float32)
  expected = linear_step(loss, None, False)(w, z1, z2)
  step = linear_step(loss, 'data', True)
  if door == 'pmap':
    split = lambda z: z.reshape(8, -1, DIM)
    got = jax.pmap(step, 'data', in_axes=(None, 0, 0))(w, split(z1), split(z2))[0]
  else:
    got = jax.jit(jax.shard_map(
      step, mesh=make_mesh({'data': 8}), in_specs=(P(), P('data'), P('data')), out_specs=P(),
      check_vma=door == 'check_vma'))(w, z1, z2)
  np.testing.assert_allclose(got, expected, atol=2e-6 * np.linalg.norm(expected))


class TestTrap1:
  """The wrong recipes, so that nobody takes the pmeans out as redundant."""

  def without_pmean(self, z1, z2, temperature, axis_name):
    """nt_xent's sibling that returns each device's own mean."""
    keys = lax.all_gather(l2_normalize(z2), axis_name, axis=0, tiled=True)
    logits = l2_normalize(z1) @ keys.T / temperature
    own = jnp.arange(len(z1)) + lax.axis_index(axis_name) * len(z1)
    return jnp.mean(jax.nn.logsumexp(logits, 1)
                    - jnp.take_along_axis(logits, own[:, None], 1)[:, 0])

  def gradient(self, loss, average, check_vma):
    z1, z2 = pair()
    w = np.random.default_rng(1).normal(size=(DIM, DIM)).astype(np.float32)
    run = jax.shard_map(
      linear_step(loss, 'data', average), mesh=make_mesh({'data': 8}), check_vma=check_vma,
      in_specs=(P(), P('data'), P('data')), out_specs=P())
    return np.asarray(run(w, z1, z2)), np.asarray(linear_step(info_nce, None, False)(w, z1, z2))

  def test_check_vma_and_no_pmean_in_the_loss_is_n_times_too_large(self):
    got, expected = self.gradient(self.without_pmean, True, True)
    np.testing.assert_allclose(got, 8 * expected, rtol=1e-4, atol=1e-5)

  def test_no_check_vma_and_no_pmean_of_gradients_is_wrong_by_no_constant(self):
    got, expected = self.gradient(info_nce, False, False)
    cosine = (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)
    assert cosine < 0.99

  def test_stop_gradient_on_gathered_keys_is_wrong(self):
    def detached(z1, z2, temperature, axis_name):
      keys = lax.stop_gradient(lax.all_gather(z2, axis_name, axis=0, tiled=True))
      logits = l2_normalize(z1) @ l2_normalize(keys).T / temperature
      own = jnp.arange(len(z1)) + lax.axis_index(axis_name) * len(z1)
      rows = jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, own[:, None], 1)[:, 0]
      return lax.pmean(jnp.mean(rows), axis_name)
    got, expected = self.gradient(detached, True, False)
    assert np.linalg.norm(got - expected) > 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize('loss', [nt_xent, info_nce])
def test_no_device_holds_a_square_of_the_global_batch(loss):
  """64 samples on 8 devices: logits are 8 x 64 (of both views 16 x 128), never 64 x 64."""
  mesh = make_mesh({'data': 8})
  rows = jax.ShapeDtypeStruct((64, DIM), np.float32, sharding=jax.NamedSharding(mesh, P('data')))
  grad = jax.jit(jax.grad(over(mesh)(partial(loss, temperature=T)), argnums=(0, 1)))
  text = grad.lower(rows, rows).compile().as_text()
  shapes = {tuple(map(int, dims.split(','))) for dims in re.findall(r'\[(\d+(?:,\d+)+)\]', text)}
  views = 2 if loss is nt_xent else 1
  assert (8 * views, 64 * views) in shapes
  assert not [shape for shape in shapes if np.prod(shape) >= (64 * views) ** 2]


def test_bfloat16_embeddings_are_rounded_once_and_summed_in_float32():
  z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in pair())
  value = nt_xent(z1, z2, temperature=T)
  assert value.dtype == jnp.float32
  root = np.float32(T ** -0.5)
  rounded = [np.asarray((l2_normalize(z) * root).astype(jnp.bfloat16), np.float64) for z in (z1, z2)]
  z = np.stack(rounded, 1).reshape(-1, DIM)
  s = z @ z.T - np.diag(np.full(len(z), np.inf))
  own = s[np.arange(len(z)), np.arange(len(z)) ^ 1]
  np.testing.assert_allclose(value, np.mean(np.log(np.exp(s).sum(1)) - own), rtol=2e-6)


def test_l2_normalize():
  x = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
  np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(x)).all()


def test_wrong_shapes_are_refused():
  with pytest.raises(AssertionError, match='shape'):
    nt_xent(np.ones((4, 3), np.float32), np.ones((5, 3), np.float32), temperature=T)
