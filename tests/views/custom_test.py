from unittest import mock

import jax
import numpy as np
import pytest

from ssl_jax.views import custom
from ssl_jax.views.recipe import View


def test_mappings_say_it_all():
  first, second = dict(size=20, flip=0.5, blur=1.), dict(size=20, area=(0.4, 1.), order=(
    'grayscale', 'jitter', 'blur', 'solarize'), grayscale=1)
  with mock.patch.object(custom, 'build_views') as engine:
    custom.build(views=(first, second), local=(dict(size=8),), mean=(0.5,), std=(0.2,))
  (views, local), named = engine.call_args
  assert views == (View(**first), View(**second)) and local == (View(size=8),)
  assert named['mean'] == (0.5,) and named['std'] == (0.2,)


def test_by_default_a_view_is_a_crop_and_nothing_else():
  made = custom.build(views=(dict(size=12, area=(1., 1.), aspect=(1., 1.)),))
  image = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), np.uint8)
  got = jax.jit(made.prepare)(jax.random.split(jax.random.key(0), 4), {'image': image})
  np.testing.assert_allclose(got['views'][:, 0], image / 255, atol=1e-6)


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
