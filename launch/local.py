"""`python -m launch local`: several processes on this machine, as hosts of a pod would run them.

Each gets its share of virtual CPU devices. Signals are passed on once; when a process fails, the
others, which would wait for it, are ended too.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

from launch import commands, options
from launch.errors import AGAIN, DONE, LaunchError

DESCRIPTION = '''Runs `python -m ssl_jax ...` (after --) in several processes on CPU devices: what a
pod will do, before it is rented. The exit code is the first bad one; 42 if all are to be started
again.'''
GRACE = 10  # seconds between SIGTERM and SIGKILL for the others when one has failed
DEVICES = '--xla_force_host_platform_device_count='
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: list[str]) -> int:
  ours, program = options.split(argv)
  parser = options.Parser('python -m launch local', description=DESCRIPTION)
  parser.add_argument('--processes', type=int, default=2)
  parser.add_argument('--devices', type=int, default=1, help='CPU devices of each process')
  parser.add_argument('--dry-run', action='store_true', help='print the exact commands instead')
  args = parser.parse_args(ours)
  for option in ('processes', 'devices'):
    if getattr(args, option) < 1:
      raise LaunchError(f'--{option}={getattr(args, option)}: expected 1 or more')
  options.check_program(program)
  command = (sys.executable, '-u', '-m', 'ssl_jax', *program)
  places = environments(args.processes, args.devices, os.environ.get('XLA_FLAGS', ''), _free_port())
  if args.dry_run:
    for place in places:
      settings = [f'{key}={value}' for key, value in place.items()]
      print(commands.quoted(['env', *settings, *command]), '&')
    print('wait')
    return DONE
  return Group().run(command, places)


def environments(processes: int, devices: int, flags: str, port: int) -> list[dict[str, str]]:
  """What each process needs to know; `flags` are the user's XLA_FLAGS, of which all others stay."""
  kept = [flag for flag in flags.split() if not flag.startswith(DEVICES)]
  shared = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join([*kept, f'{DEVICES}{devices}'])}
  if processes == 1:
    return [shared]
  shared |= {'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(processes)}
  return [shared | {'JAX_PROCESS_ID': str(i)} for i in range(processes)]


def outcome(codes: list[int]) -> int:
  """The exit code of all, from those of each in the order in which they ended."""
  bad = [code for code in codes if code not in (DONE, AGAIN)]
  return bad[0] if bad else max(codes, default=DONE)


class Group:
  """Processes that live and end together.

  Each is the head of a process group of its own: a terminal's Ctrl-C reaches this process alone,
  which passes on one signal, because a second would end a process before it has saved.
  """

  def __init__(self):
    self._processes: list[subprocess.Popen] = []
    self._codes: list[int] = []
    self._signal, self._expected = None, 0

  def run(self, command, environments) -> int:
    """Starts all, waits for all."""
    self._expected = len(environments)
    before = {number: signal.signal(number, self._pass_on) for number in SIGNALS
              if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    try:
      for environment in environments:
        self._processes.append(subprocess.Popen(
          command, env=os.environ | environment, stdin=subprocess.DEVNULL, process_group=0,
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'))
      readers = [threading.Thread(target=self._copy, args=(i, process.stdout), daemon=True)
                 for i, process in enumerate(self._processes)]
      for reader in readers:
        reader.start()
      if self._signal is not None:  # it came while they were being started
        self._signal_all(self._signal)
      self._wait()
      for reader in readers:  # a grandchild may hold the pipe
        reader.join(timeout=2)
    finally:
      self._signal_all(signal.SIGKILL)
      for number, handler in before.items():
        signal.signal(number, handler)
    return outcome(self._codes)

  def _wait(self) -> None:
    running, deadline = list(self._processes), None
    while running:
      for process in [process for process in running if process.poll() is not None]:
        running.remove(process)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        self._codes.append(code)
        if code not in (DONE, AGAIN) and running and deadline is None:
          i = self._processes.index(process)
          print(f'process {i} ended with exit code {code}; ending the others', file=sys.stderr)
          self._signal_all(signal.SIGTERM)
          deadline = time.monotonic() + GRACE
      if deadline is not None and time.monotonic() > deadline:
        self._signal_all(signal.SIGKILL)
      time.sleep(0.05)

  def _pass_on(self, number, frame) -> None:
    del frame
    if len(self._processes) < self._expected:
      self._signal = number
    else:
      self._signal_all(number)

  def _signal_all(self, number) -> None:
    for process in self._processes:
      if process.poll() is None:
        process.send_signal(number)

  @staticmethod
  def _copy(i: int, lines) -> None:
    with lines:
      for line in lines:
        print(f'[{i}] {line}', end='', flush=True)


def _free_port() -> int:
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]
