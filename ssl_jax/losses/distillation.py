"""Self-distillation: a student predicts what a teacher, its own slow average, says of another view.

  byol: |p / |p| - z / |z||^2 = 2 - 2 cos(p, z)                                    (arXiv:2006.07733)
  dino: -sum_k softmax((t - c) / T_t)_k log softmax(s / T_s)_k                      (arXiv:2104.14294)
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.losses.all_pairs import positive, wide
from ssl_jax.losses.clustering import cross_prediction
from ssl_jax.losses.contrastive import l2_normalize
from ssl_jax.parallel import pmean
from ssl_jax.types import AxisName


def byol(online: jax.Array, target: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """The squared distance of unit vectors, the mean over rows; BYOL adds that of the views swapped.

  Args:
    online: [B, D], the online network's predictions. target: [B, D], row by row; no gradient.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar in [0, 4]; invariant over `axis_name`.
  """
  chex.assert_rank([online, target], 2)
  chex.assert_equal_shape([online, target])
  cosine = jnp.sum(l2_normalize(online) * lax.stop_gradient(l2_normalize(target)), axis=1)
  return pmean(jnp.mean(2 - 2 * cosine), axis_name)


def dino(
    student: jax.Array, teacher: jax.Array, *, student_temperature: float | jax.Array,
    teacher_temperature: float | jax.Array, center: jax.Array, axis_name: AxisName = None,
) -> jax.Array:
  """Every crop of the student predicts every *other* crop of the teacher; the mean over these pairs.

  Args:
    student: [B, V, K], logits of V crops. teacher: [B, C, K], those of the first C crops; no gradient.
    student_temperature, teacher_temperature: 0.1 and 0.04 .. 0.07 in the paper.
    center: [K], taken from the teacher's logits; no gradient. It follows their mean after the loss.
    axis_name: the axis (or axes) over which rows are spread, or None.

  Returns:
    A scalar; invariant over `axis_name`.
  """
  chex.assert_rank([student, teacher, center], [3, 3, 1])
  crops, seen = student.shape[1], teacher.shape[1]
  if not 1 <= seen <= crops or crops < 2:
    raise ValueError(f'expected a teacher of some of at least two crops, got {seen} and {crops}')
  teacher = teacher.astype(wide(teacher))
  teacher = lax.stop_gradient(teacher - center.astype(teacher.dtype)[None, None])
  targets = jax.nn.softmax(teacher / positive('teacher_temperature', teacher_temperature))
  student = student.astype(wide(student)) / positive('student_temperature', student_temperature)
  return cross_prediction(targets, student, axis_name)
