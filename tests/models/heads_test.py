"""Heads of the papers: their parameters, and what they compute."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import heads
from ssl_jax.models.network import from_linen
from ssl_jax.types import Mode


def shapes(module, width=2048):
  """(shapes of parameters by path, shape of the projection)."""
  net = from_linen(module)
  x = jnp.zeros((2, width))
  params, state = jax.eval_shape(net.init, jax.random.key(0), x)
  z, _ = jax.eval_shape(lambda p, s: net.apply(p, s, x, Mode(True)), params, state)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
          for path, leaf in jax.tree_util.tree_leaves_with_path(params)}, z.shape


def layers(*widths, biases=(), norms=(), plain=()):
  """The parameters of dense layers between `widths`: which have a bias, a BatchNorm, a scale."""
  found = {f'Dense_{i}/kernel': shape for i, shape in enumerate(zip(widths, widths[1:]))}
  found |= {f'Dense_{i}/bias': (widths[i + 1],) for i in biases}
  found |= {f'BatchNorm_{i}/{kind}': (widths[i + 1],) for i in norms for kind in ('scale', 'bias')}
  return found | {f'BatchNorm_{i}/scale': (widths[i + 1],) for i in plain}


# From the authors' code: facebookresearch/{moco, moco-v3, simsiam, barlowtwins, swav, dino},
# google-research/simclr, deepmind-research/byol.
PAPERS = {
  'linear': (heads.linear(), layers(2048, 128, biases=[0])),
  'moco_v2': (heads.moco_v2(), layers(2048, 2048, 128, biases=[0, 1])),
  'moco_v3': (heads.moco_v3(), layers(2048, 4096, 4096, 256, norms=[0, 1])),
  'simclr_v2': (heads.simclr_v2(), layers(2048, 2048, 2048, 128, norms=[0, 1], plain=[2])),
  'byol': (heads.byol(), layers(2048, 4096, 256, biases=[0], norms=[0])),
  'simsiam': (heads.simsiam(), layers(2048, 2048, 2048, 2048, norms=[0, 1])),
  'simsiam_predictor': (heads.simsiam_predictor(),
                        layers(2048, 512, 2048, biases=[1], norms=[0])),
  'barlow': (heads.barlow(), layers(2048, 8192, 8192, 8192, norms=[0, 1])),
  'swav': (heads.swav(), layers(2048, 2048, 128, biases=[0, 1], norms=[0])),
  'dino': (heads.dino(), {
    'prototypes': (256, 65536),
    **{f'mlp/{name}': shape
       for name, shape in layers(2048, 2048, 2048, 256, biases=[0, 1, 2]).items()}})}


WIDTHS = {'linear': 128, 'moco_v2': 128, 'moco_v3': 256, 'simclr_v2': 128, 'byol': 256,
          'simsiam': 2048, 'simsiam_predictor': 2048, 'barlow': 8192, 'swav': 128, 'dino': 65536}


@pytest.mark.parametrize('name', PAPERS)
def test_parameters_are_the_authors(name):
  module, expected = PAPERS[name]
  params, projection = shapes(module)
  assert params == expected
  assert projection == (2, WIDTHS[name])


def test_every_head_is_tested():
  public = {name for name, f in vars(heads).items()
            if inspect.isfunction(f) and f.__module__ == heads.__name__ and name[0] != '_'}
  assert public == set(PAPERS)


def test_dino_options():
  params, _ = shapes(heads.dino(out=7, hidden=5, bottleneck=4, norm_last_layer=False,
                                batch_norm={}), 6)
  assert params['g'] == (1, 7) and params['mlp/BatchNorm_1/bias'] == (5,)


# torch 2.14.1, float64: Linear(6, 8), GELU, Linear(8, 8), GELU, Linear(8, 4), normalize,
# weight_norm(Linear(4, 5, bias=False)) with g = 1 and v = prototypes^T; weights set by `numbered`,
# inputs uniform('images', (3, 6)).
DINO = [[-.4459711931, -.0825055075, .862918498, -.5234719983, .3609807984],
        [.1129664269, .2080029373, -.2466149065, .8819474874, -.5470968651],
        [.7072473273, -.2096736732, -.2171200784, -.3788837729, .1285140619]]


def test_dino_equals_torch(uniform, numbered):
  with jax.enable_x64(True):
    x = uniform('images', (3, 6))
    for options in ({}, {'norm_last_layer': False}):
      net = from_linen(heads.dino(hidden=8, bottleneck=4, out=5, **options))
      params, state = numbered(net, x)
      if options:
        params['g'] = np.full((1, 5), 2.)
      z, _ = net.apply(params, state, x, Mode())
      np.testing.assert_allclose(z, np.array(DINO) * (2 if options else 1), atol=1e-9)


def test_moco_v2_has_no_batch_norm(uniform, numbered):
  with jax.enable_x64(True):
    x = uniform('images', (3, 6))
    net = from_linen(heads.moco_v2(hidden=8, out=4))
    params, state = numbered(net, x)
    z, _ = net.apply(params, state, x, Mode(True))
  assert not state
  hidden = np.maximum(x @ params['Dense_0']['kernel'] + params['Dense_0']['bias'], 0)
  np.testing.assert_allclose(z, hidden @ params['Dense_1']['kernel'] + params['Dense_1']['bias'])


def test_swav_projects_on_the_sphere(uniform, numbered):
  x = uniform('images', (3, 6)).astype(np.float32)
  net = from_linen(heads.swav(hidden=8, out=4))
  z, _ = net.apply(*numbered(net, x), x, Mode())
  np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-6)


def test_layers_start_as_in_torch():
  """torch.nn.Linear: uniform between -1 / sqrt(fan-in) and its opposite."""
  params, _ = from_linen(heads.linear(out=64)).init(jax.random.key(0), jnp.zeros((1, 100)))
  kernel = params['Dense_0']['kernel']
  assert .099 < np.abs(kernel).max() <= .1
  assert abs(kernel.std() - .1 / 3**.5) < .002


def test_a_middle_layer_of_simclr_v2(uniform, numbered):
  x = uniform('images', (3, 6)).astype(np.float32)
  net = from_linen(heads.simclr_v2(out=4))
  params, state = numbered(net, x)
  layer = net.features(params, state, x, ['layer1'])['layer1']
  stats = state['batch_stats']['BatchNorm_0']
  y = x @ params['Dense_0']['kernel']
  y = (y - stats['mean']) / np.sqrt(stats['var'] + 1e-5) * params['BatchNorm_0']['scale']
  np.testing.assert_allclose(layer, np.maximum(y + params['BatchNorm_0']['bias'], 0), atol=1e-5)


@pytest.mark.parametrize('build, options', [
  (heads.linear, {'out': 0}), (heads.byol, {'hidden': 0}), (heads.moco_v3, {'layers': 0}),
  (heads.dino, {'bottleneck': -1}), (heads.barlow, {'batch_norm': {'eps': 1}})])
def test_wrong_options_are_refused(build, options):
  with pytest.raises(ValueError, match='must be at least 1|does not know'):
    build(**options)
