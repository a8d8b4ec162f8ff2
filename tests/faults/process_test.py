"""Faults of processes: told to stop, killed, stuck, late, of another mind. Numbers 1 to 12."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from ssl_jax import runs
from ssl_jax.cli import main, meeting, process, watchdog
from ssl_jax.cli import train as command
from ssl_jax.cli.watchdog import COMPUTING, Watchdog
from ssl_jax.train import manifest
from ssl_jax.train.checkpoint import Checkpoints
from ssl_jax.train.metrics import JsonLines
from tests.processes import DEMO, ROOT, SHORT, ends, free_port, lines, python, together, train

STEPS = ('--config.steps=8', '--config.checkpoint.every=3')
LOOKING = ('--config.steps=4', '--config.evaluate.every=2', '--config.evaluate.health_every=2')
ADAPTIVE = '--config.optimizer={"name": "adamw", "weight_decay": 1e-4}'
QUICK = SHORT + 'hosts.DEAD = 10\n'
BLIND = ('--config.evaluate.every=None', '--config.evaluate.health_every=None')


def here(workdir, *arguments) -> int:
  """`train` in this process."""
  return main(['train', f'--config={DEMO}:smoke', f'--workdir={workdir}', '--cache_dir=none', *BLIND,
               *arguments])


def numbers(workdir) -> list[dict]:
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in lines(workdir)]


def state(workdir, step):
  program = runs.build.experiment(runs.read_config(workdir)).program(runs.read_config(workdir))
  return jax.device_get(Checkpoints(workdir / 'checkpoints').restore(step, program.state))


def assert_same_run(one, other, step):
  assert numbers(one) == numbers(other)
  jax.tree.map(np.testing.assert_array_equal, state(one, step), state(other, step))


def send(number=signal.SIGTERM):
  os.kill(os.getpid(), number)


def at_call(k, function, before):
  """`function`, which calls `before` first at its k-th call (from 1)."""
  calls = [0]

  def called(*args, **kwargs):
    calls[0] += 1
    if calls[0] == k:
      before()
    return function(*args, **kwargs)
  return called


def told(events, name, function):
  """`function`, whose calls are noted by name."""
  def called(*args, **kwargs):
    events.append(name)
    return function(*args, **kwargs)
  return called


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
  assert here(workdir, *STEPS) == 0
  return workdir


@pytest.fixture(scope='module')
def looking(tmp_path_factory):
  """(arguments of a run that evaluates few images twice, its folder)."""
  folder, r = tmp_path_factory.mktemp('runs'), np.random.default_rng(0)
  for split, count in (('train', 64), ('test', 32)):
    np.savez(folder / f'{split}.npz', label=np.arange(count) % 4,
             image=r.integers(0, 256, (count, 28, 28, 1), np.uint8))
  arguments = (*LOOKING, '--config.data.name=array_files',
               f'--config.data.path={folder}/{{split}}.npz')
  assert here(folder / 'run', *arguments) == 0
  return arguments, folder / 'run'


# --- told to stop ---------------------------------------------------------------------------------


def test_01_sigterm_saves_and_the_same_command_continues(undisturbed, tmp_path, monkeypatch, capfd):
  events = []
  with monkeypatch.context() as patch:
    patch.setattr(command, 'to_global', at_call(4, command.to_global, send))
    for kind, name in ((JsonLines, 'sync'), (Checkpoints, 'save')):
      patch.setattr(kind, name, told(events, name, getattr(kind, name)))
    assert here(tmp_path, *STEPS) == 42
  assert events == ['sync', 'save'] * 2  # a checkpoint promises the metrics before it
  assert 'SIGTERM: saving' in capfd.readouterr().err
  assert Checkpoints(tmp_path / 'checkpoints').latest() == 4  # the batch in hand was used
  assert here(tmp_path, *STEPS) == 0
  assert 'resuming at step 4' in capfd.readouterr().err
  assert_same_run(tmp_path, undisturbed, 8)


def test_02_a_signal_to_one_of_two_saves_the_same_step_on_both(tmp_path):
  """2 x 2 devices, a SIGTERM to one of them, the same command again: the run of 1 x 4 devices."""
  arguments = ('--config.steps=80', '--config.checkpoint.every=None')
  both = together([tmp_path / 'two'] * 2, *arguments)
  while len(lines(tmp_path / 'two')) < 2:
    assert all(process.poll() is None for process in both), ends(both)
    time.sleep(0.05)
  for _ in range(2):  # a second signal does no harm
    both[1].send_signal(signal.SIGTERM)
    time.sleep(0.3)
  for end in (stopped := ends(both)):
    assert end.code == 42, end.err
  step, = Checkpoints(tmp_path / 'two' / 'checkpoints').steps()
  assert f'stopped at step {step} of 80' in stopped[0].err
  assert not stopped[0].out and not stopped[1].out
  assert [line['step'] for line in lines(tmp_path / 'two')] == list(range(1, step + 1))

  *both, alone = ends([*together([tmp_path / 'two'] * 2, *arguments),
                       train(tmp_path / 'one', *arguments, devices=4)])
  assert f'resuming at step {step}' in both[0].err 
  assert both[0].out.startswith('done: 80 steps') and not both[1].out
  assert [end.code for end in (*both, alone)] == [0, 0, 0], [end.err for end in both]
  two, one = lines(tmp_path / 'two'), lines(tmp_path / 'one')
  assert [line['step'] for line in two] == [line['step'] for line in one] == list(range(1, 81))
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(two[0][name], one[0][name], rtol=1e-5)
    # Later float32 steps drift apart by rounding, in correct code too.
    np.testing.assert_allclose([line[name] for line in two[:20]], [line[name] for line in one[:20]],
                               rtol=0.02)
    np.testing.assert_allclose([line[name] for line in two], [line[name] for line in one], rtol=0.3)
  assert [path.name for path in (tmp_path / 'two').glob('.*')] == []
  assert len((tmp_path / 'two' / 'starts.jsonl').read_text().splitlines()) == 2


# --- told to stop, in every phase -----------------------------------------------------------------


@pytest.mark.parametrize('place', ['experiment', 'compile'])
def test_03_sigterm_before_the_first_step(place, tmp_path, monkeypatch, capfd):
  """It need not wait for the data to be read, or the step to be compiled."""
  def forever(*_):
    send()
    time.sleep(60)
    raise AssertionError('the signal was not noticed')

  module, name = ((command.build, 'experiment') if place == 'experiment' else
                  (command, '_start_compiling'))
  monkeypatch.setattr(module, name, forever if place == 'experiment' else lambda _: forever)
  began = time.monotonic()
  assert here(tmp_path) == 42
  assert time.monotonic() - began < 50
  assert 'SIGTERM before the first step' in capfd.readouterr().err
  assert not list(tmp_path.glob('checkpoints/*'))


def test_03_a_signal_that_python_swallows_is_noticed_all_the_same(tmp_path, monkeypatch, capfd):
  """As an exception in a callback of the garbage collector, which is only printed."""
  def swallowed(function):
    with contextlib.suppress(process.Stopped):
      send()
      time.sleep(60)
    return start(function)

  start = process.start
  monkeypatch.setattr(command, 'start', swallowed)
  assert here(tmp_path) == 42
  assert 'stopped before the first step' in capfd.readouterr().err
  assert not list(tmp_path.glob('checkpoints/*'))


LEAVING = """
import time
import jax
from ssl_jax.cli import process
def f(x):
  for i in range(2000):
    x = jax.numpy.sin(x) + i
  return x
process.start(jax.jit(f).lower(1.).compile)
time.sleep(0.1)
process.leave(42)
"""


def test_03_a_compiler_that_still_runs_does_not_hold_up_the_end():
  end, = ends([python(LEAVING, devices=1)], timeout=30)
  assert end.code == 42, end.err


@pytest.mark.parametrize('k, owed, has', [
  (1, ['health', 'evaluation'], set()),  # while health looks
  (4, ['evaluation'], {'effective_rank'}),  # while kNN calibrates
  (6, ['evaluation'], {'effective_rank'}),  # while kNN embeds the test images
])
def test_03_sigterm_during_an_evaluation(k, owed, has, looking, tmp_path, monkeypatch):
  """What was cut short is made up for, with the same numbers in the same lines."""
  arguments, undisturbed = looking
  with monkeypatch.context() as patch:
    patch.setattr(runs, 'in_order', at_call(k, runs.in_order, send))
    assert here(tmp_path, *arguments) == 42
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  assert checkpoints.latest() == 2 and checkpoints.metadata(2)['owed'] == owed
  found = set().union(*numbers(tmp_path))
  assert found & {'knn20', 'effective_rank'} == has
  assert here(tmp_path, *arguments) == 0
  assert_same_run(tmp_path, undisturbed, 4)


def test_03_what_is_made_up_for_twice_is_written_once(tmp_path):
  """A kill between making up for an evaluation and the next checkpoint."""
  path = tmp_path / 'metrics.jsonl'
  for step, metrics in ((1, {'loss': 1.}), (2, {'loss': 2.}), (2, {'knn20': 0.5})):
    with contextlib.closing(JsonLines(path, resume_step=step)) as writer:
      writer(step, metrics)
      writer.sync()
  with contextlib.closing(JsonLines(path, resume_step=2)) as writer:
    writer(2, {'knn20': 0.5})
    writer(3, {'loss': 3.})
    writer(3, {'knn20': 0.75})
  assert numbers(tmp_path) == [
    {'step': 1, 'loss': 1.}, {'step': 2, 'loss': 2.}, {'step': 2, 'knn20': 0.5},
    {'step': 3, 'loss': 3.}, {'step': 3, 'knn20': 0.75}]


def test_03_sigterm_while_waiting_for_data(undisturbed, tmp_path, monkeypatch):
  class Slow:
    def __init__(self, source):
      self._source, self.take = source, at_call(5, source.take, self._wait)

    def _wait(self):
      send()
      released.wait(60)

    def __getattr__(self, name):
      return getattr(self._source, name)

    def __len__(self):
      return len(self._source)

    def __getitem__(self, i):
      return self._source[i]

  released, source, began = threading.Event(), command.build.source, time.monotonic()
  with monkeypatch.context() as patch:
    patch.setattr(command.build, 'source', lambda *args, **kwargs: Slow(source(*args, **kwargs)))
    assert here(tmp_path, *STEPS) == 42
  released.set()
  assert time.monotonic() - began < 50
  assert 1 <= Checkpoints(tmp_path / 'checkpoints').latest() <= 4
  assert here(tmp_path, *STEPS) == 0
  assert_same_run(tmp_path, undisturbed, 8)


def test_04_signals_during_saves(undisturbed, tmp_path, monkeypatch, capfd):
  """The first during a save in the background, the second during the last: both are whole."""
  def commit(*arguments):
    send()
    time.sleep(0.5)
    return whole(*arguments)

  whole = manifest.commit
  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'commit', commit)
    assert here(tmp_path, *STEPS) == 42
  error = capfd.readouterr().err
  assert 'SIGTERM: saving, then ending' in error and 'still saving; once more' in error
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  assert checkpoints.steps()[0] == 3 and len(checkpoints.steps()) == 2
  assert [path.name for path in (tmp_path / 'checkpoints').iterdir() if not path.name.isdigit()] == []
  assert here(tmp_path, *STEPS) == 0
  assert_same_run(tmp_path, undisturbed, 8)


SIGNALLED = """
import sys, time
from ssl_jax.cli.process import StopOnSignal
with StopOnSignal() as stop:
  stop.defer()
  print('ready', flush=True)
  for _ in range(600):
    time.sleep(0.1)
"""


def test_04_nohup_is_respected():
  code = 'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n'
  run = subprocess.Popen([sys.executable, '-c', code + SIGNALLED], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert run.stdout.readline() == 'ready\n'
  run.send_signal(signal.SIGHUP)
  run.send_signal(signal.SIGTERM)
  assert run.stderr.readline().startswith('SIGTERM: saving')
  run.kill()
  run.communicate()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_04_the_third_signal_ends_at_once(number):
  run = subprocess.Popen([sys.executable, '-c', 'import signal; signal.signal(signal.SIGHUP, '
                          f'signal.SIG_DFL)\n{SIGNALLED}'], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  assert run.stdout.readline() == 'ready\n'
  for words in ('twice more ends at once', 'once more ends at once'):
    run.send_signal(number)
    assert words in run.stderr.readline()
  run.send_signal(number)
  assert ends([run], timeout=30)[0].code == -number


SPEAKING = """
import sys
from ssl_jax.cli.process import Surviving
sys.stdout, sys.stderr = Surviving(sys.stdout), Surviving(sys.stderr)
sys.stdin.readline()
for stream in (sys.stdout, sys.stderr):
  for _ in range(10):
    print('x' * 10_000, file=stream, flush=True)
sys.exit(42)
"""


def test_04_a_reader_of_the_output_that_goes_away_ends_nothing():
  """Ctrl-C also ends the `tee` of `train 2>&1 | tee log`, before the run could say a word."""
  pipe = subprocess.PIPE
  run = subprocess.Popen([sys.executable, '-c', SPEAKING], cwd=ROOT, stdin=pipe, stdout=pipe,
                         stderr=pipe)
  run.stdout.close()
  run.stderr.close()
  run.stdin.write(b'go\n')
  run.stdin.close()
  assert run.wait(timeout=30) == 42


# --- killed ---------------------------------------------------------------------------------------

KILLED = """
import os, signal
from ssl_jax.train import manifest
commit, saves = manifest.commit, []
def killed(*arguments):
  saves.append(1)
  if len(saves) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return commit(*arguments)
manifest.commit = killed
"""


def test_05_sigkill_during_an_asynchronous_save(undisturbed, tmp_path):
  end, = ends([train(tmp_path / 'run', *STEPS, ADAPTIVE, code=SHORT + KILLED, devices=8)])
  assert end.code == -signal.SIGKILL, end.err
  shutil.copytree(tmp_path / 'run', tmp_path / 'earlier')
  arrays, = (tmp_path / 'earlier' / 'checkpoints' / '6').glob('state-*')
  arrays.rename(f'{arrays}.orbax-checkpoint-tmp')  # killed before the arrays were whole
  for workdir in (tmp_path / 'run', tmp_path / 'earlier'):
    folder = workdir / 'checkpoints'
    assert Checkpoints(folder).steps() == [3]
    assert here(workdir, *STEPS) == 0
    assert sorted(path.name for path in folder.iterdir()) == ['6', '8']
    for step in ('6', '8'):
      assert len(list((folder / step).iterdir())) == 2, 'the manifest and one folder of arrays'
    assert_same_run(workdir, undisturbed, 8)


@pytest.mark.slow
def test_06_sigkill_at_20_random_times(tmp_path):
  """At times drawn once; the metrics and the final state are those of a run left alone."""
  arguments = ('--config.steps=60', '--config.checkpoint.every=5', ADAPTIVE)
  alone, = ends([train(tmp_path / 'alone', *arguments, devices=1)], timeout=300)
  assert alone.code == 0, alone.err
  times, survived = random.Random(0), 0
  for _ in range(20):
    run = train(tmp_path / 'killed', *arguments, devices=1)
    # Import takes 2 s and more; the steps, saves and commits of a run fit into the 3 s after it.
    time.sleep(times.uniform(1.5, 6.0))
    survived += run.poll() is None
    run.kill()
    run.communicate()
  assert survived >= 5, 'most runs were over before they were killed: nothing was tested'
  last, = ends([train(tmp_path / 'killed', *arguments, devices=1)], timeout=300)
  assert last.code == 0, last.err
  assert_same_run(tmp_path / 'killed', tmp_path / 'alone', 60)


TWO = ('--config.steps=80', '--config.checkpoint.every=10')


@pytest.fixture(scope='module')
def undisturbed_two(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'two'
  assert [end.code for end in ends(together([workdir] * 2, *TWO), timeout=300)] == [0, 0]
  return workdir


@pytest.mark.slow
def test_07_sigkill_of_a_peer_ends_the_other_and_a_restart_continues(undisturbed_two, tmp_path):
  end_and_restart(tmp_path, 1, undisturbed_two)


@pytest.mark.slow
def test_09_sigkill_of_the_coordinator_ends_all_and_a_restart_continues(undisturbed_two, tmp_path):
  end_and_restart(tmp_path, 0, undisturbed_two)


def end_and_restart(run, victim, undisturbed):
  """At once, where gloo notices; else by JAX, which aborts. Both are worth another start."""
  both = together([run] * 2, *TWO, code=QUICK)
  while not list(run.glob('checkpoints/*/manifest.json')):
    time.sleep(0.05)
  both[victim].kill()
  began = time.monotonic()
  other = ends(both)[1 - victim]
  assert time.monotonic() - began < 10 + 5 + 15  # heartbeat, the list's 5 s, a busy machine
  assert other.code == 42 and 'another process was lost' in other.err or other.code == -6
  first, _ = again = ends(together([run] * 2, *TWO), timeout=300)
  assert [end.code for end in again] == [0, 0], first.err
  assert 'resuming at step' in first.err
  assert_same_run(run, undisturbed, 80)


@pytest.mark.slow
def test_08_a_peer_that_is_stopped_ends_the_other_with_its_stacks(tmp_path):
  both = together([tmp_path] * 2, '--config.steps=3000', code=QUICK)
  while len(lines(tmp_path)) < 4:
    time.sleep(0.05)
  both[1].send_signal(signal.SIGSTOP)
  began = time.monotonic()
  both[0].wait(timeout=60)
  took = time.monotonic() - began
  both[1].kill()
  end, _ = ends(both)
  assert end.code == -6 and took < 10 + 5 + 15, end.err
  assert 'most recent call first' in end.err and 'in _train' in end.err


# --- stuck ----------------------------------------------------------------------------------------


def test_10_a_stuck_main_thread_is_ended_with_42(tmp_path, monkeypatch, capfd):
  """In this process, so the end is recorded instead of carried out."""
  ended, codes = threading.Event(), []

  def end(code):
    codes.append(code)
    ended.set()

  monkeypatch.setattr(watchdog.os, '_exit', end)
  monkeypatch.setattr(watchdog, 'SLOW', 100)  # compiling on a busy machine
  monkeypatch.setattr(watchdog, 'TIMES', 1)
  monkeypatch.setattr(command, 'to_global', at_call(6, command.to_global, lambda: ended.wait(100)))
  assert here(tmp_path, '--config.steps=6', '--watchdog=2') == 0
  assert codes[:1] == [42]
  error = capfd.readouterr().err
  assert re.search(r'error \(start again\): no progress for \d+ s at step [45], computing', error)
  written, = tmp_path.glob('stuck-*.txt')
  for text in (error, written.read_text()):
    # The main thread, where it waits, and the one that watches.
    assert 'in called' in text and 'in _train' in text and 'in _watch' in text
  beat = json.loads((tmp_path / 'heartbeat.json').read_text())
  assert beat['step'] == 6 and beat['host'] == socket.gethostname()
  assert abs(beat['time'] - time.time()) < 60


WATCHED = """
import sys, time
from ssl_jax.cli.watchdog import COMPUTING, Watchdog
with Watchdog(float(sys.argv[1])) as watch:
  print('ready', flush=True)
  watch.doing(COMPUTING)
  for k in range(30):
    time.sleep(0.1)
    watch.step(k)
  time.sleep(float(sys.argv[2]))
"""


def test_10_the_process_ends_although_its_main_thread_does_not():
  end, = ends([python(WATCHED, '0.5', '60', devices=1)], timeout=50)
  assert end.code == 42
  assert 'no progress for' in end.err and 'at step 29' in end.err and 'in <module>' in end.err


@pytest.mark.parametrize('pauses, stuck', [
  ([5.] * 200, True),
  ([5., 5., 3600., 5., 5., 3600.], False),  # Ctrl-Z, a machine that is moved
])
def test_10_time_in_which_the_whole_process_was_stopped_does_not_count(pauses, stuck, monkeypatch):
  now, ended = [0.], []

  class Over:
    def wait(self, seconds):
      if not pauses or ended:
        return True
      now[0] += pauses.pop()
      return False

  monkeypatch.setattr(watchdog.time, 'monotonic', lambda: now[0])
  watch = Watchdog(100)
  watch._over, watch._end = Over(), lambda: ended.append(now[0])
  watch._watch()
  assert bool(ended) == stuck
  assert not stuck or 800 < ended[0] < 820


def test_10_slow_runs_are_not_stuck(monkeypatch):
  now = [0.]
  monkeypatch.setattr(watchdog.time, 'monotonic', lambda: now[0])
  watch = Watchdog(1800)
  assert watch.limit() == 8 * 1800  # starting, compiling
  watch.doing(COMPUTING)
  assert watch.limit() == 8 * 1800  # the first step
  for k in range(5):
    now[0] += 300
    watch.step(k)
  assert watch.limit() == 20 * 300
  for what in ('evaluation', 'saving'):
    watch.doing(what)
    assert watch.limit() == 8 * 1800


# --- late, or of another mind ---------------------------------------------------------------------


def test_11_processes_that_never_come_are_named(tmp_path):
  began = time.monotonic()
  some = together([tmp_path / 'run'] * 4, each=((),) * 4, code=SHORT + 'meeting.START = 7\n')
  for absent in some[2:]:
    absent.kill()
  for end in ends(some)[:2]:
    assert end.code == 42, end.err
    assert 'processes 2, 3 of 4 did not come to 127.0.0.1:' in end.err
    assert 'firewall' in end.err and 'Traceback' not in end.err
  assert time.monotonic() - began < 30


def test_11_one_that_comes_late_is_waited_for_with_a_message(monkeypatch, capsys):
  monkeypatch.setattr(meeting, 'REMIND', 0.5)
  place = lambda i: meeting.Place(f'127.0.0.1:{port}', 2, i, None, 'test')
  port = free_port()
  with ThreadPoolExecutor(2) as pool:
    first = pool.submit(meeting.meet, place(0))
    time.sleep(2.5)
    assert not first.done()
    meeting.meet(place(1))
    first.result()
  error = capsys.readouterr().err
  assert error.count('process 0 of 2 (test): waiting for process 1 at 127.0.0.1:') >= 2


OTHERWISE = """
if '--process=1' in sys.argv:
  version = agreement.importlib.metadata.version
  agreement.importlib.metadata.version = (
    lambda name: '0.0.1' if name == 'optax' else version(name))
  agreement._source_digest = lambda: 'changed'
"""


def test_12_hosts_that_mean_another_run_are_refused(tmp_path):
  both = ends(together([tmp_path / 'run'] * 2, code=SHORT + OTHERWISE, each=(
    (), ('--config.seed=3', '--config.batch_size=32', '--resume=never'))))
  here = socket.gethostname()
  for end in both:
    assert end.code == 2, end.err
    for words in ('config.seed: 0 on process 0', f'3 on process 1 ({here})',
                  'config.batch_size: 16 on', "--resume: 'auto' on", 'optax: ', '0.0.1 on process 1',
                  'source of ssl_jax: ', 'nothing was trained'):
      assert words in end.err
    assert 'Traceback' not in end.err
  assert all(line.startswith(f'[process 1 of 2, {here}] ')
             for line in both[1].err.splitlines() if line), both[1].err
  assert not (tmp_path / 'run').exists()
