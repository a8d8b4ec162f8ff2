"""Eight virtual CPU devices and strict shapes for every test; must run before JAX starts."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compilation dominates the suite; the cache makes a second run several times faster.
jax.config.update('jax_compilation_cache_dir', str(ROOT / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


@pytest.fixture
def root() -> pathlib.Path:
  return ROOT


@pytest.fixture
def strict_dtypes():
  """Mixed dtypes are an error inside the test. Not global: optax and bf16 BatchNorm mix on purpose."""
  with jax.numpy_dtype_promotion('strict'):
    yield
