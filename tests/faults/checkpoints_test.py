"""Faults of checkpoints: damaged, foreign, lost, of another tree, release or machine, no room for
them, two jobs that write them, odd paths. Numbers 13 to 27."""

import ast
import functools
import json
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import socket
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import ssl_jax
from ssl_jax import parallel, runs
from ssl_jax.cli import lock, main, recorder
from ssl_jax.cli import train as command
from ssl_jax.cli.lock import Lock
from ssl_jax.schema import ConfigError
from ssl_jax.train import checkpoint, manifest
from ssl_jax.train.checkpoint import CheckpointError, Checkpoints, NewerError
from tests.checkpoints import (
  abstract,
  assert_equal_bits,
  data_files,
  flip_bit,
  make_state,
  saved,
  truncate,
)
from tests.processes import DEMO, ROOT, ends, lines, python, together, train

RELEASE = pathlib.Path(__file__).parent / 'fixtures' / 'release_0_1_0'
STEPS = ('--config.steps=8', '--config.checkpoint.every=3')
BLIND = ('--config.evaluate.every=None', '--config.evaluate.health_every=None')


def here(workdir, *arguments) -> int:
  """`train` in this process."""
  return main(['train', f'--config={DEMO}:smoke', f'--workdir={workdir}', '--cache_dir=none',
               *BLIND, *arguments])


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
  assert here(workdir, *STEPS) == 0
  return workdir


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(checkpoint, 'PAUSES', (0, 0))


def full(*_):
  raise OSError(28, 'No space left on device')


def empty(path: pathlib.Path) -> None:
  path.write_bytes(b'')


def change_manifest(folder: pathlib.Path, **changes) -> None:
  """As somebody would who can compute a SHA-256."""
  path = folder / manifest.NAME
  content = json.loads(path.read_text())['manifest'] | changes
  path.write_text(json.dumps({'sha256': manifest._sha256(content), 'manifest': content}))


# --- damage ---------------------------------------------------------------------------------------


def check_that_200_is_used(folder, caplog, victim: pathlib.Path, message: str) -> None:
  """Of 100, 200, 300, the last of which is damaged."""
  checkpoints = Checkpoints(folder)
  with pytest.raises(CheckpointError, match=message) as error:
    checkpoints.restore(300, abstract(make_state()))
  assert str(victim) in str(error.value)
  assert checkpoints.latest() == 300  # restoring an explicit step changes nothing on disk
  step, restored = checkpoints.restore_latest(abstract(make_state()))
  assert step == 200
  assert_equal_bits(restored, make_state(200))
  assert checkpoints.steps() == [100, 200]
  assert len(list(folder.glob('300.damaged-*'))) == 1
  loud, = [r.getMessage() for r in caplog.records if r.levelname == 'ERROR']
  assert str(victim) in loud and 'Moved it to' in loud and 'going on from step 200' in loud
  checkpoints.save(300, make_state(301))
  assert checkpoints.latest(verify=True) == 300


def test_13_a_flipped_bit_is_found_and_the_previous_step_used(tmp_path, caplog):
  saved(tmp_path, 100, 200, 300)
  victim = data_files(tmp_path / '300')[0]
  flip_bit(victim)
  check_that_200_is_used(tmp_path, caplog, victim, 'step 300 is damaged: .*not match its SHA-256')


def test_13_a_flipped_bit_in_any_file_is_found(tmp_path):
  checkpoints = saved(tmp_path, 1)
  files = [*data_files(tmp_path / '1'), tmp_path / '1' / 'manifest.json']
  assert len(files) > 5
  for path in files:
    content = path.read_bytes()
    flip_bit(path)
    with pytest.raises(CheckpointError, match=path.name):
      checkpoints.verify(1)
    path.write_bytes(content)
  checkpoints.verify(1)


@pytest.mark.parametrize('damage, message', [
  (truncate, r'has \d+ bytes, \d+ were written'), (empty, 'has 0 bytes'),
  (pathlib.Path.unlink, 'cannot be read')])
def test_14_a_cut_or_lost_data_file_is_found(tmp_path, caplog, damage, message):
  saved(tmp_path, 100, 200, 300)
  victim = data_files(tmp_path / '300')[0]
  damage(victim)
  check_that_200_is_used(tmp_path, caplog, victim, message)


@pytest.mark.parametrize('damage', [truncate, empty, pathlib.Path.unlink])
def test_14_a_cut_or_lost_manifest_is_found(tmp_path, caplog, damage):
  saved(tmp_path, 100, 200, 300)
  victim = tmp_path / '300' / 'manifest.json'
  damage(victim)
  check_that_200_is_used(tmp_path, caplog, victim, 'manifest.json is damaged')


def test_14_any_change_of_a_manifest_is_found(tmp_path):
  checkpoints = saved(tmp_path, 1, 2)
  path = tmp_path / '2' / 'manifest.json'
  text = path.read_text()
  for broken in (text.replace('"seed": 2', '"seed": 3'), '[]', '{}', '\x00\xff', 'null'):
    path.write_text(broken)
    assert checkpoints.steps() == [1, 2]
    with pytest.raises(CheckpointError, match='manifest.json is damaged'):
      checkpoints.metadata(2)
  assert checkpoints.latest(verify=True) == 1


def test_14_a_kill_while_the_config_is_written_leaves_the_earlier_one(tmp_path, monkeypatch):
  config = runs.read_config(RELEASE)
  (tmp_path / runs.CONFIG).write_text(config.to_json())
  monkeypatch.setattr(pathlib.Path, 'replace', full)
  with pytest.raises(OSError):
    runs.write_config(tmp_path, config, runs.build.Shape(1, {}))
  assert runs.read_config(tmp_path) == config


def test_14_a_damaged_config_is_named(tmp_path):
  shutil.copytree(RELEASE, tmp_path / 'run')
  truncate(tmp_path / 'run' / runs.CONFIG)
  truncate(tmp_path / 'run' / runs.CONFIG)
  with pytest.raises(CheckpointError, match='config.json is damaged'):
    ssl_jax.load(tmp_path / 'run')


def test_14_somebody_who_reads_leaves_damage_where_it_is(tmp_path, caplog):
  shutil.copytree(RELEASE, tmp_path / 'run')
  steps = tmp_path / 'run' / 'checkpoints'
  shutil.copytree(steps / '2', steps / '3')
  truncate(data_files(steps / '3')[0])
  assert ssl_jax.load(tmp_path / 'run').step == 2
  assert 'going on from step 2' in caplog.text
  assert sorted(path.name for path in steps.iterdir()) == ['2', '3']


def test_14_a_reader_whose_step_is_deleted_by_the_run_takes_a_newer_one(tmp_path, monkeypatch):
  checkpoints, read = saved(tmp_path, 1, keep_last=1), checkpoint._read

  def slow(*arguments):
    monkeypatch.setattr(checkpoint, '_read', read)
    saved(tmp_path, 2, keep_last=1)
    return read(*arguments)

  monkeypatch.setattr(checkpoint, '_read', slow)
  step, restored = Checkpoints(tmp_path).restore_latest(abstract(make_state()), set_aside=False)
  assert step == 2 and checkpoints.steps() == [2]
  assert_equal_bits(restored, make_state(2))


def test_15_what_only_has_the_name_of_a_step_is_ignored_and_left_alone(tmp_path):
  checkpoints = saved(tmp_path, 100)
  for name in ('400', '600.orbax-checkpoint-tmp-1', '0700', '800', 'foo', '-900', '１２'):
    (tmp_path / name).mkdir()
  (tmp_path / '500').write_text('a file')
  (tmp_path / '800' / 'mine.txt').write_text('a folder of somebody')
  assert checkpoints.steps() == [100] and checkpoints.latest(verify=True) == 100
  checkpoints.prepare(abstract(make_state()))
  checkpoints.save(200, make_state())
  checkpoints.wait()
  assert checkpoints.steps() == [100, 200]
  assert (tmp_path / '800' / 'mine.txt').exists() and (tmp_path / '400').exists()


def test_16_no_intact_step_is_an_error_again_and_again(tmp_path):
  checkpoints = saved(tmp_path, 1, 2, 3)
  flip_bit(data_files(tmp_path / '1')[0])
  truncate(tmp_path / '2' / 'manifest.json')
  (tmp_path / '3' / 'manifest.json').unlink()
  for _ in range(2):  # a run that starts again must not take itself for a new one
    with pytest.raises(CheckpointError, match='(?s)no step .* is intact:.*/3/.*/2/.*step 1 '):
      checkpoints.restore_latest(abstract(make_state()))
  assert checkpoints.steps() == [1, 2, 3]


def test_16_a_run_without_an_intact_step_ends_with_3_until_told_otherwise(
    undisturbed, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  flip_bit(data_files(workdir / 'checkpoints' / '6')[0])
  (workdir / 'checkpoints' / '8' / 'manifest.json').unlink()
  before = (workdir / 'metrics.jsonl').read_text()
  for _ in range(2):
    assert here(workdir, *STEPS) == 3
    error = capsys.readouterr().err
    assert 'no step in' in error and '8/manifest.json is damaged' in error
    assert 'step 6 is damaged' in error and '--resume=never' in error
  assert (workdir / 'metrics.jsonl').read_text() == before
  assert here(workdir, '--resume=never', *STEPS) == 0
  aside, = tmp_path.glob('run.before-*')
  assert Checkpoints(aside / 'checkpoints').steps() == Checkpoints(workdir / 'checkpoints').steps()
  shutil.rmtree(workdir / 'checkpoints')
  assert here(workdir, *STEPS) == 0
  assert 'no complete checkpoint; it starts from the beginning' in capsys.readouterr().err


# --- saving ---------------------------------------------------------------------------------------


def test_17_saving_goes_on_after_a_rollback(tmp_path, caplog):
  checkpoints = saved(tmp_path, 100, 200, 300)
  checkpoints.save(150, make_state(150))
  checkpoints.wait()
  assert checkpoints.steps() == [100, 150] and checkpoints.latest() == 150
  assert_equal_bits(checkpoints.restore(150, abstract(make_state())), make_state(150))
  aside = sorted(path.name.rsplit('-', 1)[0] for path in tmp_path.iterdir())
  assert aside == ['100', '150', '200.superseded', '300.superseded']
  assert 'Going back to step 150: moved step 300' in caplog.text


def test_17_a_save_that_writes_nothing_is_an_error(tmp_path, monkeypatch, impatient):
  """As Orbax's CheckpointManager does with an older step, without a word."""
  checkpoints = saved(tmp_path, 1)
  monkeypatch.setattr(checkpoints._writer, 'save', lambda *_, **__: False)
  with pytest.raises(CheckpointError, match='saving step 2 in .* failed: .*No such file'):
    checkpoints.save(2, make_state(), wait=True)
  assert checkpoints.steps() == [1] and not (tmp_path / '2').exists()


class Room:
  """How large a file may become, for this process."""

  def __init__(self, size: int):
    self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, self._before[1]))

  def make(self, *_) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.fixture
def no_room():
  room = Room(100_000)
  yield room
  room.make()


def large(seed: int) -> dict:
  return {'w': jax.random.normal(jax.random.key(seed), (512, 512))}


def test_18_a_full_disk_leaves_no_half_step_and_ends_after_three_tries(
    tmp_path, impatient, no_room, caplog):
  """The system refuses to make a file larger: a real fault of Orbax's writers."""
  checkpoints = saved(tmp_path, 1)
  with pytest.raises(CheckpointError, match='saving step 2 in .* failed'):
    checkpoints.save(2, large(2), wait=True)
  assert caplog.text.count('Trying again in 0 s') == 2
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1'] and checkpoints.latest() == 1
  no_room.make()
  checkpoints.save(2, large(2), wait=True)
  assert_equal_bits(checkpoints.restore(2, abstract(large(2))), large(2))


def test_18_the_state_is_saved_as_soon_as_there_is_room(tmp_path, monkeypatch, no_room):
  checkpoints = saved(tmp_path, 1)
  monkeypatch.setattr(checkpoint, 'time', SimpleNamespace(
    sleep=no_room.make, monotonic=time.monotonic))
  checkpoints.save(2, large(2))  # in the background: this one is lost
  checkpoints.save(3, large(3))  # and this one waits, and is tried again
  assert checkpoints.steps() == [1, 3]
  assert_equal_bits(checkpoints.restore(3, abstract(large(3))), large(3))


def test_18_a_background_failure_is_known_at_once_and_raised_once(tmp_path, monkeypatch, caplog):
  checkpoints = saved(tmp_path, 1)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'commit', full)
    checkpoints.save(2, make_state(2))
    while not checkpoints.failed:
      time.sleep(0.01)
    with pytest.raises(CheckpointError, match='saving step 2 .*No space left on device'):
      checkpoints.wait()
  assert 'No space left on device. The next save will be tried' in caplog.text
  checkpoints.wait()
  assert checkpoints.latest() == 1
  checkpoints.save(3, make_state(3), wait=True)
  assert checkpoints.steps() == [1, 3] and not checkpoints.failed


def test_18_a_run_makes_up_for_a_failed_save_at_the_next_step(
    undisturbed, tmp_path, monkeypatch, caplog):
  commit, write = manifest.commit, recorder.JsonLines.__call__

  def third_fails(arrays, content):
    full() if content['step'] == 3 else commit(arrays, content)

  def wait_for_it(writer, step, metrics):
    while step == 4 and 'The next save will be tried' not in caplog.text:
      time.sleep(0.01)
    write(writer, step, metrics)

  monkeypatch.setattr(recorder.JsonLines, '__call__', wait_for_it)
  monkeypatch.setattr(manifest, 'commit', third_fails)
  assert here(tmp_path, *STEPS, '--config.checkpoint.keep=None') == 0
  # The metrics of step 4 are written while step 5 is on its way.
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [5, 6, 8]
  program = program_of(undisturbed)
  assert_equal_bits(Checkpoints(tmp_path / 'checkpoints').restore(8, program.state),
                    Checkpoints(undisturbed / 'checkpoints').restore(8, program.state))


def program_of(workdir):
  config = runs.read_config(workdir)
  return runs.build.experiment(config).program(config)


FAILING = """
import errno, sys
from ssl_jax.cli import main, process
from ssl_jax.train import checkpoint, manifest
checkpoint.PAUSES = 0, 0
commit, times = manifest.commit, [int(text[9:]) for text in sys.argv if text[:9] == '--failing']
sys.argv = [text for text in sys.argv if text[:9] != '--failing']
def failing(*arguments):
  times[0] -= 1
  if times[0] >= 0:
    raise OSError(errno.ENOSPC, 'No space left on device')
  commit(*arguments)
manifest.commit = failing
"""


@pytest.mark.slow
@pytest.mark.parametrize('times, code', [(2, 0), (9, 3)])
def test_18_what_fails_in_one_process_is_tried_again_by_all(times, code, tmp_path):
  both = ends(together([tmp_path / 'run'] * 2, '--config.steps=8', f'--failing{times}',
                       code=FAILING))
  assert [end.code for end in both] == [code] * 2, both[0].err
  for end in both:
    assert 'No space left on device (process 0)' in end.err
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps() == ([6, 8] if code == 0 else [])


@pytest.mark.parametrize('where', ['file', 'file/below', '/proc/run'])
def test_18_a_workdir_that_cannot_be_written_is_refused_at_the_start(where, tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  code = here(tmp_path / where, *STEPS)
  error = capsys.readouterr().err
  assert code == (2 if where == 'file' else 3)
  assert str(where) in error and 'Traceback' not in error
  assert ('is a file' in error) if where == 'file' else ('cannot be written' in error)


@pytest.mark.parametrize('error', [
  PermissionError(13, 'Permission denied'), OSError(30, 'Read-only file system'),
  OSError(122, 'Disk quota exceeded')])
def test_18_checkpoints_that_cannot_be_written_are_refused_at_the_start(
    tmp_path, monkeypatch, error):
  def refuse(path, data):
    raise error
  checkpoints = Checkpoints(tmp_path)
  monkeypatch.setattr(type(checkpoints.directory), 'write_bytes', refuse)
  with pytest.raises(CheckpointError, match=f'cannot be written to .*{error.strerror}'):
    checkpoints.prepare(abstract(make_state()))


def test_18_too_little_room_for_one_step_is_said_at_the_start(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
  assert here(tmp_path, *STEPS) == 3
  error = capsys.readouterr().err
  assert 'one takes 0.00 GB, and 0.00 GB are free: make room' in error
  assert not list((tmp_path / 'checkpoints').iterdir())


def test_19_slow_saves_warn_and_do_not_pile_up(tmp_path, monkeypatch, caplog):
  commit, at_work, most = manifest.commit, [], []

  def slow(*arguments):
    at_work.append(1)
    most.append(len(at_work))
    time.sleep(0.3)
    commit(*arguments)
    at_work.pop()

  monkeypatch.setattr(manifest, 'commit', slow)
  monkeypatch.setattr(checkpoint, 'SHORT', 0.05)
  checkpoints = Checkpoints(tmp_path)
  for step in (1, 2, 3):
    checkpoints.save(step, make_state(step))
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2, 3] and most == [1, 1, 1]
  assert 'Training waits for the save of step 1' in caplog.text
  assert caplog.text.count('save less often, or to a faster disk') == 2


def test_19_a_save_that_does_not_end_is_an_error(tmp_path, monkeypatch):
  commit, go_on = manifest.commit, threading.Event()
  monkeypatch.setattr(manifest, 'commit', lambda *args: go_on.wait(60) and commit(*args))
  monkeypatch.setattr(checkpoint, 'LIMIT', 0.3)
  monkeypatch.setattr(checkpoint, 'SHORT', 0.05)
  checkpoints = saved_later = Checkpoints(tmp_path)
  checkpoints.save(1, make_state(1))
  for call in (checkpoints.wait, lambda: saved_later.save(2, make_state(2)), checkpoints.wait):
    began = time.monotonic()
    with pytest.raises(CheckpointError, match='the save of step 1 in .* has not ended in 0.3 s'):
      call()
    assert time.monotonic() - began < 2
  go_on.set()
  while checkpoints.steps() != [1]:
    time.sleep(0.01)


HANGING = """
import os, sys, threading
from ssl_jax.cli import main, process
from ssl_jax.train import checkpoint, manifest
checkpoint.LIMIT = 1
manifest.commit = lambda *_: threading.Event().wait()
process.leave(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_19_a_run_whose_file_system_hangs_ends_with_3(tmp_path):
  end, = ends([python(HANGING, 'train', f'--config={DEMO}:smoke', f'--workdir={tmp_path}/run',
                      f'--cache_dir={ROOT}/.jax_cache', *BLIND, devices=1)], timeout=60)
  assert end.code == 3, end.err
  assert 'has not ended in 1 s: does the file system hang?' in end.err


# --- another tree, machine, release ---------------------------------------------------------------


@pytest.mark.parametrize('change, message', [
  (lambda p: {**p, 'new': jnp.ones(2)}, r'params/new: expected float32\[2\], found none'),
  (lambda p: {'encoder': p['encoder']}, r'params/head/0: expected none, found float32\[8, 4\]'),
  (lambda p: {'body': p['encoder'], 'head': p['head']},
   r'(?s)params/body/conv/bias: expected float32\[8\], found none.*'
   r'params/encoder/conv/bias: expected none, found float32\[8\]'),
  (lambda p: {**p, 'head': [jnp.ones((8, 5)), p['head'][1]]},
   r'params/head/0: expected float32\[8, 5\], found float32\[8, 4\]'),
  (lambda p: {**p, 'head': [p['head'][0].astype(jnp.bfloat16), p['head'][1]]},
   r'params/head/0: expected bfloat16\[8, 4\], found float32\[8, 4\]'),
], ids=['missing', 'extra', 'renamed', 'shape', 'dtype'])
def test_20_another_tree_is_refused_by_name(tmp_path, change, message):
  checkpoints = saved(tmp_path, 1)
  state = make_state(1)
  with pytest.raises(ValueError, match=message):
    checkpoints.restore(1, abstract(state._replace(params=change(state.params))))
  with pytest.raises(ValueError, match='opt/.*: expected'):
    checkpoints.restore(1, abstract(make_state(1, optax.sgd(0.1, momentum=0.9))))


def test_20_another_dtype_is_converted_when_told_to(tmp_path):
  checkpoints, state = saved(tmp_path, 1), make_state(1)
  half = state._replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params))
  assert_equal_bits(checkpoints.restore(1, abstract(half), cast=True), half)
  step, restored = checkpoints.restore_latest(abstract(half), cast=True)
  assert_equal_bits(restored, half)
  with pytest.raises(ValueError, match=r'step: expected uint32\[\], found int32\[\]'):
    checkpoints.restore(1, abstract(state._replace(step=jnp.uint32(7))), cast=True)


def test_20_a_run_in_another_precision_continues_only_when_told_to(undisturbed, tmp_path, capsys):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  checkpoints, like = Checkpoints(workdir / 'checkpoints'), program_of(workdir).state
  ts = checkpoints.restore(6, like)
  half = ts._replace(opt=jax.tree.map(
    lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, ts.opt))
  checkpoints.save(6, half, checkpoints.metadata(6), wait=True)
  assert here(workdir, *STEPS) == 2
  error = capsys.readouterr().err
  assert re.search(r'opt/\S+: expected float32\[.*\], found bfloat16\[', error)
  assert 'train --allow_changes converts them' in error
  assert here(workdir, *STEPS, '--allow_changes') == 0


@pytest.mark.parametrize('devices', [1, 2, 8])
def test_21_eight_devices_restore_on_others_bit_for_bit(tmp_path, devices):
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


@pytest.mark.slow
def test_21_a_run_goes_on_from_eight_devices_to_four_to_one(tmp_path):
  """The same examples, and the loss of five steps to 1e-5."""
  config = runs.read_config(RELEASE)
  config.optimizer = dict(name='sgd')  # Adam makes full steps of what is nothing but rounding
  config.schedule.learning_rate = 1e-3
  checkpoints = Checkpoints(tmp_path, keep_last=None)

  @functools.cache
  def made(devices: int):
    experiment = runs.build.experiment(config, jax.devices()[:devices])
    return experiment, experiment.program(config)

  def go_on(devices: int, first: int, last: int) -> list:
    experiment, program = made(devices)
    ts = checkpoints.restore(first, program.state) if first else program.init()
    feed, seen = command.global_batches(config, experiment, program, first), []
    for k in range(first, last):
      batch = next(feed)
      ids = np.asarray(batch['id']).tolist()
      ts, metrics = program.step(ts, batch)
      seen.append((ids, float(metrics['loss'])))
      if k + 1 in (2, 4):
        checkpoints.save(k + 1, ts, wait=True)
    return seen

  alone = go_on(8, 0, 9)
  checkpoints = Checkpoints(tmp_path / 'moving', keep_last=None)
  moving = go_on(8, 0, 2) + go_on(4, 2, 4) + go_on(1, 4, 9)
  assert [ids for ids, _ in moving] == [ids for ids, _ in alone]
  np.testing.assert_allclose([x for _, x in moving], [x for _, x in alone], rtol=1e-5)


@pytest.mark.slow
def test_21_a_run_goes_on_from_two_processes_to_one_to_four(tmp_path):
  arguments = ('--config.steps=8', '--config.checkpoint.every=2', '--config.checkpoint.keep=None',
               '--config.schedule.learning_rate=1e-4')
  both = ends(together([tmp_path / 'two'] * 2, *arguments))
  assert [end.code for end in both] == [0, 0], both[0].err

  def cut(source: str, target: str, last: int) -> pathlib.Path:
    shutil.copytree(tmp_path / source, tmp_path / target)
    for path in (tmp_path / target / 'checkpoints').iterdir():
      if int(path.name) > last:
        shutil.rmtree(path)
    return tmp_path / target

  one, = ends([train(cut('two', 'one', 2), *arguments, devices=4)])
  four = ends(together([cut('one', 'four', 4)] * 4, *arguments, each=((),) * 4, devices=1))
  assert [end.code for end in (one, *four)] == [0] * 5, four[0].err
  assert 'resuming at step 2' in one.err and 'resuming at step 4' in four[0].err
  for name in ('one', 'four'):
    got, want = lines(tmp_path / name), lines(tmp_path / 'two')
    assert [line['step'] for line in got] == list(range(1, 9))
    np.testing.assert_allclose([line['loss'] for line in got], [line['loss'] for line in want],
                               rtol=1e-5)


def test_22_a_run_of_release_0_1_0_is_used_and_goes_on(tmp_path):
  """Made by `train` with configs/moco_fashion_mnist.py:smoke, a network of two layers, 3 steps: EMA
  encoder, queue, running statistics, AdamW. Should it not load any more: write a conversion."""
  expected = json.loads((RELEASE / 'expected.json').read_text())
  run = ssl_jax.load(RELEASE)
  images = (np.arange(2 * 28 * 28) % 251).astype(np.uint8).reshape(2, 28, 28, 1)
  np.testing.assert_allclose(run.embed(images), expected['embedding'], rtol=1e-4)
  shutil.copytree(RELEASE, tmp_path / 'run')
  config = json.loads((RELEASE / 'config.json').read_text())
  spelled = [f'--config.{name}={config[name]!r}' for name in ('network', 'head', 'method')]
  assert main(['train', f'--config={ROOT}/configs/moco_fashion_mnist.py:smoke', *BLIND, *spelled,
               f'--workdir={tmp_path}/run', '--cache_dir=none', '--config.steps=3']) == 0
  assert [line['step'] for line in lines(tmp_path / 'run')] == [1, 2, 3]
  for name, value in expected['step 3'].items():
    np.testing.assert_allclose(lines(tmp_path / 'run')[2][name], value, rtol=1e-4)


def test_22_a_step_of_a_newer_release_is_refused_and_left_alone(tmp_path):
  checkpoints = saved(tmp_path, 10, 20)
  change_manifest(tmp_path / '20', format=manifest.FORMAT + 1, version='7.0.0')
  words = (f'(?s)was written by ssl_jax 7.0.0 in format 2; this is ssl_jax {ssl_jax.__version__}, '
           'which reads up to format 1: install that version')
  for call in (lambda: checkpoints.metadata(20), lambda: checkpoints.latest(verify=True),
               lambda: checkpoints.restore_latest(abstract(make_state())),
               lambda: checkpoint.init_from(tmp_path, abstract(make_state().params))):
    with pytest.raises(NewerError, match=words):
      call()
  assert checkpoints.steps() == [10, 20] and len(list(tmp_path.iterdir())) == 2


def test_22_a_tree_of_another_release_is_refused_with_both_versions(tmp_path):
  checkpoints = saved(tmp_path, 10)
  change_manifest(tmp_path / '10', version='0.0.9')
  with pytest.raises(ValueError, match=f'is of ssl_jax 0.0.9, this is {ssl_jax.__version__}'):
    checkpoints.restore(10, {'x': jax.ShapeDtypeStruct((), jnp.float32)})


class Bomb:
  """Makes a file when it is unpickled."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __reduce__(self):
    return os.mkdir, (str(self._path),)


# In a process of its own: where Orbax cannot read one array, its readers of others complain later.
READING = """
import json, pathlib, sys
import jax
from ssl_jax import runs
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import CheckpointError, Checkpoints
release, *folders = map(pathlib.Path, sys.argv[1:])
text = (release / 'checkpoints' / '2' / 'manifest.json').read_text()
like = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (dtype, shape) in
        json.loads(text)['manifest']['leaves'].items()}
for run in folders:
  for read in (lambda: Checkpoints(run / 'checkpoints').restore_latest(like),
               lambda: runs.read_config(run)):
    try:
      read()
    except (CheckpointError, ConfigError) as error:
      print(type(error).__name__)
print('read', len(folders))
"""


def test_23_pickles_are_never_executed(tmp_path):
  """As files of ours with a manifest that fits them, and beside ours."""
  mark = tmp_path / 'executed'
  bomb = pickle.dumps(Bomb(mark))
  pickle.loads(bomb)
  mark.rmdir()  # the bomb works
  names = [path.relative_to(RELEASE) for path in RELEASE.rglob('*') if path.is_file()]
  folders = [tmp_path / f'run{i}' for i in range(len(names))]
  for name, run in zip(names, folders):
    shutil.copytree(RELEASE, run)
    (run / name).write_bytes(bomb)
    for beside in ('bomb.pkl', 'bomb.npy', 'model.ckpt', 'checkpoints/2/state-0/bomb.pkl'):
      (run / beside).write_bytes(bomb)
    if name.parts[0] == 'checkpoints' and name.name != manifest.NAME:
      step = run / 'checkpoints' / '2'
      files = {str(path.relative_to(step)): list(manifest._digest(path))
               for path in (step / 'state-0').rglob('*') if path.is_file()}
      change_manifest(step, files=files)
  end, = ends([python(READING, str(RELEASE), *map(str, folders), devices=1)])
  assert end.code == 0, end.err
  assert f'read {len(names)}' in end.out and 'CheckpointError' in end.out
  assert not mark.exists()


def test_23_nothing_of_ours_unpickles():
  for path in (ROOT / 'ssl_jax').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
               [node.module] if isinstance(node, ast.ImportFrom) else [])
      assert not {'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal'} & {
        str(name).split('.')[0] for name in names}, path
      if isinstance(node, ast.Call) and ast.unparse(node.func) in ('np.load', 'numpy.load'):
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert given.get('allow_pickle', 'False') == 'False', path


def test_24_only_the_newest_are_kept_and_never_none(tmp_path):
  saved(tmp_path / 'two', 1, 2, 3, 10, keep_last=2)
  assert sorted(path.name for path in (tmp_path / 'two').iterdir()) == ['10', '3']
  assert saved(tmp_path / 'all', 1, 2, 3, 4, keep_last=None).steps() == [1, 2, 3, 4]
  with pytest.raises(ValueError, match='keep_last must be at least 1'):
    Checkpoints(tmp_path, keep_last=0)


def test_24_nothing_is_deleted_before_the_new_step_is_on_the_disk(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 1, keep_last=1)
  sync, events = manifest._sync, []
  monkeypatch.setattr(manifest, '_sync', lambda path: (
    events.append((path.name, checkpoints.steps())), sync(path)))
  checkpoints.save(2, make_state())
  checkpoints.wait()
  files = {path.name for path in data_files(tmp_path / '2')}
  assert files <= {name for name, _ in events}, 'all files'
  assert events[-2:] == [(manifest.DRAFT, [1]), ('2', [1, 2])], 'then the manifest, and its name'
  assert checkpoints.steps() == [2]


def test_24_a_step_that_fails_does_not_cost_the_one_before(tmp_path, monkeypatch, impatient):
  checkpoints = saved(tmp_path, 1, keep_last=1)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'commit', full)
    for step in (2, 3):
      with pytest.raises(CheckpointError, match='No space left'):
        checkpoints.save(step, make_state(), wait=True)
    with pytest.raises(CheckpointError, match='No space left'):
      checkpoints.save(1, make_state(), wait=True)
  assert checkpoints.latest(verify=True) == 1
  flip_bit(data_files(tmp_path / '1')[0])  # now there is none; what is kept is for people to see
  with pytest.raises(CheckpointError, match='is intact'):
    checkpoints.latest(verify=True)
  assert checkpoints.steps() == [1]


def test_24_a_deletion_that_is_cut_short_leaves_no_step(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, 1, 2)
  monkeypatch.setattr(type(checkpoints.directory), 'rmtree', full)
  with pytest.raises(OSError):
    manifest.discard(checkpoints.directory / '1')
  monkeypatch.undo()
  assert checkpoints.steps() == [2] and (tmp_path / '1' / 'state-0').is_dir()
  Checkpoints(tmp_path).prepare(abstract(make_state()))
  assert [path.name for path in tmp_path.iterdir()] == ['2']


# --- two jobs -------------------------------------------------------------------------------------


HOLDING = """
import pathlib, sys, time
from ssl_jax.cli.lock import Lock
held = Lock(pathlib.Path(sys.argv[1]))
held.take()
print('held', flush=True)
time.sleep(60)
"""


def test_25_a_second_job_is_refused_and_a_killed_one_leaves_nothing(
    undisturbed, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'GRACE', 0.2)
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  other = python(HOLDING, str(workdir), devices=1)
  try:
    assert other.stdout.readline() == 'held\n'
    for arguments in (STEPS, ('--resume=never', *STEPS)):
      assert here(workdir, *arguments) == 2
      error = capsys.readouterr().err
      assert f'another job is at work in {workdir}: process {other.pid} on {socket.gethostname()}' \
        f' since {time.strftime("%Y-")}' in error
      assert 'use another --workdir' in error
    assert Checkpoints(workdir / 'checkpoints').steps() == [6, 8]
  finally:
    other.send_signal(signal.SIGKILL)
    other.communicate()
  assert json.loads((workdir / lock.NAME).read_text())['pid'] == other.pid
  assert here(workdir, *STEPS) == 0
  assert (workdir / lock.NAME).read_text() == ''


def foreign(workdir: pathlib.Path, age: float = 0) -> pathlib.Path:
  """The lock of a job on another host, on a file system whose locks do not reach this one."""
  path = workdir / lock.NAME
  path.write_text(json.dumps(dict(host='elsewhere', pid=7, time='2026-11-27 10:00:00')))
  os.utime(path, (time.time() - age,) * 2)
  return path


def test_25_a_job_on_another_host_is_known_by_its_signs_of_life(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, 'WATCHED', 0.5)
  monkeypatch.setattr(lock, 'BEAT', 0.05)
  path, over = foreign(tmp_path), threading.Event()
  with path.open() as file:
    beats = threading.Thread(target=lock._beat, args=(file.fileno(), over))
    beats.start()
    with pytest.raises(ConfigError, match='process 7 on elsewhere since 2026-11-27 10:00:00; wait'):
      Lock(tmp_path).take()
    over.set()
    beats.join()
  began = time.monotonic()
  with lock.held(tmp_path):  # it gave none: killed
    assert time.monotonic() - began > 0.4
    assert json.loads(path.read_text())['host'] == socket.gethostname()
  assert path.read_text() == ''
  foreign(tmp_path, age=lock.OLD + 1)
  monkeypatch.setattr(lock, 'WATCHED', 60)
  with lock.held(tmp_path):  # long ago: nobody looks
    assert time.monotonic() - began < 10
  for garbage in ('', '{', '[]', '{"host": "elsewhere"}'):
    path.write_text(garbage)
    with lock.held(tmp_path):
      pass


def test_25_an_earlier_run_moved_aside_takes_its_lock_along(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, 'GRACE', 0)
  workdir = tmp_path / 'run'
  shutil.copytree(RELEASE, workdir)
  with lock.held(workdir) as place:
    aside = place.move_aside()
    assert (aside / lock.NAME).read_text() == '' and (aside / runs.CONFIG).exists()
    with pytest.raises(ConfigError, match='another job'):
      Lock(workdir).take()
    with lock.held(aside):
      pass


def test_26_a_run_behind_a_link_or_a_dot_is_moved_aside_where_it_is(tmp_path, monkeypatch):
  shutil.copytree(RELEASE, tmp_path / 'run')
  (tmp_path / 'link').symlink_to('run')
  with lock.held(tmp_path / 'link') as place:
    aside = place.move_aside()
  assert (tmp_path / 'link').is_symlink() and (tmp_path / 'run').is_dir()
  assert aside.parent == tmp_path and (aside / runs.CONFIG).exists()
  monkeypatch.chdir(aside)
  with lock.held(runs.folder_to_train('.')) as place:
    place.move_aside()
  assert [path.name for path in aside.iterdir()] == [lock.NAME]


@pytest.mark.slow
def test_25_two_processes_of_one_run_hold_one_lock(tmp_path):
  arguments = ('--config.steps=4',)
  assert [end.code for end in ends(together([tmp_path / 'run'] * 2, *arguments))] == [0, 0]
  quick = 'import sys; from ssl_jax.cli import lock, main, process; lock.GRACE = 0\n'
  with lock.held(tmp_path / 'run'):
    both = ends(together([tmp_path / 'run'] * 2, *arguments, code=quick))
  assert [end.code for end in both] == [2, 2]
  for end in both:
    assert 'another job is at work in' in end.err


# --- paths ----------------------------------------------------------------------------------------


@pytest.fixture
def spelled(tmp_path, monkeypatch):
  """The run of the release under names that are easily mistaken."""
  run = tmp_path / 'läufe mit  leer' / "it's 実験 $HOME"
  shutil.copytree(RELEASE, run)
  (tmp_path / 'link').symlink_to(run)
  monkeypatch.chdir(run.parent)
  monkeypatch.setenv('HOME', str(tmp_path))
  return [str(run), run.name, f'./{run.name}//', f'~/{run.parent.name}/{run.name}', '~/link/',
          f'../{run.parent.name}/./{run.name}', run]


def test_26_odd_spellings_of_a_run_all_work(spelled, tmp_path, monkeypatch):
  for path in spelled:
    assert runs.read_config(path).method.name == 'moco'
    folder = runs.folder_to_train(str(path))
    assert Checkpoints(folder / 'checkpoints').steps() == [2]
    checkpoint.init_from(path, abstract(stored_params()))
  assert ssl_jax.load(spelled[4]).step == 2
  steps = Checkpoints(f'{spelled[3]}/checkpoints/')
  monkeypatch.chdir('/')
  steps.save(3, make_state(), wait=True)
  assert Checkpoints(tmp_path / 'link' / 'checkpoints').steps() == [2, 3]


def stored_params() -> dict:
  """The tree of parameters of the release's run."""
  content = json.loads((RELEASE / 'checkpoints' / '2' / manifest.NAME).read_text())
  tree = {}
  for name, (dtype, shape) in content['manifest']['leaves'].items():
    if name.startswith('params/'):
      inner, (_, *path, last) = tree, name.split('/')
      for word in path:
        inner = inner.setdefault(word, {})
      inner[last] = jax.ShapeDtypeStruct(shape, dtype)
  return tree


def test_26_paths_that_are_no_run_say_what_to_pass(tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(RELEASE, run)
  step = run / 'checkpoints' / '2'
  for inside in (run / 'checkpoints', step, step / 'state-0', step / 'state-0' / 'd'):
    with pytest.raises(ConfigError, match=f'inside a run; pass the folder .*: {run}'):
      ssl_jax.load(inside)
    assert here(inside) == 2
    assert f'is inside a run; pass {run}' in capsys.readouterr().err
  with pytest.raises(ConfigError, match='not the folder of a run: it does not exist'):
    ssl_jax.load(tmp_path / 'nowhere')
  with pytest.raises(ConfigError, match='not the folder of a run: it has no config.json'):
    ssl_jax.load(tmp_path)
  assert here('gs://bucket/run') == 2
  assert 'mount the bucket' in capsys.readouterr().err
  assert not pathlib.Path('gs:').exists()
  with pytest.raises(ValueError, match='is one step; give the folder around it'):
    Checkpoints(step)
  with pytest.raises(ValueError, match='is a run folder; its steps are in .*checkpoints'):
    Checkpoints(run)


def test_26_weights_of_another_run_are_found_or_it_is_said_what_to_give(tmp_path):
  saved(tmp_path / 'checkpoints', 1)
  params = abstract(make_state(1).params)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match=r'inside a step; give the step: .*/1$'):
    checkpoint.init_from(tmp_path / 'checkpoints' / '1' / 'state-0', params)
  with pytest.raises(ValueError, match='nowhere does not exist'):
    checkpoint.init_from(tmp_path / 'nowhere', params)
  with pytest.raises(ValueError, match='no complete step; give a run folder'):
    checkpoint.init_from(tmp_path / 'empty', params)
  with pytest.raises(CheckpointError, match=r'no step 15 in .*; there are \[1\]'):
    Checkpoints(tmp_path / 'checkpoints').restore(15, params)
  with pytest.raises(ValueError, match=r'params/head/0: expected none, found float32\[8, 4\]'):
    checkpoint.init_from(tmp_path, {'encoder': params['encoder']})
  with pytest.raises(ValueError, match='params/body/conv/bias: expected .*, found none'):
    checkpoint.init_from(tmp_path, params['encoder'], subtree='body')
  flip_bit(data_files(tmp_path / 'checkpoints' / '1')[0])
  with pytest.raises(CheckpointError, match='does not match its SHA-256'):
    checkpoint.init_from(tmp_path, params)
  assert (tmp_path / 'checkpoints' / '1').exists()


def test_27_a_workdir_that_hosts_do_not_share_is_refused(tmp_path):
  for end in ends(together([tmp_path / 'a', tmp_path / 'b'])):
    assert end.code == 2, end.err
    assert 'is not one folder that all hosts share' in end.err and 'process 1 (' in end.err
  assert list((tmp_path / 'a').iterdir()) == [] and not (tmp_path / 'b').exists()
