"""Checkpoints: bit-equal, asynchronous, replaced safely. What can go wrong with them is in
tests/faults/checkpoints_test.py."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.train import checkpoint, manifest
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.optimizers import OPTIMIZERS
from tests.checkpoints import abstract, assert_equal_bits, data_files, make_state, saved

# --- save and restore -----------------------------------------------------------------------------


def test_restores_bit_for_bit_with_metadata(tmp_path):
  metadata = {'data': {'next': 12, 'order': (1, 2)}, 'epoch': 1.5}
  checkpoints = Checkpoints(tmp_path / 'not' / 'yet there')
  assert checkpoints.steps() == [] and checkpoints.latest() is None
  assert checkpoints.restore_latest(abstract(make_state())) is None
  checkpoints.save(7, make_state(), metadata)
  checkpoints.wait()
  again = Checkpoints(str(tmp_path / 'not' / 'yet there') + '/')
  assert again.steps() == [7] and again.latest() == 7
  assert_equal_bits(again.restore(7, abstract(make_state())), make_state())
  assert again.metadata(7) == {'data': {'next': 12, 'order': [1, 2]}, 'epoch': 1.5}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(name, tmp_path):
  tx = OPTIMIZERS[name](optax.linear_schedule(0.1, 0.01, 5), weight_decay=0.01)
  params = {'kernel': jnp.linspace(-1, 1, 12).reshape(3, 4), 'bias': jnp.ones((1, 4))}

  @jax.jit
  def update(state):
    params, opt = state
    grads = jax.grad(lambda p: jnp.sum(jnp.sin(p['kernel']) * p['bias']))(params)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt

  states = [(params, tx.init(params))]
  for _ in range(5):
    states.append(update(states[-1]))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, states[3])
  restored = checkpoints.restore(3, abstract(states[0]))
  assert_equal_bits(update(update(restored)), states[5])


def test_saved_arrays_may_be_donated_at_once(tmp_path):
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
  state = {'w': jnp.zeros((512, 512)), 'count': jnp.int32(0)}
  checkpoints = Checkpoints(tmp_path, keep_last=None)
  for n in range(4):
    checkpoints.save(n, state)
    for _ in range(5):
      state = step(state)
  for n in range(4):
    want = {'w': jnp.full((512, 512), 5.0 * n), 'count': jnp.int32(5 * n)}
    assert_equal_bits(checkpoints.restore(n, abstract(want)), want)


def test_save_returns_before_the_step_is_complete(tmp_path, monkeypatch):
  go_on = threading.Event()
  commit = manifest.commit
  monkeypatch.setattr(manifest, 'commit', lambda *args: go_on.wait(60) and commit(*args))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_state())
  assert checkpoints.steps() == []
  go_on.set()
  checkpoints.wait()
  assert checkpoints.steps() == [1]


# --- which steps there are ------------------------------------------------------------------------


def test_an_interrupted_save_is_no_step_and_can_be_saved_again(tmp_path):
  checkpoints = saved(tmp_path, 1, 2)
  for step in (2, 3):  # what a process killed before the manifest leaves
    (tmp_path / str(step) / 'state-0.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / '2' / 'manifest.json').rename(tmp_path / '2' / manifest.DRAFT)
  assert checkpoints.steps() == [1]
  checkpoints.save(2, make_state(20))
  checkpoints.wait()
  assert_equal_bits(checkpoints.restore(2, abstract(make_state())), make_state(20))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
  assert [path.name for path in (tmp_path / '2').glob('state-*')] == ['state-1']


def test_saving_a_step_again_replaces_it_and_keeps_it_valid_meanwhile(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 5)
  commit, meanwhile = manifest.commit, []
  monkeypatch.setattr(
    manifest, 'commit', lambda *args: (meanwhile.append(checkpoints.steps()), commit(*args)))
  checkpoints.save(5, make_state(50))
  checkpoints.wait()
  assert meanwhile == [[5]] and checkpoints.steps() == [5]
  assert_equal_bits(checkpoints.restore(5, abstract(make_state())), make_state(50))
  checkpoints.verify(5)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize('leaf, message', [
  (1.0, 'leaf is a float'), (np.ones(2), 'leaf is a ndarray'),
  (jax.random.key(0), 'leaf is a PRNG key')])
def test_only_plain_jax_arrays_are_saved(tmp_path, leaf, message):
  with pytest.raises(ValueError, match=message):
    Checkpoints(tmp_path).save(1, {'leaf': leaf})
  assert not list(tmp_path.iterdir())


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(ValueError, match='keep_last must be at least 1'):
    Checkpoints(tmp_path, keep_last=0)
  with pytest.raises(ValueError, match='a step is 0 or more, got -1'):
    Checkpoints(tmp_path).save(-1, make_state())
  with pytest.raises(ValueError, match='metadata must be what JSON can hold'):
    Checkpoints(tmp_path).save(1, make_state(), {'x': np.ones(1)})
  saved(tmp_path / 'run' / 'checkpoints', 1)
  with pytest.raises(ValueError, match='is one step; give the folder around it'):
    Checkpoints(tmp_path / 'run' / 'checkpoints' / '1')
  with pytest.raises(ValueError, match='is a run folder; its steps are in .*checkpoints'):
    Checkpoints(tmp_path / 'run')


# --- weights only ---------------------------------------------------------------------------------


def test_init_from_takes_weights_only(tmp_path):
  saved(tmp_path / 'checkpoints', 1, 2)
  want = make_state(2)
  for path in (tmp_path, tmp_path / 'checkpoints', tmp_path / 'checkpoints' / '2'):
    assert_equal_bits(checkpoint.init_from(path, abstract(want.params)), want.params)
  encoder = checkpoint.init_from(tmp_path / 'checkpoints' / '1',
                                 abstract(want.params['encoder']), subtree='encoder')
  assert_equal_bits(encoder, make_state(1).params['encoder'])
  statistics = checkpoint.init_from(tmp_path, abstract(want.state), part='state')
  assert_equal_bits(statistics, want.state)


def test_the_manifest_can_be_read_by_people(tmp_path):
  saved(tmp_path, 3)
  content = json.loads((tmp_path / '3' / 'manifest.json').read_text())['manifest']
  assert content['format'] == 1 and content['step'] == 3 and content['metadata'] == {'seed': 3}
  assert content['leaves']['params/encoder/conv/kernel'] == ['float32', [16, 8]]
  assert content['leaves']['state/empty'] == ['float32', [0, 3]]
  sizes = {path: size for path, (size, _) in content['files'].items()}
  assert sizes == {str(p.relative_to(tmp_path / '3')): p.stat().st_size
                   for p in data_files(tmp_path / '3')}
