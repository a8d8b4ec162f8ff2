"""Checkpoints: bit-equal on any devices, damage found, nothing skipped, nothing lost."""

import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssl_jax import parallel
from ssl_jax.train import checkpoint, manifest
from ssl_jax.train.checkpoint import CheckpointError, Checkpoints
from ssl_jax.types import TrainState


def make_state(seed=0, tx=None):
  """All containers and dtypes that occur: optax states, scalars, bfloat16, integers, no rows."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {'encoder': {'conv': {'kernel': normal(16, 8), 'bias': normal(8)}},
            'head': [normal(8, 4), normal(8).astype(jnp.bfloat16)]}
  state = {'queue': jnp.asarray(rng.integers(0, 2**32, 4, dtype=np.uint32)),
           'pointer': jnp.int32(seed), 'flag': jnp.array(True), 'none': None,
           'empty': jnp.zeros((0, 3)), 'nan.dot': jnp.array([np.nan, -0.0, np.inf])}
  tx = tx or optax.adamw(optax.constant_schedule(0.1))
  return TrainState(jnp.int32(7), params, state, tx.init(params))


def abstract(state, shardings=None):
  like = lambda x, s=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(like, state) if shardings is None else jax.tree.map(like, state, shardings)


def assert_equal_bits(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def saved(directory, *steps, **options) -> Checkpoints:
  """Checkpoints whose step n holds make_state(n)."""
  checkpoints = Checkpoints(directory, **options)
  for step in steps:
    checkpoints.save(step, make_state(step), {'seed': step})
  checkpoints.wait()
  return checkpoints


def data_files(step: pathlib.Path) -> list[pathlib.Path]:
  """The largest file of a step first."""
  files = [path for path in step.rglob('*') if path.is_file() and path.name != 'manifest.json']
  return sorted(files, key=lambda path: -path.stat().st_size)


def flip_bit(path: pathlib.Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


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


def test_relative_and_home_paths_are_resolved(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path))
  saved('some folder', 1)
  assert Checkpoints('~/some folder/').steps() == [1]
  monkeypatch.chdir('/')
  assert Checkpoints(tmp_path / 'some folder').steps() == [1]


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_eight_devices_restore_on_others(tmp_path, devices):
  rules = [('kernel', 'fsdp')]
  state = make_state()
  eight = parallel.infer_sharding(state, rules, parallel.make_mesh({'fsdp': 8}))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, jax.tree.map(jax.device_put, state, eight))
  mesh = parallel.make_mesh({'fsdp': devices}, jax.devices()[:devices])
  other = parallel.infer_sharding(state, rules, mesh)
  restored = checkpoints.restore(1, abstract(state, other))
  assert_equal_bits(restored, state)
  kernel = restored.params['encoder']['conv']['kernel']
  assert kernel.sharding == NamedSharding(mesh, PartitionSpec('fsdp'))
  assert len(kernel.addressable_shards) == devices


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


def test_a_background_failure_surfaces_once_and_the_next_save_works(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 1)

  def full(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'commit', full)
    checkpoints.save(2, make_state(2))
    with pytest.raises(CheckpointError, match='saving step 2 .*No space left on device'):
      checkpoints.save(3, make_state(3))
  assert checkpoints.latest() == 1
  checkpoints.save(3, make_state(3))
  checkpoints.wait()
  assert checkpoints.steps() == [1, 3]


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot save step 1'):
    Checkpoints(tmp_path / 'file' / 'steps').save(1, make_state())


# --- which steps there are ------------------------------------------------------------------------


def test_what_is_no_complete_step_is_ignored_and_left_alone(tmp_path):
  checkpoints = saved(tmp_path, 100)
  (tmp_path / '400').mkdir()
  (tmp_path / '500').write_text('a file')
  (tmp_path / '600.orbax-checkpoint-tmp-1').mkdir()
  (tmp_path / '0700').mkdir()
  (tmp_path / '800').mkdir()
  (tmp_path / '800' / 'mine.txt').write_text('a folder of somebody')
  assert checkpoints.steps() == [100] and checkpoints.latest(verify=True) == 100
  checkpoints.save(200, make_state())
  checkpoints.wait()
  assert checkpoints.steps() == [100, 200]
  assert (tmp_path / '800' / 'mine.txt').exists() and (tmp_path / '400').exists()


def test_an_interrupted_save_is_no_step_and_can_be_saved_again(tmp_path):
  checkpoints = saved(tmp_path, 1, 2)
  for step in (2, 3):  # what a process killed before the manifest leaves
    (tmp_path / str(step) / 'state-0.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / '2' / 'manifest.json').unlink()
  assert checkpoints.steps() == [1]
  checkpoints.save(2, make_state(20))
  checkpoints.wait()
  assert_equal_bits(checkpoints.restore(2, abstract(make_state())), make_state(20))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
  assert [path.name for path in (tmp_path / '2').glob('state-*')] == ['state-1']


def test_keeps_the_newest_n(tmp_path):
  saved(tmp_path / 'two', 1, 2, 3, 10, keep_last=2)
  assert sorted(path.name for path in (tmp_path / 'two').iterdir()) == ['10', '3']
  assert saved(tmp_path / 'all', 1, 2, 3, 4, keep_last=None).steps() == [1, 2, 3, 4]


def test_nothing_is_deleted_before_the_new_step_is_complete(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 1, keep_last=1)
  commit, seen = manifest.commit, []
  monkeypatch.setattr(
    manifest, 'commit', lambda *args: (seen.append(checkpoints.steps()), commit(*args)))
  checkpoints.save(2, make_state())
  checkpoints.wait()
  assert seen == [[1]] and checkpoints.steps() == [2]


def test_saving_goes_on_after_a_rollback(tmp_path, caplog):
  checkpoints = saved(tmp_path, 100, 200, 300)
  checkpoints.save(150, make_state(150))
  checkpoints.wait()
  assert checkpoints.steps() == [100, 150] and checkpoints.latest() == 150
  assert_equal_bits(checkpoints.restore(150, abstract(make_state())), make_state(150))
  aside = sorted(path.name.rsplit('-', 1)[0] for path in tmp_path.iterdir())
  assert aside == ['100', '150', '200.superseded', '300.superseded']
  assert 'Going back to step 150: moved step 300' in caplog.text


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


# --- damage ---------------------------------------------------------------------------------------


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize('damage, message', [
  (flip_bit, 'does not match its SHA-256'),
  (truncate, r'has \d+ bytes, \d+ were written'),
  (pathlib.Path.unlink, 'cannot be read'),
])
def test_damage_is_found_and_the_previous_step_used(tmp_path, caplog, damage, message):
  checkpoints = saved(tmp_path, 100, 200, 300)
  victim = data_files(tmp_path / '300')[0]
  damage(victim)
  with pytest.raises(CheckpointError, match=f'step 300 is damaged: {victim} {message}'):
    checkpoints.restore(300, abstract(make_state()))
  assert checkpoints.latest() == 300  # restoring an explicit step changes nothing on disk
  step, restored = checkpoints.restore_latest(abstract(make_state()))
  assert step == 200
  assert_equal_bits(restored, make_state(200))
  assert checkpoints.steps() == [100, 200]
  assert len(list(tmp_path.glob('300.damaged-*'))) == 1
  assert 'step 300 is damaged' in caplog.text and 'going on from step 200' in caplog.text
  checkpoints.save(300, make_state(301))
  assert checkpoints.latest(verify=True) == 300


def test_every_file_of_a_step_is_covered(tmp_path):
  checkpoints = saved(tmp_path, 1)
  files = data_files(tmp_path / '1')
  assert len(files) > 3
  for path in files:
    content = path.read_bytes()
    path.write_bytes(content + b'x')
    with pytest.raises(CheckpointError, match=path.name):
      checkpoints.verify(1)
    path.write_bytes(content)
  checkpoints.verify(1)


def test_a_damaged_manifest_is_found(tmp_path):
  checkpoints = saved(tmp_path, 1, 2)
  path = tmp_path / '2' / 'manifest.json'
  text = path.read_text()
  for broken in ('', text[:-20], text.replace('"seed": 2', '"seed": 3'), '[]', '\x00\xff'):
    path.write_text(broken)
    assert checkpoints.steps() == [1, 2]
    with pytest.raises(CheckpointError, match='manifest.json is damaged'):
      checkpoints.metadata(2)
  assert checkpoints.latest(verify=True) == 1


def test_no_intact_step_is_an_error_again_and_again(tmp_path):
  checkpoints = saved(tmp_path, 1, 2)
  for step in (1, 2):
    flip_bit(data_files(tmp_path / str(step))[0])
  for _ in range(2):  # a run that starts again must not take itself for a new one
    with pytest.raises(CheckpointError, match='(?s)no step .* is intact:.*step 2 .*step 1 '):
      checkpoints.restore_latest(abstract(make_state()))
  assert checkpoints.steps() == [1, 2]


def test_a_newer_format_and_a_missing_step_are_explained(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 10, 20)
  with pytest.raises(CheckpointError, match=r'no step 15 in .*; there are \[10, 20\]'):
    checkpoints.restore(15, abstract(make_state()))
  monkeypatch.setattr(manifest, 'FORMAT', 0)
  with pytest.raises(CheckpointError, match='format 1, this version .* up to 0'):
    checkpoints.metadata(10)


# --- another tree ---------------------------------------------------------------------------------


@pytest.mark.parametrize('change, message', [
  (lambda p: {**p, 'new': jnp.ones(2)}, r'params/new: expected float32\[2\], found none'),
  (lambda p: {'encoder': p['encoder']}, r'params/head/0: expected none, found float32\[8, 4\]'),
  (lambda p: {**p, 'head': [jnp.ones((8, 5)), p['head'][1]]},
   r'params/head/0: expected float32\[8, 5\], found float32\[8, 4\]'),
  (lambda p: {**p, 'head': [p['head'][0].astype(jnp.bfloat16), p['head'][1]]},
   r'params/head/0: expected bfloat16\[8, 4\], found float32\[8, 4\]'),
])
def test_another_tree_is_refused_by_name(tmp_path, change, message):
  checkpoints = saved(tmp_path, 1)
  state = make_state(1)
  with pytest.raises(ValueError, match=message):
    checkpoints.restore(1, abstract(state._replace(params=change(state.params))))
  with pytest.raises(ValueError, match='opt/.*: expected'):
    checkpoints.restore(1, abstract(make_state(1, optax.sgd(0.1, momentum=0.9))))


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


def test_init_from_explains_wrong_paths_and_trees(tmp_path):
  saved(tmp_path / 'checkpoints', 1)
  params = abstract(make_state(1).params)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'inside a step; give the step: .*/1$'):
    checkpoint.init_from(tmp_path / 'checkpoints' / '1' / 'state-0', params)
  with pytest.raises(ValueError, match='nowhere does not exist'):
    checkpoint.init_from(tmp_path / 'nowhere', params)
  with pytest.raises(ValueError, match='no complete step; give a run folder'):
    checkpoint.init_from(tmp_path / 'empty', params)
  with pytest.raises(ValueError, match=r'params/head/0: expected none, found float32\[8, 4\]'):
    checkpoint.init_from(tmp_path, {'encoder': params['encoder']})
  with pytest.raises(ValueError, match='params/body/conv/bias: expected .*, found none'):
    checkpoint.init_from(tmp_path, params['encoder'], subtree='body')
  flip_bit(data_files(tmp_path / 'checkpoints' / '1')[0])
  with pytest.raises(CheckpointError, match='does not match its SHA-256'):
    checkpoint.init_from(tmp_path, params)
  assert (tmp_path / 'checkpoints' / '1').exists()


def test_the_manifest_can_be_read_by_people(tmp_path):
  saved(tmp_path, 3)
  content = json.loads((tmp_path / '3' / 'manifest.json').read_text())['manifest']
  assert content['format'] == 1 and content['step'] == 3 and content['metadata'] == {'seed': 3}
  assert content['leaves']['params/encoder/conv/kernel'] == ['float32', [16, 8]]
  assert content['leaves']['state/empty'] == ['float32', [0, 3]]
  sizes = {path: size for path, (size, _) in content['files'].items()}
  assert sizes == {str(p.relative_to(tmp_path / '3')): p.stat().st_size
                   for p in data_files(tmp_path / '3')}
