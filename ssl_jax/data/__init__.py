"""Host side: sources and batches. NumPy in, NumPy out; no file here imports jax."""
