"""Every command of docs/launch.md, as a dry run, against golden output.

`UPDATE_GOLDEN=1 python -m pytest tests/launch/docs_test.py` writes the output as it is now.
"""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from launch import __main__, babysit, gcloud, record, slurm, worker
from launch.record import Record

ROOT = pathlib.Path(__main__.__file__).resolve().parents[1]
TEXT = (ROOT / 'docs' / 'launch.md').read_text()
GOLDEN = pathlib.Path(__file__).parent / 'golden.txt'


def commands() -> list[str]:
  blocks = re.findall(r'^```sh\n(.*?)^```$', TEXT, re.S | re.M)
  return [re.sub(r'\s+', ' ', line) for block in blocks
          for line in block.replace('\\\n', ' ').splitlines()]


def normal(text: str, state: str) -> str:
  """Without what differs between machines."""
  for place, name in ((state, 'STATE'), (sys.executable, 'PYTHON'), (str(ROOT), 'CHECKOUT')):
    text = text.replace(place, name)
  text = re.sub(r'127\.0\.0\.1:\d+', '127.0.0.1:PORT', text)
  return re.sub(r'ssl-jax-launch=[0-9a-f]{12}', 'ssl-jax-launch=TOKEN', text)


def test_what_the_documented_commands_do(cloud, launch, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  cloud.play(types=['v5litepod-16', 'v4-64', 'v6e-8'])
  (cloud.folder / 'buckets' / 'acme-ssl-runs').mkdir()
  shown = ''
  for line in commands():
    words = shlex.split(line)
    assert words[:3] == ['python', '-m', 'launch'], line
    ours = words[3:]
    at = ours.index('--') if '--' in ours else len(ours)
    code, out, err = launch(*ours[:at], '--dry-run', *ours[at:])
    assert (code, err) == (0, ''), line
    assert subprocess.run(['bash', '-n'], input=out, text=True).returncode == 0, line
    shown += f'$ {line}\n{out}\n'
    if 'create' in ours:  # so that what follows finds it
      assert launch(*ours)[0] == 0
      calls = cloud.calls()
    if 'run' in ours:  # so that there is something to resume
      record.save(record.load('by-hand')._replace(arguments=tuple(ours[at + 1:]), attempt=1))
  assert cloud.calls() == calls, 'a dry run called something'
  shown = normal(shown, str(tmp_path / 'state'))
  if os.environ.get('UPDATE_GOLDEN'):
    GOLDEN.write_text(shown)
  assert shown == GOLDEN.read_text(), 'see the docstring of this file'


def test_the_table_of_decisions_names_the_numbers_of_the_code():
  assert babysit.POLL == 60 and 'every minute' in TEXT
  assert babysit.BACK_OFF == (30, 600) and '0 s, 30 s, 60 s ... 10 min' in TEXT
  assert babysit.STALLS == 3 and 'after three ends' in TEXT
  assert babysit.RAGGED * babysit.POLL == 300 and 'five minutes' in TEXT
  assert babysit.SILENT == 10 and 'ten times; then' in TEXT
  assert slurm.RESTARTS == 10 and 'requeued ten\ntimes' in TEXT


def test_every_verb_is_documented():
  for verb in ('create', 'setup', 'run', 'status', 'logs', 'attach', 'stop', 'resume', 'delete',
               'babysit'):
    assert f'launch tpu {verb} ' in TEXT, verb


@pytest.mark.skipif(not shutil.which('gcloud'), reason='needs the Google Cloud CLI')
def test_the_real_gcloud_accepts_every_command(tmp_path):
  """Its own offline linter: names, flags and which of them go together. Nothing is called."""
  one = Record('demo', 'acme', 'us-west4-a', 'v5litepod-16', bucket='gs://acme-runs', token='abc')
  made = [gcloud.login(), gcloud.types(one), gcloud.bucket(one), gcloud.describe(one),
          gcloud.describe_node(one, 'demo'), gcloud.delete(one), gcloud.show_saved_logs(one),
          gcloud.ssh(one, 'demo', 'ls -l', note='', timeout=1), gcloud.copy(one, 'demo', 'x.tar.gz'),
          gcloud.follow(one, 'demo', 0, worker.tail_and_follow())]
  made += [gcloud.create(one._replace(capacity=capacity, slices=slices))
           for capacity in ('on-demand', 'spot', 'reserved') for slices in (1, 2)]
  texts = [*map(str, made), *re.findall(r'^gcloud .*?[^\\]$', TEXT.replace('\\\n', ' '), re.M),
           'gcloud storage cp run/worker.log gs://b/x.log --quiet', 'gcloud storage ls gs://b/x']
  (tmp_path / 'commands.json').write_text(json.dumps([{'command_string': text} for text in texts]))
  done = subprocess.run(
    ['gcloud', 'meta', 'lint-gcloud-commands', f'--commands-file={tmp_path}/commands.json'],
    capture_output=True, text=True, env=os.environ | {'CLOUDSDK_CONFIG': str(tmp_path / 'config')})
  if done.returncode and 'Invalid choice' in done.stderr:
    pytest.skip('this gcloud has no linter')
  verdicts = json.loads(done.stdout)
  assert len(verdicts) == len(texts), done.stderr
  for verdict in verdicts:
    assert verdict['success'], (verdict['command_string'], verdict['error_message'])
