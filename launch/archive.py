"""The code that is sent to a machine: one archive, named by its content.

The archive stays in the state folder, so that a machine that is created again after a preemption
gets the same code, whatever happened to the checkout meanwhile.
"""

import hashlib
import io
import pathlib
import tarfile

from launch.commands import Command, World
from launch.errors import LaunchError
from launch.record import Record, writing

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pack(world: World, record: Record, release: str = '') -> str:
  """Packs the checkout as it is, or as it was at the tag `release`; returns the archive's name."""
  if not world.dry:
    with writing(record.folder):
      pass  # git writes there
  if release:
    return _release(world, record, release)
  if world.dry:
    world.say(f'packs the files of {ROOT} that git does not ignore')
    return 'code-CONTENT.tar.gz'
  done = world.run(Command(('git', '-C', str(ROOT), 'ls-files', '-z', '--cached', '--others',
                            '--exclude-standard'), 'the files of the checkout'))
  if done.code:
    raise LaunchError(f'{ROOT} is not a checkout that git can list, so what to send to the machine '
                      f'is not known ({done.err.strip()}); clone the repository and start there')
  packed = _tar([name for name in done.out.split('\0') if name and (ROOT / name).is_file()])
  path = record.folder / f'code-{hashlib.sha256(packed).hexdigest()[:12]}.tar.gz'
  with writing(record.folder):
    path.write_bytes(packed)
  return path.name


def _release(world: World, record: Record, tag: str) -> str:
  name = f'code-{"".join(c if c.isalnum() or c in ".-" else "_" for c in tag)}.tar.gz'
  done = world.run(Command(('git', '-C', str(ROOT), 'archive', '--format=tar.gz',
                            f'--output={record.folder / name}', tag), f'the code of {tag}'))
  if done.code:
    raise LaunchError(f'--release={tag}: git has no such tag or commit ({done.err.strip()}); '
                      '`git tag` lists the releases, `git fetch --tags` gets new ones')
  return name


def _tar(names: list[str]) -> bytes:
  """The same bytes for the same files: no times, no owners."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz', compresslevel=6) as tar:
    for name in sorted(set(names)):
      info = tar.gettarinfo(ROOT / name, arcname=name)
      info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, '', ''
      with (ROOT / name).open('rb') as file:
        tar.addfile(info, file)
  return buffer.getvalue()
