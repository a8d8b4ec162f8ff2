"""`python -m ssl_jax doctor`: is this machine ready?"""

import importlib.metadata
import os
import pathlib
import platform
import shutil
import tempfile
import time

from ssl_jax.cli.options import Parser

DESCRIPTION = 'Checks versions, devices, data and disk; exits 3 if something is missing.'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'ml-collections', 'numpy',
            'tensorflow-datasets', 'chex', 'libtpu')
OPTIONAL = ('libtpu',)


def run(argv: list[str]) -> int:
  parser = Parser('doctor', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', default='.', help='where runs will be written')
  args, _ = parser.read(argv)
  problems = []
  for title, check in (('versions', _versions), ('processes', _processes),
                       ('devices', _devices), ('data', _data),
                       ('disk', lambda: _disk(pathlib.Path(args.workdir).expanduser())),
                       ('compilation cache', _cache)):
    try:
      lines = check()
    except Exception as error:  # a doctor reports every illness, whatever it is
      problems.append(title)
      lines = [f'PROBLEM: {type(error).__name__}: {error}']
    print(f'{title}')
    for line in lines:
      print(f'  {line}')
  print('all well' if not problems else f'problems with: {", ".join(problems)}')
  return 3 if problems else 0


def _versions() -> list[str]:
  from ssl_jax import __version__
  lines = [f'ssl_jax {__version__}, Python {platform.python_version()} on {platform.platform()}']
  missing = []
  for name in PACKAGES:
    try:
      lines.append(f'{name} {importlib.metadata.version(name)}')
    except importlib.metadata.PackageNotFoundError:
      missing += [name] if name not in OPTIONAL else []
  if missing:
    raise ModuleNotFoundError(f'not installed: {", ".join(missing)}; pip install '
                              f'{" ".join(missing)}')
  return lines


def _processes() -> list[str]:
  from ssl_jax.cli import hosts
  place = hosts.find()
  if place is None:
    return ['one: `train` started here runs on this machine alone']
  return [f'number {place.process} of {place.processes}, says {place.source}; process 0 is reached '
          f'at {place.coordinator}']


def _devices() -> list[str]:
  import jax
  import jax.numpy as jnp
  lines = [f'{device.platform} {device.device_kind} (process {device.process_index})'
           for device in jax.devices()]
  began = time.monotonic()
  jnp.dot(jnp.ones((512, 512)), jnp.ones((512, 512))).block_until_ready()
  lines.append(f'a matrix product ran in {time.monotonic() - began:.1f} s, compilation included; '
               f'{os.cpu_count()} cores')
  return lines


def _data() -> list[str]:
  from ssl_jax.data.sources import fashion_mnist_12k
  lines = []
  for split in ('train', 'test'):
    source = fashion_mnist_12k(split=split)
    example = source[0]
    shapes = ', '.join(f'{name} {value.dtype}{list(value.shape)}' for name, value in example.items())
    lines.append(f'fashion_mnist_12k {split}: {len(source)} examples of {shapes}')
  return lines


def _disk(workdir: pathlib.Path) -> list[str]:
  folder = workdir
  while not folder.exists():
    folder = folder.parent
  with tempfile.TemporaryFile(dir=folder) as file:
    file.write(b'x')
  free = shutil.disk_usage(folder).free / 2**30
  if free < 1:
    raise OSError(f'{folder} has only {free:.1f} GiB left')
  return [f'{folder.resolve()} can be written, {free:.0f} GiB free']


def _cache() -> list[str]:
  from ssl_jax.cli.setup import cache_folder
  folder = cache_folder()
  size = sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) if folder.exists() else 0
  return [f'{folder}: {size / 2**20:.0f} MiB']
