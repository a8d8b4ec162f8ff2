"""Images inside the page: PNG as data URIs, grids of neighbours and of augmented views."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ssl_jax.report.html import Html, tag

SIDE = 96  # pixels; more would only make the file larger


class Neighbours(NamedTuple):
  """The training examples nearest to some test examples.

  queries: uint8 [Q, H, W, C], or texts [Q].
  query_names: of their classes [Q]; None without labels.
  groups: what is compared, such as the trained encoder and the one it started as.
  """

  queries: np.ndarray | Sequence[str]
  query_names: Sequence[str] | None
  groups: Sequence['Nearest']


class Nearest(NamedTuple):
  """name of the encoder; images uint8 [Q, K, H, W, C] or texts [Q][K], similarity [Q, K], names
  [Q][K] or None."""

  name: str
  images: np.ndarray | Sequence[Sequence[str]]
  similarity: np.ndarray
  names: Sequence[Sequence[str]] | None
  precision: float | None = None  # share of neighbours of the right class, over all test rows


class Augmented(NamedTuple):
  """original uint8 [H, W, C] and its views {field: float [V, H, W, C] in [0, 1]}."""

  original: np.ndarray
  views: dict[str, np.ndarray]


def png(image: np.ndarray) -> bytes:
  """A PNG of uint8 [H, W, C] (C = 1, 3, or more, of which three are shown), at most 96 a side.

  Raises:
    ValueError: another shape or dtype.
  """
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3:
    raise ValueError(f'expected an image uint8 [H, W, C], got {image.dtype} {list(image.shape)}')
  grey = image.shape[-1] < 3
  picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image[..., :3]))
  if max(picture.size) > SIDE:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, 'PNG', optimize=True)
  return file.getvalue()


def to_uint8(images) -> np.ndarray:
  """Images in [0, 1] as they are shown; what lies outside, or is nan, is clipped."""
  images = np.nan_to_num(np.asarray(images, np.float32), nan=0., posinf=1., neginf=0.)
  return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8)


def picture(image: np.ndarray, alt: str, **attributes) -> Html:
  data = base64.b64encode(png(image)).decode()
  small = max(image.shape[:2]) <= 64
  return tag('img', src=f'data:image/png;base64,{data}', alt=alt, title=alt,
             class_='pixels' if small else None, **attributes)


def neighbour_grid(neighbours: Neighbours) -> Html:
  """One table per encoder: a test image, then its neighbours; right and wrong differ in the frame's
  colour, its style and a sign, so that they can be told apart without colours."""
  return tag('div', [_neighbour_table(neighbours, nearest) for nearest in neighbours.groups],
             class_='pair')


def _neighbour_table(neighbours: Neighbours, nearest: Nearest) -> Html:
  rows = []
  for q, query in enumerate(neighbours.queries):
    right = None if neighbours.query_names is None else neighbours.query_names[q]
    cells = [tag('td', picture(query, f'test image: {right}' if right else 'test image'),
                 class_='query')]
    for k, image in enumerate(nearest.images[q]):
      name = None if nearest.names is None else nearest.names[q][k]
      words = f'cosine {nearest.similarity[q, k]:.3f}'
      look = 'found' if name is None else 'found right' if name == right else 'found wrong'
      cells.append(tag('td', picture(image, f'{name}, {words}' if name else words), class_=look))
    rows.append(tag('tr', cells))
  note = '' if nearest.precision is None else (
    f'{nearest.precision:.1%} right among the neighbours of all test images')
  return tag('figure', tag('figcaption', tag('b', nearest.name), tag('span', note, class_='note')),
             tag('div', tag('table', rows, class_='grid-of-images'), class_='scroll'))


def augmentation_grid(examples: Sequence[Augmented]) -> Html:
  """One strip per example: the original, then every view."""
  names = {'views': 'view', 'local_views': 'local view'}
  strips = []
  for i, example in enumerate(examples):
    cells = [tag('div', picture(example.original, f'example {i + 1}, original'), 'original',
                 class_='original')]
    for field, views in example.views.items():
      for v, view in enumerate(views):
        name = f'{names.get(field, field)} {v + 1}'
        cells.append(tag('div', picture(to_uint8(view), f'example {i + 1}, {name}'), name))
    strips.append(tag('div', cells, class_='strip'))
  return tag('div', strips, class_='strips')
