"""The shell scripts that run on a TPU VM. Pure: text in, text out; tests run them in bash.

All lives in one folder of the VM's home:

  checkout/    the code; runs/ in it is the folder runs/ of the bucket, if there is a bucket
  venv/        Python and the pinned wheels
  bucket/      the bucket, mounted
  setup_done   name of the code that is set up
  run/         lock (held while the program lives), attempt, pid, exit, worker.log

A lock instead of a process id tells whether the program lives: no other process can be mistaken for
it, and a reboot frees it.
"""

import base64
import re
import shlex
from collections.abc import Sequence

from launch.errors import CONFIGURATION, DATA
from launch.record import Record

HOME = 'ssl_jax_launch'
MARK = 'ssl_jax_launch_answer'
# Which worker of the slice this is; JAX asks the same.
_NUMBER = ('http://metadata.google.internal/computeMetadata/v1/instance/attributes/'
           'agent-worker-number')
# When a connection drops gcloud runs a script once more, perhaps beside the first.
_ALONE = 'exec 8>>"$HOME/ssl_jax_launch.lock"\nflock 8'
_ENTER = f'cd "$HOME/{HOME}"'
# A TPU that JAX does not find is an error, not a slow run on the VM's CPU.
_PLATFORM = 'export JAX_PLATFORMS="${JAX_PLATFORMS:-tpu,cpu}"'


def answering(script: str) -> str:
  """Runs a script and prints its output and exit code in lines that can be told from those of other
  workers, also where they arrive mixed: marked, numbered, encoded, counted at the end."""
  return f'''answer=$(mktemp)
(
{script}
) >"$answer" 2>&1
code=$?
worker=$(curl -sf -m 20 -H 'Metadata-Flavor: Google' {_NUMBER}) || worker=0
base64 -w 1200 "$answer" | awk -v "me={MARK} $worker" -v "code=$code" \\
  '{{ print me " " NR " " $0 }} END {{ print me " end " NR " " code }}'
rm -f "$answer"'''


def answers(printed: str) -> dict[int, tuple[int, str]]:
  """{worker: (exit code, output)} of those whose answer arrived whole."""
  pieces = {(int(worker), int(number)): text for worker, number, text in re.findall(
    rf'^{MARK} (\d+) (\d+) ([A-Za-z0-9+/=]+)$', printed, re.M)}
  found = {}
  for worker, count, code in re.findall(rf'^{MARK} (\d+) end (\d+) (\d+)$', printed, re.M):
    keys = [(int(worker), number + 1) for number in range(int(count))]
    if all(key in pieces for key in keys):
      text = base64.b64decode(''.join(pieces[key] for key in keys))
      found[int(worker)] = int(code), text.decode(errors='replace').strip()
  return found


def _mount(record: Record) -> str:
  """gcsfuse without cached metadata: hosts see each other's files at once."""
  if not record.bucket:
    return ''
  name = shlex.quote(record.bucket.removeprefix('gs://'))
  return f'''
if ! command -v gcsfuse >/dev/null; then
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y -q gcsfuse || {{
    echo 'gcsfuse is missing and could not be installed'; exit {DATA}; }}
fi
mkdir -p bucket
mountpoint -q bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 {name} bucket 8>&- || {{
  echo 'the bucket could not be mounted: may the service account of the VM read and write it?'
  exit {DATA}; }}
mkdir -p bucket/runs
ln -sfn "$PWD/bucket/runs" checkout/runs'''


def _find_data(record: Record) -> str:
  if not record.data:
    return ''
  data = shlex.quote(record.data)
  look = (f'gcloud storage ls {data} >/dev/null' if record.data.startswith('gs://') else
          f'(cd checkout && ls -d -- {data} >/dev/null)')
  return f'''
{look} || {{ echo 'no data at' {data}; exit {DATA}; }}'''


def setup(record: Record, archive: str) -> str:
  """Code, Python, wheels, bucket, data, and a look at the devices. Twice is harmless."""
  code = shlex.quote(archive)
  return f'''set -eu
{_ALONE}
mkdir -p "$HOME/{HOME}"
{_ENTER}
if [ -e run/lock ] && ! flock -n run/lock true; then
  echo 'a program is running here; stop it first'; exit {CONFIGURATION}
fi
rm -rf setup_done checkout.new
mkdir checkout.new
tar -xzf "$HOME"/{code} -C checkout.new
rm -rf checkout
mv checkout.new checkout
python=
for candidate in python3.11 python3.12 python3.13; do
  if command -v "$candidate" >/dev/null; then python=$candidate; break; fi
done
if [ ! -x venv/bin/pip ] && ! {{ [ "$python" ] && "$python" -m venv venv; }}; then
  python3 -m pip install --quiet --user uv
  "$HOME/.local/bin/uv" venv --quiet --clear --seed --python 3.11 venv
fi
venv/bin/python -m pip install --quiet --disable-pip-version-check \\
  --only-binary=:all: --no-binary=promise --constraint checkout/launch/constraints.txt \\
  --requirement checkout/requirements.txt 'jax[tpu]'
{_mount(record)}{_find_data(record)}
{_PLATFORM}
(cd checkout && ../venv/bin/python -m ssl_jax doctor)
echo {code} >setup_done'''


# Runs detached: $1 is the attempt, $2 the bucket's folder for logs or '', the rest the program.
# TERM is not passed on: a VM that shuts down signals every process, and a second TERM would end
# the program before it has saved.
_DETACHED = '''exec 9>>run/lock
flock -n 9 || exit 0
trap : TERM HUP INT
attempt=$1 logs=$2
shift 2
echo $$ >run/group
cp /proc/sys/kernel/random/boot_id run/boot
save() {
  if [ "$logs" ]; then
    timeout 120 gcloud storage cp run/worker.log "$logs/$(hostname).log" --quiet >/dev/null 2>&1
  fi
}
( while sleep 60; do save; done ) 9>&- &
copier=$!
echo "--- attempt $attempt on $(hostname), $(date -u +%Y-%m-%dT%H:%M:%SZ)"
( cd checkout; echo "$BASHPID" >../run/pid; exec "$@" )
code=$?
echo "--- attempt $attempt ended with exit code $code"
kill "$copier"
save
echo "$code" >run/exit.new
mv run/exit.new run/exit'''


def start(record: Record, attempt: int, logs: str, arguments: Sequence[str]) -> str:
  """Starts the program so that a lost connection does not end it. Twice is harmless."""
  program = shlex.join(['../venv/bin/python', '-u', '-m', 'ssl_jax', *arguments])
  return f'''set -eu
{_ALONE}
{_ENTER}
mkdir -p run
if ! flock -n run/lock true; then
  [ "$(cat run/attempt)" = {attempt} ] && exit 0
  echo "attempt $(cat run/attempt) is still running; stop it first"
  exit {CONFIGURATION}
fi
if [ -e run/group ] && cmp -s run/boot /proc/sys/kernel/random/boot_id; then
  kill -KILL -- "-$(cat run/group)" 2>/dev/null || true  # children that would hold the TPU
fi
{_mount(record)}
rm -f run/exit run/pid run/group
echo {attempt} >run/attempt
{_PLATFORM}
setsid nohup bash -c {shlex.quote(_DETACHED)} ssl_jax_launch {attempt} {shlex.quote(logs)} \\
  {program} >>run/worker.log 2>&1 </dev/null 8>&- &
for _ in $(seq 100); do
  if [ -e run/pid ] || [ -e run/exit ]; then exit 0; fi
  sleep 0.1
done
echo 'the program did not start'
exit 1'''


def state(arguments: Sequence[str]) -> str:
  """Prints key=value lines: setup, state (idle, running or ended), attempt, code, step, beat (what
  the run last told of itself), now, last."""
  return f'''{_ENTER} 2>/dev/null || exit 0
echo "setup=$(cat setup_done 2>/dev/null)"
mkdir -p run
echo "attempt=$(cat run/attempt 2>/dev/null)"
if ! flock -n run/lock true; then echo state=running
elif [ -e run/exit ]; then echo state=ended; echo "code=$(cat run/exit)"
elif [ -e run/attempt ]; then echo state=ended; echo code=255
else echo state=idle; fi
{_newest_step(workdir(arguments))}
{_heartbeat(workdir(arguments))}
echo "last=$(tail -n 1 run/worker.log 2>/dev/null)"
exit 0'''


def _place(folder: str) -> str:
  return f'"$HOME"/{shlex.quote(folder[2:])}' if folder.startswith('~/') else shlex.quote(folder)


def _heartbeat(folder: str) -> str:
  """The file that a run writes every half minute, if it is of this attempt."""
  if not folder:
    return ':'
  beat = f'{_place(folder)}/heartbeat.json'
  return (f'beat=$(cd checkout 2>/dev/null && [ {beat} -nt ../run/attempt ] && head -n 1 -- {beat})'
          '\necho "beat=$beat"\necho "now=$(date +%s)"')


def _newest_step(folder: str) -> str:
  """The newest complete checkpoint: its manifest is written last."""
  if not folder:
    return ':'
  listing = f'(cd checkout 2>/dev/null && ls -d -- {_place(folder)}/checkpoints/*/manifest.json)'
  return (f'step=$( {listing} 2>/dev/null | sed -n "s|.*/\\([0-9]*\\)/manifest.json$|\\1|p" '
          '| sort -n | tail -n 1)\necho "step=$step"')


def workdir(arguments: Sequence[str]) -> str:
  """The value of --workdir, '' if there is none."""
  for i, argument in enumerate(arguments):
    if argument.startswith('--workdir='):
      return argument.removeprefix('--workdir=').rstrip('/')
    if argument == '--workdir' and i + 1 < len(arguments):
      return arguments[i + 1].rstrip('/')
  return ''


def stop() -> str:
  """SIGTERM to the program, which saves and ends with exit code 42."""
  return f'''{_ENTER} 2>/dev/null || exit 0
if [ -e run/pid ] && ! flock -n run/lock true; then kill -TERM "$(cat run/pid)"; fi
exit 0'''


def kill() -> str:
  """SIGKILL to the program and all it started; what it saved stays."""
  return f'''{_ENTER} 2>/dev/null || exit 0
if [ -e run/pid ] && ! flock -n run/lock true; then kill -KILL "$(cat run/pid)"; fi
exit 0'''


def tail(lines: int) -> str:
  return f'{_ENTER} && tail -n {lines} run/worker.log'


def tail_and_follow() -> str:
  return f'{_ENTER} && tail -n 40 -F run/worker.log'
