"""The batch script, run by bash with fakes of Slurm's commands around it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from launch import slurm
from launch.errors import LaunchError

TRAIN = ('--', 'train', '--config=c.py', '--workdir=runs/a b')
RECORD = '''#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" | tr '\\0' '\\1' >>"$FAKE_SLURM/calls"; echo >>"$FAKE_SLURM/calls"
'''
FAKES = {
  'sbatch': RECORD + 'echo "Submitted batch job 17"\n',
  'scontrol': RECORD,
  'scancel': RECORD + 'kill -TERM "$(cat "$FAKE_SLURM/task")"\n',
  # srun answers SIGTERM by killing its tasks, as the real one does.
  'srun': RECORD + '''trap 'kill -KILL "$(cat "$FAKE_SLURM/task")"' TERM
while [[ $1 == --* ]]; do shift; done
"$@" &
echo $! >"$FAKE_SLURM/task"
wait $!; code=$?
exit $code
''',
  'program': '''#!/bin/bash
printf '%s\\n' "$@" >"$FAKE_SLURM/arguments"
echo "$JAX_LOCAL_DEVICE_IDS" >"$FAKE_SLURM/devices"
[ -e "$FAKE_SLURM/code" ] && exit "$(cat "$FAKE_SLURM/code")"
trap 'sleep 0.5; echo saved; exit 42' TERM
touch "$FAKE_SLURM/started"
while :; do sleep 0.02; done
''',
}


class Cluster:
  def __init__(self, folder):
    self.folder = folder
    for name, text in FAKES.items():
      (folder / 'bin').mkdir(parents=True, exist_ok=True)
      (folder / 'bin' / name).write_text(text)
      (folder / 'bin' / name).chmod(0o755)

  def calls(self, name):
    path = self.folder / 'calls'
    lines = path.read_text().splitlines() if path.exists() else []
    argvs = [line.rstrip('\1').split('\1') for line in lines]
    return [argv[1:] for argv in argvs if argv[0] == name]

  def job(self, script, **environment):
    return subprocess.Popen(
      ['bash', script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      cwd=self.folder, env=os.environ | {'SLURM_JOB_ID': '17'} | environment, process_group=0)

  def started(self):
    for _ in range(500):
      if (self.folder / 'started').exists():
        return
      time.sleep(0.02)
    raise AssertionError('the task did not start')


@pytest.fixture
def cluster(tmp_path, monkeypatch):
  made = Cluster(tmp_path / 'slurm')
  monkeypatch.setenv('FAKE_SLURM', str(made.folder))
  monkeypatch.setenv('SSL_JAX_LAUNCH_STATE', str(tmp_path / 'state'))
  monkeypatch.setenv('PATH', f'{made.folder}/bin:/usr/bin:/bin')
  monkeypatch.setattr(sys, 'executable', str(made.folder / 'bin' / 'program'))
  monkeypatch.chdir(made.folder)
  return made


@pytest.fixture
def submitted(cluster, tmp_path):
  def submit(*options):
    assert slurm.main(['submit', *options, *TRAIN]) == 0
    (argv,) = cluster.calls('sbatch')
    return argv[0]
  return submit


def test_submit(cluster, submitted, capsys):
  path = submitted('--nodes=2', '--gpus-per-node=4', '--time=2-00:00:00', '--notice=120',
                   '--sbatch=--partition=gpu')
  lines = pathlib.Path(path).read_text().splitlines()
  directives = [line for line in lines if line.startswith('#SBATCH')]
  assert directives == [f'#SBATCH {text}' for text in (
    '--job-name=ssl_jax', '--nodes=2', '--ntasks-per-node=4', '--gpus-per-node=4',
    '--time=2-00:00:00', '--signal=B:USR1@120', '--requeue', '--open-mode=append',
    '--output=slurm-%x-%j.log', '--partition=gpu')]
  assert 'Submitted batch job 17' in capsys.readouterr().out


def test_usr1_saves_and_requeues_once(cluster, submitted):
  job = cluster.job(submitted())
  cluster.started()
  job.send_signal(signal.SIGUSR1)
  output, _ = job.communicate(timeout=20)
  assert job.returncode == 42 and 'saved' in output
  assert cluster.calls('scancel') == [['--signal=TERM', '17']]
  assert cluster.calls('scontrol') == [['requeue', '17']]
  assert (cluster.folder / 'arguments').read_text().splitlines() == [
    '-u', '-m', 'ssl_jax', *TRAIN[1:]]


def test_arguments_arrive_unchanged(cluster):
  odd = ['a b', '$HOME', '`id`', '"', "it's", '\\', ';', '#x', '*', '!', '', 'ü😀', 'two\nlines', '%s']
  (cluster.folder / 'bin' / 'program').write_text(
    '#!/bin/sh\nprintf "%s\\0" "$@" >"$FAKE_SLURM/arguments"\n')
  assert slurm.main(['submit', *TRAIN, *odd]) == 0
  output, _ = cluster.job(cluster.calls('sbatch')[0][0]).communicate(timeout=20)
  words = (cluster.folder / 'arguments').read_text().split('\0')[:-1]
  assert words == ['-u', '-m', 'ssl_jax', *TRAIN[1:], *odd], output


def test_an_element_of_an_array_requeues_itself_alone(cluster, submitted):
  job = cluster.job(submitted(), SLURM_ARRAY_JOB_ID='9', SLURM_ARRAY_TASK_ID='3')
  cluster.started()
  job.send_signal(signal.SIGUSR1)
  job.communicate(timeout=20)
  assert cluster.calls('scontrol') == [['requeue', '9_3']]
  assert cluster.calls('scancel') == [['--signal=TERM', '9_3']]


def test_sigterm_to_the_script_does_not_end_it_before_the_save(cluster, submitted):
  """Preemption: Slurm signals the tasks and the script."""
  job = cluster.job(submitted())
  cluster.started()
  job.send_signal(signal.SIGTERM)
  os.kill(int((cluster.folder / 'task').read_text()), signal.SIGTERM)
  output, _ = job.communicate(timeout=20)
  assert job.returncode == 42 and 'saved' in output and len(cluster.calls('scontrol')) == 1


@pytest.mark.parametrize('code, restarts, requeued', [
  (0, 0, False), (1, 0, False), (2, 0, False), (3, 0, False), (4, 0, False), (42, 0, True),
  (134, 0, True), (137, slurm.RESTARTS - 1, True), (42, slurm.RESTARTS, False)])
def test_the_end_of_the_program_decides(cluster, submitted, code, restarts, requeued):
  path = submitted()
  (cluster.folder / 'code').write_text(str(code))
  job = cluster.job(path, SLURM_RESTART_COUNT=str(restarts))
  output, _ = job.communicate(timeout=20)
  assert job.returncode == code, output
  assert bool(cluster.calls('scontrol')) == requeued


def test_without_scontrol_it_says_so(cluster, submitted):
  path = submitted()
  (cluster.folder / 'code').write_text('42')
  (cluster.folder / 'bin' / 'scontrol').unlink()
  output, _ = cluster.job(path).communicate(timeout=20)
  assert 'submit it again' in output


@pytest.mark.parametrize('options, tasks, devices', [
  ((), 8, ''), (('--tasks=node',), 1, '0,1,2,3,4,5,6,7'), (('--gpus-per-node=0',), 1, ''),
  (('--tasks=node', '--gpus-per-node=1'), 1, '')])
def test_a_task_per_gpu_or_per_node(cluster, submitted, options, tasks, devices):
  path = submitted(*options)
  assert f'#SBATCH --ntasks-per-node={tasks}\n' in pathlib.Path(path).read_text()
  (cluster.folder / 'code').write_text('0')
  cluster.job(path).communicate(timeout=20)
  assert (cluster.folder / 'devices').read_text().strip() == devices


def test_a_dry_run_writes_the_very_script(cluster, tmp_path, capsys):
  assert slurm.main(['submit', '--dry-run', *TRAIN]) == 0
  shown = capsys.readouterr().out
  assert not cluster.calls('sbatch') and not (tmp_path / 'state').exists()
  (tmp_path / 'state' / 'slurm').mkdir(parents=True)
  subprocess.run(['bash', '-e'], input=shown, text=True, check=True)
  (argv,) = cluster.calls('sbatch')
  pasted = pathlib.Path(argv[0]).read_text()
  slurm.main(['submit', *TRAIN])
  assert pathlib.Path(argv[0]).read_text() == pasted


@pytest.mark.parametrize('options, says', [
  (('--nodes=0',), '--nodes=0'), (('--gpus-per-node=-1',), '0 or more'), (('--notice=5',), '60'),
  (('--time=tomorrow',), '24:00:00'), (('--sbatch=gpu',), '--partition'), (('--name=a b',), 'letters'),
  (('--nodes=x',), 'invalid')])
def test_mistakes_are_answered(cluster, options, says):
  with pytest.raises(LaunchError, match=says):
    slurm.main(['submit', *options, *TRAIN])
  assert not cluster.calls('sbatch')


def test_refusals_come_with_the_next_step(cluster, monkeypatch):
  (cluster.folder / 'bin' / 'sbatch').write_text(
    '#!/bin/sh\necho "sbatch: error: invalid account" >&2\nexit 1\n')
  with pytest.raises(LaunchError, match='invalid account(.|\n)*--sbatch='):
    slurm.main(['submit', *TRAIN])
  monkeypatch.setenv('PATH', '/nowhere')
  with pytest.raises(LaunchError, match='not on PATH'):
    slurm.main(['submit', *TRAIN])


@pytest.mark.slow
def test_a_real_run_saves_requeues_and_ends_where_it_would_have(cluster, submitted, monkeypatch, root):
  monkeypatch.setattr(sys, 'executable', os.path.join(sys.prefix, 'bin', 'python'))
  monkeypatch.chdir(root)
  workdir = cluster.folder / 'runs'
  arguments = ['--', 'train', '--config=configs/simclr_fashion_mnist.py:smoke', '--config.steps=200',
               '--config.checkpoint.every=1000', '--config.evaluate.every=None',
               '--config.evaluate.health_every=None', f'--workdir={workdir}']
  assert slurm.main(['submit', *arguments]) == 0
  path = cluster.calls('sbatch')[0][0]
  job = cluster.job(path)
  metrics = workdir / 'metrics.jsonl'
  for _ in range(3000):
    if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
      break
    time.sleep(0.02)
  job.send_signal(signal.SIGUSR1)
  output, _ = job.communicate(timeout=60)
  assert job.returncode == 42, output
  assert cluster.calls('scontrol') == [['requeue', '17']]
  output, _ = cluster.job(path, SLURM_RESTART_COUNT='1').communicate(timeout=120)
  steps = [json.loads(line)['step'] for line in metrics.read_text().splitlines()]
  assert steps == list(range(1, 201)), output
