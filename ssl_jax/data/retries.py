"""Reading from storage that fails now and then: tried again after growing pauses.

Network disks and buckets fail for seconds and come back. What stays gone is a fault of one file, which
may be skipped (`ssl_jax.data.unreadable`); a storage that stays away is an error.
"""

import errno
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from ssl_jax.data.sources import DataError

# Seconds before each further try.
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)
PAUSES_OF_A_FILE = PAUSES[:3]
# Like a file that is not there: not the fault of the storage. EIO is a sector that cannot be read.
OF_A_FILE = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
             errno.ENAMETOOLONG, errno.EIO)
# A pause so long is told of.
LONG = 1.0  # seconds

# Whether the last file that this process read was worth waiting for: a disk that is gone must not cost
# the pauses of every file on it.
patience = True
wait = time.sleep
T = TypeVar('T')


def patiently(read: Callable[[], T], name: str,
              errors: tuple[type[Exception], ...] = (OSError,)) -> T:
  """`read()`, or what it returns at a later try.

  Args:
    read: may be called several times.
    name: what it reads, for messages; 'scheme://...' is remote, where every error is tried again.
    errors: those that are worth another try.

  Raises:
    OSError: of the last try, where it is a fault of this file.
    DataError: of the last try, in words, where the storage fails; `read`'s own at once.
  """
  global patience
  errors = (Exception,) if '://' in name else errors
  began, tries = time.monotonic(), 0
  while True:
    tries += 1
    try:
      found = read()
    except DataError:
      raise
    except errors as error:
      of_a_file = isinstance(error, FileNotFoundError) or getattr(error, 'errno', 0) in OF_A_FILE
      pauses = PAUSES_OF_A_FILE if of_a_file else PAUSES
      if patience and tries <= len(pauses):
        _pause(pauses[tries - 1], name, error)
        continue
      patience = False
      if of_a_file:
        raise
      raise DataError(
        f'{name} cannot be read ({tries} tries in {time.monotonic() - began:.0f} s): '
        f'{type(error).__name__}: {error}') from error
    patience = True
    return found


def _pause(seconds: float, name: str, error: Exception) -> None:
  if seconds >= LONG:
    print(f'{name} cannot be read ({type(error).__name__}: {error}); trying again in {seconds:.0f} s',
          file=sys.stderr, flush=True)
  wait(seconds)
