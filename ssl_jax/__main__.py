"""`python -m ssl_jax`, and the command `ssl_jax`."""

import sys
import traceback
from typing import NoReturn

from ssl_jax.cli import main
from ssl_jax.cli.process import Surviving, leave


def run() -> NoReturn:
  sys.stdout, sys.stderr = Surviving(sys.stdout), Surviving(sys.stderr)
  try:
    code = main()
  except Exception:
    traceback.print_exc()
    code = 1
  leave(code)


if __name__ == '__main__':
  run()
