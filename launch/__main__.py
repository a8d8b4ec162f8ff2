"""`python -m launch tpu|slurm|local ...`: arguments in, exit codes out.

Exit codes are those of `python -m ssl_jax`: 0 done, 42 start again, 1 bug, 2 configuration, 3 data
or checkpoint, 4 numerics. A user's mistake is answered in words, never with a traceback.
"""

import importlib
import sys

from launch.errors import CONFIGURATION, LaunchError

DOORS = {
  'tpu': 'Cloud TPU VMs: create, set up, run, keep alive through preemptions, delete',
  'slurm': 'a cluster with Slurm: submit a job that saves and requeues itself',
  'local': 'several processes on this machine, to rehearse what a pod will do',
}
HELP = 'usage: python -m launch DOOR ...\n\n' + '\n'.join(
  f'  {name:6} {text}' for name, text in DOORS.items()) + (
  '\n\n`python -m launch DOOR --help` tells more; every command has --dry-run.')


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] in (['--help'], ['-h']):
    print(HELP)
    return 0
  if not argv or argv[0] not in DOORS:
    came = f'got {argv[0]!r}' if argv else 'got nothing'
    print(f'error: expected {", ".join(DOORS)}, {came}\n\n{HELP}', file=sys.stderr)
    return CONFIGURATION
  try:
    return importlib.import_module(f'launch.{argv[0]}').main(argv[1:])
  except LaunchError as error:
    print(f'error: {error}', file=sys.stderr)
    return error.code
  except KeyboardInterrupt:
    print('interrupted; what runs elsewhere goes on', file=sys.stderr)
    return 130
  except BrokenPipeError:  # `... | head`
    sys.stdout = None
    return 0


if __name__ == '__main__':
  sys.exit(main())
