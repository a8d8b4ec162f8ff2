"""k-nearest-neighbour classification by cosine similarity, without any training.

  votes(c) = sum over the k nearest training rows i with y_i = c of w_i
  w_i = 1 (plain votes), or exp(cos(x, x_i) / temperature)

Weighted votes: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination" (arXiv:1805.01978, section 3.4: k = 200, temperature = 0.07), also used by DINO.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.evals.labelled import labelled_pair

# Similarities held at a time: 2^25 floats are 128 MB.
SIMILARITIES = 2**25


def _unit(x: jax.Array) -> jax.Array:
  """Rows of length 1; a row of zeros stays zero (similarity 0 to everything)."""
  norm = jnp.linalg.norm(x, axis=1, keepdims=True)
  return x / jnp.where(norm == 0, 1, norm)


@partial(jax.jit, static_argnames=('k', 'classes', 'temperature', 'chunk'))
def _predict(bank, bank_labels, queries, *, k, classes, temperature, chunk):
  bank, queries = _unit(bank), _unit(queries)

  def vote(queries):
    similarity = jnp.matmul(queries, bank.T, precision='highest')
    similarity, nearest = lax.top_k(similarity, k)
    # exp of differences to the nearest: the same order of classes, and no overflow.
    weight = (jnp.ones_like(similarity) if temperature is None else
              jnp.exp((similarity - similarity[:, :1]) / temperature))
    ballots = bank_labels[nearest][..., None] == jnp.arange(classes)[None, None]
    return jnp.argmax(jnp.sum(ballots * weight[..., None], axis=1), axis=-1)

  padded = jnp.pad(queries, ((0, -len(queries) % chunk), (0, 0)))
  chunks = lax.map(vote, padded.reshape(-1, chunk, padded.shape[1]))
  return chunks.reshape(-1)[:len(queries)]


def knn_predict(train_features, train_labels, features, *, k: int = 20, classes: int,
                temperature: float | None = None, chunk: int | None = None) -> np.ndarray:
  """Predicted classes, int32 [M], for float32 [N, D], integers [N] and float32 [M, D].

  Raises:
    ValueError: k is not in [1, N], or the temperature is not positive.
  """
  n = len(train_features)
  if not 1 <= k <= n:
    raise ValueError(f'expected 1 <= k <= {n}, the number of training rows; got k={k}')
  if temperature is not None and not temperature > 0:
    raise ValueError(f'expected a positive temperature, or None for plain votes; '
                     f'got {temperature}')
  chunk = chunk or min(len(features), max(1, SIMILARITIES // n))
  arrays = jax.device_put((train_features, train_labels, features))
  return jax.device_get(_predict(*arrays, k=k, classes=classes, temperature=temperature,
                                 chunk=chunk)).astype(np.int32)


def knn(train_features, train_labels, features, labels, *, k: int = 20, classes: int,
        temperature: float | None = None, chunk: int | None = None) -> dict[str, float]:
  """Accuracy of the k nearest neighbours (cosine) over the test rows.

  Equal votes go to the lowest class number and equally near rows to the lowest row number; with
  plain votes that is what scikit-learn's KNeighborsClassifier(metric='cosine') predicts.

  Args:
    train_features: [N, D], any floating dtype; computed in float32.
    train_labels: [N], whole numbers in [0, classes).
    features: [M, D]
    labels: [M]
    k: neighbours, <= N.
    classes: C.
    temperature: None for plain votes, else votes weigh exp(similarity / temperature).
    chunk: queries compared at a time; memory is chunk * N floats. None: 128 MB worth.

  Returns:
    dict(accuracy=...), in [0, 1].

  Raises:
    ValueError: see `labelled_pair` and `knn_predict`.
  """
  train, test = labelled_pair(train_features, train_labels, features, labels, classes)
  predicted = knn_predict(*train, test[0], k=k, classes=classes, temperature=temperature,
                          chunk=chunk)
  return dict(accuracy=float(np.mean(predicted == test[1])))
