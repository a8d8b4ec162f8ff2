"""Faults 28 to 32: NaN in one place, NaN that stays, spikes, degenerate batches, collapse."""

import inspect
import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from ssl_jax import build, runs
from ssl_jax.cli import main
from ssl_jax.data.batches import batches
from ssl_jax.losses import (
  classification,
  clustering,
  contrastive,
  distillation,
  language,
  prediction,
  redundancy,
)
from ssl_jax.methods import moco
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.parallel import batch_sharding, inside, make_mesh, over
from ssl_jax.train import spikes
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import read_lines
from ssl_jax.train.spikes import skip_spikes
from ssl_jax.train.step import init_state, make_program, make_train_step
from ssl_jax.types import Method
from ssl_jax.views import masks

DEMO = str(pathlib.Path(__file__).parents[2] / 'configs' / 'simclr_fashion_mnist.py')


def train(workdir, *arguments):
  return main(['train', f'--config={DEMO}:smoke', f'--workdir={workdir}', '--cache_dir=none',
               '--config.evaluate.every=None', *arguments])


WITHOUT_HEALTH = '--config.evaluate.health_every=None'


def saved(workdir):
  """{step: the state in its checkpoint}"""
  config = runs.read_config(workdir)
  state = build.experiment(config).program(config).state
  checkpoints = Checkpoints(workdir / runs.CHECKPOINTS)
  return {step: jax.device_get(checkpoints.restore(step, state)) for step in checkpoints.steps()}


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_finite(tree, words=''):
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    assert np.isfinite(np.asarray(x, np.float32)).all(), f'{words} {jax.tree_util.keystr(path)}'


# --- 28 -------------------------------------------------------------------------------------------

DEVICES, BAD_ROW = 8, 6  # of 16 rows, which device 3 holds
SMALL = with_head(convnet(channels=(4,), strides=(2,)), mlp(layers=2, hidden=6, out=5))


@jax.custom_vjp
def poison(x, amount):
  """x, whose gradient is what `amount` is not 0 says."""
  del amount
  return x


poison.defvjp(lambda x, amount: (x, amount), lambda amount, g: (g + jnp.sum(amount), None))


def poisoned(on_batch) -> Method:
  """MoCo (key encoder, queue, batch statistics), of whose gradients batch['poison'] spoils one."""
  method = moco.build(from_linen(SMALL), queue=32, momentum=.9, on_batch=on_batch)

  def loss(params, state, batch, **options):
    scale = params['backbone']['Conv_0']['kernel']
    amounts = batch['poison']
    scale = jax.vmap(poison)(jnp.broadcast_to(scale, (len(amounts), *scale.shape)), amounts)
    backbone = {**params['backbone'], 'Conv_0': {'kernel': jnp.mean(scale, axis=0)}}
    return method.loss({**params, 'backbone': backbone}, state, batch, **options)

  return method._replace(loss=loss)


def image_batch(bad: bool) -> dict:
  spoil = np.zeros(16, np.float32)
  spoil[BAD_ROW] = np.nan if bad else 0
  views = np.random.default_rng(0).uniform(size=(16, 2, 8, 8, 1)).astype(np.float32)
  return {'views': views, 'poison': spoil}


def by_jit():
  """(start, step): global arrays on a mesh."""
  mesh = make_mesh({'data': DEVICES})
  program = make_program(poisoned(over(mesh)), optax.adam(.01), image_batch(False), seed=0,
                         mesh=mesh)

  def step(ts, batch):
    return program.step(ts, jax.device_put(batch, batch_sharding(mesh)))
  return program.init(), step


def by_axis(run):
  """(start, step): the whole step inside an axis."""
  tx = optax.adam(.01)
  step = make_train_step(poisoned(inside('i')), tx, key=jax.random.key(1), axis_name='i')
  ts = init_state(poisoned(inside(None)), tx, jax.random.key(0), image_batch(False))
  stack = lambda x: jnp.broadcast_to(x, (DEVICES, *x.shape))
  split = lambda batch: {k: x.reshape(DEVICES, -1, *x.shape[1:]) for k, x in batch.items()}
  run = run(step)
  return jax.tree.map(stack, ts), lambda ts, batch: run(ts, split(batch))


def in_shard_map(step):
  def one(ts, batch):
    ts, batch = jax.tree.map(lambda x: x[0], (ts, batch))
    return jax.tree.map(lambda x: x[None], step(ts, batch))
  return jax.jit(jax.shard_map(one, mesh=make_mesh({'i': DEVICES}), in_specs=(P('i'), P('i')),
                               out_specs=P('i'), check_vma=False))


DOORS = {'jit': by_jit, 'pmap': partial(by_axis, lambda step: jax.pmap(step, 'i')),
         'shard_map': partial(by_axis, in_shard_map)}


def copies(ts):
  """What every device holds of every leaf."""
  return [np.stack([np.asarray(s.data) for s in x.addressable_shards]) for x in jax.tree.leaves(ts)]


@pytest.mark.parametrize('door', ['jit', 'pmap', pytest.param('shard_map', marks=pytest.mark.slow)])
def test_28_nan_in_one_gradient_of_one_device_changes_nothing_anywhere(door):
  """Parameters, optimizer, key encoder, queue and statistics keep their bits on all devices."""
  ts, step = DOORS[door]()
  ts, metrics = step(ts, image_batch(False))
  assert np.all(metrics['finite'])
  before, places = copies(ts), jax.tree.structure(ts)
  ts, metrics = step(ts, image_batch(True))
  assert not np.any(metrics['finite']) and np.isfinite(metrics['loss']).all()
  after = copies(ts)
  (count, *before), (new_count, *after) = before, after  # the first leaf is the number of steps
  assert places == jax.tree.structure(ts) and len(after) > 20
  assert (count == 1).all() and (new_count == 2).all()
  assert_equal(after, before)
  ts, metrics = step(ts, image_batch(False))
  assert np.all(metrics['finite'])
  assert all((a != b).any() for a, b in zip(copies(ts.params), after))


@pytest.mark.parametrize('door', ['pmap', 'vmap'])
def test_28_nan_in_the_part_of_a_state_that_one_device_holds(door):
  """Such as its rows of a bank: loss and gradient do not know of it, the others must still hear."""
  def loss(params, state, batch, *, key, step):
    value = jax.lax.pmean(jnp.mean(batch['x'] * params['w']), 'i')
    return value, ({'rows': state['rows'] + batch['spoil']}, {})

  method = Method(lambda key, batch: ({'w': jnp.ones(())}, {'rows': jnp.zeros(2)}), loss, None)
  tx = optax.sgd(.1)
  step = make_train_step(method, tx, key=jax.random.key(0), axis_name='i')
  run = jax.pmap(step, 'i', in_axes=(None, 0)) if door == 'pmap' else (
    jax.vmap(step, (None, 0), axis_name='i'))
  spoil = np.zeros((DEVICES, 2), np.float32)
  spoil[3, 1] = np.nan
  ts, metrics = run(init_state(method, tx, jax.random.key(0), {}),
                    {'x': np.ones((DEVICES, 2), np.float32), 'spoil': spoil})
  assert not np.any(metrics['finite']) and np.isfinite(metrics['grad_norm']).all()
  np.testing.assert_array_equal(ts.params['w'], np.ones(DEVICES))
  np.testing.assert_array_equal(ts.state['rows'], np.zeros((DEVICES, 2)))


# --- 29 -------------------------------------------------------------------------------------------

FIRST_BAD = 3  # the step, counted from 0, from which every loss is NaN


def test_29_steps_that_stay_nan_end_the_run_with_4(tmp_path, monkeypatch, capsys):
  """The last finite state is saved, the examples are named; after a repair the run goes on."""
  made = build.method

  def failing(*arguments, **options):
    method = made(*arguments, **options)

    def loss(params, state, batch, *, key, step):
      value, aux = method.loss(params, state, batch, key=key, step=step)
      return jnp.where(step >= FIRST_BAD, jnp.nan, value), aux
    return method._replace(loss=loss)

  arguments = ['--config.patience=3', '--config.steps=9', '--config.checkpoint.every=3',
               '--config.checkpoint.keep=9', WITHOUT_HEALTH]
  workdir = tmp_path / 'run'
  monkeypatch.setattr(build, 'method', failing)
  assert train(workdir, *arguments) == 4
  monkeypatch.setattr(build, 'method', made)
  error = capsys.readouterr().err
  assert 'not finite in 3 steps in a row' in error and 'Traceback' not in error
  assert error.count('the step was undone') == 3

  bad = json.loads((workdir / 'non_finite.json').read_text())
  config = runs.read_config(workdir)
  drawn = batches(build.source(config, training=True), batch_size=16, seed=config.seed,
                  start=FIRST_BAD)
  assert bad['step'] == FIRST_BAD + 2
  assert bad['example_ids'] == [next(drawn)['id'].tolist() for _ in range(3)]

  states = saved(workdir)
  assert list(states) == sorted({FIRST_BAD, 6, max(states)}) and max(states) <= 7
  for step, state in states.items():
    assert state.step == step
    assert_equal(state._replace(step=0), states[FIRST_BAD]._replace(step=0))
  assert_finite(state.params)

  assert train(workdir, *arguments) == 0
  losses = {line['step']: line['loss'] for line in read_lines(workdir / runs.METRICS)}
  assert list(losses) == list(range(1, 10))
  assert [k for k, loss in losses.items() if loss == 'nan'][:3] == [4, 5, 6]
  assert losses[9] != 'nan'


def test_29_an_update_that_overflows_ends_the_run_with_4(tmp_path, capsys):
  workdir = tmp_path / 'run'
  assert train(workdir, '--config.schedule.learning_rate=1e38', '--config.patience=2',
               '--config.steps=20', '--config.optimizer.name=sgd', WITHOUT_HEALTH) == 4
  assert np.shape(json.loads((workdir / 'non_finite.json').read_text())['example_ids']) == (2, 16)
  assert_finite([state.params for state in saved(workdir).values()])


# --- 30 -------------------------------------------------------------------------------------------


def noisy_regression(guard) -> tuple:
  """(program, batch of step k) of fitting a constant with noise; `SPIKES` are those of the loss."""
  def loss(params, state, batch, *, key, step):
    error = jnp.mean(batch['x'] * params['w'] - 1)
    return jnp.mean((batch['x'] * params['w'] - 1) ** 2), ({'seen': state['seen'] + error}, {})

  def init(key, batch):
    return {'w': jnp.ones(())}, {'seen': jnp.zeros(())}

  def batch(k):
    x = 1 + .1 * np.random.default_rng(k).normal(size=16)
    return {'x': np.float32(x * (1000 if k in SPIKES else 1))}

  tx = optax.sgd(.01, momentum=.9)
  mesh = make_mesh({'data': DEVICES})
  return make_program(Method(init, loss, None), skip_spikes(tx, 6.) if guard else tx, batch(0),
                      seed=0, mesh=mesh), lambda k: jax.device_put(batch(k), batch_sharding(mesh))


SPIKES = (5, 70, 75)


def steps_of(program, batch, ts, first, last):
  found = []
  for k in range(first, last):
    ts, metrics = program.step(ts, batch(k))
    found.append(bool(metrics.get('spike', False)))
  return ts, found


def test_30_a_spike_is_undone_if_the_guard_is_on(tmp_path):
  program, batch = noisy_regression(guard=True)
  # Before half a window was seen nothing is judged: start behind the early one.
  ts, found = steps_of(program, batch, program.init(), 6, 70)
  assert not any(found)
  before = jax.device_get(ts)
  ts, found = steps_of(program, batch, ts, 70, 71)
  after = jax.device_get(ts)
  assert found == [True] and after.step == before.step + 1
  assert_equal((after.params, after.state, after.opt.opt),
               (before.params, before.state, before.opt.opt))
  assert after.opt.seen == before.opt.seen + 1
  # The memory is in the checkpoint: a resume judges the same.
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(65, ts, {})
  checkpoints.wait()
  ts, found = steps_of(program, batch, ts, 71, 80)
  assert found == [k == 75 for k in range(71, 80)]
  restored, again = steps_of(program, batch, checkpoints.restore(65, program.state), 71, 80)
  assert again == found
  assert_equal(jax.device_get(restored), jax.device_get(ts))
  assert (after.params['w'] != jax.device_get(ts).params['w']).all()


def test_30_a_spike_is_not_touched_if_the_guard_is_off_or_too_young():
  for guard, first in ((False, 69), (True, 4)):
    program, batch = noisy_regression(guard)
    ts, _ = steps_of(program, batch, program.init(), first, first + 1)
    before = jax.device_get(ts.params)
    ts, found = steps_of(program, batch, ts, first + 1, first + 2)
    assert found == [False] and abs(ts.params['w'] - before['w']) > 1


def test_30_a_level_that_stays_is_taken_as_it_is_and_nan_does_not_enter():
  state = skip_spikes(optax.sgd(1.), 6.).init({'w': jnp.ones(())})

  @jax.jit
  def note(state, x):
    return spikes.is_spike(state, x, x, 6.), spikes.noted(state, x, x, jnp.isfinite(x))

  def follow(state, values):
    found = []
    for value in values:
      spike, state = note(state, jnp.float32(value))
      found.append(bool(spike))
    return state, found

  values = 1 + .1 * np.random.default_rng(0).normal(size=100)
  state, found = follow(state, values)
  assert not any(found)
  state, found = follow(state, [np.nan, np.inf, 1.])
  assert state.seen == 101 and np.isfinite(state.recent).all() and not found[2]
  _, found = follow(state, [10.] * 8)
  assert found[:3] == [True] * 3 and not any(found[5:])


def test_30_a_run_says_which_step_it_skipped(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(spikes, 'WINDOW', 4)
  made = build.method

  def spiking(*arguments, **options):
    method = made(*arguments, **options)

    def loss(params, state, batch, *, key, step):
      value, aux = method.loss(params, state, batch, key=key, step=step)
      return jnp.where(step == 5, 1000, 1) * value, aux
    return method._replace(loss=loss)

  monkeypatch.setattr(build, 'method', spiking)
  assert train(tmp_path / 'run', '--config.skip_spikes=6', '--config.steps=7', WITHOUT_HEALTH) == 0
  said = [line for line in capsys.readouterr().err.splitlines() if 'a spike' in line]
  assert len(said) == 1 and 'step 6: a spike (loss' in said[0] and 'undone' in said[0]
  assert [line['spike'] for line in read_lines(tmp_path / 'run' / runs.METRICS)][5] == 1


@pytest.mark.parametrize('value', ['0', '-6.0', 'nan', 'often'])
def test_30_a_guard_that_makes_no_sense_exits_with_2(value, tmp_path, capsys):
  assert train(tmp_path / 'run', f'--config.skip_spikes={value}') == 2
  assert 'config.skip_spikes' in capsys.readouterr().err


# --- 31 -------------------------------------------------------------------------------------------

ROWS, DIM = 4, 6
Z = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
DEGENERATE = {
  'zero rows': (np.zeros_like(Z), np.zeros_like(Z)),
  'one zero row': (Z * np.arange(ROWS, dtype=np.float32)[:, None].clip(0, 1), Z),
  'equal rows': (np.ones_like(Z), np.ones_like(Z)),
  'opposite views': (Z, -Z),
  'huge and tiny rows': (1e25 * Z, 1e-25 * Z),
  'one sample': (Z[:1], Z[1:2]),
  'one sample twice': (Z[:1], Z[:1]),
}
QUEUE = contrastive.l2_normalize(Z)
PAIRS = {
  'info_nce': lambda a, b, t, **o: contrastive.info_nce(a, b, temperature=t, **o),
  'nt_xent': lambda a, b, t, **o: contrastive.nt_xent(a, b, temperature=t, **o),
  'queue_nce': lambda a, b, t, **o: contrastive.queue_nce(a, b, QUEUE, temperature=t, **o),
  'sup_con': lambda a, b, t, **o: contrastive.sup_con(
    a + b, jnp.zeros(len(a), jnp.int32), temperature=t, **o),
  'clip': lambda a, b, t, **o: contrastive.clip(a, b, scale=1 / t, **o),
  'siglip': lambda a, b, t, **o: contrastive.siglip(a, b, scale=1 / t, bias=-10., **o),
}
WAYS = (dict(implementation='gather'), dict(implementation='chunked', block=3))
CASES = {f'{name}, {way["implementation"]}': partial(loss, **way)
         for name, loss in PAIRS.items() for way in WAYS} | {
  'swav': lambda a, b, t: clustering.swav(a, b, temperature=t, epsilon=t),
  'byol': lambda a, b, t: distillation.byol(a / t, b / t),
  'dino': lambda a, b, t: distillation.dino(
    jnp.stack([a, b], 1), jnp.stack([b, a], 1), student_temperature=t, teacher_temperature=t,
    center=jnp.zeros(DIM)),
  'barlow_twins': lambda a, b, t: redundancy.barlow_twins(a / t, b / t),
  'cross_entropy': lambda a, b, t: classification.cross_entropy(
    (a + b) / t, jnp.zeros(len(a), jnp.int32), smoothing=.1),
}


@pytest.mark.parametrize('name', CASES)
def test_31_degenerate_batches_have_a_finite_loss_and_gradient(name):
  run = jax.value_and_grad(CASES[name], argnums=(0, 1))
  compiled = jax.jit(run)
  for words, (a, b) in DEGENERATE.items():
    for temperature in (.1, 1e-6):
      assert_finite(compiled(a, b, jnp.float32(temperature)), f'{words} at {temperature}')
  # XLA leaves out a multiplication by 0, and the NaN that it would give.
  assert_finite(run(*DEGENERATE['one sample'], jnp.float32(.1)), 'operation by operation')


SLOTS = 3


@pytest.mark.parametrize('chunk', [5, None])
@pytest.mark.parametrize('masked', ['nothing', 'everything', 'one token'])
def test_31_any_number_of_masked_tokens_has_a_finite_loss_and_gradient(masked, chunk):
  r = np.random.default_rng(0)
  hidden = r.normal(size=(2, SLOTS, DIM)).astype(np.float32)
  table = r.normal(size=(11, DIM)).astype(np.float32)
  weights = {'nothing': np.zeros((2, SLOTS)), 'everything': np.ones((2, SLOTS)),
             'one token': np.eye(2, SLOTS) * [[1], [0]]}[masked].astype(np.float32)
  batch = dict(targets=np.ones((2, SLOTS), np.int32), weights=weights, next=np.array([0, 1]),
               overflow=np.zeros(2, np.int32))
  for scale in (0., 1., 1e4):
    def loss(hidden, table, scale=scale):
      outputs = scale * hidden, scale * hidden[:, 0, :2]
      return language.masked_and_sentence(chunk=chunk).loss(outputs, batch, (table, None))[0]
    assert_finite(jax.value_and_grad(loss, argnums=(0, 1))(hidden, table))
    assert_finite(jax.value_and_grad(prediction.masked_cross_entropy)(
      scale * hidden, table, None, batch['targets'], weights, chunk=chunk))


@pytest.mark.parametrize('profile', masks.PROFILES)
def test_31_rows_of_padding_and_rows_of_which_all_can_be_masked(profile):
  views = masks.build(vocabulary=20, mask=1, special=(0, 1), profile=profile, rate=.99, slots=8)
  tokens = np.array([[0] * 8, [5] * 8, [0] * 7 + [5]], np.int32)
  segments = np.array([[0] * 8, [1] * 8, [1] * 8], np.int32)
  places = np.tile(np.arange(8, dtype=np.int32), (3, 1))
  batch = dict(tokens=tokens, segments=segments, positions=places, words=places)
  weights = np.asarray(views.prepare(jax.random.split(jax.random.key(0), 3), batch)['weights'])
  assert weights[0].sum() == 0 and weights[1].sum() >= 6 and np.isfinite(weights).all()


# Functions of ssl_jax/losses that are parts of losses, counted or tested through them.
PARTS = {'l2_normalize', 'sinkhorn', 'swapped_prediction', 'cross_prediction', 'accuracy',
         'sample_tokens', 'token_losses', 'token_sums', 'token_log_probability',
         'masked_prediction', 'tokens', 'masked_tokens'}


def test_31_leaves_no_loss_out():
  modules = classification, clustering, contrastive, distillation, language, prediction, redundancy
  found = {name for module in modules for name, function in inspect.getmembers(module)
           if inspect.isfunction(function) and function.__module__ == module.__name__
           and not name.startswith('_')}
  tested = {name.split(',')[0] for name in CASES} | {'masked_cross_entropy', 'masked_and_sentence'}
  assert found == tested | PARTS


@pytest.mark.parametrize('value', [0., -.1, float('nan'), 1e-45, float('inf')])
def test_31_a_temperature_that_is_none_is_refused(value):
  for name in [*PAIRS, 'swav', 'dino']:
    if name in ('clip', 'siglip'):
      call = partial(getattr(contrastive, name), Z, Z, scale=value)
      call = call if name == 'clip' else partial(call, bias=-10.)
    else:
      call = partial((CASES | PAIRS)[name], Z, Z, value)
    with pytest.raises(ValueError, match='must be a number above 0'):
      call()


@pytest.mark.parametrize('value', ['nan', '1e-45', '0.0'])
def test_31_such_a_temperature_in_a_config_exits_with_2(value, tmp_path, capsys):
  assert train(tmp_path / 'run', f'--config.method.temperature={value}') == 2
  error = capsys.readouterr().err
  assert 'temperature' in error and 'Traceback' not in error


# --- 32 -------------------------------------------------------------------------------------------


class Constant(nn.Module):
  """An encoder that has collapsed: every image gets the same representation."""

  @nn.compact
  def __call__(self, x, mode):
    bias = self.param('bias', nn.initializers.normal(), (8,))
    return jnp.broadcast_to(bias, (len(x), 8)) + 1e-6 * x.mean((1, 2, 3))[:, None]


def test_32_the_health_monitor_warns_of_a_collapse_within_its_period(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(build.NETWORKS, 'constant', lambda: Constant())
  assert train(tmp_path / 'run', '--config.network.name=constant', '--config.steps=5',
               '--config.evaluate.health_every=2') == 0
  warnings = [line for line in capsys.readouterr().err.splitlines() if 'WARNING' in line]
  assert len(warnings) == 1 and 'WARNING at step 2: complete collapse' in warnings[0]
  spreads = {line['step']: line['spread'] for line in read_lines(tmp_path / 'run' / runs.METRICS)
             if 'spread' in line}
  assert list(spreads) == [2, 4, 5] and max(spreads.values()) < .05
  assert build.OPTIONAL['evaluate']['health_every'] == 100  # watched unless it is switched off
