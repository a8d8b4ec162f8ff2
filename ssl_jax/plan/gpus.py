"""NVIDIA GPUs as XLA's compiler wants them described, for compiling without one.

Limits of a compute capability are those of the CUDA programming guide, sizes and rates those of the
data sheets of the SXM modules.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ssl_jax.plan.hardware import CHIPS


class Gpu(NamedTuple):
  """name: that the driver reports. cores: streaming multiprocessors. units: of float32 in each.

  shared, shared_block: bytes of shared memory of a core, and that a block may ask for.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  units: int
  clock: float
  cache: int
  shared: int
  shared_block: int


GPUS: Mapping[str, Gpu] = {
  'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 1.41, 41943040, 167936, 166912),
  'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 1.98, 52428800, 233472, 232448),
  'h200': Gpu('NVIDIA H200', (9, 0), 132, 128, 1.98, 62914560, 233472, 232448),
}
LIMITS: Mapping[str, int] = dict(
  threads_per_block_limit=1024, threads_per_warp=32, shared_memory_per_block=49152,
  threads_per_core_limit=2048, block_dim_limit_x=2147483647, block_dim_limit_y=65535,
  block_dim_limit_z=65535, registers_per_core_limit=65536, registers_per_block_limit=65536)
# Of the CUDA toolkit and cuDNN that the compiler may count on.
CUDA, DRIVER, CUDNN = '12.8.0', '13.0.0', (9, 10, 0)


def target_config(kind: str) -> str:
  """The text of a GpuTargetConfigProto for a key of GPUS."""
  gpu, chip = GPUS[kind], CHIPS[kind]
  numbers = LIMITS | dict(
    core_count=gpu.cores, fpus_per_core=gpu.units, clock_rate_ghz=gpu.clock,
    l2_cache_size=gpu.cache, shared_memory_per_core=gpu.shared,
    shared_memory_per_block_optin=gpu.shared_block, memory_bandwidth=int(chip.hbm),
    device_memory_size=int(chip.memory))
  major, minor = gpu.capability
  cudnn = 'major: {} minor: {} patch: {}'.format(*CUDNN)
  info = [*(f'{key}: {value}' for key, value in numbers.items()),
          f'cuda_compute_capability {{ major: {major} minor: {minor} }}',
          f'runtime_version: "{CUDA}"', f'driver_version: "{DRIVER}"',
          f'dnn_version: "{".".join(map(str, CUDNN))}"']
  return '\n'.join(['gpu_device_info {', *info, '}', 'platform_name: "CUDA"',
                    f'dnn_version_info {{ {cudnn} }}', f'device_description_str: "{gpu.name}"'])
