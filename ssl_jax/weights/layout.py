"""Where each parameter of ours is in a file of transformers, and in which shape."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ssl_jax.models.transformer import LanguageModel
from ssl_jax.types import Mode
from ssl_jax.weights.families import Family

_LEAVES = dict(kernel='weight', embedding='weight', scale='weight', bias='bias')


class Entry(NamedTuple):
  """One array of ours, `path` in the parameters without scan, and what it is in a file.

  names: of the tensors; several share its last axis (query, key and value).
  shape: ours; `stored` is that of each tensor.
  transposed: whether a tensor is ours transposed.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  shape: tuple[int, ...]
  transposed: bool

  @property
  def stored(self) -> tuple[int, ...]:
    shape = (*self.shape[:-1], self.shape[-1] // len(self.names))
    return shape[::-1] if self.transposed else shape

  def split(self, value: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of our array."""
    parts = np.split(value, len(self.names), axis=-1)
    return {name: np.ascontiguousarray(part.T if self.transposed else part)
            for name, part in zip(self.names, parts)}

  def join(self, tensors: list[np.ndarray]) -> np.ndarray:
    """Our array, of its tensors in the order of `names`."""
    parts = [tensor.T if self.transposed else tensor for tensor in tensors]
    return np.ascontiguousarray(np.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0])


def entries(family: Family, head: str, module: LanguageModel) -> list[Entry]:
  """All parameters of the module as it is without scan; `head` is its kind in `families.HEADS`."""
  plain = module.clone(backbone=module.backbone.clone(scan=False))
  inputs = {'tokens': jnp.zeros((1, 1), jnp.int32)}
  shapes = jax.eval_shape(lambda key: plain.init(key, inputs, Mode()), jax.random.key(0))
  return [_entry(family, head, path, leaf.shape)
          for path, leaf in flatten_dict(shapes['params']).items()]


def _entry(family: Family, head: str, path: tuple[str, ...], shape: tuple[int, ...]) -> Entry:
  *module, leaf = path
  inner = re.fullmatch(r'backbone/block(\d+)/(\w+)', '/'.join(module))
  if inner:
    layer = f'{family.layers}.{int(inner[1]) - 1}'
    names = tuple(f'{layer}.{name}' for name in family.block[inner[2]])
  else:
    names = (family.named(head)['/'.join(module)],)
  return Entry(path, tuple(f'{name}.{_LEAVES[leaf]}' for name in names), shape,
               transposed=leaf == 'kernel' and family.transposed)


def flattened(params: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
  """Arrays by path; blocks stacked by a scan become 'block1', 'block2' ..."""
  flat = {}
  for path, value in flatten_dict(params).items():
    if path[:2] != ('backbone', 'scanned'):
      flat[path] = value
      continue
    for i, layer in enumerate(np.asarray(value)):
      flat['backbone', f'block{i + 1}', *path[2:]] = layer
  return flat


def nested(flat: Mapping[tuple[str, ...], np.ndarray], depth: int, scan: bool) -> dict[str, Any]:
  """The inverse of `flattened`; the blocks are stacked for a scan."""
  flat = dict(flat)
  if scan:
    first = [path for path in flat if path[:2] == ('backbone', 'block1')]
    for _, _, *rest in first:
      layers = [flat.pop(('backbone', f'block{i + 1}', *rest)) for i in range(depth)]
      flat['backbone', 'scanned', *rest] = np.stack(layers)
  return unflatten_dict(flat)
