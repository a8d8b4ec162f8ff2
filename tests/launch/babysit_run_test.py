"""The babysitter against a cloud that does what clouds do; every VM really runs its commands."""

import json

import pytest

from launch import babysit, record

RUN = dict(code=None)  # until it is told to stop
POD = dict(accelerator='v5litepod-16')  # four hosts


def count(cloud, verb):
  return len(cloud.calls('queued-resources', verb))


def once(action):
  """Something that happens at the first sleep."""
  done = []

  def hook():
    if not done:
      done.append(True)
      action()
  return hook


class TestLives:

  def test_creates_sets_up_runs_and_ends(self, cloud):
    cloud.play(dict(code=0, step=4))
    assert cloud.babysit() == 0
    assert count(cloud, 'create') == 1 and count(cloud, 'delete') == 0
    assert cloud.machines == ['demo'] and 'still costs' in cloud.said[-1]

  def test_waits_while_the_request_waits(self, cloud):
    cloud.play(states=[['WAITING_FOR_RESOURCES'] * 3 + ['PROVISIONING', 'ACTIVE']])
    assert cloud.babysit() == 0
    assert count(cloud, 'create') == 1 and cloud.waits[:4] == [60] * 4

  def test_deletes_when_done_if_asked(self, cloud):
    cloud.play()
    assert cloud.babysit(autodelete=True) == 0
    assert cloud.machines == [] and record.load('demo') is None

  def test_deletes_in_the_end_also_when_the_cloud_stutters(self, cloud):
    cloud.play(events=[dict(when='queued-resources delete', times=2, err='ERROR: 503')])
    assert cloud.babysit(autodelete=True) == 0
    assert cloud.machines == [] and cloud.waits[-2:] == [30, 60]
    cloud.play(events=[dict(when='queued-resources delete', times=99, err='ERROR: 503')])
    assert cloud.babysit(cloud.record(), autodelete=True) == 42
    assert cloud.machines == ['demo'] and 'still costs' in cloud.said[-1]
    assert record.load('demo') is not None

  def test_four_workers_and_their_logs_in_the_bucket(self, cloud):
    cloud.play(dict(code=0), hosts=4)
    assert cloud.babysit(cloud.record(**POD)) == 0
    logs = sorted((cloud.folder / 'buckets/acme-runs/launch/demo').iterdir())
    assert [path.name for path in logs] == [f'demo-w-{i}.log' for i in range(4)]
    assert 'this is the end of worker 2' in logs[2].read_text()
    assert 'ended with exit code 0' in logs[2].read_text()

  def test_two_slices_are_one_run(self, cloud):
    cloud.play(dict(code=0), hosts=4)
    assert cloud.babysit(cloud.record(**POD, slices=2)) == 0
    (create,) = cloud.calls('queued-resources', 'create')
    assert '--node-count=2' in create and '--node-prefix=demo' in create
    assert len(list((cloud.folder / 'buckets/acme-runs/launch/demo').iterdir())) == 8


class TestPreemption:
  """Afterwards there is one machine, and never were two."""

  def end_of_a_life(self, cloud, creations=2, **record_changes):
    assert cloud.babysit(cloud.record(**record_changes)) == 0, '\n'.join(cloud.said)
    assert cloud.machines == ['demo'] and cloud.most == 1
    assert count(cloud, 'create') == creations

  def test_while_creating(self, cloud):
    cloud.play(states=[['PROVISIONING', 'SUSPENDING', 'SUSPENDED'], ['ACTIVE']])
    self.end_of_a_life(cloud)

  @pytest.mark.parametrize('when', ['tpu-vm scp', 'pip install', 'setsid nohup'])
  def test_in_setup_and_start(self, cloud, when):
    cloud.play(events=[dict(when=when, preempt='demo')])
    self.end_of_a_life(cloud)

  @pytest.mark.parametrize('state', ['PREEMPTED', 'TERMINATED', 'STOPPED', 'SOMETHING_NEW'])
  def test_while_running(self, cloud, state):
    cloud.play(RUN, dict(code=0))
    cloud.on_sleep = once(lambda: cloud.preempt('demo', state))
    self.end_of_a_life(cloud)

  def test_of_one_slice_takes_all(self, cloud):
    cloud.play(RUN, dict(code=0), hosts=4,
               events=[dict(when='tpu-vm describe demo-1', after=3, preempt='demo')])
    self.end_of_a_life(cloud, **POD, slices=2)

  def test_without_a_trace(self, cloud):
    cloud.play(RUN, dict(code=0))

    def vanish():
      cloud.preempt('demo')
      (cloud.folder / 'machines' / 'demo').unlink()
    cloud.on_sleep = once(vanish)
    self.end_of_a_life(cloud)

  def test_while_deleting(self, cloud):
    cloud.play(RUN, dict(code=0), events=[
      dict(when='queued-resources delete', err='ERROR: NOT_FOUND: was not found'),
      dict(when='queued-resources delete', after=1, err='ERROR: the resource is being used')])
    cloud.on_sleep = once(lambda: cloud.preempt('demo'))
    self.end_of_a_life(cloud)
    assert count(cloud, 'delete') == 3

  def test_over_and_over_waits_longer_each_time(self, cloud):
    cloud.play(states=[['FAILED: There is no more capacity in the zone']] * 4 + [['ACTIVE']])
    self.end_of_a_life(cloud, creations=5)
    assert cloud.waits[:3] == [30, 60, 120]


class TestRefusals:

  @pytest.mark.parametrize('says, fix', [
    ("Quota limit 'TPUV5sPreemptibleLitepodServingPerProjectPerRegionForTPUAPI' has been exceeded. "
     'Limit: 0 in region us-west4.', 'ask for quota'),
    ('PERMISSION_DENIED: The caller does not have permission', 'TPU Admin'),
    ("Permission denied on 'locations/us-west9-z' (or it may not exist).", '--zone'),
    ('INVALID_ARGUMENT: Accelerator type v5litepod-8 not found', '--accelerator'),
    ('There was a problem refreshing your current auth tokens: invalid_grant', 'gcloud auth login'),
  ])
  def test_that_stay_stop_at_once_with_the_fix(self, cloud, says, fix):
    cloud.play(events=[dict(when='queued-resources create', err=f'ERROR: {says}')])
    assert cloud.babysit() == 2
    assert any(fix in line for line in cloud.said) and cloud.machines == []
    assert count(cloud, 'create') == 1 and not cloud.waits

  def test_of_a_request_that_was_accepted_first(self, cloud):
    cloud.play(states=[['PROVISIONING', 'FAILED: Quota limit X has been exceeded']])
    assert cloud.babysit() == 2
    assert any('ask for quota' in line for line in cloud.said)

  @pytest.mark.parametrize('says', [
    'HttpError 503: The service is currently unavailable.', '429 Too Many Requests: rate limit',
    'INTERNAL: something', 'no answer within 120 s (timed out)', 'Connection reset by peer'])
  def test_that_pass_are_waited_for(self, cloud, says):
    cloud.play(events=[dict(when='queued-resources describe', times=4, err=f'ERROR: {says}')])
    assert cloud.babysit() == 0
    assert cloud.waits[:4] == [30, 60, 120, 240] and count(cloud, 'create') == 1

  def test_no_capacity_is_waited_for(self, cloud):
    cloud.play(events=[dict(when='queued-resources create', times=3,
                            err='ERROR: RESOURCE_EXHAUSTED: There is no more capacity in the zone')])
    assert cloud.babysit() == 0
    assert cloud.waits[:3] == [30, 60, 120]

  @pytest.mark.parametrize('says', ['503', 'ALREADY_EXISTS'])  # the latter: gcloud asked twice
  def test_a_creation_whose_answer_was_lost_is_not_repeated(self, cloud, says):
    cloud.play(events=[dict(when='queued-resources create', late=True, err=f'ERROR: {says}')])
    assert cloud.babysit() == 0
    assert count(cloud, 'create') == 1 and cloud.machines == ['demo']

  def test_the_quota_of_a_lost_machine_is_freed_late(self, cloud):
    cloud.play(RUN, dict(code=0), events=[
      dict(when='queued-resources create', after=1, times=2, err='ERROR: Quota limit X exceeded')])
    cloud.on_sleep = once(lambda: cloud.preempt('demo'))
    assert cloud.babysit() == 0 and cloud.machines == ['demo']

  def test_what_nobody_knows_is_tried_a_few_times(self, cloud):
    cloud.play(events=[dict(when='queued-resources create', times=99, err='ERROR: odd')])
    assert cloud.babysit() == 2
    assert count(cloud, 'create') == babysit.PATIENCE + 1

  def test_a_machine_of_someone_else_is_left_alone(self, cloud):
    cloud.play()
    cloud.babysit()
    cloud.calls_before = len(cloud.calls())
    assert cloud.babysit(cloud.record(token='other')) == 2
    new = cloud.calls()[cloud.calls_before:]
    assert not any(word in argv for argv in new for word in ('create', 'delete', 'ssh', 'scp'))


class TestPrograms:

  @pytest.mark.parametrize('code', [1, 2, 3, 4])
  def test_a_fault_stops_shows_every_worker_and_keeps_the_machine(self, cloud, code):
    cloud.play(dict(code=code), hosts=4)
    assert cloud.babysit(cloud.record(**POD)) == code
    assert cloud.machines == ['demo'] and count(cloud, 'delete') == 0
    shown = '\n'.join(cloud.said)
    for i in range(4):
      assert f'--- worker {i}' in shown and f'this is the end of worker {i}' in shown
    assert record.load('demo').attempt == 1
    assert f'exit code {code}' in record.load('demo').stopped

  def test_a_fault_whose_peers_were_aborted_is_a_fault(self, cloud):
    cloud.play(dict(code=[134, 134, 1, 134]), hosts=4)
    assert cloud.babysit(cloud.record(**POD)) == 1

  def test_peers_of_a_killed_worker_do_not_make_it_a_fault(self, cloud):
    cloud.play(dict(code=[1, 137, 1, 1], step=1), dict(code=0), hosts=4)
    assert cloud.babysit(cloud.record(**POD)) == 0
    assert record.load('demo').attempt == 2

  @pytest.mark.parametrize('code', [42, 134, 137, 139])
  def test_to_be_started_again_is_started_again(self, cloud, code):
    cloud.play(dict(code=code, step=1), dict(code=code, step=2), dict(code=code, step=3),
               dict(code=code, step=4), dict(code=0))
    assert cloud.babysit() == 0
    assert record.load('demo').attempt == 5 and count(cloud, 'create') == 1
    assert set(cloud.waits) <= {60}

  def test_a_crash_loop_ends(self, cloud):
    cloud.play(dict(code=42, step=1), dict(code=42, step=2), dict(code=42))
    assert cloud.babysit() == 1
    assert any('crash loop at step 2' in line for line in cloud.said)
    assert cloud.machines == ['demo'] and record.load('demo').attempt == 2 + babysit.STALLS

  def test_one_that_never_saved_ends_too(self, cloud):
    cloud.play(dict(code=137))
    assert cloud.babysit() == 1 and record.load('demo').attempt == babysit.STALLS

  def test_stragglers_are_ended(self, cloud):
    cloud.play(dict(code=[42, 42, None, 42], step=1), dict(code=0), hosts=4)
    assert cloud.babysit(cloud.record(**POD)) == 0
    assert record.load('demo').attempt == 2

  def test_arguments_arrive_unchanged(self, cloud):
    odd = ('train', '--config=a b.py', '--workdir=runs/demo', '--x=$HOME `id` "q" \'s\' \\ ; # ü\n*')
    cloud.play()
    assert cloud.babysit(cloud.record(arguments=odd)) == 0
    log = next((cloud.folder / 'buckets/acme-runs/launch/demo').iterdir()).read_text()
    (line,) = [line for line in log.splitlines() if line.startswith('arguments ')]
    assert tuple(json.loads(line.removeprefix('arguments '))) == odd


class TestConnections:

  def test_a_dropped_one_does_not_end_training(self, cloud):
    cloud.play(dict(code=0), events=[dict(when='setsid nohup', drop=[0]),
                                     dict(when='flock -n run/lock true', after=4, times=3, drop=[0])])
    assert cloud.babysit() == 0
    assert record.load('demo').attempt <= 2 and count(cloud, 'create') == 1

  def test_a_start_that_did_not_reach_everyone_is_completed(self, cloud):
    cloud.play(RUN, hosts=4)
    made = cloud.record(**POD)
    world = cloud.world()
    babysit.cloud.create(world, made)
    babysit.cloud.setup(world, made)
    made = made._replace(attempt=1)
    record.save(made)
    babysit.cloud.start(world, made)
    cloud.destroy('demo/2')  # one worker knows of nothing any more
    babysit.cloud.setup(world, made)

    def stop():
      if len(cloud.calls('tpu-vm', 'ssh')) > 12:
        babysit.cloud.ask(world, made, babysit.cloud.worker.stop(), note='')
        cloud.play(dict(code=0), hosts=4)
    cloud.on_sleep = stop
    assert cloud.babysit(made) == 0
    assert any('did not reach every worker' in line for line in cloud.said)

  def test_setup_that_fails_on_one_of_four_names_it(self, cloud):
    cloud.play(hosts=4)
    (cloud.folder / 'pip_code.2').write_text('1')
    assert cloud.babysit(cloud.record(**POD)) == 3
    shown = '\n'.join(cloud.said)
    assert 'failed on 1 of 4 workers' in shown and 'worker 2: exit code 1' in shown
    assert record.load('demo').attempt == 0 and cloud.machines == ['demo']

  def test_a_worker_that_falls_silent_is_replaced(self, cloud):
    cloud.play(RUN, dict(code=0), events=[
      dict(when='flock -n run/lock true; then echo', after=3, times=babysit.SILENT, drop=[0])])
    assert cloud.babysit() == 0
    assert count(cloud, 'create') == 2 and cloud.most == 1

  def test_workers_that_never_answer_stop_it(self, cloud):
    cloud.play(events=[dict(when='tpu-vm ssh', times=999, drop=[0])])
    assert cloud.babysit() == 2
    assert 'passphrase' in '\n'.join(cloud.said) and count(cloud, 'create') == 1
