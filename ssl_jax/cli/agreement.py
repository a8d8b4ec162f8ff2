"""Several processes that mean the same run: all hand in facts, all see them, all refuse together.

It goes through JAX's coordination service, so that nothing is asked of the devices before code and
versions are known to be equal.
"""

import hashlib
import importlib.metadata
import itertools
import json
import pathlib
import platform
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed

import ssl_jax
from ssl_jax.cli import hosts
from ssl_jax.cli.meeting import MissingError, listed
from ssl_jax.cli.options import fields
from ssl_jax.report import environment
from ssl_jax.schema import ConfigError

AGREE = 900  # seconds between the first and the last process at a comparison
SHARED = 30  # seconds in which a file of one host must be seen by the others
NAMED = 20  # differences in a message

PACKAGES = (*environment.PACKAGES, 'ml-collections', 'pillow', 'tokenizers', 'jax-cuda13-plugin',
            'nvidia-nccl-cu13')

_numbers = itertools.count()  # of comparisons; all processes make them in the same order


def agree(what: str, facts: Mapping[str, Any]) -> None:
  """Every process hands in facts; where they are not equal, all refuse.

  Raises:
    MissingError: some process did not come here, or ended before; names it.
    ConfigError: they differ; names the first host that does, and in what.
  """
  text = json.dumps(facts, sort_keys=True)
  sums = exchange(what, {'sum': hashlib.sha256(text.encode()).hexdigest()})
  if all(one['facts'] == sums[0]['facts'] for one in sums):
    return
  different = differences(exchange(what, facts))
  more = len(different) - NAMED
  raise ConfigError(f'the {len(sums)} processes do not agree about the {what}:\n  '
                    + '\n  '.join(different[:NAMED] + ([f'and {more} more'] if more > 0 else []))
                    + '\nnothing was trained; make them equal and start all of them again')


def exchange(what: str, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
  """[{'host': name, 'facts': facts}, ...] of all processes, by number.

  Process 0 collects and tells the others, so that with many hosts there is little to move.

  Raises:
    MissingError: some process did not come here in `AGREE` seconds, or ended.
  """
  state = distributed.global_state  # jax.process_count() would start the devices
  name = f'ssl_jax/{next(_numbers)}'
  mine = json.dumps({'host': socket.gethostname(), 'facts': dict(facts)})
  state.client.key_value_set(f'{name}/{state.process_id}', mine)
  if state.process_id == 0:
    found = _collect(what, f'{name}/')
    state.client.key_value_set(f'{name}-all', json.dumps(found))
  else:
    found = _told(what, f'{name}-all')
  if isinstance(found, str):
    raise MissingError(found)
  return found


def _collect(what: str, folder: str) -> list[dict[str, Any]] | str:
  """What all handed in, or in words why some did not."""
  state, deadline = distributed.global_state, time.monotonic() + AGREE
  while True:
    came = {int(key.rpartition('/')[2]): json.loads(text)
            for key, text in state.client.key_value_dir_get(folder)}
    if len(came) == state.num_processes:
      return [came[i] for i in range(len(came))]
    missing = listed(set(range(state.num_processes)) - set(came))
    if hosts.ended():
      return f'{missing} ended before the {what} could be compared'
    if time.monotonic() > deadline:
      return f'{missing} did not come to compare the {what} in {AGREE} s; see what it printed'
    time.sleep(0.1)


def _told(what: str, key: str) -> list[dict[str, Any]] | str:
  deadline = time.monotonic() + 2 * AGREE  # process 0 may come last, and waits itself
  while True:
    try:
      return json.loads(distributed.global_state.client.blocking_key_value_get(key, 2000))
    except jax.errors.JaxRuntimeError:
      if hosts.ended() or time.monotonic() > deadline:
        return f'process 0 ended, or did not come to compare the {what}; see what it printed'


def differences(found: Sequence[Mapping[str, Any]]) -> list[str]:
  """One line for each fact in which a process differs from process 0, naming the first that does.

  Args:
    found: of each process {'host': name, 'facts': {name: value}}.
  """
  lines, first = [], found[0]
  for name in dict.fromkeys(name for one in found for name in one['facts']):
    value = first['facts'].get(name)
    others = [i for i, one in enumerate(found) if one['facts'].get(name) != value]
    if others:
      other = found[others[0]]
      more = f' (and on {len(others) - 1} more)' if len(others) > 1 else ''
      lines.append(f'{name}: {_shown(value)} on process 0 ({first["host"]}), '
                   f'{_shown(other["facts"].get(name))} on process {others[0]} '
                   f'({other["host"]}){more}')
  return lines


def _shown(value: Any) -> str:
  return 'none' if value is None else str(value)


# --- what is compared -----------------------------------------------------------------------------


def facts(config, options: Mapping[str, Any]) -> dict[str, str]:
  """What must be equal before anything is computed: config, options, code, versions, arithmetic."""
  found = {f'config.{name}': repr(value) for name, value in fields(config)}
  found |= {f'--{name}': repr(value) for name, value in options.items()}
  found |= {'git revision': environment.revision(), 'source of ssl_jax': _source_digest(),
            'python': platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found | {f'jax.config.{name}': repr(getattr(jax.config, name)) for name in
                  ('jax_enable_x64', 'jax_default_matmul_precision', 'jax_debug_nans')}


def _source_digest() -> str:
  """Of the package's files: a work tree may be changed, an installed package has no revision."""
  root, digest = pathlib.Path(ssl_jax.__file__).parent, hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    digest.update(f'{path.relative_to(root)}\0'.encode() + path.read_bytes() + b'\0')
  return digest.hexdigest()[:16]


def check_workdir(workdir: pathlib.Path) -> None:
  """A file that process 0 writes must be seen by all.

  Raises:
    ConfigError: the folder is not the same one everywhere, or cannot be written; on all processes.
  """
  probe, fault = workdir / f'.shared-{secrets.token_hex(8)}', None
  if distributed.global_state.process_id == 0:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      probe.write_text('')
    except OSError as error:
      fault = str(error)
  try:
    # Nobody has looked for this name before it is written: no file system remembers its absence.
    told = exchange('workdir', {'file': probe.name, 'fault': fault})[0]
    if told['facts']['fault']:
      raise ConfigError(f'process 0 ({told["host"]}) cannot write the workdir: '
                        f'{told["facts"]["fault"]}')
    seen = exchange('workdir', {'seen': _comes(workdir / told['facts']['file'])})
  finally:
    if distributed.global_state.process_id == 0:
      probe.unlink(missing_ok=True)
  blind = [f'process {i} ({one["host"]})' for i, one in enumerate(seen) if not one['facts']['seen']]
  if blind:
    raise ConfigError(f'{workdir} is not one folder that all hosts share: what process 0 '
                      f'({told["host"]}) writes there is not seen by {", ".join(blind[:NAMED])} '
                      f'within {SHARED} s; put --workdir on a shared file system, such as NFS')


def _comes(path: pathlib.Path) -> bool:
  """A network file system may take a while to show what another host has written."""
  deadline = time.monotonic() + SHARED
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
  return True


def check_batch(batch: Mapping[str, np.ndarray], rows: int) -> None:
  """The first batch of every host: JAX takes ragged ones without a word and computes with them.

  Args:
    batch: this process's rows.
    rows: how many it should have.

  Raises:
    ConfigError: fields, dtypes or shapes are not the same everywhere.
  """
  form = lambda x: (f'{x.dtype}{list(x.shape[1:])}, '
                    + ('all its rows' if len(x) == rows else f'{len(x)} rows instead of {rows}'))
  agree('first batch', {f'field {name!r}': form(x) for name, x in batch.items()})
