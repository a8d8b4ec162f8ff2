"""Self-supervised pretraining in JAX: pure methods, one sharded train step, the same on any mesh."""

__version__ = '0.1.0'


def load(workdir, **options):
  """A trained run from its folder: config, method, params, state, embed. See `ssl_jax.runs.load`."""
  from ssl_jax import runs  # imports JAX; `import ssl_jax` alone should not
  return runs.load(workdir, **options)
