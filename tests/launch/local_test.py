"""Several processes here: prefixes, signals, the end of one, and a real run on two."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local

ROOT = os.path.dirname(os.path.dirname(local.__file__))
FLAG = local.DEVICES


def group(code: str, processes: int = 3, grace: float = local.GRACE):
  """`launch local` whose program is `code`, which sees i, its number."""
  source = f'''
import sys
from launch import local
local.GRACE = {grace}
places = local.environments({processes}, 1, '', 1)
code = 'import os, sys, time, signal; i = int(os.environ["JAX_PROCESS_ID"])\\n' + {code!r}
sys.exit(local.Group().run((sys.executable, '-u', '-c', code), places))'''
  return subprocess.Popen([sys.executable, '-c', source], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, cwd=ROOT, process_group=0)


def test_environment():
  one, two = local.environments(2, 4, f'--xla_a=1 {FLAG}9 --xla_b', 8476)
  assert one == {
    'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_a=1 --xla_b {FLAG}4', 'JAX_PROCESS_ID': '0',
    'JAX_COORDINATOR_ADDRESS': '127.0.0.1:8476', 'JAX_NUM_PROCESSES': '2'}
  assert two == one | {'JAX_PROCESS_ID': '1'}
  (alone,) = local.environments(1, 2, '', 8476)
  assert alone == {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{FLAG}2'}


@pytest.mark.parametrize('codes, outcome', [
  ([0, 0], 0), ([42, 42], 42), ([0, 42], 42), ([3, 1], 3), ([0, 137, 1], 137), ([42, 1], 1), ([], 0)])
def test_the_first_bad_code_counts(codes, outcome):
  assert local.outcome(codes) == outcome


def test_lines_tell_who_speaks():
  out, _ = (process := group('print("hello", i); print("there")')).communicate(timeout=20)
  assert process.returncode == 0
  assert sorted(out.splitlines()) == sorted(f'[{i}] {text}' for i in range(3)
                                            for text in (f'hello {i}', 'there'))


@pytest.mark.parametrize('end, code', [('sys.exit(4)', 4), ('os.kill(os.getpid(), 9)', 137)])
def test_when_one_fails_all_end(end, code):
  process = group(f'if i == 1: time.sleep(0.2); {end}\ntime.sleep(60)')
  began = time.monotonic()
  _, err = process.communicate(timeout=30)
  assert process.returncode == code and time.monotonic() - began < 20
  assert f'process 1 ended with exit code {code}' in err


def test_one_that_ignores_sigterm_is_killed():
  process = group('''
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if i: time.sleep(0.5); sys.exit(1)
time.sleep(99)''', 2, grace=0.5)
  process.communicate(timeout=30)
  assert process.returncode == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_each_once(number):
  code = '''
got = []
for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda *a: got.append(a[0]))
print('ready')
while not got: time.sleep(0.01)
time.sleep(0.3)
print('got', len(got))
sys.exit(42)'''
  process = group(code)
  lines = [process.stdout.readline() for _ in range(3)]
  assert all('ready' in line for line in lines)
  os.killpg(process.pid, number)  # as a terminal does
  out, _ = process.communicate(timeout=20)
  assert process.returncode == 42 and out.count('got 1') == 3


def test_arguments_arrive_unchanged():
  odd = ['a b', '$HOME', '`id`', '"', "it's", '\\', ';', '#x', '*', '', 'ü😀', 'two\nlines', '%s']
  code = f'import sys; sys.exit(sys.argv[1:] != {odd!r})'
  places = local.environments(2, 1, '', 1)
  assert local.Group().run((sys.executable, '-c', code, *odd), places) == 0


def test_dry_run(launch):
  code, out, _ = launch('local', '--processes=2', '--devices=4', '--dry-run', '--', 'train',
                        '--config=c.py', '--workdir=a b')
  first, second, wait = out.splitlines()
  assert code == 0 and wait == 'wait' and "'--workdir=a b'" in first
  assert 'JAX_PROCESS_ID=0' in first and 'JAX_PROCESS_ID=1' in second
  assert subprocess.run(['bash', '-n'], input=out, text=True).returncode == 0


@pytest.mark.parametrize('argv, says', [
  (('--processes=0',), '--processes=0'), (('--devices=0',), '--devices=0'), ((), 'follows `--`'),
  (('--processes=two',), 'invalid'), (('--port=1',), 'unrecognized')])
def test_mistakes_are_answered(launch, argv, says):
  code, _, err = launch('local', *argv)
  assert code == 2 and says in err


@pytest.mark.slow
def test_a_rehearsal_gives_the_numbers_of_one_process(tmp_path):
  arguments = ['--', 'train', '--config=configs/simclr_fashion_mnist.py:smoke',
               '--config.evaluate.every=None', '--config.evaluate.health_every=None']

  def losses(name, *options):
    workdir = tmp_path / name
    done = subprocess.run([sys.executable, '-m', 'launch', 'local', *options, *arguments,
                           f'--workdir={workdir}'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line)['loss'] for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  two = losses('two', '--processes=2', '--devices=2')
  one = losses('one', '--processes=1', '--devices=4')
  assert len(two) == 4 and two == pytest.approx(one, rel=1e-5)
