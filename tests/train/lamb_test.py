"""LAMB and Adam without bias correction against NumPy, stacks of layers, and what optax does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax import parallel
from ssl_jax.train import optimizers

LAYERS = 3
SHAPES = {
  'embed/embedding': (5, 4), 'scanned/fc/kernel': (LAYERS, 4, 6), 'scanned/fc/bias': (LAYERS, 6),
  'scanned/norm/scale': (LAYERS, 4), 'head/kernel': (4, 2), 'head/bias': (2,), 'zeros/kernel': (4,),
  'unused/kernel': (3,)}


def rate(count):
  return 0.02 * (1 + count)


def values(seed, zero):
  """Values by name, of sizes that differ between layers; those of the tensor `zero` are 0."""
  rng = np.random.default_rng(seed)
  out = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
  out['scanned/fc/kernel'] *= np.array([0.01, 1, 30]).reshape(-1, 1, 1)
  out[zero] *= 0
  return out


PARAMS = values(0, zero='zeros/kernel')
GRADS = [values(1 + t, zero='unused/kernel') for t in range(10)]


def nested(tree):
  """{'a/b': x} -> {'a': {'b': x}}, as the parameters of a module are."""
  out = {}
  for name, x in tree.items():
    *parents, last = name.split('/')
    at = out
    for parent in parents:
      at = at.setdefault(parent, {})
    at[last] = x
  return out


def flat(tree):
  return {parallel.path_name(path): np.asarray(x)
          for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def apart(tree):
  """The same model without a scan: 'block0/fc/kernel', 'block1/fc/kernel' ..."""
  out = {}
  for name, x in tree.items():
    if name.startswith('scanned/'):
      out |= {name.replace('scanned', f'block{i}'): x[i] for i in range(LAYERS)}
    else:
      out[name] = x
  return out


def run(tx, params, grads, dtype=None):
  """The parameters after every step, by name."""
  cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), nested(tree))
  params = cast(params)
  state, path = tx.init(params), []
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update(cast(g), state, params)
    params = optax.apply_updates(params, updates)
    path.append(flat(params))
  return path


def by_definition(params, grads, *, wd, eps, b1=0.9, b2=0.999, correct=True, ratio=True):
  """LAMB, or AdamW without `ratio`, one tensor at a time, from the equations of the paper."""
  path = {}
  for name, w in params.items():
    plain = name.endswith(('/bias', '/scale'))
    m = v = np.zeros_like(w)
    path[name] = []
    for t, g in enumerate((g[name] for g in grads), start=1):
      m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
      c1, c2 = (1 - b1**t, 1 - b2**t) if correct else (1, 1)
      u = m / c1 / (np.sqrt(v / c2) + eps) + (0 if plain else wd) * w
      lengths = np.linalg.norm(w.ravel()), np.linalg.norm(u.ravel())
      q = lengths[0] / lengths[1] if ratio and not plain and all(lengths) else 1
      w = w - rate(t - 1) * q * u
      path[name].append(w)
  return [{name: path[name][t] for name in path} for t in range(len(grads))]


def compare(got, want, **tolerance):
  for step, (a, b) in enumerate(zip(got, want, strict=True)):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_allclose(a[name], b[name], err_msg=f'{name}, step {step}', **tolerance)


# --- LAMB -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('correct', [True, False])
@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_ten_steps_of_lamb_equal_the_definition(dtype, correct):
  want = by_definition(apart(PARAMS), [apart(g) for g in GRADS], wd=0.1, eps=1e-6, correct=correct)
  with jax.enable_x64(dtype == 'float64'):
    tx = optimizers.lamb(rate, weight_decay=0.1, bias_correction=correct)
    got = [apart(p) for p in run(tx, PARAMS, GRADS, dtype)]
  assert got[0]['head/kernel'].dtype == dtype
  # float32: 1 - 0.999^t has 4 digits at t = 1; it enters by its root.
  tolerance = dict(rtol=1e-12, atol=1e-14) if dtype == 'float64' else dict(rtol=1e-4, atol=1e-5)
  compare(got, want, **tolerance)


def test_the_gradients_are_clipped_before_everything_else():
  clip = lambda g: {k: x * min(1, 0.5 / np.sqrt(sum((x**2).sum() for x in g.values())))
                    for k, x in g.items()}
  want = by_definition(apart(PARAMS), [apart(clip(g)) for g in GRADS], wd=0.01, eps=1e-6)
  with jax.enable_x64(True):
    got = [apart(p) for p in run(optimizers.lamb(rate, clip_norm=0.5), PARAMS, GRADS)]
  compare(got, want, rtol=1e-12, atol=1e-14)


def test_a_tensor_or_step_of_zeros_has_ratio_1():
  # Without decay a gradient of 0 is a step of 0; Adam's first step is the sign of the gradient.
  params = {'a/kernel': np.zeros(4), 'b/kernel': np.ones(4)}
  grads = {'a/kernel': np.array([3.0, -3, 3, -3]), 'b/kernel': np.zeros(4)}
  with jax.debug_nans(True):
    moved = run(optimizers.lamb(0.1, weight_decay=0.0), params, [grads])[0]
  np.testing.assert_allclose(moved['a/kernel'], [-0.1, 0.1, -0.1, 0.1], rtol=1e-4)
  np.testing.assert_array_equal(moved['b/kernel'], np.ones(4))
  # One layer of a stack may be 0 while another is not: that one moves by 0.1 |w| = 0.6 in all.
  stack = {'scanned/kernel': np.array([[0.0, 0, 0, 0], [3, 3, 3, 3]])}
  grads = {'scanned/kernel': np.ones((2, 4))}
  moved = run(optimizers.lamb(0.1, weight_decay=0.0), stack, [grads])[0]
  np.testing.assert_allclose(moved['scanned/kernel'], [[-0.1] * 4, [2.7] * 4], rtol=1e-4)


def test_excluded_names_and_a_function():
  params = {'a/kernel': np.full(4, 5.0), 'b/kernel': np.full(4, 5.0)}
  grads = {name: np.ones(4) for name in params}
  tx = optimizers.lamb(0.1, weight_decay=0.0, exclude=lambda name, leaf: name.startswith('b/'))
  moved = run(tx, params, [grads])[0]
  np.testing.assert_allclose(moved['a/kernel'], 4.5, rtol=1e-4)
  np.testing.assert_allclose(moved['b/kernel'], 4.9, rtol=1e-4)


def test_optax_lamb_differs_on_biases_and_stacks_and_agrees_elsewhere():
  mask = lambda tree: jax.tree.map(lambda x: not x, optimizers.excluded(tree))
  with jax.enable_x64(True):
    ours = run(optimizers.lamb(rate, weight_decay=0.1), PARAMS, GRADS[:1])[0]
    theirs = run(optax.lamb(rate, weight_decay=0.1, mask=mask), PARAMS, GRADS[:1])[0]
  same = {name for name in ours if np.allclose(ours[name], theirs[name], rtol=1e-7, atol=0)}
  assert same == {'embed/embedding', 'head/kernel', 'zeros/kernel', 'unused/kernel'}
  # One ratio for the stack moves the small layer by many times its length; ours by 0.02 of it.
  before = PARAMS['scanned/fc/kernel'][0]
  moved = lambda p: np.linalg.norm(p['scanned/fc/kernel'][0] - before) / np.linalg.norm(before)
  assert moved(ours) == pytest.approx(0.02, rel=1e-6)
  assert moved(theirs) > 10


# --- stacks of layers -----------------------------------------------------------------------------


@pytest.mark.parametrize('name, options', [
  ('lamb', {}), ('lamb', dict(exclude='nothing')), ('lamb', dict(exclude='one_dimensional')),
  ('lars', {}), ('lars', dict(denominator='split')), ('lars', dict(exclude='one_dimensional')),
  ('adamw', dict(exclude='one_dimensional'))])
def test_a_stack_is_the_same_as_its_layers(name, options):
  with jax.enable_x64(True):
    tx = optimizers.OPTIMIZERS[name](rate, weight_decay=0.1, **options)
    stacked = [apart(p) for p in run(tx, PARAMS, GRADS[:2])]
    separate = run(tx, apart(PARAMS), [apart(g) for g in GRADS[:2]])
  compare(stacked, separate, rtol=1e-13, atol=1e-15)


def test_scanned_is_a_whole_component_of_the_path():
  # 'unscanned' and 'scanned_twice' are other modules: their first axis is an axis of the tensor.
  w = np.array([[3.0, 3, 3, 3], [0, 0, 0, 0]])
  for name in ('unscanned/kernel', 'scanned_twice/kernel'):
    moved = run(optimizers.lamb(0.1, weight_decay=0.0), {name: w}, [{name: np.ones((2, 4))}])[0]
    # |w| = 6, |u| = sqrt(8)
    np.testing.assert_allclose(moved[name], w - 0.1 * 6 / np.sqrt(8), rtol=1e-4)


# --- sharding -------------------------------------------------------------------------------------


@pytest.mark.parametrize('spec', [PartitionSpec('fsdp'), PartitionSpec(None, 'fsdp'),
                                  PartitionSpec(None, None, 'fsdp')])
@pytest.mark.parametrize('name', ['lamb', 'lars'])
def test_sharded_stacks_equal_unsharded_and_are_not_gathered(name, spec):
  rng = np.random.default_rng(0)
  w, *grads = (rng.normal(size=(8, 16, 24)).astype(np.float32) for _ in range(3))
  tx = optimizers.OPTIMIZERS[name](0.1, weight_decay=0.1)
  sharding = NamedSharding(parallel.make_mesh({'fsdp': 8}), spec)

  @jax.jit
  def two_steps(w, grads):
    params = {'scanned': {'kernel': w}}
    state = tx.init(params)
    for g in grads:
      updates, state = tx.update({'scanned': {'kernel': g}}, state, params)
      params = optax.apply_updates(params, updates)
    return params['scanned']['kernel']

  place = jax.device_put((w, grads), sharding)
  np.testing.assert_allclose(two_steps(*place), two_steps(w, grads), rtol=1e-6, atol=1e-6)
  program = two_steps.lower(*place).compile().as_text()
  assert two_steps(*place).sharding.is_equivalent_to(sharding, 3)
  assert not re.search(r'all-gather|all-to-all', program)
  # Layers on devices of their own need no communication at all.
  assert ('all-reduce' in program) == (spec != PartitionSpec('fsdp'))


# --- Adam -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_ten_steps_of_berts_adam_equal_the_definition(dtype):
  want = by_definition(PARAMS, GRADS, wd=0.01, eps=1e-6, correct=False, ratio=False)
  with jax.enable_x64(dtype == 'float64'):
    tx = optimizers.adamw(rate, epsilon=1e-6, bias_correction=False)
    got = run(tx, PARAMS, GRADS, dtype)
  tolerance = dict(rtol=1e-12, atol=1e-14) if dtype == 'float64' else dict(rtol=1e-5, atol=2e-6)
  compare(got, want, **tolerance)


def test_with_bias_correction_adam_equals_optax_and_the_definition():
  mask = lambda tree: jax.tree.map(lambda x: not x, optimizers.excluded(tree))
  with jax.enable_x64(True):
    got = run(optimizers.adamw(rate, b2=0.98, weight_decay=0.1), PARAMS, GRADS)
    theirs = run(optax.adamw(rate, b2=0.98, weight_decay=0.1, mask=mask), PARAMS, GRADS)
  compare(got, theirs, rtol=1e-13, atol=1e-15)
  want = by_definition(PARAMS, GRADS, wd=0.1, eps=1e-8, b2=0.98, ratio=False)
  compare(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('make', [optimizers.adamw, optimizers.lamb])
def test_bias_correction_changes_the_step_but_not_the_state(make):
  # At t = 1 the step without it is 0.1 g / (sqrt(0.001) |g|).
  params, grads = {'bias': jnp.zeros(2)}, {'bias': jnp.array([2.0, -3.0])}
  with_it, without = (make(1.0, bias_correction=b, epsilon=1e-9) for b in (True, False))
  step, state = with_it.update(grads, with_it.init(params), params)
  longer, other = without.update(grads, without.init(params), params)
  np.testing.assert_allclose(step['bias'], [-1, 1], rtol=1e-4)
  np.testing.assert_allclose(longer['bias'], [-10**.5, 10**.5], rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, state, other)


def test_queries_keys_and_values_have_their_own_ratios():
  """A fused kernel equals three kernels, plain and in a scanned stack; by default it is one tensor."""
  rng = np.random.default_rng(5)
  scale = np.array([.01, 1, 30]).repeat(4)
  for shape in ((4, 12), (2, 4, 12)):
    w, g = rng.normal(size=shape) * scale, rng.normal(size=shape)
    parts = [np.split(x, 3, axis=-1) for x in (w, g)]
    inside = 'scanned/' if len(shape) == 3 else ''
    apart_w, apart_g = ({f'{inside}{name}/kernel': x for name, x in zip('qkv', side)}
                        for side in parts)
    want = run(optimizers.lamb(0.1), apart_w, [apart_g] * 3)[-1]
    fused = f'{inside}qkv/kernel'
    got = run(optimizers.lamb(0.1, split_qkv=True), {fused: w}, [{fused: g}] * 3)[-1][fused]
    np.testing.assert_allclose(got, np.concatenate([want[name] for name in apart_w], -1), rtol=1e-5)
    as_one = run(optimizers.lamb(0.1), {fused: w}, [{fused: g}] * 3)[-1][fused]
    assert np.abs(as_one - got).max() > 0.1
