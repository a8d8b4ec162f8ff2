"""Transformers for text: sizes, documents in one row, options that must not change the function.

Equality with transformers' models is tested in tests/weights.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.models import language_heads
from ssl_jax.models.network import from_linen
from ssl_jax.models.transformer import (
  ARCHITECTURES,
  Architecture,
  LanguageModel,
  Transformer,
  pooled,
  transformer,
)
from ssl_jax.types import Mode

# transformers 5.24.0, torch 2.13.0, configurations of these sizes: number of distinct parameters.
COUNTS = {
  ('bert_tiny', 'masked_lm'): 4_416_698, ('bert_mini', 'masked_lm'): 11_201_594,
  ('bert_small', 'masked_lm'): 28_795_194, ('bert_medium', 'masked_lm'): 41_404_730,
  ('bert_base', 'masked_lm'): 109_514_298, ('bert_large', 'masked_lm'): 335_174_458,
  ('bert_base', 'masked_lm_and_sentence'): 110_106_428,
  ('minilm_l6', 'masked_lm'): 22_744_506, ('minilm_l12', 'masked_lm'): 33_391_290,
  ('roberta_base', 'masked_lm'): 124_697_433, ('roberta_large', 'masked_lm'): 355_412_057,
  ('distilbert', 'masked_lm'): 66_985_530,
  ('electra_small', 'masked_lm'): 13_546_682, ('electra_small', 'replaced_token'): 13_549_057,
  ('electra_base', 'masked_lm'): 109_514_298, ('electra_base', 'replaced_token'): 109_483_009,
  ('electra_large', 'masked_lm'): 335_174_458, ('electra_large', 'replaced_token'): 335_142_913,
  ('modernbert_base', 'masked_lm'): 149_655_232, ('modernbert_large', 'masked_lm'): 395_881_664,
  ('gpt2', 'tied'): 124_439_808, ('gpt2_medium', 'tied'): 354_823_168,
  ('gpt2_large', 'tied'): 774_030_080, ('gpt2_xl', 'tied'): 1_557_611_200,
}


@pytest.mark.parametrize('name, head', COUNTS)
def test_parameters_are_as_many_as_in_transformers(name, head):
  # One block and the rest: all blocks have the same number but ModernBERT's first.
  def count(depth):
    backbone = transformer(architecture=name, depth=depth)
    model = LanguageModel(backbone, getattr(language_heads, head)())
    tokens = dict(tokens=jnp.zeros((1, 8), jnp.int32))
    params = jax.eval_shape(partial(model.init, mode=Mode()), jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(params))

  one, two = count(1), count(2)
  assert one + (ARCHITECTURES[name].depth - 1) * (two - one) == COUNTS[name, head]


# --- tiny models ----------------------------------------------------------------------------------

TINY = dict(vocabulary=50, width=16, depth=3, heads=2, hidden=24, length=32, deviation=.3,
            dropout=0., attention_dropout=0.)
KINDS = {
  'post-norm': Architecture(**TINY),
  'pre-norm, causal': Architecture(**TINY, norm='pre', activation='gelu_tanh', embedding_norm=False,
                                   causal=True, types=0),
  'rotary, windows': Architecture(**TINY, norm='pre', position='rotary', activation='geglu',
                                  bias=False, first_norm=False, window=4, global_every=3,
                                  theta=160_000., types=0),
  'RoBERTa, narrow embedding': Architecture(**TINY, first_position=2, embedding=8, types=1),
}
each_kind = pytest.mark.parametrize('kind', KINDS)
SIZES = 9, 4, 6  # of three documents
SEGMENTS = np.repeat([1, 2, 3, 0], [*SIZES, 5])[None]
POSITIONS = np.concatenate([np.arange(n) for n in (*SIZES, 5)])[None]
TOKENS = np.random.default_rng(0).integers(0, 50, SEGMENTS.shape)
PACKED = dict(tokens=TOKENS, segments=SEGMENTS, positions=POSITIONS)


@cache
def tiny(kind, **options):
  """(network of tokens [B, T, width], its parameters)."""
  net = from_linen(Transformer(KINDS[kind], **options))
  params, _ = jax.jit(net.init)(jax.random.key(0), PACKED)
  # Biases and scales start at 0 and 1, where mistakes do not show.
  leaves, structure = jax.tree.flatten(params)
  r = np.random.default_rng(1)
  noise = [.1 * r.normal(size=x.shape).astype(np.float32) for x in leaves]
  return net, structure.unflatten([x + y for x, y in zip(leaves, noise)])


def run(kind, x, params=None, **options):
  net, own = tiny(kind, **options)
  return jax.jit(partial(net.apply, mode=Mode()))(own if params is None else params, {}, x)[0]


@each_kind
def test_documents_in_one_row_are_as_documents_alone(kind):
  together = run(kind, PACKED)
  alone = np.full((3, 12), 7)  # padded, with rubbish
  for row, n, end in zip(alone, SIZES, np.cumsum(SIZES)):
    row[:n] = TOKENS[0, end - n:end]
  apart = run(kind, dict(tokens=alone, segments=(np.arange(12) < np.array(SIZES)[:, None]) + 0))
  for row, n, end in zip(apart, SIZES, np.cumsum(SIZES)):
    np.testing.assert_allclose(together[0, end - n:end], row[:n], atol=1e-5)
  # Without segments they see each other.
  mixed = run(kind, dict(tokens=TOKENS, positions=POSITIONS))
  assert np.abs(mixed - together)[0, SIZES[0]:].max() > .1


@each_kind
def test_padding_does_not_matter(kind):
  other = np.where(SEGMENTS > 0, TOKENS, 3)
  real = SEGMENTS[0] > 0
  np.testing.assert_array_equal(run(kind, PACKED | dict(tokens=other))[0, real],
                                run(kind, PACKED)[0, real])
  assert np.isfinite(run(kind, PACKED)).all()


@each_kind
def test_who_sees_whom(kind):
  """A changed token changes itself and, by the architecture, those before or far away."""
  one = dict(tokens=TOKENS)
  tokens = TOKENS.copy()
  tokens[0, 10] = (tokens[0, 10] + 1) % 50
  changed = np.abs(run(kind, dict(tokens=tokens)) - run(kind, one)).max((0, 2)) > 1e-6
  assert changed[10:].all() and changed[:10].any() != KINDS[kind].causal


def test_a_window_is_local_and_global_blocks_are_not():
  narrow = KINDS['rotary, windows']._replace(depth=1)
  tokens = TOKENS.copy()
  tokens[0, 10] = (tokens[0, 10] + 1) % 50

  def reach(a, first):
    """Distances at which block number `first` of a ModernBERT passes something on."""
    model = Transformer(a._replace(depth=first))
    params = model.init(jax.random.key(0), PACKED, Mode())
    blocks = params['params']
    for name in [f'block{i}' for i in range(1, first)]:  # switch off the ones before
      blocks[name] = jax.tree.map(np.zeros_like, blocks[name])
    f = jax.jit(lambda t: model.apply(params, dict(tokens=t), Mode()))
    return set(np.flatnonzero(np.abs(f(tokens) - f(TOKENS)).max((0, 2)) > 1e-6) - 10)

  assert reach(narrow, 2) == reach(narrow, 3) == {-2, -1, 0, 1, 2}
  assert reach(narrow, 1) == reach(narrow, 4) == set(range(-10, 14))


def scanned(params, depth=3):
  blocks = [params[f'block{i + 1}'] for i in range(depth)]
  rest = {name: x for name, x in params.items() if not name.startswith('block')}
  return rest | {'scanned': jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


@pytest.mark.parametrize('kind', ['post-norm', 'pre-norm, causal'])
def test_scanned_blocks_equal_unrolled_ones(kind):
  _, params = tiny(kind)
  shapes = jax.tree.map(jnp.shape, tiny(kind, scan=True)[1])
  assert jax.tree.map(jnp.shape, scanned(params)) == shapes
  np.testing.assert_allclose(run(kind, PACKED, scanned(params), scan=True), run(kind, PACKED),
                             atol=1e-5)


@pytest.mark.parametrize('scan', [False, True])
def test_recomputed_blocks_have_the_same_gradient(scan):
  """With dropout, whose draws must be the same the second time."""
  a = KINDS['post-norm']._replace(depth=1 + scan, dropout=.2, attention_dropout=0. if scan else .2)
  params = None

  def gradient(remat):
    nonlocal params
    net = from_linen(Transformer(a, scan=scan, remat=remat))
    params = params or jax.jit(net.init)(jax.random.key(0), PACKED)[0]
    loss = lambda p: jnp.sin(net.apply(p, {}, PACKED, Mode(True), key=jax.random.key(2))[0]).sum()
    return jax.jit(jax.grad(loss))(params)

  expected = gradient(None)
  for remat in ('full', 'dots'):
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4, err_msg=remat)
    jax.tree.map(close, gradient(remat), expected)


def test_initial_values():
  model = transformer(architecture='gpt2', vocabulary=4000, width=64, depth=2, heads=2, length=1000)
  init = jax.jit(partial(model.init, mode=Mode()))
  params = init(jax.random.key(0), dict(tokens=TOKENS))['params']
  deviation = lambda *path: float(np.std(params[path[0]][path[1]][path[2]]))
  for path, expected in (
      (('embed', 'tokens', 'embedding'), .02), (('embed', 'positions', 'embedding'), .01),
      (('block1', 'qkv', 'kernel'), .02), (('block1', 'proj', 'kernel'), .01),
      (('block2', 'fc2', 'kernel'), .01)):
    np.testing.assert_allclose(deviation(*path), expected, rtol=.05)
  kernel = Transformer(KINDS['post-norm']).init(jax.random.key(0), PACKED, Mode())['params']
  assert np.abs(kernel['block1']['fc1']['kernel']).max() <= 2 * .3 / .87  # cut at two deviations


def test_bfloat16():
  net, params = tiny('post-norm', dtype=jnp.bfloat16)
  got = run('post-norm', PACKED, dtype=jnp.bfloat16)
  assert got.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float32')}
  np.testing.assert_allclose(np.float32(got)[SEGMENTS > 0], run('post-norm', PACKED)[SEGMENTS > 0],
                             atol=.15)


# --- with a head ----------------------------------------------------------------------------------


def test_the_head_sees_the_tokens_at_the_slots():
  class Plain(language_heads.nn.Module):
    def __call__(self, tokens, first, a, mode):
      return tokens, first

  slots = np.array([[3, 0, 17]])
  model = LanguageModel(Transformer(KINDS['post-norm']), Plain())
  _, params = tiny('post-norm')
  apply = jax.jit(lambda x: model.apply({'params': {'backbone': params}}, x, Mode()))
  h = run('post-norm', PACKED)
  representation, (tokens, first) = apply(PACKED | dict(slots=slots))
  np.testing.assert_allclose(tokens, h[:, slots[0]], atol=1e-6)
  np.testing.assert_allclose(first, h[:, 0], atol=1e-6)
  np.testing.assert_allclose(representation[0], h[0, SEGMENTS[0] > 0].mean(0), atol=1e-5)
  _, (tokens, _) = apply(PACKED)
  np.testing.assert_allclose(tokens, h, atol=1e-6)


@pytest.mark.parametrize('pool, expected', [
  ('mean', lambda h: h[:2].mean(0)), ('token', lambda h: h[0]), ('last', lambda h: h[1])])
def test_pooling(pool, expected):
  h = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
  segments = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0] * 4])
  got = pooled(jnp.asarray(h), dict(segments=jnp.asarray(segments)), pool)
  np.testing.assert_allclose(got[0], expected(h[0]), rtol=1e-6)
  assert np.isfinite(got).all()
  whole = pooled(jnp.asarray(h), {}, pool)
  np.testing.assert_allclose(whole[1], got[1], rtol=1e-6)
  assert pooled(jnp.asarray(h, jnp.bfloat16), {}, pool).dtype == jnp.float32


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
  ({'architecture': 'bert'}, "unknown architecture 'bert'; known: bert_tiny"),
  ({'heads': 5}, '5 heads do not divide the width 768'),
  ({'architecture': 'modernbert_base', 'heads': 256}, 'even parts, which rotary positions need'),
  ({'depth': 0}, 'depth must be at least 1, not 0'),
  ({'dropout': 1.}, r'dropout must be in \[0, 1\)'),
  ({'activation': 'relu'}, "activation must be one of .*'gelu_tanh'.*, not 'relu'"),
  ({'pool': 'max'}, "pool must be one of .*, not 'max'"),
  ({'attention': 'flash'}, "attention must be one of .*'splash'.*, not 'flash'"),
  ({'remat': 'some'}, "remat must be one of .*'dots'.*, not 'some'"),
  ({'architecture': 'modernbert_base', 'scan': True}, 'cannot be scanned')])
def test_wrong_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    transformer(**options)


def test_options_replace_those_of_the_architecture():
  a = transformer(width=192, depth=2, heads=3, types=0, embedding=64, dropout=0.).architecture
  assert (a.width, a.hidden, a.depth, a.heads, a.types, a.embedding, a.dropout) == (
    192, 768, 2, 3, 0, 64, 0.)
  assert a.attention_dropout == .1 and a.vocabulary == 30522


def test_rows_longer_than_the_table_are_refused():
  long = dict(tokens=np.zeros((1, 31), np.int32))
  make = lambda kind: jax.eval_shape(
    lambda: Transformer(KINDS[kind]).init(jax.random.key(0), long, Mode()))
  make('post-norm')
  with pytest.raises(ValueError, match='31 tokens are longer than the position table of 30'):
    make('RoBERTa, narrow embedding')


def test_dropout_without_a_key_is_refused():
  net = from_linen(Transformer(KINDS['post-norm']._replace(dropout=.1)))
  with pytest.raises(ValueError, match='dropout needs a key'):
    jax.eval_shape(lambda p: net.apply(p, {}, PACKED, Mode(True)), tiny('post-norm')[1])


def test_tokens_outside_the_vocabulary_are_nan():
  assert np.isnan(run('post-norm', dict(tokens=TOKENS + 49))).any()
