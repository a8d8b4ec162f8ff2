"""One Transformer for text, encoder and decoder: BERT, RoBERTa, ELECTRA, ModernBERT, GPT-2 ...

  post-norm (BERT, arXiv:1810.04805):  x = norm(x + attention(x)),  x = norm(x + mlp(x))
  pre-norm (GPT-2, ModernBERT):        x = x + attention(norm(x)),  x = x + mlp(norm(x))

An `Architecture` is all that distinguishes the published models; `ARCHITECTURES` lists them. Given
the same weights each is the function that transformers computes (tested against its models).

Inputs are a mapping of arrays [B, T]: 'tokens', and where they matter 'segments' (number of the
document within the row; 0 is padding), 'positions' (within the document) and 'types' (sentence A or
B). Features: 'tokens' ([B, T, width], what the last block gives, normalised), and without `scan` every
block, 'block1', 'block2' ...
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ssl_jax.models.attention import IMPLEMENTATIONS, KEPT, attention
from ssl_jax.models.dropout import drop_rows, dropout_factors
from ssl_jax.types import TEXT_INPUTS, Mode

REMAT = (None, 'full', 'dots')
POOLS = ('mean', 'token', 'last')


class Architecture(NamedTuple):
  """What distinguishes Transformers.

  Attributes:
    vocabulary: number of tokens.
    width, depth, heads: of the blocks; `hidden` of the perceptron between two blocks' attentions.
    length: rows of the learned position table; with rotary positions no limit.
    types: rows of the table of sentence types; 0 is none.
    embedding: width of the embeddings where it is not `width` (ELECTRA); a dense layer follows.
    norm: 'post' or 'pre'.
    position: 'learned', or 'rotary' (arXiv:2104.09864; halves rotate, as in NeoX and Llama).
    first_position: of the first token in the learned table (RoBERTa's starts at 2).
    activation: 'gelu' (exact), 'gelu_tanh', or 'geglu' (arXiv:2002.05202, exact).
    epsilon: of LayerNorm.
    bias: biases in dense layers and norms.
    embedding_norm: a LayerNorm behind the embeddings.
    first_norm: a pre-norm before the first attention (ModernBERT has none, its embeddings are normed).
    causal: tokens do not see later ones.
    window: tokens see those at most window // 2 away, except in every `global_every`-th block,
      counted from the first; None is everywhere global.
    theta, local_theta: bases of the rotary frequencies, in global blocks and in those with a window.
    init: 'truncated' (normal, cut at two deviations, as in TensorFlow's BERT) or 'normal'.
    deviation, position_deviation: of the initial weights.
    residual_scale: the layers that add to the residual start smaller by sqrt(2 depth) (GPT-2).
    dropout, attention_dropout: rates in training.
  """

  vocabulary: int
  width: int
  depth: int
  heads: int
  hidden: int
  length: int = 512
  types: int = 2
  embedding: int | None = None
  norm: str = 'post'
  position: str = 'learned'
  first_position: int = 0
  activation: str = 'gelu'
  epsilon: float = 1e-12
  bias: bool = True
  embedding_norm: bool = True
  first_norm: bool = True
  causal: bool = False
  window: int | None = None
  global_every: int = 1
  theta: float = 10_000.
  local_theta: float = 10_000.
  init: str = 'truncated'
  deviation: float = .02
  position_deviation: float = .02
  residual_scale: bool = False
  dropout: float = .1
  attention_dropout: float = .1


def _bert(width: int, depth: int, heads: int, **fields) -> Architecture:
  return Architecture(30522, width, depth, heads, 4 * width, **fields)


def _gpt2(width: int, depth: int, heads: int) -> Architecture:
  return Architecture(
    50257, width, depth, heads, 4 * width, length=1024, types=0, norm='pre', activation='gelu_tanh',
    epsilon=1e-5, embedding_norm=False, causal=True, init='normal', position_deviation=.01,
    residual_scale=True)


_ROBERTA = dict(length=514, types=1, first_position=2, epsilon=1e-5, init='normal')
_MODERN = dict(
  length=8192, types=0, norm='pre', position='rotary', activation='geglu', epsilon=1e-5, bias=False,
  first_norm=False, window=128, global_every=3, theta=160_000., residual_scale=True, dropout=0.,
  attention_dropout=0.)

# BERT's activation is gelu_tanh in the authors' TensorFlow code and exact in transformers' models of
# the same weights; the differences are below 5e-4. We follow the weights that people load.
ARCHITECTURES = dict(
  bert_tiny=_bert(128, 2, 2), bert_mini=_bert(256, 4, 4), bert_small=_bert(512, 4, 8),
  bert_medium=_bert(512, 8, 8), bert_base=_bert(768, 12, 12), bert_large=_bert(1024, 24, 16),
  minilm_l6=_bert(384, 6, 12), minilm_l12=_bert(384, 12, 12),
  distilbert=_bert(768, 6, 12, types=0, init='normal'),
  roberta_base=Architecture(50265, 768, 12, 12, 3072, **_ROBERTA),
  roberta_large=Architecture(50265, 1024, 24, 16, 4096, **_ROBERTA),
  electra_small=_bert(256, 12, 4, embedding=128),
  electra_base=_bert(768, 12, 12, embedding=768),
  electra_large=_bert(1024, 24, 16, embedding=1024),
  modernbert_base=Architecture(50368, 768, 22, 12, 1152, **_MODERN),
  modernbert_large=Architecture(50368, 1024, 28, 16, 2624, **_MODERN),
  gpt2=_gpt2(768, 12, 12), gpt2_medium=_gpt2(1024, 24, 16), gpt2_large=_gpt2(1280, 36, 20),
  gpt2_xl=_gpt2(1600, 48, 25),
)


class Transformer(nn.Module):
  """{'tokens': [B, T], ...} -> [B, T, width]; see the top of this file."""

  architecture: Architecture
  pool: str = 'mean'
  attention: str = 'auto'
  scan: bool = False
  remat: str | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Mapping[str, jax.Array], mode: Mode) -> jax.Array:
    """Raises ValueError for rows longer than the position table, and dropout without a key."""
    a = self.architecture
    h = Embeddings(a, self.dtype, name='embed')(x, mode)
    local, everywhere = (_rotations(a, x, theta) for theta in (a.local_theta, a.theta))
    segments = x.get('segments')
    make = self._remat(Block)
    if self.scan:
      stack = nn.scan(make, variable_axes={'params': 0}, split_rngs={'params': True, 'dropout': True},
                      in_axes=(nn.broadcast, nn.broadcast), length=a.depth)
      h, _ = stack(a, mode, None, self.attention, self.dtype, name='scanned')(
        h, segments, everywhere)
    else:
      for i in range(a.depth):
        is_local = a.window is not None and i % a.global_every != 0
        h, _ = make(a, mode, a.window if is_local else None, self.attention, self.dtype,
                    first=i == 0, name=f'block{i + 1}')(
          h, segments, local if is_local else everywhere)
    if a.norm == 'pre':
      h = layer_norm(a, self.dtype, 'norm')(h)
    self.sow('intermediates', 'tokens', h)
    return h

  def _remat(self, block):
    if self.remat is None:
      return block
    policies = jax.checkpoint_policies
    policy = policies.save_from_both_policies(
      policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT))
    return nn.remat(block, prevent_cse=not self.scan,
                    policy=None if self.remat == 'full' else policy)


class Embeddings(nn.Module):
  """Token, type and position embeddings, summed; norm, dropout, and the layer to the full width."""

  architecture: Architecture
  dtype: Any

  @nn.compact
  def __call__(self, x: Mapping[str, jax.Array], mode: Mode) -> jax.Array:
    a, tokens = self.architecture, x['tokens']
    if a.position == 'learned' and tokens.shape[1] > a.length - a.first_position:
      raise ValueError(f'rows of {tokens.shape[1]} tokens are longer than the position table of '
                       f'{a.length - a.first_position}; use shorter rows, or a larger network.length')
    width = a.embedding or a.width
    h = self._table('tokens', a.vocabulary, width, a.deviation)(tokens)
    if a.types:
      types = x['types'] if 'types' in x else jnp.zeros_like(tokens)
      h += self._table('types', a.types, width, a.deviation)(types)
    if a.position == 'learned':
      positions = _positions(x) + a.first_position
      h += self._table('positions', a.length, width, a.position_deviation)(positions)
    if a.embedding_norm:
      h = layer_norm(a, self.dtype, 'norm')(h)
    h = dropped(self, h, a.dropout, mode)
    if a.embedding is not None and a.embedding != a.width:
      h = dense(a, a.width, self.dtype, 'project')(h)
    return h

  def _table(self, name: str, rows: int, width: int, deviation: float) -> nn.Embed:
    return nn.Embed(rows, width, dtype=self.dtype, name=name,
                    embedding_init=_init(self.architecture, deviation))


class Block(nn.Module):
  """[B, T, D] -> [B, T, D]: attention among tokens, then a perceptron on each. (h, None) for scans."""

  architecture: Architecture
  mode: Mode
  window: int | None
  attention: str
  dtype: Any
  first: bool = False

  @nn.compact
  def __call__(self, h, segments, rotation):
    a, mode = self.architecture, self.mode
    if a.norm == 'post':
      h = self._norm('norm1')(h + dropped(self, self._attend(h, segments, rotation), a.dropout, mode))
      return self._norm('norm2')(h + dropped(self, self._perceptron(h), a.dropout, mode)), None
    y = h if self.first and not a.first_norm else self._norm('norm1')(h)
    h = h + dropped(self, self._attend(y, segments, rotation), a.dropout, mode)
    return h + dropped(self, self._perceptron(self._norm('norm2')(h)), a.dropout, mode), None

  def _attend(self, h, segments, rotation):
    a, (batch, length, width) = self.architecture, h.shape
    qkv = dense(a, 3 * width, self.dtype, 'qkv')(h)
    # Split first: XLA then leaves the columns of a head where they are.
    q, k, v = (x.reshape(batch, length, a.heads, -1) for x in jnp.split(qkv, 3, axis=-1))
    if rotation is not None:
      q, k = (_rotated(x, rotation) for x in (q, k))
    drop = None
    if a.attention_dropout and drops(self.mode):
      drop = drop_rows(_dropout_key(self), batch, a.attention_dropout, self.mode)
    y = attention(q, k, v, segments=segments, causal=a.causal, window=self.window, drop=drop,
                  implementation=self.attention, mode=self.mode)
    return self._residual('proj')(y.reshape(h.shape))

  def _perceptron(self, h):
    a = self.architecture
    y = dense(a, a.hidden * (2 if a.activation == 'geglu' else 1), self.dtype, 'fc1')(h)
    if a.activation == 'geglu':
      y, gate = jnp.split(y, 2, axis=-1)
      y = nn.gelu(y, approximate=False) * gate
    else:
      y = nn.gelu(y, approximate=a.activation == 'gelu_tanh')
    return self._residual('fc2')(y)

  def _residual(self, name: str) -> nn.Dense:
    a = self.architecture
    scale = (2 * a.depth)**-.5 if a.residual_scale else 1.
    return dense(a, a.width, self.dtype, name, a.deviation * scale)

  def _norm(self, name: str) -> nn.LayerNorm:
    return layer_norm(self.architecture, self.dtype, name)


# --- pieces ---------------------------------------------------------------------------------------


class RowsDense(nn.Dense):
  """nn.Dense on [N, D] whatever the leading axes: the gradient of the weights then is one product of
  matrices, for which XLA's CPU backend takes 6 ms instead of 16 (2048 x 256 x 1024)."""

  def __call__(self, x: jax.Array) -> jax.Array:
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


def dense(a: Architecture, features: int, dtype: Any, name: str,
          deviation: float | None = None) -> nn.Dense:
  init = _init(a, a.deviation if deviation is None else deviation)
  return RowsDense(features, use_bias=a.bias, dtype=dtype, kernel_init=init, name=name)


def layer_norm(a: Architecture, dtype: Any, name: str) -> nn.LayerNorm:
  # use_fast_variance takes E[x^2] - E[x]^2, which loses digits where |mean| >> deviation.
  return nn.LayerNorm(a.epsilon, dtype, use_bias=a.bias, use_fast_variance=False, name=name)


def _init(a: Architecture, deviation: float) -> nn.initializers.Initializer:
  kinds = dict(truncated=nn.initializers.truncated_normal, normal=nn.initializers.normal)
  return kinds[a.init](deviation)


def drops(mode: Mode) -> bool:
  return mode.train and mode.momentum is None  # not in calibration


def dropped(module: nn.Module, h: jax.Array, rate: float, mode: Mode) -> jax.Array:
  """`h` [B, ...] after dropout in training."""
  if not rate or not drops(mode):
    return h
  return h * dropout_factors(_dropout_key(module), h.shape, rate, mode, h.dtype)


def _dropout_key(module: nn.Module) -> jax.Array:
  if not module.has_rng('dropout'):
    raise ValueError("dropout needs a key: pass key= to the network's apply, or set the rates to 0")
  return module.make_rng('dropout')


def _positions(x: Mapping[str, jax.Array]) -> jax.Array:
  return x['positions'] if 'positions' in x else jnp.arange(x['tokens'].shape[1])[None]


def _rotations(a: Architecture, x: Mapping[str, jax.Array], theta: float):
  """(cos, sin) [B or 1, T, 1, D / 2] of the angles position * theta^(-2i/D), or None."""
  if a.position != 'rotary':
    return None
  half = a.width // a.heads // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = jnp.einsum('bt,f->btf', _positions(x).astype(jnp.float32), frequencies)[:, :, None]
  return jnp.cos(angles), jnp.sin(angles)


def _rotated(x: jax.Array, rotation) -> jax.Array:
  """x [B, T, heads, D], its halves turned: (x1 cos - x2 sin, x2 cos + x1 sin)."""
  cos, sin = rotation
  first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x.dtype)


# --- with a head ----------------------------------------------------------------------------------


class LanguageModel(nn.Module):
  """inputs -> (representation [B, width], what the head makes of the tokens that are asked for).

  With 'slots' [B, K] among the inputs the head sees the tokens at these places alone: K of T
  vectors go on to the vocabulary. Without, it sees all.
  """

  backbone: Transformer
  head: nn.Module

  def __call__(self, x: Mapping[str, jax.Array], mode: Mode) -> tuple[jax.Array, Any]:
    h = self.backbone({name: x[name] for name in TEXT_INPUTS if name in x}, mode)
    representation = pooled(h, x, self.backbone.pool)
    self.sow('intermediates', 'representation', representation)
    wanted = h
    if 'slots' in x:
      wanted = jnp.take_along_axis(h, x['slots'][:, :, None], axis=1)
    return representation, self.head(wanted, h[:, 0], self.backbone.architecture, mode)

  @staticmethod
  def readout(params) -> tuple[jax.Array, jax.Array | None]:
    """(embedding [V, E], bias [V] or None): the output layer, tied to the input embedding."""
    return (params['backbone']['embed']['tokens']['embedding'], params.get('head', {}).get('bias'))


def pooled(h: jax.Array, x: Mapping[str, jax.Array], pool: str) -> jax.Array:
  """[B, T, D] -> [B, D] in float32 or wider: the mean of the tokens that are no padding, the first
  token, or the last that is no padding."""
  h = h.astype(jnp.promote_types(h.dtype, jnp.float32))
  if pool == 'token':
    return h[:, 0]
  real = x['segments'] > 0 if 'segments' in x else jnp.ones(h.shape[:2], bool)
  if pool == 'last':
    last = jnp.max(jnp.where(real, jnp.arange(h.shape[1])[None], 0), axis=1)
    return jnp.take_along_axis(h, last[:, None, None], axis=1)[:, 0]
  real = real.astype(h.dtype)
  return jnp.einsum('bt,btd->bd', real, h) / jnp.maximum(real.sum(1, keepdims=True), 1)


def transformer(
    *, architecture: str = 'bert_base', vocabulary: int | None = None, width: int | None = None,
    depth: int | None = None, heads: int | None = None, hidden: int | None = None,
    length: int | None = None, types: int | None = None, embedding: int | None = None,
    dropout: float | None = None, attention_dropout: float | None = None,
    activation: str | None = None, causal: bool | None = None,
    pool: Literal['mean', 'token', 'last'] = 'mean', attention: str = 'auto', scan: bool = False,
    remat: Literal['full', 'dots'] | None = None, dtype: Any = None,
) -> nn.Module:
  """A Transformer for text by the name of a published one, and what differs from it.

  Args:
    architecture: a name in `ARCHITECTURES`.
    vocabulary, width, depth, heads, hidden, length, types, embedding, dropout, attention_dropout,
      activation, causal: replace those of the architecture, see `Architecture`; `hidden` follows a new
      `width` in the same proportion.
    pool: what `embed` returns for a row: 'mean' of its tokens, its first 'token', or the 'last'.
    attention: 'auto', 'plain', 'xla', 'cudnn' or 'splash', see `ssl_jax.models.attention`.
    scan: one block in a loop over stacked parameters, which compiles `depth` times faster; not with
      windows.
    remat: recompute blocks in the backward pass: 'full', or 'dots', all but matrix products.
    dtype: of the computation; None is float32. Parameters are float32.

  Raises:
    ValueError: an unknown name, or sizes that do not go together.
  """
  if architecture not in ARCHITECTURES:
    raise ValueError(f'unknown architecture {architecture!r}; known: {", ".join(ARCHITECTURES)}')
  a = ARCHITECTURES[architecture]
  if width is not None and hidden is None:
    hidden = a.hidden * width // a.width
  given = dict(
    vocabulary=vocabulary, width=width, depth=depth, heads=heads, hidden=hidden, length=length,
    types=types, embedding=embedding, dropout=dropout, attention_dropout=attention_dropout,
    activation=activation, causal=causal)
  a = a._replace(**{name: value for name, value in given.items() if value is not None})
  _check(a, pool, attention, scan, remat)
  return Transformer(a, pool, attention, scan, remat, dtype)


def _check(a: Architecture, pool: str, attention: str, scan: bool, remat: str | None) -> None:
  for name in ('vocabulary', 'width', 'depth', 'heads', 'hidden', 'length'):
    if getattr(a, name) < 1:
      raise ValueError(f'transformer {name} must be at least 1, not {getattr(a, name)}')
  if a.width % a.heads or a.position == 'rotary' and a.width // a.heads % 2:
    even = ' into even parts, which rotary positions need' if a.position == 'rotary' else ''
    raise ValueError(f'{a.heads} heads do not divide the width {a.width}{even}')
  for name in ('dropout', 'attention_dropout'):
    if not 0 <= getattr(a, name) < 1:
      raise ValueError(f'transformer {name} must be in [0, 1), not {getattr(a, name)}')
  for name, value, known in (('activation', a.activation, ('gelu', 'gelu_tanh', 'geglu')),
                             ('pool', pool, POOLS), ('attention', attention, IMPLEMENTATIONS),
                             ('remat', remat, REMAT)):
    if value not in known:
      raise ValueError(f'transformer {name} must be one of {known}, not {value!r}')
  if scan and a.window is not None:
    raise ValueError('blocks with and without a window cannot be scanned; use scan=False')
