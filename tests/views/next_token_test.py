"""Targets of causal language modelling stay within documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.views import next_token

VIEWS = next_token.build()


def test_each_target_is_the_next_token_of_the_same_document():
  batch = dict(tokens=jnp.array([[5, 6, 7, 8, 9, 0, 0]]), segments=jnp.array([[1, 1, 1, 2, 2, 0, 0]]),
               positions=jnp.array([[0, 1, 2, 0, 1, 0, 0]]), words=jnp.zeros((1, 7), jnp.int32))
  got = VIEWS.prepare(jax.random.split(jax.random.key(0), 1), batch)
  used = np.asarray(got['weights'][0]) > 0
  np.testing.assert_array_equal(used, [1, 1, 0, 1, 0, 0, 0])
  np.testing.assert_array_equal(np.asarray(got['targets'][0])[used], [6, 7, 9])
  assert 'words' not in got and set(VIEWS.inputs(batch)) == {'tokens', 'segments', 'positions'}


def test_without_segments_a_row_is_one_document():
  got = VIEWS.prepare(None, dict(tokens=jnp.array([[5, 6, 7]])))
  np.testing.assert_array_equal(got['weights'], [[1, 1, 0]])


def test_images_are_refused_in_words():
  with pytest.raises(ValueError, match="needs a field 'tokens'.*image"):
    VIEWS.prepare(None, dict(image=jnp.zeros((1, 4, 4, 1))))
