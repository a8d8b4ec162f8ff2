"""Quoting is exact for any argument, through real shells; running leaves nothing behind."""

import random
import subprocess
import time

import pytest

from launch import commands, gcloud, worker
from launch.commands import Command
from launch.machine import ask
from launch.record import Record

ODD = ['', ' ', 'a b', '$HOME', '`id`', '"', "'", '\\', '\n', 'a\nb', ';', '#x', '*', '~', '-x',
       '--a=b c', '!', '&&', '|', '>', '(', '{a,b}', 'ü', '😀', '\t', '%s', "it's", '"\'"', '\r',
       '$(ls)']
SHELLS = ['bash', 'sh']


def arguments(seed: int) -> list[str]:
  draw = random.Random(seed)
  characters = ' \t\n\\\'"`$;&|<>(){}[]*?~!#%^=,:@-+aZ0é漢'
  return [''.join(draw.choices(characters, k=draw.randrange(12))) for _ in range(6)]


CASES = [ODD, *(arguments(seed) for seed in range(20))]


def printed(shell: str, line: str) -> list[str]:
  out = subprocess.run([shell, '-c', line], check=True, capture_output=True).stdout
  return out.decode().split('\0')[:-1]


@pytest.mark.parametrize('shell', SHELLS)
def test_what_is_shown_is_what_runs(shell):
  for words in CASES:
    assert printed(shell, commands.quoted(['printf', '%s\\0', *words])) == [w for w in words]


def test_through_gcloud_and_the_shell_of_the_worker():
  """The line that a dry run shows, parsed by a shell, run by another: both levels are exact."""
  record = Record('demo', 'p', 'z', 'v4-8')
  for words in CASES:
    inner = commands.quoted(['printf', '%s\\0', *words])
    shown = str(gcloud.ssh(record, 'demo', inner, note='', timeout=1))
    argv = printed('bash', "printf '%s\\0' " + shown)
    (command,) = [a for a in argv if a.startswith('--command=')]
    assert printed('bash', command.removeprefix('--command=')) == words


def test_the_program_gets_its_arguments_through_every_layer(cloud):
  """start -> setsid -> bash -c -> exec: three more shells."""
  made = cloud.record()
  cloud.play()
  world = cloud.world()
  assert not cloud.machines
  world.run(gcloud.create(made))
  script = '''mkdir -p ssl_jax_launch/checkout ssl_jax_launch/venv/bin
cat >ssl_jax_launch/venv/bin/python <<'END'
#!/bin/bash
printf '%s\\0' "$@" >$HOME/out
END
chmod +x ssl_jax_launch/venv/bin/python'''
  assert [a.code for a in ask(world, made, script, note='')] == [0]
  for i, words in enumerate([ODD, arguments(99)]):
    (answer,) = ask(world, made, worker.start(made._replace(bucket=''), i + 1, '', words), note='')
    assert answer.code == 0, answer.text
    out = cloud.folder / 'vms' / 'demo' / '0' / 'out'
    for _ in range(100):
      if (cloud.folder / 'vms/demo/0/ssl_jax_launch/run/exit').exists():
        break
      time.sleep(0.05)
    assert out.read_bytes().decode().split('\0')[:-1] == ['-u', '-m', 'ssl_jax', *words]
    out.unlink()


def test_a_command_that_does_not_answer_is_ended_with_all_it_started():
  world = commands.real()
  script = 'sleep 77.25 & sleep 77.25'
  result = world.run(Command(('bash', '-c', script), timeout=0.5))
  assert result.code == commands.NO_ANSWER and 'timed out' in result.err
  assert gcloud.trouble(result.err) == gcloud.Trouble.TRANSIENT
  left = subprocess.run(['pgrep', '-f', 'sleep 77.25'], capture_output=True, text=True).stdout
  assert not left


def test_dry_runs_print_a_script_that_a_shell_accepts(capsys):
  world = commands.dry()
  world.say('a note\nof two lines')
  for words in CASES:
    world.run(Command(('echo', *words), note='why'))
  shown = capsys.readouterr().out
  assert subprocess.run(['bash', '-n'], input=shown, text=True).returncode == 0
