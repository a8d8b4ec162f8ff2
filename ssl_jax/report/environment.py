"""What a run was made with: command, revision of the code, versions, machine. No host name, no user.

A run's folder has one line of it per start in starts.jsonl, since a run that was interrupted may go on
with other code on another machine.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import time
from collections.abc import Sequence

import ssl_jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'libtpu')

STARTS = 'starts.jsonl'


def record(workdir: pathlib.Path, argv: Sequence[str], devices: Sequence[str]) -> None:
  """Appends `describe(argv, devices)` to the run's starts; for process 0 alone."""
  with (workdir / STARTS).open('a') as file:
    file.write(json.dumps(describe(argv, devices)) + '\n')


def read(workdir: pathlib.Path) -> list[dict[str, str]]:
  """Every start of a run, the latest last; none where nobody recorded them. A cut line is left out."""
  path, starts = workdir / STARTS, []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      starts.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return starts


def describe(argv: Sequence[str], devices: Sequence[str]) -> dict[str, str]:
  """{name: value} in the order in which it is shown.

  Args:
    argv: of the command, without the interpreter: ['train', '--config=...'].
    devices: one word per device, such as `device.device_kind`.
  """
  kinds = {kind: list(devices).count(kind) for kind in devices}
  found = {
    'command': shlex.join(['python', '-m', 'ssl_jax', *argv]),
    'revision': revision() or 'not a git work tree',
    'time': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'devices': ', '.join(f'{count} x {kind}' for kind, count in kinds.items()),
    'cores': str(os.cpu_count()),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    'ssl_jax': ssl_jax.__version__,
  }
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def revision(folder: pathlib.Path | None = None) -> str | None:
  """The commit of the code in `folder` (this package's), 'dirty' added where files differ from it.

  None where git does not track the folder: an installed package inside somebody's repository must
  not be taken for a part of it.
  """
  folder = folder or pathlib.Path(ssl_jax.__file__).parent
  if not _git(folder, 'ls-files', '--', '.'):
    return None
  commit = _git(folder, 'rev-parse', 'HEAD')
  changed = _git(folder, 'status', '--porcelain', '--untracked-files=no')
  return f'{commit} (dirty: {len(changed.splitlines())} changed files)' if changed else commit


def _git(folder: pathlib.Path, *arguments: str) -> str:
  try:
    done = subprocess.run(['git', '-C', str(folder), *arguments], capture_output=True, text=True,
                          timeout=10, check=True)
  except (OSError, subprocess.SubprocessError):  # no git, no repository, or no commit yet
    return ''
  return done.stdout.strip()
