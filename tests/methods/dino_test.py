"""DINO: teacher, centre, temperature, frozen last layer, crops of two sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import testing
from ssl_jax.losses import distillation
from ssl_jax.methods import dino
from ssl_jax.models import heads, vit
from ssl_jax.models.convnet import convnet
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.parallel import local, path_name
from ssl_jax.train.step import init_state, make_train_step
from ssl_jax.types import Mode

ROWS, K = 8, 7
RNG = np.random.default_rng(0)
BATCH = {'views': RNG.uniform(size=(ROWS, 2, 8, 8, 1)).astype(np.float32),
         'local_views': RNG.uniform(size=(ROWS, 3, 4, 4, 1)).astype(np.float32)}
TINY = dict(layers=2, hidden=6, bottleneck=4, out=K)
NET = from_linen(with_head(convnet(channels=(4,), strides=(2,)), heads.dino(**TINY)))


def method(**options):
  usual = dict(momentum=0.9, steps=100, steps_per_epoch=10, warmup_teacher_epochs=2.)
  return dino.build(NET, **{**usual, **options})


@pytest.fixture(scope='module')
def apart():
  """(params, state) where the teacher is no copy of the student and the centre not zero."""
  params, state = jax.jit(method().init)(jax.random.key(0), BATCH)
  shifted = jax.tree.map(lambda x: x + 0.1 * np.sign(RNG.normal(size=x.shape)).astype(np.float32),
                         state['teacher']['params'])
  return params, {**state, 'teacher': {**state['teacher'], 'params': shifted},
                  'center': np.linspace(-.2, .2, K).astype(np.float32)}


def run(made, params, state, batch=BATCH, step=0):
  return jax.jit(made.loss)(params, state, batch, key=jax.random.key(1), step=step)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def logits(params, state, views):
  (_, z), state = NET.apply(params, state, views.reshape(-1, *views.shape[2:]), Mode(train=True))
  return z.reshape(ROWS, -1, K), state


def test_the_loss_centre_and_statistics_are_those_of_the_formula(apart):
  params, state = apart
  said, seen = logits(*state['teacher'].values(), BATCH['views'])
  large, net = logits(params, state['net'], BATCH['views'])
  small, net = logits(params, net, BATCH['local_views'])
  student = jnp.concatenate([large, small], 1)
  for step, temperature in ((0, 0.04), (5, 0.0475), (20, 0.07), (99, 0.07)):
    value, (new, _) = run(method(), params, state, step=step)
    np.testing.assert_allclose(value, distillation.dino(
      student, said, student_temperature=0.1, teacher_temperature=temperature, center=state['center']),
      rtol=1e-4)
  np.testing.assert_allclose(new['center'], 0.9 * state['center'] + 0.1 * said.mean((0, 1)), atol=1e-6)
  close((new['net'], new['teacher']['state']), (net, seen))


def test_the_teacher_starts_as_the_student_and_follows_after_the_optimizer(apart):
  made = method()
  params, state = jax.jit(made.init)(jax.random.key(0), BATCH)
  jax.tree.map(np.testing.assert_array_equal, state['teacher']['params'], params)
  np.testing.assert_array_equal(state['center'], np.zeros(K))
  params, state = apart
  for step in (0, 50, 100):
    tau = 1 - 0.1 * (np.cos(np.pi * step / 100) + 1) / 2
    same, new = made.after(params, state, step)
    assert same is params
    close(new['teacher']['params'], jax.tree.map(
      lambda t, s, tau=tau: tau * t + (1 - tau) * s, state['teacher']['params'], params))


def test_a_step_of_the_program_moves_the_teacher_with_the_new_parameters():
  made, tx = method(momentum_schedule='constant', freeze_last_layer_epochs=0.), optax.sgd(0.5)
  ts = jax.jit(lambda: init_state(made, tx, jax.random.key(0), BATCH))()
  new, _ = jax.jit(make_train_step(made, tx, key=jax.random.key(1)))(ts, BATCH)
  close(new.state['teacher']['params'],
        jax.tree.map(lambda old, p: 0.9 * old + 0.1 * p, ts.params, new.params))


def test_the_gradient_does_not_reach_the_teacher(apart):
  params, state = apart
  grad = jax.jit(jax.grad(lambda t: method().loss(
    params, {**state, 'teacher': {**state['teacher'], 'params': t}}, BATCH, key=jax.random.key(1),
    step=0)[0]))
  assert all(not np.any(g) for g in jax.tree.leaves(grad(state['teacher']['params'])))


@pytest.mark.parametrize('norm_last_layer, names', [
  (True, {'head/prototypes'}), (False, {'head/prototypes', 'head/g'})])
def test_the_last_layer_is_frozen_for_its_epochs(norm_last_layer, names):
  net = from_linen(with_head(convnet(channels=(4,), strides=(2,)),
                             heads.dino(norm_last_layer=norm_last_layer, **TINY)))
  made = dino.build(net, steps=100, steps_per_epoch=10)
  params, _ = jax.eval_shape(made.init, jax.random.key(0), BATCH)
  for step, expected in ((0, names), (9, names), (10, set())):
    found = {path_name(path) for path, still in
             jax.tree_util.tree_leaves_with_path(made.frozen(params, step)) if still}
    assert found == expected


def test_embed_and_calibrate_are_the_teachers(apart):
  params, state = apart
  made, images = method(), BATCH['views'][:, 0]
  new = jax.jit(made.calibrate)(params, state, images)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, new['net'], state['net'])
  teacher = new['teacher']
  h, _ = NET.apply(teacher['params'], teacher['state'], images, Mode())[0]
  np.testing.assert_allclose(made.embed(params, new, images), h, rtol=1e-5)
  assert made.encoder(params, state) == (state['teacher']['params'], state['teacher']['state'])


def test_without_small_crops_it_is_the_loss_of_two_views(apart):
  params, state = apart
  said, _ = logits(*state['teacher'].values(), BATCH['views'])
  student, _ = logits(params, state['net'], BATCH['views'])
  value, _ = run(method(), params, state, {'views': BATCH['views']})
  np.testing.assert_allclose(value, distillation.dino(
    student, said, student_temperature=0.1, teacher_temperature=0.04, center=state['center']),
    rtol=1e-4)


def transformer(on_batch=local):
  backbone = vit.VisionTransformer(8, 2, 2, 4, 8, 'learned', 'token', False, 0.5, True, 'normal', None)
  net = from_linen(with_head(backbone, heads.dino(**TINY)))
  return dino.build(net, steps=100, steps_per_epoch=10, on_batch=on_batch)


def test_a_transformer_with_drop_path_has_a_teacher_without():
  made = transformer()
  params, state = jax.jit(made.init)(jax.random.key(0), BATCH)
  losses, centers = [], []
  for seed in (1, 2):
    value, (new, _) = jax.jit(made.loss)(params, state, BATCH, key=jax.random.key(seed), step=0)
    losses.append(float(value))
    centers.append(new['center'])
  assert losses[0] != losses[1]
  np.testing.assert_array_equal(*centers)


@pytest.mark.slow
def test_a_transformer_is_equal_on_8_devices():
  testing.check_same_on_any_device_count(transformer, BATCH)


@pytest.mark.parametrize('options, message', [
  ({'momentum': 1.1}, 'momenta'), ({'center_momentum': -0.1}, 'momenta'),
  ({'student_temperature': 0.}, 'temperatures'), ({'warmup_teacher_temperature': 0.}, 'temperatures'),
  ({'steps': None}, 'steps'), ({'steps_per_epoch': None}, 'steps_per_epoch'),
  ({'momentum_schedule': 'quick'}, 'unknown schedule')])
def test_what_it_cannot_run_with_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    method(**options)


def test_without_a_warm_up_the_teacher_is_at_its_temperature_at_once(apart):
  params, state = apart
  early = run(method(warmup_teacher_epochs=0.), params, state, step=0)[0]
  np.testing.assert_allclose(early, run(method(), params, state, step=99)[0], rtol=1e-6)
