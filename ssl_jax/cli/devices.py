"""On which devices a command runs: accelerators where there are any, never CPUs by accident."""

import os
import sys

from ssl_jax.schema import ConfigError

# What the driver of an accelerator shows, and the extra of pip that makes JAX use it.
FILES = {'/dev/accel0': 'tpu', '/dev/vfio/0': 'tpu', '/dev/nvidia0': 'cuda13',
         '/dev/nvidiactl': 'cuda13', '/dev/dxg': 'cuda13', '/dev/kfd': 'rocm7-local'}


def quiet_start() -> None:
  """Where libtpu is installed without a TPU, JAX prints its search for one at every start."""
  if 'JAX_PLATFORMS' not in os.environ and accelerator() is None and sys.platform != 'darwin':
    os.environ['JAX_PLATFORMS'] = 'cpu'


def accelerator() -> str | None:
  """The device file of an accelerator of this machine, if it has one."""
  return next((path for path in FILES if os.path.exists(path)), None)


def check() -> None:
  """Refuses the CPUs of a machine whose accelerator JAX does not use, and devices that are not there.

  Raises:
    ConfigError: with what to install, and how to run on CPUs all the same.
  """
  import jax
  wanted, path = os.environ.get('JAX_PLATFORMS', ''), accelerator()
  try:
    platform = jax.default_backend()
  except (RuntimeError, AssertionError) as error:  # the latter of a CUDA plugin without a GPU
    raise ConfigError(no_backend(error)) from error
  if platform == 'cpu' and not wanted and path is not None:
    raise ConfigError(
      f'this machine has an accelerator ({path}), but JAX sees only CPUs: install its support, '
      f"pip install -U 'jax[{FILES[path]}]', or end the process that holds it (`sudo fuser -v "
      f'{path}`); JAX_PLATFORMS=cpu in the environment runs on CPUs on purpose')


def no_backend(error: Exception) -> str:
  """What to say where JAX cannot use the platform that JAX_PLATFORMS names."""
  reason = (str(error).splitlines() or ['its plugin finds none'])[0]
  return (f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")} asks for devices that JAX cannot use '
          f'here: {reason}; unset it to run on what there is, or install the support: '
          "pip install -U 'jax[tpu]' or 'jax[cuda13]'")
