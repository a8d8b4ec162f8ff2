"""A recipe of your own, wholly from the config: every view is a mapping of `recipe.View`'s fields.

  config.views = dict(name='custom', views=(dict(size=32, flip=0.5), dict(size=32, blur=1.0)))

What a mapping does not name does not happen; the crop alone has defaults, torchvision's.
"""

import difflib
import typing
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ssl_jax.types import Views
from ssl_jax.views.recipe import View, build_views, check


def build(
  *, views: tuple, local: tuple = (), dtype: Any = jnp.float32,
  mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
) -> Views:
  """'views' [B, V, S, S, C] and, with `local`, 'local_views' [B, L, s, s, C].

  See `recipe.build_views`, and `recipe.View` for the fields.

  Args:
    views: one mapping per view, all of one size.
    local: the same of smaller crops, for multi-crop methods.
    dtype: of the views.
    mean, std: per channel, to normalise with; None leaves values in [0, 1].

  Raises:
    ValueError: names the view and the field that is unknown, missing or out of its range.
  """
  made = [tuple(_view(f'{name}[{i}]', fields) for i, fields in enumerate(some))
          for name, some in (('views', views), ('local', local))]
  return build_views(*made, mean=mean, std=std, dtype=dtype)


def _view(where: str, fields: Mapping[str, Any]) -> View:
  if not isinstance(fields, Mapping):
    raise ValueError(f'{where} must be a mapping of fields such as size and blur, got {fields!r}')
  hints = typing.get_type_hints(View)
  for name, value in fields.items():
    if name not in hints:
      close = difflib.get_close_matches(str(name), hints, n=1)
      hint = f'did you mean {close[0]!r}? ' if close else ''
      raise ValueError(f'{where}.{name} is unknown; {hint}Known: {", ".join(hints)}')
    kind = {float: (int, float)}.get(hints[name], typing.get_origin(hints[name]) or hints[name])
    if not isinstance(value, kind) or isinstance(value, bool):
      raise ValueError(f'{where}.{name} must be {_spelled(hints[name])}, got {value!r}')
  if 'size' not in fields:
    raise ValueError(f'{where}.size is missing: the side of the view in pixels')
  view = View(**fields)
  try:
    check(view)
  except ValueError as error:
    raise ValueError(f'{where}.{error}') from error
  return view


def _spelled(hint: Any) -> str:
  return hint.__name__ if isinstance(hint, type) else str(hint)
