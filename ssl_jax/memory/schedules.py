"""Momenta and temperatures as functions of the step.

  cosine: end - (end - start) (1 + cos(pi k / K)) / 2       BYOL's and DINO's, from start to end
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]
NAMES = ('constant', 'linear', 'cosine')


def schedule(name: str, start: float, end: float, steps: int | None) -> Schedule:
  """`start` at step 0 and `end` at `steps` and later, along a line or half a cosine; or always `start`.

  Args:
    name: 'constant', 'linear' (I-JEPA) or 'cosine' (BYOL, MoCo v3, DINO).
    steps: of the whole run; None only where `name` is 'constant'.

  Raises:
    ValueError: an unknown name, or no number of steps where one is needed.
  """
  if name not in NAMES:
    raise ValueError(f'unknown schedule {name!r}; choose from {NAMES}')
  if name == 'constant':
    return lambda step: jnp.asarray(start, jnp.result_type(float))
  if steps is None or steps < 1:
    raise ValueError(f'a {name} schedule needs the number of steps of the run, got {steps}')

  def value(step):
    done = jnp.clip(jnp.asarray(step, jnp.result_type(float)) / steps, 0, 1)
    # (1 + cos(pi d)) / 2 = cos(pi d / 2)^2, which is exact at the end.
    left = 1 - done if name == 'linear' else jnp.square(jnp.cos(jnp.pi / 2 * done))
    return end - (end - start) * left

  return value
