"""`python -m launch slurm submit`: a job that saves before its time is up and requeues itself.

Slurm signals the batch script with USR1 some minutes before the limit; the script has SIGTERM sent
to the tasks, which save and end with 42; then it requeues the job under the same number, and the
same command resumes. JAX finds the other tasks through Slurm's environment.
"""

import pathlib
import re
import shlex
import sys
from typing import NamedTuple

from launch import commands, options, record
from launch.commands import Command
from launch.errors import AGAIN, CONFIGURATION, DONE, LaunchError

DESCRIPTION = '''Submits `python -m ssl_jax ...` (after --) to Slurm, from a folder and with a
Python that all nodes see. The job saves before its time limit and requeues itself until it is
done.'''
RESTARTS = 10  # of a job that was not near its limit when it asked to be started again


class Job(NamedTuple):
  """What the script depends on."""

  name: str
  nodes: int
  gpus: int
  tasks: int         # per node
  time: str
  notice: int        # seconds before the limit
  extra: tuple[str, ...]
  folder: str
  python: str
  arguments: tuple[str, ...]


def main(argv: list[str]) -> int:
  ours, program = options.split(argv)
  args = _parser().parse_args(ours)
  world = commands.dry() if args.dry_run else commands.real()
  options.check_program(program, restarts=True)
  job = _job(args, program)
  if not world.dry:
    commands.need('sbatch')
  path = record.state_folder() / 'slurm' / f'{job.name}.sbatch'
  submit = Command(('sbatch', str(path)), 'submit')
  if world.dry:
    print(f'cat >{shlex.quote(str(path))} <<\'END_OF_SCRIPT\'\n{script(job)}END_OF_SCRIPT')
  else:
    with record.writing(path.parent):
      path.write_text(script(job))
  result = world.run(submit)
  if result.code:
    raise LaunchError(f'sbatch refused: {result.err.strip() or result.out.strip()}\n  {submit}\n'
                      'what to do: options of your cluster, such as a partition or an account, are '
                      'given as --sbatch=--partition=NAME')
  if not world.dry:
    print(result.out.strip())
    world.say(f'watch: squeue --me; log: slurm-{job.name}-JOB.log; end: scancel --signal=TERM JOB '
              'saves first, scancel JOB does not')
  return DONE


def _parser() -> options.Parser:
  parser = options.Parser('python -m launch slurm', description=DESCRIPTION)
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  verb = verbs.add_parser('submit', help='write the batch script and submit it',
                          description=DESCRIPTION)
  verb.add_argument('--name', default='ssl_jax')
  verb.add_argument('--nodes', type=int, default=1)
  verb.add_argument('--gpus-per-node', type=int, default=8, help='0: a job on CPUs')
  verb.add_argument('--tasks', choices=('gpu', 'node'), default='gpu', help='one process per GPU, '
                    'or one per node that drives all of its GPUs')
  verb.add_argument('--time', default='24:00:00', help='the limit of one part')
  verb.add_argument('--notice', type=int, default=300, metavar='SECONDS', help='how long before '
                    'the limit to start saving')
  verb.add_argument('--sbatch', action='append', default=[], metavar='OPTION', help='any other '
                    'option of sbatch, such as --sbatch=--partition=gpu; may be repeated')
  verb.add_argument('--dry-run', action='store_true', help='print script and command instead')
  return parser


def _job(args, program: tuple[str, ...]) -> Job:
  if not re.fullmatch(r'[\w.-]+', args.name):
    raise LaunchError(f'--name={args.name}: expected letters, digits, dots and dashes')
  for option, least in (('nodes', 1), ('gpus_per_node', 0), ('notice', 60)):
    if (value := getattr(args, option)) < least:
      raise LaunchError(f'--{option.replace("_", "-")}={value}: expected {least} or more')
  if not re.fullmatch(r'(\d+-)?\d+(:\d+){0,2}', args.time):
    raise LaunchError(f'--time={args.time}: expected Slurm\'s form, such as 24:00:00 or 2-00:00:00')
  for extra in args.sbatch:
    if not re.fullmatch(r'-\S.*', extra):
      raise LaunchError(f'--sbatch={extra}: expected an option with its dashes, such as '
                        '--sbatch=--partition=gpu')
  tasks = 1 if args.tasks == 'node' else max(args.gpus_per_node, 1)
  return Job(args.name, args.nodes, args.gpus_per_node, tasks, args.time, args.notice,
             tuple(args.sbatch), str(pathlib.Path.cwd()), sys.executable, program)


def script(job: Job) -> str:
  """The batch script. Pure."""
  directives = [
    f'--job-name={job.name}', f'--nodes={job.nodes}', f'--ntasks-per-node={job.tasks}',
    *([f'--gpus-per-node={job.gpus}'] if job.gpus else []), f'--time={job.time}',
    f'--signal=B:USR1@{job.notice}', '--requeue', '--open-mode=append',
    '--output=slurm-%x-%j.log', *job.extra]
  # JAX takes one GPU per task under Slurm unless it is told which.
  devices = ('export JAX_LOCAL_DEVICE_IDS=' + ','.join(map(str, range(job.gpus))) + '\n'
             if job.tasks == 1 and job.gpus > 1 else '')
  program = commands.quoted([job.python, '-u', '-m', 'ssl_jax', *job.arguments])
  lines = '\n'.join(f'#SBATCH {directive}' for directive in directives)
  return f'''#!/bin/bash
{lines}

job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
asked=
# Not through srun, which answers SIGTERM by killing the tasks.
save() {{
  asked=yes
  echo 'the time is nearly up: SIGTERM to the tasks, which save'
  scancel --signal=TERM "$job"
}}
trap save USR1
trap : TERM  # Slurm signals the tasks as well; the script outlives them
cd {shlex.quote(job.folder)} || exit {CONFIGURATION}
{devices}srun --kill-on-bad-exit=0 --wait=300 {program} &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done  # a signal ends wait early
wait "$step"
code=$?
if [ "$code" -ne {AGAIN} ] && [ "$code" -lt 127 ]; then exit "$code"; fi
if [ -z "$asked" ] && [ "${{SLURM_RESTART_COUNT:-0}}" -ge {RESTARTS} ]; then
  echo "ended with $code after {RESTARTS} restarts: not started again"
  exit "$code"
fi
echo "ended with $code, to be started again"
if ! command -v scontrol >/dev/null; then
  echo 'scontrol is not on PATH, so the job cannot requeue itself; submit it again'
  exit "$code"
fi
scontrol requeue "$job"
exit "$code"
'''
