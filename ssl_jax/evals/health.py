"""Signs of health and collapse that need no labels: effective rank, spread, alignment, uniformity.

  effective rank = exp(-sum_i p_i log p_i),  p_i = sigma_i / sum_j sigma_j + eps
    Garrido et al. 2023, "RankMe" (arXiv:2210.02885, equation 1), singular values not centred
  spread = sqrt(D) * mean_d std(z_d / ||z||): 1 for isotropic features, 0 for a constant
    Chen & He 2021, "SimSiam" (arXiv:2011.10566, section 4.1)
  alignment = mean ||x - y||^alpha over positive pairs;  uniformity = log mean exp(-t ||x - y||^2)
    over pairs of different rows; Wang & Isola 2020 (arXiv:2005.10242), x and y of length 1

Computed in NumPy on the host: small, no compilation in the middle of training.
"""

import numpy as np

# Below these a verdict is given. What has not collapsed, as (spread, effective rank / min(N, D)) on
# 2,000 images of Fashion-MNIST: pixels (0.60, 0.39), a random convnet's 128 pooled features (0.33,
# 0.30), the same projected at random to 2,048 rectified features (0.25, 0.07).
SPREAD = 0.05
RANK_SHARE = 0.04
# A rank below this is a collapse however few dimensions there are.
RANK = 1.5
# Rows of one block of the pairwise distances: 1024 x 10,000 float32 are 40 MB.
BLOCK = 1024


def _matrix(features, name: str = 'features') -> np.ndarray:
  features = np.asarray(features).astype(np.float32)
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(f'{name}: expected [N, D] with N >= 2, got shape {features.shape}')
  return features


def _unit(x: np.ndarray) -> np.ndarray:
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return x / np.where(norm == 0, 1, norm)


def effective_rank(features, *, eps: float = 1e-7) -> float:
  """RankMe of features [N, D]: between 1 and min(N, D). N should be well above D.

  Args:
    features: [N, D], any floating dtype.
    eps: added to every normalised singular value, the paper's 1e-7 for float32.
  """
  sigma = np.linalg.svd(_matrix(features), compute_uv=False).astype(np.float64)
  p = sigma / max(sigma.sum(), np.finfo(np.float64).tiny) + eps
  return float(np.exp(-np.sum(p * np.log(p))))


def spread(features) -> float:
  """Mean over dimensions of the standard deviation of l2-normalised rows, times sqrt(D).

  1 where the directions are isotropic, 0 where all are the same.
  """
  unit = _unit(_matrix(features))
  return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def alignment(first, second, *, alpha: float = 2.0) -> float:
  """Mean distance^alpha of the l2-normalised rows of two views, [N, D] each: 0 (best) to 2^alpha.

  Raises:
    ValueError: the shapes differ.
  """
  first, second = _matrix(first, 'first'), _matrix(second, 'second')
  if first.shape != second.shape:
    raise ValueError(f'positive pairs must have equal shapes, got {first.shape}, {second.shape}')
  distance = np.linalg.norm(_unit(first) - _unit(second), axis=1)
  return float(np.mean(distance**alpha))


def uniformity(features, *, t: float = 2.0) -> float:
  """log of the mean Gaussian potential of all pairs of different l2-normalised rows; 0 to -4 (t=2).

  0 where all rows agree, lower is more uniform. Time grows with N^2 (10,000 rows: 2 s on a CPU).
  """
  unit = _unit(_matrix(features))
  n = len(unit)
  total = 0.0
  for start in range(0, n, BLOCK):
    rows = unit[start:start + BLOCK]
    squared = np.maximum(2 - 2 * rows @ unit.T, 0)
    # Each row's pair with itself is taken out exactly, not as a rounded exp(0).
    squared[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
    total += np.exp(-t * squared).sum(dtype=np.float64)
  return float(np.log(max(total, np.finfo(np.float64).tiny) / (n * (n - 1))))


def health(features, views: tuple | None = None) -> dict[str, float]:
  """`effective_rank`, `spread`, `uniformity`, and `alignment` if two views [N, D] are given.

  All are nan where a feature is not finite: a monitor goes on, and `collapse_verdict` says why.
  """
  names = ['effective_rank', 'spread', 'uniformity', *(['alignment'] if views else [])]
  if not all(np.isfinite(_matrix(x)).all() for x in (features, *(views or ()))):
    return dict.fromkeys(names, float('nan'))
  report = dict(effective_rank=effective_rank(features), spread=spread(features),
                uniformity=uniformity(features))
  if views is not None:
    report['alignment'] = alignment(*views)
  return report


def collapse_verdict(features) -> str | None:
  """A warning in words about features [N, D], or None.

  Complete collapse: all inputs get (nearly) the same direction, `spread` below 0.05. Dimensional
  collapse: the features fill few of their dimensions, `effective_rank` below 1.5 or below 4 % of
  min(N, D). The message gives the measured numbers, the thresholds and what to look at.
  """
  features = _matrix(features)
  bad = int((~np.isfinite(features).all(axis=1)).sum())
  if bad:
    return (f'diverged: {bad} of {len(features)} feature rows are not finite. '
            'Lower the learning rate, warm up longer, or rerun with --debug_nans.')
  wide, rank = spread(features), effective_rank(features)
  if wide < SPREAD:
    return (f'complete collapse: all inputs get nearly the same direction (spread {wide:.4f}, '
            f'isotropic features have 1, threshold {SPREAD}). Lower the learning rate; check that '
            'the method still has what prevents collapse (negatives, stop-gradient and predictor, '
            'centring, a variance term) and that the inputs differ.')
  most = min(features.shape)
  least = max(RANK, RANK_SHARE * most)
  if rank < least:
    return (f'dimensional collapse: effective rank {rank:.1f} of at most {most} (threshold '
            f'{least:.1f}). Use stronger augmentations, a lower temperature or a stronger '
            'decorrelation term, or a smaller learning rate; more dimensions will not help.')
  return None
