"""The contract test can fail: broken copies of a small method, each caught by the check it breaks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax import testing
from ssl_jax.losses.clustering import swav
from ssl_jax.losses.contrastive import l2_normalize, nt_xent
from ssl_jax.losses.redundancy import barlow_twins
from ssl_jax.models.network import apply_views
from ssl_jax.parallel import all_gather, axis_index, pmean
from ssl_jax.types import Method, Mode, Network

BATCH = {'views': np.random.default_rng(0).normal(size=(16, 2, 6)).astype(np.float32)}


def network(synchronised=True) -> Network:
  """Linear, then normalised with the statistics of the batch."""
  def init(key, x):
    return {'w': jax.random.normal(key, (6, 5))}, {'mean': jnp.zeros(5)}

  def apply(params, state, x, mode, *, key=None):
    h = x @ params['w']
    if not mode.train:
      return (h, h - state['mean'][None]), state
    axis = mode.axis_name if synchronised else None
    mean = pmean(h.mean(0), axis)
    scale = jnp.sqrt(pmean(((h - mean[None]) ** 2).mean(0), axis) + 1e-3)
    return (h, (h - mean[None]) / scale[None]), {'mean': mean}

  return Network(init, apply)


def method(on_batch, net=None, head=None, **changes) -> Method:
  net = network() if net is None else net
  head = partial(nt_xent, temperature=0.5) if head is None else head
  mode = Mode(train=True, axis_name=on_batch.axis_name)

  def loss(params, state, batch, *, key, step):
    ((_, z1), (_, z2)), state = apply_views(net, params, state, batch['views'], mode)
    return on_batch(head)(z1, z2), (state, {})

  def embed(params, state, inputs):
    return net.apply(params, state, inputs, Mode())[0][0]

  return Method(net.init, loss, embed)._replace(**changes)


def local_negatives(z1, z2, *, axis_name=None):
  """Every device contrasts its own rows only."""
  return pmean(nt_xent(z1, z2, temperature=0.5), axis_name)


def detached_keys(z1, z2, *, axis_name=None):
  """As MoCo gathers its keys, which is wrong here."""
  z1, z2 = l2_normalize(z1), l2_normalize(z2)
  keys = z2 if axis_name is None else lax.all_gather(lax.stop_gradient(z2), axis_name, tiled=True)
  own = jnp.arange(len(z1)) + axis_index(axis_name) * len(z1)
  logits = z1 @ keys.T / 0.5
  picked = jnp.take_along_axis(logits, own[:, None], 1)[:, 0]
  return pmean(jnp.mean(jax.nn.logsumexp(logits, 1) - picked), axis_name)


def local_codes(z1, z2, *, axis_name=None):
  """SwAV whose codes are even over a device's rows only."""
  return pmean(swav(*(3 * l2_normalize(z) for z in (z1, z2)), epsilon=.5), axis_name)


def without_pmean(z1, z2, *, axis_name=None):
  """Every device returns the mean over its own anchors."""
  z1, z2 = l2_normalize(z1), l2_normalize(z2)
  logits = z1 @ all_gather(z2, axis_name).T / 0.5
  return jnp.mean(jax.nn.logsumexp(logits, 1) - jnp.sum(z1 * z2, 1) / 0.5)


def local_correlation(z1, z2, *, axis_name=None):
  """Barlow Twins with the statistics of a device, as lightly and solo-learn have it."""
  return pmean(barlow_twins(z1, z2), axis_name)


def two_inits(key, batch):
  params, state = network().init(key, batch)
  return {**params, 'unused': jnp.ones(3)}, state


def test_the_method_itself_passes():
  testing.check_method(method, BATCH, collectives={'all-gather', 'all-reduce'})


@pytest.mark.parametrize('check, broken', [
  ('same_on_any_device_count', partial(method, head=local_negatives)),
  ('curve_in_float64', partial(method, head=local_negatives)),
  ('vmap_equals_local', partial(method, head=local_negatives)),
  ('same_on_any_device_count', partial(method, head=detached_keys)),
  ('same_on_any_device_count', partial(method, head=local_codes)),
  ('same_on_any_device_count', partial(method, head=local_correlation)),
  ('vmap_equals_local', partial(method, head=without_pmean)),
  ('vmap_equals_local', partial(method, net=network(synchronised=False))),
  ('pmap_equals_local', partial(method, net=network(synchronised=False))),
  ('every_parameter_gets_a_gradient', lambda on: method(on, init=two_inits)),
  ('loss_is_a_finite_scalar', lambda on: method(on, loss=lambda p, s, b, *, key, step: (
    jnp.sum(p['w']).astype(jnp.bfloat16), (s, {})))),
  ('embed_is_pure', lambda on: method(on, embed=lambda p, s, x: (x @ p['w'])[0])),
])
def test_a_broken_copy_is_caught(check, broken):
  with pytest.raises(AssertionError):
    testing.CHECKS[check](broken, BATCH)


def test_undeclared_collectives_are_named():
  with pytest.raises(AssertionError, match='all-gather'):
    testing.check_collectives(method, BATCH, {'all-reduce'})


def test_a_docstring_without_a_reference_is_refused():
  with pytest.raises(AssertionError, match='names no reference'):
    testing.check_docstring_names_a_reference(type('module', (), {'__doc__': 'SimCLR.',
                                                                 '__name__': 'simclr'}))


def test_intact_heads_of_the_broken_ones_pass():
  """So that what is caught above is the break, not the head."""
  for head in (partial(swav, epsilon=.5), barlow_twins):
    testing.check_same_on_any_device_count(partial(method, head=head), BATCH)
