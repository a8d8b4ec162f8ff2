"""Self-supervised pretraining in JAX: pure methods, one sharded train step, the same result on any mesh."""

__version__ = '0.1.0'
