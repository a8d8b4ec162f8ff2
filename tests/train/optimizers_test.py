"""Optimizers against float64 NumPy written from the definitions, torch's values, and sharding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ssl_jax import parallel
from ssl_jax.train import optimizers, schedules

SHAPES = {'conv': {'kernel': (3, 4), 'bias': (4,)}, 'norm': {'scale': (4,), 'bias': (4,)}}


def tree(seed, dtype=np.float64):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda shape: rng.normal(size=shape).astype(dtype), SHAPES,
                      is_leaf=lambda x: isinstance(x, tuple))


def run(tx, params, grads):
  """The parameters after every step."""
  state, path = tx.init(params), []
  for g in grads:
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return path


def lars_by_definition(params, grads, rate, *, wd, eta, mu, inside, joint, nesterov, exclude):
  """LARS, one tensor at a time."""
  weights = {name: w.copy() for name, w in params.items()}
  velocity = {name: np.zeros_like(w) for name, w in params.items()}
  path = []
  for t, g_t in enumerate(grads):
    for name, w in weights.items():
      g = g_t[name]
      if name.split('/')[-1] in exclude:
        step = g
      else:
        step = g + wd * w
        below = np.linalg.norm(step) if joint else np.linalg.norm(g) + wd * np.linalg.norm(w)
        step = step * eta * np.linalg.norm(w) / below
      lr = rate(t)
      step = lr * step if inside else step
      velocity[name] = mu * velocity[name] + step
      move = step + mu * velocity[name] if nesterov else velocity[name]
      weights[name] = w - (move if inside else lr * move)
    path.append({name: w.copy() for name, w in weights.items()})
  return path


def flat(params):
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {parallel.path_name(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize('inside, joint, nesterov',
                         list(itertools.product([True, False], repeat=3)))
def test_lars_variants_equal_their_definition(inside, joint, nesterov):
  # A rate that changes separates `inside` from `outside`; decay 0.5 separates joint from split.
  rate = lambda t: 0.4 * (1 + t) / 10
  params, grads = tree(0), [tree(1 + t) for t in range(10)]
  expected = lars_by_definition(
    flat(params), [flat(g) for g in grads], rate, wd=0.5, eta=0.02, mu=0.9, inside=inside,
    joint=joint, nesterov=nesterov, exclude=('bias', 'scale'))
  with jax.enable_x64(True):
    tx = optimizers.lars(
      lambda count: 0.4 * (1 + count) / 10, momentum=0.9, weight_decay=0.5, trust_coefficient=0.02,
      nesterov=nesterov, learning_rate_inside=inside,
      denominator='joint' if joint else 'split')
    path = run(tx, jax.tree.map(jnp.asarray, params), grads)
  for got, want in zip(path, expected, strict=True):
    for name, value in flat(got).items():
      np.testing.assert_allclose(value, want[name], rtol=1e-12, atol=1e-14, err_msg=name)


# Three steps on w = linspace(-1, 2, 6) as [2, 3] (weight decay 0.1) and b = (0.5, -0.25) (none),
# with gradients sin((1..n)(t + 1)) and sin((1..n)(t + 4)) at step t, in float64; learning rate 0.1,
# momentum 0.9, betas 0.9 and 0.95, trust coefficient 0.02. Recorded by running torch 2.14.1's SGD
# and AdamW, lightly 1.6.0's LARS and facebookresearch/moco-v3's LARS (moco/optimizer.py).
RECORDED = {
  'sgd': [-1.3551976763, -0.449747744, 0.1627648033, 0.824396978, 1.6161559614, 2.1399316215,
          0.9152306382, -0.361094782],
  'sgd, nesterov': [-1.4716179015, -0.4163130214, 0.1335015897, 0.8266422408, 1.6311274611,
                    2.2211824256, 1.0732218012, -0.3408617255],
  'adamw': [-1.2524373392, -0.4780389102, 0.0981787054, 0.8683386941, 1.5820974629, 2.2294045624,
            0.7899125122, -0.3613691103],
  'lightly': [-1.0098802296, -0.4010670895, 0.1985815006, 0.8010678912, 1.4052667939,
              2.0043806859, 0.9152306382, -0.361094782],
  'lightly, nesterov': [-1.0133015223, -0.3999455482, 0.1974101528, 0.8015274781, 1.4051754238,
                        2.0071203231, 1.0732218012, -0.3408617255],
  'moco-v3': [-1.0124945865, -0.401797196, 0.1980758953, 0.8018431487, 1.4067595624, 2.0054936001,
              0.9152306382, -0.361094782],
}
SPLIT = dict(weight_decay=0.1, trust_coefficient=0.02, learning_rate_inside=False,
             denominator='split', epsilon=1e-8)
OURS = {
  'sgd': lambda: optimizers.sgd(0.1, weight_decay=0.1),
  'sgd, nesterov': lambda: optimizers.sgd(0.1, weight_decay=0.1, nesterov=True),
  'adamw': lambda: optimizers.adamw(0.1, b2=0.95, weight_decay=0.1),
  'lightly': lambda: optimizers.lars(0.1, **SPLIT),
  'lightly, nesterov': lambda: optimizers.lars(0.1, nesterov=True, **SPLIT),
  'moco-v3': lambda: optimizers.lars(
    0.1, weight_decay=0.1, trust_coefficient=0.02, learning_rate_inside=False,
    exclude='one_dimensional'),
}


@pytest.mark.parametrize('name', OURS)
def test_values_of_torch_lightly_and_moco_v3(name):
  gradient = lambda t, n: np.sin(np.arange(1, n + 1) * (t + 1.0))
  grads = [{'kernel': gradient(t, 6).reshape(2, 3), 'bias': gradient(t + 3, 2)} for t in range(3)]
  with jax.enable_x64(True):
    params = {'kernel': jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), 'bias': jnp.array([0.5, -0.25])}
    last = run(OURS[name](), params, grads)[-1]
  got = np.concatenate([last['kernel'].ravel(), last['bias']])
  np.testing.assert_allclose(got, RECORDED[name], rtol=0, atol=2e-10)


def test_a_tensor_or_gradient_of_zeros_moves_at_the_plain_rate():
  zeros, ones = {'kernel': jnp.zeros(4)}, {'kernel': jnp.ones(4)}
  for denominator in ('joint', 'split'):
    tx = optimizers.lars(0.1, weight_decay=0.0, denominator=denominator)
    np.testing.assert_allclose(run(tx, zeros, [ones])[0]['kernel'], -0.1 * np.ones(4), rtol=1e-6)
    np.testing.assert_array_equal(run(tx, ones, [zeros])[0]['kernel'], np.ones(4))
  # With decay and no gradient, joint still has a direction, beta w; LARC and lightly stop there.
  joint = optimizers.lars(0.1, weight_decay=0.5, trust_coefficient=0.01)
  np.testing.assert_allclose(run(joint, ones, [zeros])[0]['kernel'], 1 - 0.1 * 0.01, rtol=1e-6)
  split = optimizers.lars(0.1, weight_decay=0.5, trust_coefficient=0.01, denominator='split')
  np.testing.assert_array_equal(run(split, ones, [zeros])[0]['kernel'], np.ones(4))


@pytest.mark.parametrize('denominator', ['joint', 'split'])
def test_epsilon_is_added_to_the_denominator(denominator):
  # |w| = 2, |g| = 1: the rate is 0.5 x 2 / (1 + 3), along g = (1, 0, 0, 0).
  tx = optimizers.lars(1.0, weight_decay=0.0, trust_coefficient=0.5, denominator=denominator,
                       epsilon=3.0)
  moved = run(tx, {'kernel': jnp.ones(4)}, [{'kernel': jnp.eye(4)[0]}])[0]['kernel']
  np.testing.assert_allclose(moved, [0.75, 1, 1, 1], rtol=1e-6)


def test_optax_lars_adapts_biases_by_default_and_ours_does_not():
  params, grads = tree(0, np.float32), [tree(1, np.float32)]
  ours = run(optimizers.lars(0.1, weight_decay=1e-4), params, grads)[0]
  theirs = run(optax.lars(0.1, weight_decay=1e-4), params, grads)[0]
  everything = run(optimizers.lars(0.1, weight_decay=1e-4, exclude='nothing'), params, grads)[0]
  for name, value in flat(theirs).items():
    np.testing.assert_allclose(flat(everything)[name], value, rtol=1e-5, err_msg=name)
    same = np.allclose(flat(ours)[name], value, rtol=1e-5)
    assert same == name.endswith('kernel'), name
  bias, g = params['conv']['bias'], grads[0]['conv']['bias']
  np.testing.assert_allclose(ours['conv']['bias'], bias - 0.1 * g, rtol=1e-5)


@pytest.mark.parametrize('make', [optimizers.sgd, optimizers.adamw])
def test_decay_leaves_excluded_leaves_alone(make):
  params, grads = tree(0, np.float32), [tree(1, np.float32)]
  plain = flat(run(make(0.1, weight_decay=0.0), params, grads)[0])
  decayed = flat(run(make(0.1, weight_decay=0.5), params, grads)[0])
  everything = flat(run(make(0.1, weight_decay=0.5, exclude='nothing'), params, grads)[0])
  for name in plain:
    changed = not np.array_equal(plain[name], decayed[name])
    assert changed == name.endswith('kernel'), name
    assert not np.array_equal(plain[name], everything[name]), name


def test_predicates():
  params = {'layers': {'bias': jnp.ones((2, 3)), 'scale': jnp.ones(3), 'kernel': jnp.ones(3)},
            'bias_head': {'kernel': jnp.ones((2, 2))}, 'temperature': jnp.ones(()),
            'scanned': {'gain': jnp.ones((2, 3)), 'kernel': jnp.ones((2, 3, 3))}}
  chosen = lambda exclude: {k for k, v in flat(optimizers.excluded(params, exclude)).items() if v}
  assert chosen('bias_and_norm') == {'layers/bias', 'layers/scale'}
  assert chosen('one_dimensional') == {'layers/scale', 'layers/kernel', 'temperature',
                                         'scanned/gain'}  # a vector per layer
  assert chosen('nothing') == set()
  assert chosen(lambda name, leaf: name.startswith('bias_head')) == {'bias_head/kernel'}


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_state_follows_the_parameters_sharding(name):
  mesh = parallel.make_mesh({'fsdp': 8})
  params = {'encoder': {'kernel': jnp.ones((4, 16)), 'bias': jnp.ones(16)}}
  state = optimizers.OPTIMIZERS[name](0.1, clip_norm=1.0).init(params)
  rules = [('encoder/kernel$', 'fsdp')]
  shardings = flat_shardings(parallel.infer_sharding(state, rules, mesh))
  names = [n for n in shardings if n.endswith('encoder/kernel')]
  assert len(names) == {'lars': 1, 'sgd': 1, 'adamw': 2, 'lamb': 2}[name]
  assert all((shardings[n].spec == PartitionSpec(None, 'fsdp')) == (n in names) for n in shardings)
  # Every leaf belongs to a parameter or is the count of updates.
  assert all(n.endswith(('encoder/kernel', 'encoder/bias', 'count')) for n in shardings)


def flat_shardings(shardings):
  return {parallel.path_name(p): s for p, s in jax.tree_util.tree_flatten_with_path(shardings)[0]}


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_the_same_on_one_device_and_sharded_over_eight(name):
  params = {'kernel': np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)}
  grads = {'kernel': np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)}
  tx = optimizers.OPTIMIZERS[name](0.1, weight_decay=0.1, clip_norm=0.5)
  mesh = parallel.make_mesh({'fsdp': 8})

  def step(params, grads):
    updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state

  sharded = parallel.infer_sharding(params, [('kernel', 'fsdp')], mesh)
  place = jax.tree.map(jax.device_put, (params, grads), (sharded, sharded))
  got, state = jax.jit(step)(*place)
  want, _ = jax.jit(step)(*jax.tree.map(jnp.asarray, (params, grads)))
  np.testing.assert_allclose(got['kernel'], want['kernel'], rtol=1e-6, atol=1e-7)
  moments = [x for x in jax.tree.leaves(state) if x.ndim]
  assert moments and all(len(x.sharding.device_set) == 8 for x in moments)
  assert not any(x.is_fully_replicated for x in moments)


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_bfloat16_parameters_keep_float32_state(name):
  params, grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (tree(0), tree(1)))
  tx = optimizers.OPTIMIZERS[name](0.1)
  state = tx.init(params)
  updates, new = tx.update(grads, state, params)
  assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(new)]
  assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype('float32'), jnp.dtype('int32')}
  moved = optax.apply_updates(params, updates)
  assert {x.dtype for x in jax.tree.leaves(moved)} == {jnp.dtype(jnp.bfloat16)}
  raised = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  exact, _ = tx.update(raised(grads), state, raised(params))
  jax.tree.map(np.testing.assert_array_equal, updates, exact)


def test_clip_norm_is_the_global_norm_of_the_gradient():
  params = {'a': {'kernel': jnp.zeros(2)}, 'b': {'kernel': jnp.zeros(2)}}
  grads = {'a': {'kernel': jnp.array([3.0, 0])}, 'b': {'kernel': jnp.array([0, 4.0])}}
  last = run(optimizers.sgd(1.0, clip_norm=2.0), params, [grads])[-1]
  np.testing.assert_allclose(last['a']['kernel'], [-1.2, 0], rtol=1e-6)  # norm 5 becomes 2
  np.testing.assert_allclose(last['b']['kernel'], [0, -1.6], rtol=1e-6)


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_a_schedule_counts_updates_and_a_number_has_the_same_state(name):
  params, grads = {'kernel': jnp.ones(2)}, {'kernel': jnp.ones(2)}
  warm = optimizers.OPTIMIZERS[name](schedules.warmup_cosine(0.1, steps=10, warmup_steps=2))
  path = run(warm, params, [grads] * 2)
  np.testing.assert_array_equal(path[0]['kernel'], params['kernel'])  # the rate of step 0 is 0
  assert np.all(path[1]['kernel'] < 1)
  number = optimizers.OPTIMIZERS[name](0.1)
  assert jax.tree.structure(warm.init(params)) == jax.tree.structure(number.init(params))


def test_mistakes_are_explained():
  for make in optimizers.OPTIMIZERS.values():
    with pytest.raises(ValueError, match="'biases'.*'bias_and_norm', 'nothing', 'one_dimensional'"):
      make(0.1, exclude='biases')
  with pytest.raises(ValueError, match="'sum'.*'joint', 'split'"):
    optimizers.lars(0.1, denominator='sum')


# --- what DINO adds to AdamW ----------------------------------------------------------------------


def dino_adamw_by_definition(params, grads, rate, *, clip, first, final, steps):
  """Tensor by tensor: its gradient's own norm, then Adam, then a decay that follows half a cosine."""
  w, m, v = ({k: f(x) for k, x in params.items()} for f in (np.copy, np.zeros_like, np.zeros_like))
  for t, g_t in enumerate(grads):
    decay = final + 0.5 * (first - final) * (1 + np.cos(np.pi * t / steps))
    for name, g in g_t.items():
      g = g * min(1, clip / (np.linalg.norm(g) + 1e-6))
      m[name] = 0.9 * m[name] + 0.1 * g
      v[name] = 0.999 * v[name] + 0.001 * g * g
      step = m[name] / (1 - 0.9**(t + 1)) / (np.sqrt(v[name] / (1 - 0.999**(t + 1))) + 1e-8)
      w[name] = w[name] - rate * (step + decay * w[name] * (w[name].ndim > 1))
  return w


def test_adamw_clips_each_tensor_and_raises_the_decay_as_dino_does():
  params, grads = tree(0), [tree(1 + t) for t in range(10)]
  grads = [jax.tree.map(lambda g, t=t: g * 10.**(t % 3 - 1), g) for t, g in enumerate(grads)]
  expected = dino_adamw_by_definition(flat(params), [flat(g) for g in grads], 0.1, clip=1.5, first=0.04,
                                      final=0.4, steps=10)
  with jax.enable_x64(True):
    tx = optimizers.adamw(0.1, clip_per_tensor=1.5, weight_decay=0.04, final_weight_decay=0.4, steps=10,
                          exclude='one_dimensional')
    last = run(tx, jax.tree.map(jnp.asarray, params), grads)[-1]
    plain = run(optimizers.adamw(0.1, clip_norm=1.5, weight_decay=0.04, exclude='one_dimensional'),
                jax.tree.map(jnp.asarray, params), grads)[-1]
  for name, value in flat(last).items():
    np.testing.assert_allclose(value, expected[name], rtol=1e-10, err_msg=name)
    assert not np.allclose(flat(plain)[name], value, rtol=1e-3)


def test_layers_of_a_scan_are_clipped_one_by_one():
  g = np.stack([np.full((2, 2), 8.), np.full((2, 2), 0.01)]).astype(np.float32)
  clip = optimizers._clip_each(1.)
  for name, expected in (('scanned', [0.5, 0.01]), ('layer', [8 / 16, 0.01 / 16])):
    got, _ = clip.update({name: {'kernel': g}}, clip.init(None))
    np.testing.assert_allclose(got[name]['kernel'][:, 0, 0], expected, rtol=1e-5)


def test_a_final_decay_needs_the_steps_of_the_run():
  with pytest.raises(ValueError, match='number of steps'):
    optimizers.adamw(0.1, final_weight_decay=0.4)
