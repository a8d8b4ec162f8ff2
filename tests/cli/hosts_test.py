"""Several processes on loopback with gloo, started as a user starts them."""

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ssl_jax.cli import agreement, hosts, main, meeting
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints
from tests.processes import (
  DEMO,
  ROOT,
  SHORT,
  ends,
  environment,
  free_port,
  lines,
  together,
  train,
)

# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_steps_that_are_not_finite_end_all_processes_with_4(tmp_path):
  arguments = ('--config.schedule.learning_rate=1e38', '--config.patience=2', '--config.steps=9')
  both = ends([*together([tmp_path / 'two'] * 2, *arguments)])
  alone, = ends([train(tmp_path / 'one', *arguments, devices=4)])
  assert [end.code for end in (*both, alone)] == [4, 4, 4], both[0].err
  two, one = (json.loads((tmp_path / name / 'non_finite.json').read_text())
              for name in ('two', 'one'))
  assert two == one and np.shape(two['example_ids']) == (2, 16)


@pytest.mark.slow
def test_the_rest_of_train_on_two_processes(tmp_path):
  """Moving an earlier run aside; looking at the representation and tracing on the way."""
  first = ends(together([tmp_path / 'run'] * 2, '--config.steps=2'))
  again = ends(together([tmp_path / 'run'] * 2, '--resume=never', '--config.evaluate.every=2',
                        '--config.evaluate.health_every=2', '--profile=1:2'))
  assert [end.code for end in (*first, *again)] == [0] * 4, again[0].err
  aside, = tmp_path.glob('run.before-*')
  assert Checkpoints(aside / 'checkpoints').steps() == [2]
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps() == [2, 4]
  assert {'knn20', 'effective_rank'} <= set().union(*lines(tmp_path / 'run'))
  assert len(list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))) == 1


@pytest.mark.slow
def test_the_rehearsal_of_the_document(tmp_path):
  block, = re.findall(r'^```sh\n(.*?)^```$', (ROOT / 'docs' / 'hosts.md').read_text(), re.S | re.M)
  assert '29517' in block
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  done = subprocess.run(
    ['bash', '-ec', block.replace('29517', str(free_port()))], cwd=tmp_path, text=True,
    capture_output=True, env=environment(
      2, XDG_CACHE_HOME=str(tmp_path / 'cache'),
      PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])))
  assert done.returncode == 0 and 'done: 4 steps' in done.stdout, done.stderr


FAILING = """
from ssl_jax.cli import train
from ssl_jax.data.sources import DataError
place, count = train.to_global, [0]
def broken(*arguments):
  count[0] += 1
  if count[0] == 3 and '--process=1' in sys.argv:
    raise DataError('example 7 cannot be read')
  return place(*arguments)
train.to_global = broken
"""


@pytest.mark.slow
def test_an_error_in_the_middle_of_training_ends_all(tmp_path):
  quick = SHORT + 'hosts.DEAD = 10\n'
  first, failed = ends(together([tmp_path / 'run'] * 2, '--config.steps=20', code=quick + FAILING))
  assert failed.code == 3 and 'example 7 cannot be read' in failed.err
  assert first.code == 3 and 'ended with process 1' in first.err or first.code == -6


# --- refusing -------------------------------------------------------------------------------------


def test_an_error_of_one_process_is_told_to_the_others(tmp_path):
  """A relative path that only exists where process 0 was started."""
  np.savez(tmp_path / 'mine.npz', image=np.zeros((32, 28, 28, 1), np.uint8))
  (tmp_path / 'elsewhere').mkdir()
  address = f'--coordinator=127.0.0.1:{free_port()}'
  both = ends([train(tmp_path / 'run', address, '--processes=2', f'--process={i}',
                     '--config.data.name=array_files', '--config.data.path=mine.npz', devices=1,
                     cwd=folder) for i, folder in enumerate((tmp_path, tmp_path / 'elsewhere'))])
  assert [end.code for end in both] == [3, 3], [end.err for end in both]
  assert 'ended with process 1' in both[0].err and 'mine.npz' in both[0].err


def facts_of(**changes) -> dict:
  return {'host': changes.pop('host'), 'facts': {'jax': '0.10.2', 'config.seed': '0'} | changes}


def test_differences_name_the_first_host_that_differs():
  found = [facts_of(host='a'), facts_of(host='b'), facts_of(host='c', jax='0.11.0', libtpu='1'),
           facts_of(host='d', jax='0.11.0')]
  assert agreement.differences(found) == [
    'jax: 0.10.2 on process 0 (a), 0.11.0 on process 2 (c) (and on 1 more)',
    'libtpu: none on process 0 (a), 1 on process 2 (c)']
  assert agreement.differences(found[:2]) == []


def test_facts_name_code_and_versions():
  from ssl_jax.cli.options import load_config
  facts = agreement.facts(load_config(f'{DEMO}:smoke'), {'resume': 'auto'})
  assert {'config.seed', 'config.method.temperature', '--resume', 'jax', 'numpy', 'python',
          'git revision', 'source of ssl_jax', 'jax.config.jax_enable_x64'} <= set(facts)


# --- meeting --------------------------------------------------------------------------------------


def place(process: int, processes: int, port: int) -> meeting.Place:
  return meeting.Place(f'127.0.0.1:{port}', processes, process, None, 'test')


def test_process_0_that_does_not_come_is_named(monkeypatch):
  monkeypatch.setattr(meeting, 'START', 0.5)
  words = 'process 0 did not answer at 127.0.0.1:.*firewall'
  with pytest.raises(meeting.MissingError, match=words):
    meeting._report(place(1, 2, free_port()))


@pytest.mark.parametrize('guests, words', [
  (((1, 3), (2, 2)), 'process 2 .* was told of 2 processes, process 0 .* of 3'),
  (((1, 3), (1, 3)), 'two processes were told to be number 1, on '),
])
def test_contradictions_are_told_to_all(guests, words, monkeypatch):
  monkeypatch.setattr(meeting, 'START', 5)
  port = free_port()

  def meet(function, *who):
    try:
      function(place(*who, port))
    except (ConfigError, meeting.MissingError) as error:
      return error

  with ThreadPoolExecutor(3) as pool:
    first = pool.submit(meet, meeting._gather, 0, 3)
    others = []
    for who in guests:
      others.append(pool.submit(meet, meeting._report, *who))
      time.sleep(0.5)  # process 0 goes at the second one
    errors = [future.result() for future in (first, *others)]
  assert all(isinstance(error, ConfigError) and re.match(words, str(error)) for error in errors)


def test_a_stranger_and_a_process_started_again_do_no_harm(monkeypatch):
  monkeypatch.setattr(meeting, 'START', 10)
  port = free_port()
  with ThreadPoolExecutor(2) as pool:
    first = pool.submit(meeting._gather, place(0, 3, port))
    for text in (b'GET / HTTP/1.1\r\n', b'[1, 3, "crashed"]\n'):
      with connected(port) as connection:
        connection.sendall(text)
    other = pool.submit(meeting._report, place(1, 3, port))
    meeting._report(place(2, 3, port))
    assert first.result() is None and other.result() is None


def connected(port: int) -> socket.socket:
  for _ in range(100):
    try:
      return socket.create_connection(('127.0.0.1', port))
    except OSError:
      time.sleep(0.05)
  raise TimeoutError(port)


def test_a_port_in_use_is_a_mistake_of_configuration():
  with socket.create_server(('', 0)) as server:
    with pytest.raises(ConfigError, match='cannot listen on port .* --coordinator_port=PORT'):
      meeting._listen(place(0, 2, server.getsockname()[1]))


# --- who takes part -------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
  for name in list(os.environ):
    if name.startswith(('SLURM_', 'OMPI_', 'JAX_COORD', 'JAX_NUM_PROC', 'JAX_PROCESS',
                        'JAX_LOCAL')):
      monkeypatch.delenv(name)
  return monkeypatch


SLURM = dict(SLURM_JOB_ID='4097', SLURM_STEP_NODELIST='node[07-08]', SLURM_NTASKS='2',
             SLURM_PROCID='1', SLURM_LOCALID='0', SLURM_STEP_NUM_NODES='2')
MPI = dict(OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
           OMPI_COMM_WORLD_SIZE='4', OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_LOCAL_RANK='1',
           OMPI_COMM_WORLD_LOCAL_SIZE='2')
JAX = dict(JAX_COORDINATOR_ADDRESS='10.0.0.1:99', JAX_NUM_PROCESSES='3', JAX_PROCESS_ID='2')


@pytest.mark.parametrize('variables, flags, expected', [
  ({}, {}, None),
  (JAX | dict(JAX_NUM_PROCESSES='1'), {}, None),
  (SLURM | dict(SLURM_NTASKS='1'), {}, None),
  (JAX, {}, ('10.0.0.1:99', 3, 2, None, 'flags or environment')),
  (JAX | SLURM, {}, ('10.0.0.1:99', 3, 2, None, 'flags or environment')),
  (JAX, dict(coordinator='h:1', process=0), ('h:1', 3, 0, None, 'flags or environment')),
  (JAX, dict(port=7), ('10.0.0.1:7', 3, 2, None, 'flags or environment')),
  (SLURM, {}, ('node07:61441', 2, 1, None, 'slurm')),  # all GPUs of its node
  (SLURM | dict(SLURM_STEP_NUM_NODES='1'), {}, ('node07:61441', 2, 1, (0,), 'slurm')),
  (SLURM, dict(port=8476), ('node07:8476', 2, 1, None, 'slurm')),
  (SLURM, dict(coordinator='h:1'), ('h:1', 2, 1, None, 'slurm')),
  (MPI, {}, ('10.96.0.1:62624', 4, 3, (1,), 'ompi')),
])
def test_who_takes_part(variables, flags, expected, alone):
  for name, value in variables.items():
    alone.setenv(name, value)
  assert hosts.find(**flags) == (expected and meeting.Place(*expected))


@pytest.mark.parametrize('variables, flags, words', [
  ({}, dict(processes=2), r'no --coordinator=HOST:PORT \(or \$JAX_COORDINATOR_ADDRESS\) and no'),
  (JAX | dict(JAX_PROCESS_ID='two'), {}, r"\$JAX_PROCESS_ID must be a number, got 'two'"),
  (JAX, dict(process=3), 'of 3 processes this one is said to be number 3'),
  (JAX, dict(processes=0), 'of 0 processes'),
  (JAX, dict(coordinator='host'), "HOST:PORT, got 'host'"),
  (JAX, dict(port=70000), 'and port 70000'),
])
def test_nonsense_is_answered(variables, flags, words, alone):
  for name, value in variables.items():
    alone.setenv(name, value)
  with pytest.raises(ConfigError, match=words):
    hosts.find(**flags)


METADATA = {'agent-worker-number': '2', 'tpu-env': "ZONE: 'somewhere'",
            'worker-network-endpoints': 'a:0:10.0.0.5,b:1:10.0.0.6,c:2:10.0.0.7'}


@pytest.fixture
def tpu_vm(alone):
  """JAX believes that there are TPU chips, and asks a metadata server of ours."""
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      self.send_response(200)
      self.end_headers()
      self.wfile.write(METADATA[self.path.rpartition('/')[2]].encode())

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever).start()
    alone.setattr('jax._src.clusters.cloud_tpu_cluster.running_in_cloud_tpu_vm', True)
    alone.setenv('GCE_METADATA_IP', f'127.0.0.1:{server.server_port}')
    alone.delenv('TPU_SKIP_MDS_QUERY', raising=False)
    yield alone
    server.shutdown()


def test_a_slice_of_several_hosts_is_recognised(tpu_vm):
  assert hosts.find() == meeting.Place('10.0.0.5:8482', 3, 2, None, 'gcetpu')
  assert hosts.find(port=8476).coordinator == '10.0.0.5:8476'


def test_a_tpu_of_one_host_is_alone(tpu_vm):
  tpu_vm.setitem(METADATA, 'worker-network-endpoints', 'a:0:10.0.0.5')
  assert hosts.find() is None


def test_a_tpu_without_a_metadata_server_is_alone(tpu_vm):
  tpu_vm.setenv('GCE_METADATA_IP', f'127.0.0.1:{free_port()}')
  assert hosts.find() is None


def test_a_cluster_whose_first_host_has_no_address_yet(alone, capsys):
  def unknown(*arguments):
    raise RuntimeError('Failed to recognize coordinator address x')

  for name, value in SLURM.items():
    alone.setenv(name, value)
  alone.setattr('jax._src.clusters.SlurmCluster.get_coordinator_address', unknown)
  assert main(['train', f'--config={DEMO}:smoke', '--workdir=none', '--cache_dir=none']) == 42
  assert 'start again' in capsys.readouterr().err
