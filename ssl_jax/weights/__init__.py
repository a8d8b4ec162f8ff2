"""Weights of other libraries: Hugging Face's folders, read and written without torch."""

from ssl_jax.weights.families import WeightsError
from ssl_jax.weights.huggingface import from_huggingface, to_huggingface

__all__ = ['WeightsError', 'from_huggingface', 'to_huggingface']
