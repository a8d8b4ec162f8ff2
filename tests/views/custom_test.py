import jax
import numpy as np
import pytest

from ssl_jax.views import custom, simclr

VIEW = dict(size=20, flip=0.5, solarize=0.4)


def prepared(views, image):
  keys = jax.random.split(jax.random.key(0), len(image))
  return jax.jit(views.prepare)(keys, {'image': image})


def test_mappings_say_it_all():
  image = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 1), np.uint8)
  mine = custom.build(views=(VIEW, VIEW | dict(solarize=0.)), local=(dict(size=8),))
  got = prepared(mine, image)
  assert got['local_views'].shape == (4, 1, 8, 8, 1)
  same = dict(size=20, jitter=0., grayscale=0., blur=0.)
  for v, solarize in enumerate((0.4, 0.)):
    theirs = prepared(simclr.build(**same, solarize=solarize), image)['views'][:, v]
    np.testing.assert_allclose(got['views'][:, v], theirs, atol=1e-6)


@pytest.mark.parametrize('views, message', [
  (({'size': 8}, {'size': 8, 'blurr': 0.5}), r"views\[1\]\.blurr is unknown; did you mean 'blur'"),
  (({'size': 8, 'brightness_from': 'additive'},), "did you mean 'brightness_form'"),
  (({'blur': 0.5},), r'views\[0\]\.size is missing'),
  (({'size': 8, 'blur': 1.5},), r'views\[0\]\.blur must be a probability'),
  (({'size': 8, 'blur': 'yes'},), r"views\[0\]\.blur must be float, got 'yes'"),
  (({'size': 8.},), r'views\[0\]\.size must be int'),
  (({'size': 8, 'area': 0.2},), r'views\[0\]\.area must be tuple'),
  (('blur',), r'views\[0\] must be a mapping'),
  ((), 'at least one'),
])
def test_errors_name_the_view_and_the_field(views, message):
  with pytest.raises(ValueError, match=message):
    custom.build(views=views)
