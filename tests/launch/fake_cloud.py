"""A cloud made of folders and local processes, behind fakes of gcloud, gcsfuse, sbatch and others.

Run as `python fake_cloud.py PROGRAM ARGUMENTS...` by executables that `conftest.py` puts on PATH. All
state is below $FAKE_CLOUD:

  calls.jsonl     what was called, one argv a line
  script.json     what the cloud is to do: see `Script` in conftest.py
  machines/NAME   a queued resource: its states still to come, its label, the state of its nodes
  vms/NODE/I      the home of worker I; `ssh` really runs its command there, in a shell
  buckets/NAME    a bucket

A machine that is preempted loses its processes, killed, and its homes.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

CLOUD = pathlib.Path(os.environ.get('FAKE_CLOUD', '/nonexistent'))
NAME = 'FAKE_VM'  # in the environment of all that runs on a VM


class Refused(Exception):
  def __init__(self, code, text):
    self.code, self.text = code, text


def read(path, default):
  return json.loads(path.read_text()) if path.exists() else default


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def script():
  return read(CLOUD / 'script.json', {})


@contextlib.contextmanager
def locked():
  with (CLOUD / 'lock').open('a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def option(argv, name, default=''):
  return next((a.split('=', 1)[1] for a in argv if a.startswith(f'--{name}=')), default)


def event(argv):
  """The scripted event for this call, if its turn has come."""
  text = ' '.join(argv)
  counts = read(CLOUD / 'counts.json', {})
  found = None
  for i, rule in enumerate(script().get('events', [])):
    if rule['when'] in text:
      seen = counts.get(str(i), 0)
      counts[str(i)] = seen + 1
      after = rule.get('after', 0)
      if found is None and after <= seen < after + rule.get('times', 1):
        found = rule
  write(CLOUD / 'counts.json', counts)
  return found


# --- machines -------------------------------------------------------------------------------------


def machine_path(name):
  return CLOUD / 'machines' / name


def owner(node):
  """The machine of a node: NAME or NAME-0, NAME-1 ..."""
  for path in (CLOUD / 'machines').glob('*'):
    if node in read(path, {})['nodes']:
      return path
  return None


def create(argv):
  name = argv[argv.index('create') + 1]
  if machine_path(name).exists():
    raise Refused(1, f'ERROR: (gcloud) ALREADY_EXISTS: Resource {name} already exists')
  count = int(option(argv, 'node-count', '1'))
  nodes = [name] if count == 1 else [f'{option(argv, "node-prefix")}-{i}' for i in range(count)]
  states = script().get('states') or [['ACTIVE']]
  made = read(CLOUD / 'made.json', 0)
  write(CLOUD / 'made.json', made + 1)
  write(machine_path(name), dict(
    states=states[min(made, len(states) - 1)], nodes={node: 'READY' for node in nodes},
    label=option(argv, 'labels')))
  live = len(list((CLOUD / 'machines').glob('*')))
  write(CLOUD / 'most.json', max(live, read(CLOUD / 'most.json', 0)))


def describe(argv):
  name = argv[argv.index('describe') + 1]
  path = machine_path(name)
  if not path.exists():
    raise Refused(1, f'ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource '
                     f"'projects/p/locations/z/queuedResources/{name}' was not found")
  found = read(path, {})
  state = found['states'][0]
  if len(found['states']) > 1:
    found['states'] = found['states'][1:]
    write(path, found)
  state, _, message = state.partition(': ')
  key, _, value = found['label'].partition('=')
  answer = {'name': name, 'state': {'state': state},
            'tpu': {'nodeSpec': [{'node': {'labels': {key: value} if key else {}}}]}}
  if message:
    answer['state']['failedData'] = {'error': {'message': message}}
  print(json.dumps(answer))


def describe_node(argv):
  node = argv[argv.index('describe') + 1]
  path = owner(node)
  state = read(path, {})['nodes'][node] if path else None
  if state is None:
    raise Refused(1, f'ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: Resource {node} was '
                     'not found')
  print(json.dumps({'name': node, 'state': state}))


def delete(argv):
  name = argv[argv.index('delete') + 1]
  path = machine_path(name)
  if not path.exists():
    raise Refused(1, f'ERROR: NOT_FOUND: {name} was not found')
  for node in read(path, {})['nodes']:
    destroy(node)
  path.unlink()


def preempt(name, state='PREEMPTED'):
  path = machine_path(name)
  found = read(path, {})
  for node in found['nodes']:
    destroy(node)
    found['nodes'][node] = state
  write(path, found)


def destroy(node):
  """Power off: nothing gets to say anything. Twice, for what was just being started."""
  home = str(CLOUD / 'vms' / node)
  for _ in range(2):
    for process in pathlib.Path('/proc').glob('[0-9]*'):
      try:
        environment = (process / 'environ').read_bytes().split(b'\0')
        if any(v.startswith(f'{NAME}={home}/'.encode()) for v in environment):
          os.kill(int(process.name), signal.SIGKILL)
      except OSError:
        pass
    time.sleep(0.02)
  shutil.rmtree(home, ignore_errors=True)


# --- workers --------------------------------------------------------------------------------------


def homes(node, which):
  path = owner(node)
  if path is None or read(path, {})['nodes'][node] != 'READY':
    raise Refused(1, f'ERROR: TPU node {node} is not in state READY')
  made = []
  for i in range(script().get('hosts', 1)) if which == 'all' else [int(which)]:
    home = CLOUD / 'vms' / node / str(i)
    home.mkdir(parents=True, exist_ok=True)
    made.append(home)
  return made


def ssh(argv, dropped):
  node = argv[argv.index('ssh') + 1]
  command = option(argv, 'command')
  with locked():
    places = homes(node, option(argv, 'worker', '0'))
  processes = []
  for home in places:
    i = int(home.name)
    environment = {
      'HOME': str(home), 'PATH': f'{CLOUD}/vmbin:/usr/bin:/bin', 'FAKE_CLOUD': str(CLOUD),
      NAME: f'{home}/', 'VM_WORKER': str(i), 'VM_NODE': node, 'JAX_PLATFORMS': 'cpu',
      **script().get('environment', {})}
    environment |= (script().get('environments') or [{}] * 99)[i]
    # Joined with spaces after it was split at them, as gcloud and ssh do between them.
    processes.append(subprocess.Popen(
      ['bash', '-c', ' '.join(command.split(' '))], cwd=home, env=environment,
      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True))
  printed = [process.communicate()[0] for process in processes]
  sys.stdout.write(''.join(text for i, text in enumerate(printed) if i not in dropped))
  if dropped:
    raise Refused(255, 'ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return '
                       'code [255].')
  return max(process.returncode for process in processes)


def scp(argv):
  at = argv.index('scp')
  source, target = argv[at + 1], argv[at + 2].rstrip(':')
  with locked():
    for home in homes(target, option(argv, 'worker', '0')):
      shutil.copy(source, home)


# --- the bucket -----------------------------------------------------------------------------------


def bucket_path(url):
  return CLOUD / 'buckets' / url.removeprefix('gs://')


def storage(argv):
  verb = argv[2]
  if verb == 'buckets':
    if not bucket_path(argv[4]).is_dir():
      raise Refused(1, f'ERROR: (gcloud.storage.buckets.describe) {argv[4]} not found: 404.')
    print(script().get('location', 'US-WEST4'))
  places = [a for a in argv[3:] if not a.startswith('--')]
  if verb == 'cp':
    target = bucket_path(places[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(places[0], target)
  if verb in ('ls', 'cat'):
    place = bucket_path(places[0])
    found = sorted(place.parent.glob(place.name))
    if not found:
      raise Refused(1, 'ERROR: One or more URLs matched no objects.')
    for path in found:
      print(path.read_text() if verb == 'cat' else path)


# --- programs -------------------------------------------------------------------------------------


def gcloud(argv):
  with locked():
    now = event(argv)
    if now:
      if now.get('preempt'):
        preempt(now['preempt'], now.get('state', 'PREEMPTED'))
      if 'err' in now:
        if now.get('late'):  # it was done, the answer did not arrive
          create(argv)
        raise Refused(now.get('code', 1), now['err'])
  text = ' '.join(argv)
  if 'tpu-vm ssh' in text:
    return ssh(argv, (now or {}).get('drop', []))
  if 'tpu-vm scp' in text:
    return scp(argv)
  with locked():
    if 'auth list' in text:
      print(script().get('account', 'someone@example.com'))
    elif 'accelerator-types list' in text:
      print('\n'.join(script().get('types', ['v5litepod-8', 'v5litepod-16', 'v4-8', 'v6e-8'])))
    elif 'gcloud storage' in text:
      storage(argv)
    elif 'queued-resources create' in text:
      create(argv)
    elif 'queued-resources describe' in text:
      describe(argv)
    elif 'queued-resources delete' in text:
      delete(argv)
    elif 'tpu-vm describe' in text:
      describe_node(argv)
    else:
      raise Refused(2, f'ERROR: fake gcloud does not know: {text}')
  return 0


def python(argv):
  """Python on a VM: makes a venv whose pip installs nothing and whose python is $VM_PYTHON."""
  if argv[1:3] == ['-m', 'venv']:
    folder = pathlib.Path(argv[3]) / 'bin'
    folder.mkdir(parents=True)
    for name in ('python', 'pip'):
      path = folder / name
      path.write_text(f'''#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then
  echo "$@" >>"$HOME/pip.log"
  exit "$(cat "$FAKE_CLOUD/pip_code.$VM_WORKER" 2>/dev/null || echo 0)"
fi
exec {os.environ['VM_PYTHON']} "$@"
''')
      path.chmod(0o755)
  return 0


def program(argv):
  """Stands for `python -m ssl_jax`: plays the next part of script()['plays'], see conftest.py."""
  arguments = argv[argv.index('ssl_jax') + 1:]
  if arguments[0] == 'doctor':
    print('all well')
    return 0
  worker = os.environ['VM_WORKER']
  counter = CLOUD / f'starts.{os.environ["VM_NODE"]}.{worker}.json'
  number = read(counter, 0)
  write(counter, number + 1)
  plays = script()['plays']
  play = plays[min(number, len(plays) - 1)]
  print('arguments', json.dumps(arguments), flush=True)
  if play.get('step') is not None and worker == '0':
    folder = pathlib.Path(option(arguments, 'workdir')) / 'checkpoints' / str(play['step'])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'manifest.json').write_text('{}')
  code = play['code'][int(worker)] if isinstance(play.get('code'), list) else play.get('code')
  if code is None:  # runs until it is told to stop
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
    while True:
      time.sleep(0.05)
  if code > 128:
    os.kill(os.getpid(), code - 128)
    time.sleep(5)
  print(f'this is the end of worker {worker}', flush=True)
  return code


def main(name, argv):
  if name in ('gcloud', 'sbatch', 'scontrol', 'scancel', 'srun'):
    with (CLOUD / 'calls.jsonl').open('a') as file:
      file.write(json.dumps(argv) + '\n')
  return {'gcloud': gcloud, 'python': python, 'program': program}[name](argv)


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1], sys.argv[2:]))
  except Refused as error:
    print(error.text, file=sys.stderr)
    sys.exit(error.code)
