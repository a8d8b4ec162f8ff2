"""Compiles for machines that are not there: TPU slices with libtpu, GPUs with XLA's CUDA plugin."""

import contextlib
import importlib.util
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from ssl_jax.plan.gpus import target_config
from ssl_jax.plan.hardware import Target
from ssl_jax.schema import ConfigError
from ssl_jax.types import PyTree

# libtpu asks the machine which TPU it is, and complains on one that is none. Several processes may
# compile at once.
QUIET = dict(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-1',
             TPU_WORKER_HOSTNAMES='localhost', TPU_STDERR_LOG_LEVEL='3', TPU_MIN_LOG_LEVEL='3',
             TF_CPP_MIN_LOG_LEVEL='3', ALLOW_MULTIPLE_LIBTPU_LOAD='1')


class Memory(NamedTuple):
  """Bytes of HBM on one device.

  donated: of the arguments, whose room the outputs take. code: the program itself.
  """

  arguments: int
  outputs: int
  donated: int
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs - self.donated + self.temporaries


class DoesNotFit(Exception):
  """The compiler found no room for the program; says by how much."""


def devices(target: Target) -> list[Any]:
  """The devices of a machine, for meshes and shardings; nothing can run on them.

  Raises:
    ConfigError: the compiler is not installed, or does not know such a machine.
  """
  description = _tpu(target) if target.is_tpu else _gpu(target)
  return list(np.array(description.devices).flat)


def _tpu(target: Target):
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError('planning for a TPU needs its compiler: pip install libtpu '
                      "(the extra [plan]: pip install -e '.[plan]')")
  for key, value in QUIET.items():
    os.environ.setdefault(key, value)
  options: dict[str, Any] = {}
  if target.kind == 'v4':
    options['chip_config_name'] = 'megacore'
  if target.shape == (1, 1):
    options['chips_per_host_bounds'] = [1, 1, 1]
  if target.slices > 1:
    options['num_slices'] = target.slices
  name = f'{target.kind}:{"x".join(map(str, target.shape))}'
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
  except Exception as error:  # jaxlib raises several kinds
    raise ConfigError(f'libtpu knows no slice {name}: {str(error).splitlines()[0]}') from error


def _gpu(target: Target):
  if importlib.util.find_spec('jax_cuda13_plugin') is None:
    version = jax.__version__
    raise ConfigError(
      f'planning for a GPU needs its compiler: pip install jax-cuda13-plugin=={version} '
      "nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-nvvm (the extra [plan-gpu]: pip install -e "
      "'.[plan-gpu]'; neither a GPU nor the rest of CUDA)")
  hosts, each = target.shape
  return topologies.get_topology_desc(
    platform='cuda', target_config=target_config(target.kind), topology=f'1x{hosts}x{each}')


def hosts(devices: Sequence[Any]) -> int:
  """How many machines the devices belong to."""
  return len({(getattr(d, 'slice_index', None), d.process_index) for d in devices})


def islands(mesh: jax.sharding.Mesh, target: Target) -> Sequence[int]:
  """For each device of the mesh in its order, the slice that it is in; of a GPU, the host."""
  name = 'slice_index' if target.is_tpu else 'process_index'
  if target.is_tpu and target.slices == 1:
    return [0] * mesh.size
  return [getattr(device, name) for device in mesh.devices.flat]


def compiled(traced: jax.stages.Traced) -> jax.stages.Compiled:
  """The program for the devices of its shardings.

  Raises:
    DoesNotFit: with the compiler's words.
  """
  try:
    with _without_cache():
      return traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    raise DoesNotFit(str(error)) from error


def text_of(program: jax.stages.Compiled) -> str:
  """The optimised program. Where jaxlib cannot read it, it writes a stack trace to file descriptor 2
  before it raises (JaxRuntimeError): that is kept from the user, whom the caller tells."""
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    return program.as_text()
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


def size_on_a_device(tree: PyTree) -> int:
  """Bytes of arrays with shardings that one device holds, without what layouts add."""
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
  """JAX would keep the program on disk, and could not read it again without the device."""
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update('jax_persistent_cache_min_compile_time_secs', float('inf'))
  try:
    yield
  finally:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', least)


def memory_of(program: jax.stages.Compiled) -> Memory:
  found = program.memory_analysis()
  return Memory(
    arguments=found.argument_size_in_bytes, outputs=found.output_size_in_bytes,
    donated=found.alias_size_in_bytes, temporaries=found.temp_size_in_bytes,
    code=found.generated_code_size_in_bytes)
