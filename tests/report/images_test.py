"""Images in the page decode to the pixels that went in; frames say right and wrong."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ssl_jax.report.images import (
  SIDE,
  Augmented,
  Nearest,
  Neighbours,
  augmentation_grid,
  neighbour_grid,
  png,
  to_uint8,
)

RNG = np.random.default_rng(0)


def images(*shape):
  return RNG.integers(0, 256, shape, np.uint8)


def decoded(markup):
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
          for data in re.findall('src="data:image/png;base64,([^"]*)"', markup)]


@pytest.mark.parametrize('channels, shown', [(1, 1), (3, 3), (4, 3), (2, 1)])
def test_png_keeps_the_pixels(channels, shown):
  image = images(5, 7, channels)
  back = np.asarray(Image.open(io.BytesIO(png(image))))
  np.testing.assert_array_equal(back.reshape(5, 7, shown), image[..., :shown])


def test_png_makes_large_images_small():
  assert Image.open(io.BytesIO(png(images(300, 150, 3)))).size == (SIDE // 2, SIDE)
  with pytest.raises(ValueError, match='uint8'):
    png(np.zeros((4, 4, 3)))


def test_to_uint8_rounds_and_clips():
  np.testing.assert_array_equal(to_uint8([-1, 0, 0.5, 1, 9, np.nan]), [0, 0, 128, 255, 255, 0])


def test_neighbours_are_framed_by_their_class():
  queries, found = images(2, 6, 6, 1), images(2, 3, 6, 6, 1)
  names = [['cat', 'dog', 'cat'], ['<b>', 'cat', 'dog']]
  similarity = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
  markup = neighbour_grid(Neighbours(queries, ['cat', 'dog'], [
    Nearest('simclr', found, similarity, names, 0.5)]))
  assert re.findall('found (right|wrong)', markup) == [
    'right', 'wrong', 'right', 'wrong', 'wrong', 'right']
  assert '50.0% right' in markup and 'cat, cosine 0.900' in markup and '<b>,' not in markup
  expected = [queries[0], *found[0], queries[1], *found[1]]
  for image, back in zip(expected, decoded(markup), strict=True):
    np.testing.assert_array_equal(back, image[..., 0])


def test_neighbours_without_labels_have_no_frames():
  markup = neighbour_grid(Neighbours(images(1, 6, 6, 3), None, [
    Nearest('simclr', images(1, 2, 6, 6, 3), np.ones((1, 2)), None)]))
  assert 'right' not in markup and 'wrong' not in markup and len(decoded(markup)) == 3


def test_every_view_is_shown_beside_its_original():
  original, views, local = images(6, 6, 3), RNG.uniform(size=(2, 4, 4, 3)), np.zeros((3, 2, 2, 3))
  markup = augmentation_grid([Augmented(original, {'views': views, 'local_views': local})])
  shown = decoded(markup)
  assert len(shown) == 6 and 'local view 3' in markup
  np.testing.assert_array_equal(shown[0], original)
  np.testing.assert_array_equal(shown[2], to_uint8(views[1]))
