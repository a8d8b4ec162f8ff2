"""Linen modules as pure functions, and the ways to run one encoder over several views or chunks."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from ssl_jax.parallel import Placement, fold, path_name, unfold
from ssl_jax.types import Method, Mode, Network, PyTree


def from_linen(module: nn.Module) -> Network:
  """Wraps a Linen module called `module(x, mode)` as a `Network`.

  `state` holds every collection except 'params'; outside training it is returned as it came. `key`
  feeds the rngs 'dropout' and 'batch_norm' (shuffled groups).

  `features` knows what modules sow into 'intermediates' (each network's docstring lists its names)
  and the output of every submodule by its path in `params`: 'stage3_block2', 'head/Dense_0'. A
  backbone under a head keeps its own names. Under jit, only what they need is computed.
  """

  def init(key, x):
    variables = dict(module.init(key, x, Mode()))
    return variables.pop('params', {}), variables

  def apply(params, state, x, mode, *, key=None):
    variables = {'params': params, **state}
    rngs = {} if key is None else {name: jax.random.fold_in(key, i) for i, name in
                                   enumerate(('dropout', 'batch_norm'))}
    if not mode.train:
      return module.apply(variables, x, mode, rngs=rngs), state
    outputs, changed = module.apply(variables, x, mode, rngs=rngs, mutable=list(state))
    return outputs, {**state, **changed}

  def features(params, state, x, names):
    variables = {'params': params, **state}
    found = _intermediates(module, variables, x, set(names).__contains__)
    missing = sorted(set(names) - set(found))
    if missing:
      everything = jax.eval_shape(
        lambda v, x: _intermediates(module, v, x, lambda name: True), variables, x)
      raise ValueError(f'unknown features {missing}{_known(missing[0], everything)}')
    return {name: found[name] for name in names}

  return Network(init, apply, features, getattr(module, 'readout', None))


def _intermediates(module: nn.Module, variables: PyTree, x: jax.Array,
                   wanted: Callable[[str], bool]) -> dict[str, Any]:
  """By name, everything sown and the outputs of submodules with a `wanted` name."""
  def capture(submodule, method):
    return method == '__call__' and wanted(_feature_name(submodule.path))

  _, sown = module.apply(variables, x, Mode(), capture_intermediates=capture,
                         mutable=['intermediates'])
  # A module called more than once has several values: the last.
  return {_feature_name(path): values[-1]
          for path, values in flatten_dict(sown.get('intermediates', {})).items()}


def _feature_name(path: tuple[str, ...]) -> str:
  path = path[:-1] if path and path[-1] == '__call__' else path
  return '/'.join(path[1:] if len(path) > 1 and path[0] == 'backbone' else path)


def _known(word: str, names: Iterable[str]) -> str:
  close = difflib.get_close_matches(word, names, n=1)
  outer = sorted(name for name in names if name and '/' not in name)
  hint = f'; did you mean {close[0]!r}?' if close else ';'
  return f'{hint} known are {", ".join(outer)}, and what is inside of these (a/b)'


def fixed_parameters(module: nn.Module, params: PyTree) -> PyTree:
  """A tree of bool like `params`: the leaves that `module` never trains, by its `fixed` paths.

  Their gradient is zero, but weight decay would still change them: `Method.frozen` must name them.
  `params` may hold those of the module anywhere inside.
  """
  paths = getattr(module, 'fixed', ())
  return jax.tree_util.tree_map_with_path(
    lambda path, _: any(f'/{fixed}/' in f'/{path_name(path)}/' for fixed in paths), params)


class WithHead(nn.Module):
  """x -> (representation h, projection z = head(h)); evaluation uses h, the objective z.

  Of a tuple of crops of several sizes, [B, V, ...] each, the backbone sees one size after the other,
  and the head all of them at once: so do SwAV and DINO, and SwAV's head normalises over them.
  """

  backbone: nn.Module
  head: nn.Module

  def __call__(self, x: jax.Array | tuple[jax.Array, ...], mode: Mode
               ) -> tuple[jax.Array, jax.Array]:
    if isinstance(x, tuple):
      seen = [self.backbone(fold(crops), mode) for crops in x]
      h = fold(jnp.concatenate([rows.reshape(len(crops), -1, rows.shape[-1])
                                for rows, crops in zip(seen, x)], axis=1))
    else:
      h = self.backbone(x, mode)
    z = self.head(h, mode)
    self.sow('intermediates', 'representation', h)
    self.sow('intermediates', 'projection', z)
    return h, z

  @property
  def fixed(self) -> tuple[str, ...]:
    return tuple(f'{part}/{path}' for part in ('backbone', 'head')
                 for path in getattr(getattr(self, part), 'fixed', ()))


def with_head(backbone: nn.Module, head: nn.Module) -> nn.Module:
  """A module returning (h, z) = (backbone(x), head(h)); features 'representation', 'projection'."""
  return WithHead(backbone, head)


def apply_views(net: Network, params: PyTree, state: PyTree, views: jax.Array, mode: Mode, *,
                key: jax.Array | None = None, separate: bool = False) -> tuple[tuple, PyTree]:
  """Runs `net` over views [B, V, ...] of a batch.

  Together, all views are one batch: BatchNorm statistics span them (SimCLR). Separate, every view
  is a batch of its own (BYOL, Barlow Twins, VICReg, SimSiam, MoCo v3), one after the other, each
  starting from the running statistics that the one before left.

  Returns:
    (outputs, state): outputs[v] is what the network returns for view v.
  """
  count = views.shape[1]
  if not separate:
    outputs, state = net.apply(params, state, fold(views), mode, key=key)
    return _per_view(outputs, count), state
  outputs = []
  for v in range(count):
    view_key = None if key is None else jax.random.fold_in(key, v)
    output, state = net.apply(params, state, views[:, v], mode, key=view_key)
    outputs.append(output)
  return tuple(outputs), state


def apply_crops(net: Network, params: PyTree, state: PyTree, batch: Mapping[str, jax.Array],
                mode: Mode, *, key: jax.Array) -> tuple[tuple, PyTree]:
  """`apply_views` of 'views' and, if there are any, of the smaller 'local_views': see `WithHead`.

  Returns:
    (outputs, state): of all crops, the large ones first.
  """
  if 'local_views' not in batch:
    return apply_views(net, params, state, batch['views'], mode, key=key)
  sizes = batch['views'], batch['local_views']
  outputs, state = net.apply(params, state, sizes, mode, key=key)
  return _per_view(outputs, sum(crops.shape[1] for crops in sizes)), state


def _per_view(outputs: PyTree, count: int) -> tuple:
  leaves, structure = jax.tree.flatten(outputs)
  return tuple(structure.unflatten(each) for each in zip(*[unfold(x, count) for x in leaves]))


def language_method(name: str, net: Network, objective: Any, on_batch: Placement) -> Method:
  """The method that trains `net` for an objective of what it returns.

  Args:
    name: of the method, for messages.
    net: inputs -> (representation, outputs), with a `readout`.
    objective: with `loss` and `sums`, functions of (outputs, batch, readout); one of
      `losses.language`.
    on_batch: how the objective's heads run.

  Raises:
    ValueError: the network has no output layer for a vocabulary.
  """
  if net.readout is None:
    raise ValueError(f'{name} needs a language model; use config.network.name=transformer')
  train = on_batch.mode(train=True)
  at_rest = on_batch.mode()

  def loss(params, state, batch, *, key, step):
    del step
    (_, outputs), state = net.apply(params, state, dict(batch), train, key=key)
    value, metrics = objective.loss(outputs, batch, net.readout(params))
    return value, (state, metrics)

  def embed(params, state, inputs):
    (representation, _), _ = net.apply(params, state, inputs, at_rest)
    return representation

  def measure(params, state, batch):
    (_, outputs), _ = net.apply(params, state, dict(batch), at_rest)
    return objective.sums(outputs, batch, net.readout(params))

  return Method(net.init, loss, embed, measure=measure)


def evaluated(net: Network, train: Mode, *, params_in: str | None = None,
              state_in: str | None = None) -> dict[str, Callable]:
  """`embed`, `calibrate` and `encoder` of a Method whose encoder is `net`.

  Args:
    net: its first output is the representation.
    train: the mode in which it trains.
    params_in, state_in: keys under which a method with more than one network keeps those of this one.
  """
  def encoder(params, state):
    return (params if params_in is None else params[params_in],
            state if state_in is None else state[state_in])

  def embed(params, state, inputs):
    outputs, _ = net.apply(*encoder(params, state), inputs, Mode(mesh=train.mesh))
    return outputs[0]

  def calibrate(params, state, inputs):
    mode = train._replace(momentum=0.0)
    new = net.apply(*encoder(params, state), inputs, mode, key=jax.random.key(0))[1]
    return new if state_in is None else {**state, state_in: new}

  return dict(embed=embed, calibrate=calibrate, encoder=encoder)


def chunked(net: Network, rows: int, *, block: int = 1) -> Network:
  """A network that trains on `rows` rows at a time and keeps only their outputs for the gradient.

  Each chunk runs under `jax.checkpoint` inside one `lax.map`: gradient caching (arXiv:2101.06983)
  and gradient accumulation in one, exact for losses that couple the rows of the whole batch,
  because the loss sees all outputs. Memory is that of one chunk, at the price of one more forward.

  Chunks are strided: of the batch seen as [B / (K * block), K, block], chunk k holds [:, k]. So
  every device of a mesh works on its own rows, where contiguous chunks would all-gather the images.

  BatchNorm statistics are those of a chunk, exact where its groups divide `block`; the running
  statistics are the mean over chunks. Outside training the batch is not chunked.

  Args:
    net: the network to wrap.
    rows: rows of a chunk, a multiple of `block`, dividing the batch (of the device, inside
      shard_map, pmap or vmap).
    block: consecutive rows that stay together: the number of views, or of rows in a BatchNorm
      group.

  Raises:
    ValueError: `rows` is not a multiple of `block`, or the batch is not a multiple of `rows`.
  """
  if rows < 1 or block < 1 or rows % block:
    low = max(rows // block, 1) * block if block > 0 else 1
    raise ValueError(f'chunks of {rows} rows do not hold whole blocks of {block} rows; '
                     f'use {low} or {low + max(block, 1)} rows')

  def apply(params, state, x, mode, *, key=None):
    if not mode.train or mode.momentum is not None:  # calibration: any number of rows
      return net.apply(params, state, x, mode, key=key)
    batch = len(jax.tree.leaves(x)[0])
    _check_divides(batch, rows)
    count = batch // rows
    if count == 1:
      return net.apply(params, state, x, mode, key=key)

    # No CSE can undo the recomputation inside a loop, so the barriers against it are not needed.
    @_checkpoint
    def chunk(params, state, x, key):
      return net.apply(params, state, x, mode, key=key)

    keys = None if key is None else jax.random.split(key, count)
    outputs, states = jax.lax.map(lambda args: chunk(params, state, *args),
                                  (jax.tree.map(lambda x: _split(x, count, block), x), keys))
    return jax.tree.map(lambda y: _join(y, block), outputs), jax.tree.map(_mean, states)

  return net._replace(apply=apply)


def _checkpoint(function: Callable) -> Callable:
  return jax.checkpoint(function, prevent_cse=False)


def _check_divides(batch: int, rows: int) -> None:
  if batch % rows == 0:
    return
  divisors = [n for n in range(1, batch + 1) if batch % n == 0]
  near = {max(n for n in divisors if n <= rows),
          min((n for n in divisors if n > rows), default=batch)}
  lower = max(batch // rows, 1) * rows
  raise ValueError(f'a batch of {batch} rows does not split into chunks of {rows}; use chunks of '
                   f'{" or ".join(map(str, sorted(near)))} rows, or a batch of {lower} or '
                   f'{lower + rows} rows')


def _split(x: jax.Array, count: int, block: int) -> jax.Array:
  """[B, ...] -> [count, B / count, ...], strided in blocks."""
  x = x.reshape(-1, count, block, *x.shape[1:])
  return jnp.moveaxis(x, 1, 0).reshape(count, -1, *x.shape[3:])


def _join(y: jax.Array, block: int) -> jax.Array:
  """The inverse of `_split`."""
  count = y.shape[0]
  y = y.reshape(count, -1, block, *y.shape[2:])
  return jnp.moveaxis(y, 0, 1).reshape(-1, *y.shape[3:])


def _mean(stacked: jax.Array) -> Any:
  """Mean over chunks of a running statistic; counters, equal in all chunks, are taken as is."""
  return stacked.mean(0) if jnp.issubdtype(stacked.dtype, jnp.inexact) else stacked[0]
