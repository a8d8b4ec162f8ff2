"""A cloud to test against: fakes first on PATH, state in a temporary folder, no time that passes."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import sys
import tarfile
import threading
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(ROOT) not in sys.path:
  sys.path.insert(0, str(ROOT))

from launch import __main__, babysit, commands, record  # noqa: E402
from launch.record import Record  # noqa: E402

REAL = commands.real  # before any test replaces it


def executable(path: pathlib.Path, text: str) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class Cloud:
  """The fake cloud, seen from a test."""

  BUCKET = 'gs://acme-runs'

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    (folder / 'buckets' / 'acme-runs').mkdir(parents=True)
    self.waits: list[float] = []   # what was slept
    self.said: list[str] = []
    self.on_sleep = lambda: None
    self._fakes, self._one = self._module(), threading.Lock()
    for name in ('gcloud', 'python3.11'):
      self.program(name, folder / 'vmbin')
    self.program('gcloud', folder / 'bin')
    vm = folder / 'vmbin'
    executable(vm / 'hostname', '#!/bin/sh\necho "$VM_NODE-w-$VM_WORKER"\n')
    executable(vm / 'curl', '#!/bin/sh\nprintf %s "$VM_WORKER"\n')  # the metadata server
    executable(vm / 'mountpoint', '#!/bin/sh\ntest -L "$2"\n')
    executable(vm / 'gcsfuse', '#!/bin/sh\nfor last; do :; done\nrmdir "$last"\n'
               'ln -s "$FAKE_CLOUD/buckets/acme-runs" "$last"\n')
    self.play()

  def program(self, name: str, where: pathlib.Path) -> None:
    """A fake executable that records its argv."""
    kind = 'python' if name.startswith('python') else name
    executable(where / name, f'#!/bin/sh\nexec {sys.executable} -I -S {HERE}/fake_cloud.py {kind} '
               f'{name} "$@"\n')

  def play(self, *plays, **script) -> None:
    """What the cloud does from now on.

    Args:
      plays: one for each start on a worker, the last for all that follow: dict(code=..., step=...);
        a list of codes is one per worker, None runs until SIGTERM; step is a checkpoint.
      script: hosts; states (for each creation in turn, the states that describe tells); events
        (dict(when=part of a command, after=calls, times=calls, err=..., code=..., late=True for a
        creation that happens all the same, preempt=NAME, state=..., drop=[workers that lose the
        connection])); types, location, account.
    """
    environment = {'VM_PYTHON': f'{sys.executable} -I -S {HERE}/fake_cloud.py program program'}
    script = {'environment': environment, 'plays': plays or [dict(code=0)]} | script
    (self.folder / 'script.json').write_text(json.dumps(script))
    (self.folder / 'counts.json').unlink(missing_ok=True)

  def calls(self, *words: str) -> list[list[str]]:
    path = self.folder / 'calls.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [argv for argv in lines if all(word in argv for word in words)]

  @property
  def machines(self) -> list[str]:
    """What exists, and would cost."""
    return sorted(path.name for path in (self.folder / 'machines').glob('*'))

  @property
  def most(self) -> int:
    """The most machines that ever existed at once."""
    path = self.folder / 'most.json'
    return json.loads(path.read_text()) if path.exists() else 0

  def preempt(self, name: str, state: str = 'PREEMPTED') -> None:
    self._fakes.preempt(name, state)

  def destroy(self, node: str) -> None:
    """The node, or one worker of it as NODE/I, loses its processes and its disk."""
    self._fakes.destroy(node)

  def _module(self):
    spec = importlib.util.spec_from_file_location('fake_cloud', HERE / 'fake_cloud.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CLOUD = self.folder
    return module

  def world(self, processes: bool = False) -> commands.World:
    """No time passes. gcloud is called in this process, which is faster, unless `processes`."""
    def sleep(seconds):
      self.waits.append(seconds)
      if len(self.waits) > 400:
        raise AssertionError('this would go on for ever:\n' + '\n'.join(self.said[-20:]))
      self.on_sleep()
      time.sleep(0.03)
    real = REAL()
    return real._replace(say=self.said.append, sleep=sleep, jitter=lambda: 0.5,
                         run=real.run if processes else self._call)

  def _call(self, command: commands.Command) -> commands.Result:
    if command.argv[0] != 'gcloud':
      return REAL().run(command)
    out = io.StringIO()
    with self._one, contextlib.redirect_stdout(out):
      try:
        return commands.Result(self._fakes.main('gcloud', list(command.argv)), out.getvalue())
      except self._fakes.Refused as error:
        return commands.Result(error.code, out.getvalue(), error.text)

  def record(self, **changes) -> Record:
    """A record of a machine that is not created yet, its code packed."""
    made = Record('demo', 'acme', 'us-west4-a', 'v5litepod-8', bucket=self.BUCKET,
                         token='abc123', code='code-x.tar.gz',
                         arguments=('train', '--config=c.py', '--workdir=runs/demo'))
    made = made._replace(**changes)
    made.folder.mkdir(parents=True, exist_ok=True)
    record.save(made)
    self.archive(made.folder / made.code)
    return made

  def archive(self, path: pathlib.Path) -> None:
    with tarfile.open(path, 'w:gz') as tar:
      for name in ('requirements.txt', 'launch/constraints.txt'):
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())

  def babysit(self, made: Record | None = None, *, processes: bool = False, **options) -> int:
    return babysit.babysit(self.world(processes), made or self.record(), **options)

  def end(self) -> None:
    """No process outlives a test."""
    for path in (self.folder / 'vms').glob('*'):
      self.destroy(path.name)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  made = Cloud(tmp_path / 'cloud')
  monkeypatch.setenv('FAKE_CLOUD', str(made.folder))
  monkeypatch.setenv('SSL_JAX_LAUNCH_STATE', str(tmp_path / 'state'))
  monkeypatch.setenv('PATH', os.pathsep.join([str(made.folder / 'bin'), os.environ['PATH']]))
  yield made
  made.end()


@pytest.fixture
def launch(cloud, monkeypatch, capsys):
  """launch('tpu', 'create', ...) -> (exit code, stdout, stderr); waiting takes no time."""
  monkeypatch.setattr(commands, 'real', lambda: cloud.world(processes=True)._replace(
    say=lambda text: print(text, file=sys.stderr)))

  def call(*argv):
    code = __main__.main(list(argv))
    out, err = capsys.readouterr()
    return code, out, err
  return call
