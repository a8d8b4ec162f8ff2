"""Masked words and the order of two sentences: BERT's two terms, asked of other pairs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import build
from ssl_jax.cli.options import load_config
from ssl_jax.data.batches import batches
from ssl_jax.data.sources import RESERVED
from ssl_jax.methods import masked_lm_nsp, sop
from ssl_jax.models.convnet import convnet
from ssl_jax.models.mlp import mlp
from ssl_jax.models.network import from_linen, with_head
from ssl_jax.types import Mode

CONFIG = str(pathlib.Path(__file__).parents[2] / 'configs' / 'albert_wordnet.py')


@pytest.fixture(scope='module')
def started():
  """(net, method, a batch of real pairs, params)"""
  config = load_config(f'{CONFIG}:smoke')
  with config.unlocked():
    config.network.update(dropout=0., attention_dropout=0.)
  assert config.data.pairs == 'sop'
  raw = next(batches(build.source(config, training=True), batch_size=16, seed=0))
  raw = {name: x for name, x in raw.items() if name not in RESERVED}
  batch = build.image_views(config).prepare(jax.random.split(jax.random.key(0), 16), raw)
  net = build.network(config)
  method = sop.build(net)
  return net, method, batch, method.init(jax.random.key(0), batch)[0]


def test_the_loss_is_that_of_the_words_and_of_the_order(started):
  net, method, batch, params = started
  loss, (_, metrics) = method.loss(params, {}, batch, key=jax.random.key(1), step=0)
  (_, (hidden, logits)), _ = net.apply(params, {}, batch, Mode())
  matrix, bias = net.readout(params)
  log_p = np.asarray(jax.nn.log_softmax(hidden @ matrix.T + bias[None, None]))
  own = np.take_along_axis(log_p, np.asarray(batch['targets'])[..., None], 2)[..., 0]
  words = -np.average(own, weights=batch['weights'])
  order = -np.asarray(jax.nn.log_softmax(logits))[np.arange(16), batch['next']].mean()
  np.testing.assert_allclose(metrics['sentence_loss'], order, rtol=1e-5)
  np.testing.assert_allclose(loss, words + order, rtol=1e-5)


def test_on_the_same_batch_it_is_the_loss_of_bert(started):
  net, method, batch, params = started
  bert = masked_lm_nsp.build(net)
  a, b = (m.loss(params, {}, batch, key=jax.random.key(1), step=0)[0] for m in (method, bert))
  assert a == b


def test_single_texts_and_networks_of_images_are_refused(started):
  _, method, batch, params = started
  single = {name: x for name, x in batch.items() if name != 'next'}
  with pytest.raises(ValueError, match="'sop' for sop"):
    method.loss(params, {}, single, key=jax.random.key(1), step=jnp.zeros(()))
  with pytest.raises(ValueError, match='sop needs a language model'):
    sop.build(from_linen(with_head(convnet(channels=(4,), strides=(2,)), mlp(out=3))))
