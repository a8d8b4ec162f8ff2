"""The verbs, through the command line and fakes on PATH."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch import record

MACHINE = ('--project=acme', '--zone=us-west4-a', '--accelerator=v5litepod-8')
BUCKET = '--bucket=gs://acme-runs'
TRAIN = ('--', 'train', '--config=c.py', '--workdir=runs/demo')


@pytest.fixture
def small_checkout(tmp_path, monkeypatch):
  from launch import archive
  root = tmp_path / 'checkout'
  for name in ('requirements.txt', 'launch/constraints.txt'):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text('')
  (root / '.gitignore').write_text('runs/\n')
  (root / 'runs').mkdir()
  (root / 'runs' / 'big').write_text('not to be sent')
  git = ['git', '-C', str(root), '-c', 'user.name=a', '-c', 'user.email=a@b']
  subprocess.run(['git', 'init', '--quiet', str(root)], check=True)
  subprocess.run([*git, 'add', '.'], check=True)
  subprocess.run([*git, 'commit', '--quiet', '-m', 'x'], check=True)
  subprocess.run([*git, 'tag', 'v0.1.0'], check=True)
  (root / 'new.py').write_text('not committed yet')
  monkeypatch.setattr(archive, 'ROOT', root)
  return root


def test_a_run_by_hand(cloud, launch, small_checkout):
  """create, setup, run, status, logs, stop, resume, stop, delete."""
  cloud.play(dict(code=None, step=3))
  code, _, err = launch('tpu', 'create', 'demo', *MACHINE, BUCKET, '--capacity=spot')
  assert code == 0 and '8 chips on 1 host, 1 process' in err and 'setup demo' in err
  assert '--spot' in cloud.calls('create')[0]
  assert launch('tpu', 'setup', 'demo')[0] == 0
  checkout = cloud.folder / 'vms/demo/0/ssl_jax_launch/checkout'
  assert (checkout / 'new.py').exists() and not (checkout / 'runs' / 'big').exists()
  code, _, err = launch('tpu', 'run', 'demo', *TRAIN)
  assert code == 0, err
  group = int((cloud.folder / 'vms/demo/0/ssl_jax_launch/run/group').read_text())
  assert os.getsid(group) == group  # it does not end with the connection
  _, out, _ = launch('tpu', 'status', 'demo')
  assert 'worker 0: running, attempt 1, checkpoint 3' in out and 'train --config=c.py' in out
  code, _, err = launch('tpu', 'run', 'demo', *TRAIN)
  assert code == 2 and 'stop demo' in err
  _, out, _ = launch('tpu', 'logs', 'demo')
  assert '--- worker 0' in out and 'arguments ["train"' in out
  code, _, err = launch('tpu', 'stop', 'demo')
  assert code == 0 and '[42]' in err
  assert launch('tpu', 'resume', 'demo')[0] == 0
  assert 'attempt 2' in launch('tpu', 'status', 'demo')[1]
  launch('tpu', 'stop', 'demo')
  code, _, err = launch('tpu', 'delete', 'demo', '--yes')
  assert code == 0 and cloud.machines == [] and record.load('demo') is None
  assert launch('tpu', 'delete', 'demo', '--yes')[0] == 2  # harmless: nothing is there
  assert 'nothing' in launch('tpu', 'status')[1]


def test_a_lost_connection_does_not_end_the_run_and_others_find_it(cloud, launch, small_checkout):
  cloud.play(dict(code=None, step=3), events=[dict(when='setsid nohup', drop=[0])])
  for argv in (('create', 'demo', *MACHINE), ('setup', 'demo')):
    assert launch('tpu', *argv)[0] == 0
  code, _, err = launch('tpu', 'run', 'demo', *TRAIN)
  assert code == 0 and err.count('once more') == 1
  assert json.loads((cloud.folder / 'starts.demo.0.json').read_text()) == 1  # asked twice, started once
  group = int((cloud.folder / 'vms/demo/0/ssl_jax_launch/run/group').read_text())
  os.killpg(group, signal.SIGHUP)  # as the end of a session does
  assert 'worker 0: running, attempt 1, checkpoint 3' in launch('tpu', 'status', 'demo')[1]
  assert 'arguments ["train"' in launch('tpu', 'logs', 'demo')[1]
  code, _, err = launch('tpu', 'stop', 'demo')
  assert code == 0 and '[42]' in err


def test_a_release_is_sent_as_it_was_tagged(cloud, launch, small_checkout):
  launch('tpu', 'create', 'demo', *MACHINE)
  assert launch('tpu', 'setup', 'demo', '--release=v0.1.0')[0] == 0
  assert not (cloud.folder / 'vms/demo/0/ssl_jax_launch/checkout/new.py').exists()
  code, _, err = launch('tpu', 'setup', 'demo', '--release=v9')
  assert code == 2 and 'no such tag' in err


def test_the_archive_is_named_by_its_content(cloud, small_checkout):
  from launch import archive
  made = cloud.record()
  first = archive.pack(cloud.world(), made)
  os.utime(small_checkout / 'new.py', (1, 1))
  assert archive.pack(cloud.world(), made) == first
  (small_checkout / 'new.py').write_text('changed')
  assert archive.pack(cloud.world(), made) != first


def test_logs_survive_the_machine(cloud, launch, small_checkout):
  cloud.play(dict(code=0))
  assert launch('tpu', 'babysit', 'demo', *MACHINE, BUCKET, '--autodelete', *TRAIN)[0] == 0
  assert cloud.machines == []
  cloud.record()
  assert 'this is the end of worker 0' in launch('tpu', 'logs', 'demo')[1]


def test_setup_names_the_worker_that_failed(cloud, launch, small_checkout):
  cloud.play(hosts=4)
  launch('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=v5litepod-16')
  (cloud.folder / 'pip_code.3').write_text('1')
  code, _, err = launch('tpu', 'setup', 'demo')
  assert code == 3 and 'failed on 1 of 4 workers' in err and 'worker 3: exit code 1' in err


def test_setup_tries_again_while_connections_are_refused(cloud, launch, small_checkout):
  cloud.play(events=[dict(when='tpu-vm ssh', times=2, drop=[0])])
  launch('tpu', 'create', 'demo', *MACHINE)
  code, _, err = launch('tpu', 'setup', 'demo')
  assert code == 0 and err.count('once more') == 2


def test_setup_misses_data(cloud, launch, small_checkout):
  launch('tpu', 'create', 'demo', *MACHINE, '--data=gs://acme-runs/imagenet')
  code, _, err = launch('tpu', 'setup', 'demo')
  assert code == 3 and 'no data at gs://acme-runs/imagenet' in err
  (cloud.folder / 'buckets/acme-runs/imagenet').mkdir()
  assert launch('tpu', 'setup', 'demo')[0] == 0


class TestMistakes:
  """Each is answered before anything is rented; nobody sees a traceback."""

  @pytest.mark.parametrize('argv, says', [
    ((), 'expected tpu, slurm, local'),
    (('moon',), "got 'moon'"),
    (('tpu',), 'VERB'),
    (('tpu', 'fly', 'demo'), 'fly'),
    (('tpu', 'create', 'Demo', *MACHINE), 'lower-case'),
    (('tpu', 'create', 'demo'), '--project'),
    (('tpu', 'create', 'demo', '--project=<your-project>', *MACHINE[1:]), 'placeholder'),
    (('tpu', 'create', 'demo', '--project=my-project', *MACHINE[1:]), 'placeholder'),
    (('tpu', 'create', 'demo', '--project=PROJECT', *MACHINE[1:]), 'placeholder'),
    (('tpu', 'create', 'demo', *MACHINE, '--bucket=gs://...'), 'placeholder'),
    (('tpu', 'create', 'demo', *MACHINE, '--bucket=acme-runs'), 'gs://'),
    (('tpu', 'create', 'demo', *MACHINE, '--bucket=gs://acme-runs/x'), 'a bucket alone'),
    (('tpu', 'create', 'demo', *MACHINE, '--bucket=gs://missing'), 'buckets create gs://missing'),
    (('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=v5e-12'), 'no such size'),
    (('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=v5e:4x4'), 'v5litepod-16'),
    (('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=tpu7x-8'), 'GKE'),
    (('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=v5p-8'), 'has no v5p-8'),
    (('tpu', 'create', 'demo', *MACHINE, '--slices=0'), '--slices=0'),
    (('tpu', 'create', 'demo', *MACHINE, '--slices=two'), 'two'),
    (('tpu', 'create', 'demo', *MACHINE, '--capacity=cheap'), 'cheap'),
    (('tpu', 'setup', 'demo'), 'not on record'),
    (('tpu', 'run', 'demo'), 'follows `--`'),
    (('tpu', 'run', 'demo', '--', 'train', '--workdir=x'), '--config'),
    (('tpu', 'run', 'demo', '--', 'train', '--config=x'), '--workdir'),
    (('tpu', 'run', 'demo', *TRAIN), 'not on record'),
    (('tpu', 'delete', 'demo'), 'not on record'),
    (('tpu', 'babysit', 'demo', *MACHINE, *TRAIN), '--bucket'),
    (('tpu', 'babysit', 'demo', *MACHINE, BUCKET, '--capacity=spot', '--', 'train', '--config=c',
      '--workdir=out'), 'below runs/'),
    (('tpu', 'babysit', 'demo', *MACHINE, BUCKET, '--', 'train', '--config=c',
      '--workdir=gs://acme-runs/runs/x'), 'say --workdir=runs/'),
  ])
  def test_exit_with_2_and_what_to_do(self, cloud, launch, argv, says):
    code, _, err = launch(*argv)
    assert code == 2 and says in err and 'Traceback' not in err
    assert not cloud.calls('queued-resources', 'create')

  def test_no_gcloud(self, cloud, launch, monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    cloud.record()
    for argv in (('create', 'other', *MACHINE), ('status', 'demo'), ('attach', 'demo'),
                 ('babysit', 'demo'), ('delete', 'demo', '--yes')):
      code, _, err = launch('tpu', *argv)
      assert code == 2 and 'not on PATH' in err and 'install' in err

  @pytest.mark.parametrize('argv', [
    ('tpu', 'create', 'demo', *MACHINE), ('tpu', 'babysit', 'demo', *MACHINE, BUCKET, *TRAIN)])
  def test_nowhere_to_keep_the_record(self, cloud, launch, monkeypatch, argv):
    monkeypatch.setenv('SSL_JAX_LAUNCH_STATE', '/proc/state')
    code, _, err = launch(*argv)
    assert code == 2 and 'SSL_JAX_LAUNCH_STATE=' in err
    assert not cloud.calls('queued-resources', 'create')

  def test_not_logged_in(self, cloud, launch):
    cloud.play(account='')
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 2 and 'gcloud auth login' in err

  def test_a_zone_that_does_not_exist(self, cloud, launch):
    cloud.play(events=[dict(when='accelerator-types', err="ERROR: Permission denied on "
                            "'locations/us-west9-z' (or it may not exist).")])
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 2 and 'check --zone' in err

  def test_a_bucket_elsewhere_is_noted(self, cloud, launch):
    cloud.play(location='EUROPE-WEST4')
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE, BUCKET)
    assert code == 0 and 'is in europe-west4, the machine in us-west4' in err

  def test_a_refused_creation_leaves_nothing_on_record(self, cloud, launch):
    cloud.play(events=[dict(when='queued-resources create', err='ERROR: Quota limit X exceeded')])
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 2 and 'ask for quota' in err and record.load('demo') is None

  def test_a_creation_without_an_answer_stays_on_record_and_is_found_again(self, cloud, launch):
    cloud.play(events=[dict(when='queued-resources create', late=True, err='ERROR: 503')])
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 0 or code == 42
    assert record.load('demo') is not None and cloud.machines == ['demo']
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 2 and 'is there already' in err and cloud.machines == ['demo']
    assert launch('tpu', 'delete', 'demo', '--yes')[0] == 0 and cloud.machines == []

  def test_a_failed_request_says_why(self, cloud, launch):
    cloud.play(states=[['PROVISIONING', 'FAILED: There is no more capacity in the zone']])
    code, _, err = launch('tpu', 'create', 'demo', *MACHINE)
    assert code == 42 and 'no more capacity' in err and 'delete demo' in err

  def test_run_before_setup(self, cloud, launch):
    launch('tpu', 'create', 'demo', *MACHINE)
    code, _, err = launch('tpu', 'run', 'demo', *TRAIN)
    assert code == 2 and 'tpu setup demo' in err

  @pytest.mark.parametrize('verb', ['setup', 'run', 'resume', 'stop'])
  def test_a_machine_that_was_taken_away(self, cloud, launch, verb):
    launch('tpu', 'create', 'demo', *MACHINE)
    cloud.preempt('demo')
    code, _, err = launch('tpu', verb, 'demo', *(TRAIN if verb == 'run' else ()))
    assert code == 2 and 'PREEMPTED' in err and 'babysit demo' in err

  def test_setup_under_a_running_program(self, cloud, launch, small_checkout):
    cloud.play(dict(code=None))
    launch('tpu', 'create', 'demo', *MACHINE)
    launch('tpu', 'setup', 'demo')
    launch('tpu', 'run', 'demo', *TRAIN)
    code, _, err = launch('tpu', 'setup', 'demo')
    assert code == 2 and 'is running' in err
    assert launch('tpu', 'stop', 'demo')[0] == 0

  def test_a_workdir_that_other_hosts_do_not_see(self, cloud, launch):
    cloud.play(hosts=4)
    launch('tpu', 'create', 'demo', *MACHINE[:2], '--accelerator=v5litepod-16')
    record.save(record.load('demo')._replace(code='code-x.tar.gz'))
    code, _, err = launch('tpu', 'run', 'demo', *TRAIN)
    assert code == 2 and 'which other hosts do not see' in err


class TestDelete:

  def test_refuses_what_others_created(self, cloud, launch):
    subprocess.run(['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'theirs'], check=True)
    argv = ('tpu', 'delete', 'theirs', '--project=acme', '--zone=us-west4-a', '--yes')
    code, _, err = launch(*argv)
    assert code == 2 and '--not-mine=theirs' in err and cloud.machines == ['theirs']
    assert launch(*argv, '--not-mine=other')[0] == 2 and cloud.machines == ['theirs']
    assert launch(*argv, '--not-mine=theirs')[0] == 0 and cloud.machines == []

  def test_refuses_a_namesake_of_what_was_created(self, cloud, launch):
    launch('tpu', 'create', 'demo', *MACHINE)
    cloud.record(token='another')
    code, _, err = launch('tpu', 'delete', 'demo', '--yes')
    assert code == 2 and cloud.machines == ['demo']

  def test_takes_what_carries_the_label_of_this_command(self, cloud, launch):
    launch('tpu', 'create', 'demo', *MACHINE)
    record.forget(record.load('demo'))  # as seen from another computer
    assert launch('tpu', 'delete', 'demo', '--yes', '--project=acme', '--zone=us-west4-a')[0] == 0

  def test_asks(self, cloud, launch, monkeypatch):
    launch('tpu', 'create', 'demo', *MACHINE)
    code, _, err = launch('tpu', 'delete', 'demo')
    assert code == 2 and '--yes' in err  # nobody there
    monkeypatch.setattr('sys.stdin', type('Terminal', (), {'isatty': lambda self: True})())
    monkeypatch.setattr('builtins.input', lambda prompt: 'yes')
    assert launch('tpu', 'delete', 'demo')[0] == 2 and cloud.machines == ['demo']
    monkeypatch.setattr('builtins.input', lambda prompt: 'demo')
    assert launch('tpu', 'delete', 'demo')[0] == 0 and cloud.machines == []

  def test_what_is_gone_already_is_forgotten(self, cloud, launch):
    cloud.record()
    code, _, err = launch('tpu', 'delete', 'demo', '--yes')
    assert code == 0 and 'gone already' in err and record.load('demo') is None


class TestBabysit:

  def test_two_of_them_do_not_drive_one_machine(self, cloud, launch):
    cloud.record()
    with record.driving('demo'):
      for verb in ('babysit', 'setup', 'resume', 'stop', 'delete'):
        code, _, err = launch('tpu', verb, 'demo')
        assert code == 2 and f'process {os.getpid()}' in err, verb
      assert launch('tpu', 'status', 'demo')[0] == 0
    assert not cloud.machines

  def test_options_that_contradict_the_record_are_refused(self, cloud, launch):
    cloud.record()
    code, _, err = launch('tpu', 'babysit', 'demo', '--zone=us-east1-a')
    assert code == 2 and 'on record with --zone=us-west4-a' in err
    code, _, err = launch('tpu', 'babysit', 'demo', '--accelerator=v5e-8', '--bucket=gs://acme-runs')
    assert code == 0

  def test_another_program_is_refused_while_one_runs(self, cloud, launch):
    cloud.play(dict(code=None))
    made = cloud.record()
    from launch import babysit
    world = cloud.world()
    babysit.cloud.create(world, made)
    babysit.cloud.setup(world, made)
    made = made._replace(attempt=1)
    record.save(made)
    babysit.cloud.start(world, made)
    code, _, err = launch('tpu', 'babysit', 'demo', '--', 'train', '--config=d.py', '--workdir=runs/d')
    assert code == 2 and 'is running' in err

  @pytest.mark.parametrize('never', [['--resume=never'], ['--resume', 'never']])
  def test_a_program_that_would_start_over_is_refused(self, cloud, launch, never):
    cloud.record()
    code, _, err = launch('tpu', 'babysit', 'demo', '--', 'train', '--config=d.py',
                          '--workdir=runs/d', *never)
    assert code == 2 and 'start over after every preemption' in err

  def test_after_a_fix_it_starts_afresh(self, cloud, launch):
    cloud.play(dict(code=1), dict(code=0))
    cloud.record()
    assert launch('tpu', 'babysit', 'demo')[0] == 1
    assert 'babysitter stopped: the program failed' in launch('tpu', 'status', 'demo')[1]
    assert launch('tpu', 'babysit', 'demo')[0] == 0
    assert record.load('demo').attempt == 3

  def test_killed_and_started_again_it_finds_the_run_as_it_is(self, cloud):
    """A babysitter is a process like any other; the run does not notice."""
    cloud.play(dict(code=None, step=1))
    cloud.record()
    code = ('import time; from launch import commands, tpu; '
            'real = commands.real(); commands.real = lambda: real._replace('
            'sleep=lambda s: time.sleep(0.05)); import sys; sys.exit(tpu.main(["babysit", "demo"]))')

    def begin():
      return subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True,
                              cwd=record.__file__.rsplit('/', 2)[0])

    def until_running(process):
      for line in process.stderr:
        if 'running, step 1' in line:
          return
      raise AssertionError(process.wait())
    first = begin()
    until_running(first)
    first.kill()
    first.communicate()
    second = begin()
    until_running(second)
    assert record.load('demo').attempt == 1
    second.send_signal(signal.SIGINT)
    time.sleep(0.1)
    second.communicate(timeout=20)
    assert second.returncode != 0
    assert len(cloud.calls('queued-resources', 'create')) == 1
    cloud.play(dict(code=0))


def test_dry_runs_do_nothing(cloud, launch, tmp_path):
  cloud.record(attempt=1)
  before = sorted(str(path) for path in (tmp_path / 'state').rglob('*'))
  for argv in (('create', 'other', *MACHINE), ('setup', 'demo'), ('run', 'demo', *TRAIN),
               ('status', 'demo'), ('logs', 'demo'), ('attach', 'demo'), ('resume', 'demo'),
               ('stop', 'demo'), ('delete', 'demo'), ('babysit', 'demo'),
               ('babysit', 'other', *MACHINE, BUCKET, *TRAIN)):
    code, out, err = launch('tpu', *argv[:2], '--dry-run', *argv[2:])
    assert code == 0 and 'gcloud ' in out and not err, (argv, err)
    assert subprocess.run(['bash', '-n'], input=out, text=True).returncode == 0, argv
  assert not cloud.calls()
  assert sorted(str(path) for path in (tmp_path / 'state').rglob('*')) == before


@pytest.mark.parametrize('slices', [1, 2])
@pytest.mark.parametrize('capacity, flag', [
  ('on-demand', None), ('spot', '--spot'), ('reserved', '--reserved')])
def test_what_is_asked_for(cloud, launch, slices, capacity, flag):
  argv = ('tpu', 'create', 'demo', *MACHINE, f'--slices={slices}', f'--capacity={capacity}')
  _, out, _ = launch(*argv, '--dry-run')
  (line,) = [line for line in out.splitlines() if 'queued-resources create' in line]
  words = line.split()
  assert [word for word in words if word in ('--spot', '--reserved')] == ([flag] if flag else [])
  assert '--accelerator-type=v5litepod-8' in words and '--runtime-version=v2-alpha-tpuv5-lite' in words
  assert ('--node-id=demo' in words) == (slices == 1)
  assert not any(word.endswith('=') for word in words), 'an option without a value'
  assert launch(*argv)[0] == 0  # and what is really called is what was shown
  (called,) = cloud.calls('queued-resources', 'create')
  assert [w for w in called if 'label' not in w] == [w for w in words if 'label' not in w]


def test_the_record_survives_damage(cloud, launch):
  made = cloud.record()
  (record.state_folder() / 'demo.json').write_text('{"name":')
  code, _, err = launch('tpu', 'status', 'demo')
  assert code == 2 and 'is damaged' in err
  record.save(made)
  assert record.load('demo') == made
  assert json.loads((record.state_folder() / 'demo.json').read_text())['token'] == 'abc123'
