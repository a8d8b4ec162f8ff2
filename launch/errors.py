"""Exit codes, and mistakes that get an answer instead of a traceback."""

DONE, BUG, CONFIGURATION, DATA, NUMERICS, AGAIN = 0, 1, 2, 3, 4, 42


class LaunchError(Exception):
  """What was expected, what came, what to do; and the exit code."""

  def __init__(self, text: str, code: int = CONFIGURATION):
    super().__init__(text)
    self.code = code


def again(code: int) -> bool:
  """Whether a program that ended with `code` asked to be started again, or was killed.

  128 + n is death by signal n, 255 a lost connection; JAX's coordination service aborts (134) those
  whose peer has died.
  """
  return code == AGAIN or code >= 127
