"""Answers of many workers on one stream, and the scripts that run there."""

import json
import os
import random
import subprocess
import time

import pytest

from launch import machine, worker


def printed(script: str, number: int, tmp_path) -> str:
  (tmp_path / 'curl').write_text(f'#!/bin/sh\nprintf {number}\n')
  (tmp_path / 'curl').chmod(0o755)
  done = subprocess.run(['bash', '-c', worker.answering(script)], capture_output=True, text=True,
                        env={'PATH': f'{tmp_path}:/usr/bin:/bin'})
  assert done.returncode == 0 and not done.stderr  # else gcloud would run it again
  return done.stdout


@pytest.mark.parametrize('script, code, text', [
  ('true', 0, ''), ('echo a; echo b >&2; exit 3', 3, 'a\nb'), ('exit 255', 255, ''),
  ('set -e; false; echo no', 1, ''), ("printf 'ü %s' \"it's\"", 0, "ü it's"),
  ('echo ssl_jax_launch_answer 0 end 0 0', 0, 'ssl_jax_launch_answer 0 end 0 0'),
  ('seq 5000', 0, '\n'.join(map(str, range(1, 5001))))])
def test_an_answer_is_what_was_printed(tmp_path, script, code, text):
  assert worker.answers(printed(script, 7, tmp_path)) == {7: (code, text)}


def test_mixed_answers_are_told_apart_and_torn_ones_are_lost(tmp_path):
  streams = [printed(f'seq {i} {i + 3000}', i, tmp_path) for i in range(4)]
  expected = {i: (0, '\n'.join(map(str, range(i, i + 3001)))) for i in range(4)}
  draw = random.Random(0)
  lines = [stream.splitlines(keepends=True) for stream in streams]
  mixed = ''
  while any(lines):  # line by line, in any order
    mixed += draw.choice([left for left in lines if left]).pop(0)
  assert worker.answers(mixed) == expected
  for _ in range(200):  # torn anywhere by the line of another
    cut = draw.randrange(len(streams[0]))
    torn = streams[0][:cut] + streams[1] + streams[0][cut:]
    found = worker.answers(torn)
    assert all(found[i] == expected[i] for i in found), cut


def test_a_repeated_answer_counts_once(tmp_path):
  first = printed('seq 3000', 0, tmp_path)
  second = printed('seq 2', 0, tmp_path)
  assert worker.answers(first[:2000] + '\n' + second) == {0: (0, '1\n2')}


@pytest.mark.parametrize('arguments, folder', [
  (('train', '--workdir=runs/a/'), 'runs/a'), (('train', '--workdir', 'x y'), 'x y'),
  (('train',), ''), (('train', '--workdir'), '')])
def test_workdir(arguments, folder):
  assert worker.workdir(arguments) == folder


def test_the_newest_checkpoint_is_a_complete_one(tmp_path):
  checkpoints = tmp_path / 'ssl_jax_launch' / 'checkout' / "it's here" / 'checkpoints'
  for name, complete in (('9', True), ('10', True), ('200', False), ('5.bad', True)):
    (checkpoints / name).mkdir(parents=True)
    if complete:
      (checkpoints / name / 'manifest.json').touch()
  done = subprocess.run(['bash', '-c', worker.state(('train', "--workdir=it's here"))], text=True,
                        capture_output=True, env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'})
  assert 'step=10\n' in done.stdout and 'state=idle' in done.stdout


@pytest.mark.parametrize('older, expected', [(60, ('step 12, saving', 40)), (-60, ('', 0))])
def test_the_heartbeat_of_this_attempt(older, expected, tmp_path):
  """30 s old, and it got on 10 s before that; one from before this attempt says nothing."""
  home = tmp_path / 'ssl_jax_launch'
  folder = home / 'checkout' / "it's here"
  folder.mkdir(parents=True)
  (home / 'run').mkdir()
  (home / 'run' / 'attempt').write_text('3')
  beat = folder / 'heartbeat.json'
  now = time.time()
  beat.write_text(json.dumps(dict(step=12, doing='saving', idle=10, time=round(now - 30))) + '\n')
  os.utime(home / 'run' / 'attempt', (now - 100, now - 100))
  os.utime(beat, (now - 100 + older, now - 100 + older))
  done = subprocess.run(['bash', '-c', worker.state(('train', "--workdir=it's here"))], text=True,
                        capture_output=True, env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'})
  assert not done.stderr
  found = dict(line.split('=', 1) for line in done.stdout.splitlines())
  doing, still = machine._heartbeat(found)
  assert doing == expected[0] and abs(still - expected[1]) < 20
  for damaged in ('', '{"step": 1', '[]', '{"step": 1}'):
    assert machine._heartbeat(dict(found, beat=damaged)) == ('', 0)


def test_a_worker_that_knows_nothing(tmp_path):
  done = subprocess.run(['bash', '-c', worker.state(())], capture_output=True, text=True,
                        env={'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'})
  assert (done.returncode, done.stdout) == (0, '')
