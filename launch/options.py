"""What the three doors' command lines have in common."""

import argparse
from typing import NoReturn

from launch.errors import LaunchError


class Parser(argparse.ArgumentParser):
  """Raises instead of exiting, so that every mistake is answered in one place."""

  def __init__(self, *arguments, **options):
    super().__init__(*arguments, allow_abbrev=False, **options)

  def error(self, message: str) -> NoReturn:
    raise LaunchError(f'{message}; `{self.prog} --help` tells more')


def split(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
  """(ours, what follows `--`: the arguments of `python -m ssl_jax`)."""
  if '--' not in argv:
    return argv, ()
  at = argv.index('--')
  return argv[:at], tuple(argv[at + 1:])


def check_program(arguments: tuple[str, ...], *, restarts: bool = False) -> None:
  """Refuses what could not start, before anything is rented or queued; where it is started again after
  a preemption, what would not go on then."""
  if not arguments or arguments[0].startswith('-'):
    raise LaunchError('what to run is missing: it follows `--`, for example\n'
                      '  ... -- train --config=configs/simclr_fashion_mnist.py --workdir=runs/demo')
  for option in ('--config', '--workdir') if arguments[0] == 'train' else ():
    if not any(argument == option or argument.startswith(option + '=') for argument in arguments):
      raise LaunchError(f'`train` needs {option}=...')
  never = {'--resume=never', ('--resume', 'never')}
  if restarts and never & {*arguments, *zip(arguments, arguments[1:])}:
    raise LaunchError('`--resume=never` would start over after every preemption; give another '
                      '--workdir, or move the earlier run away')
