"""A few dimensions that can be looked at: principal components, t-SNE, and the spectrum.

  PCA: X - mean = U S V^T, points = U S, explained_i = S_i^2 / sum_j S_j^2
  t-SNE: van der Maaten & Hinton 2008, JMLR 9; scikit-learn's Barnes-Hut form on 50 components
  spectrum: p_i = sigma_i / sum_j sigma_j, not centred; its entropy's exponential is the effective
    rank, see `ssl_jax.evals.health`

On the host in NumPy and scikit-learn; t-SNE of 2,000 rows of 128 takes 10 to 30 s of one core.
"""

from typing import NamedTuple

import numpy as np

COMPONENTS = 50  # what t-SNE sees, as in the paper's experiments (30) and scikit-learn's advice (50)
START = 1e-4  # deviation of the first dimension of t-SNE's start, small against its final ~50


class Pca(NamedTuple):
  """Points [N, dims] float32; explained [dims], each component's share of the variance."""

  points: np.ndarray
  explained: np.ndarray


def pca(features, dims: int = 2) -> Pca:
  """The first principal components of features [N, D].

  A component's sign is free; the entry of its direction with the largest magnitude is made positive,
  so that the picture is the same on every machine. Features without variance give zeros.

  Raises:
    ValueError: not a finite [N, D] with N >= 2, or dims is not in [1, min(N, D)].
  """
  x = _matrix(features)
  if not 1 <= dims <= min(x.shape):
    raise ValueError(f'dims must be in [1, {min(x.shape)}] for features {list(x.shape)}, got {dims}')
  x = x - x.mean(axis=0)
  u, sigma, vt = np.linalg.svd(x, full_matrices=False)
  u, s, vt = u[:, :dims], sigma[:dims], vt[:dims]
  signs = np.sign(vt[np.arange(dims), np.abs(vt).argmax(axis=1)])
  variance = np.sum(sigma**2)
  explained = s**2 / variance if variance > 0 else np.zeros(dims)
  return Pca((u * s * signs).astype(np.float32), explained)


def tsne(features, *, seed: int, perplexity: float = 30) -> np.ndarray:
  """t-SNE of features [N, D]: points float32 [N, 2], the same for the same features and seed.

  Starts from the principal components (Kobak & Berens 2019, arXiv:1810.10476), which keeps more of
  the global arrangement than a random start; the seed decides only where those are missing.

  Args:
    features: [N, D]; give as many rows as should be drawn.
    seed: >= 0.
    perplexity: effective number of neighbours, below N.

  Raises:
    ValueError: not a finite [N, D] with N >= 2, or the perplexity is not in (0, N).
  """
  from sklearn.manifold import TSNE  # 1 s to import
  from threadpoolctl import threadpool_limits
  x = _matrix(features)
  if not 0 < perplexity < len(x):
    raise ValueError(f'perplexity must be above 0 and below the number of rows, {len(x)}; got '
                     f'{perplexity}')
  # One thread: the order in which several add up forces changes from call to call, and t-SNE
  # turns the last bit into another picture.
  with threadpool_limits(limits=1):
    points = pca(x, min(COMPONENTS, *x.shape)).points
    start = np.zeros((len(x), 2), np.float32)
    start[:, :points.shape[1]] = points[:, :2]
    deviation = start[:, 0].std()
    if deviation > 0:
      start *= START / deviation
    else:  # all rows are equal; equal places would never part
      start = START * np.random.default_rng(seed).standard_normal(start.shape, np.float32)
    model = TSNE(2, perplexity=perplexity, init=start, learning_rate='auto', random_state=seed)
    return model.fit_transform(points).astype(np.float32)


def spectrum(features) -> np.ndarray:
  """Shares [min(N, D)] of the singular values of features [N, D], falling, with sum 1 (or all 0).

  Raises:
    ValueError: not a finite [N, D] with N >= 2.
  """
  sigma = np.linalg.svd(_matrix(features), compute_uv=False)
  return sigma / max(sigma.sum(), np.finfo(np.float64).tiny)


def _matrix(features) -> np.ndarray:
  x = np.asarray(features).astype(np.float64)
  if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
    raise ValueError(f'expected features [N, D] with N >= 2, got shape {x.shape}')
  bad = int((~np.isfinite(x).all(axis=1)).sum())
  if bad:
    raise ValueError(f'{bad} of {len(x)} feature rows are not finite; nothing can be projected')
  return x
