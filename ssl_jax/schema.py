"""A section of a config is a function call: the function's signature is its schema.

The section's `name` is looked up among choices (or is a dotted path to a module of yours with a
`build` function), the other keys are its keyword arguments. An unknown key, a missing key, a wrong
type or a number out of its range is a ConfigError.
"""

import difflib
import importlib
import inspect
import math
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ssl_jax.data.sources import DataError

# Where a number of this name must lie, in every section. All others must only be finite.
INTERVALS = {name: interval for interval, names in {
  '[0, 1]': ('momentum', 'center_momentum', 'sk_ratio', 'unreadable'),
  '[0, 1)': ('b1', 'b2', 'dropout', 'attention_dropout', 'drop_path', 'smoothing'),
  '[0, inf)': ('learning_rate', 'final', 'warmup_steps', 'warmup_epochs', 'weight_decay',
               'final_weight_decay', 'epsilon', 'weight', 'off_diagonal', 'proximal', 'queue',
               'queue_from_epoch', 'freeze_prototypes_steps', 'freeze_last_layer_epochs',
               'warmup_teacher_epochs', 'types'),
  '(0, inf)': ('temperature', 'student_temperature', 'teacher_temperature',
               'warmup_teacher_temperature', 'clip_norm', 'clip_per_tensor', 'trust_coefficient',
               'scale', 'width'),
  '[1, inf)': ('out', 'hidden', 'bottleneck', 'layers', 'depth', 'heads', 'embedding', 'patch_size',
               'image_size', 'iterations', 'chunk', 'negatives', 'mean_span', 'channels', 'strides'),
}.items() for name in names}

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


class ConfigError(ValueError):
  """The user's configuration cannot be run; the message says what to change. Exit code 2."""


def functions(module) -> dict[str, Callable]:
  """The public functions that `module` defines, by name."""
  return {name: f for name, f in vars(module).items()
          if inspect.isfunction(f) and f.__module__ == module.__name__ and name[0] != '_'}


def modules(package) -> dict[str, Callable]:
  """The `build` functions of the modules of `package`, by module name."""
  found = {m.name: importlib.import_module(f'{package.__name__}.{m.name}')
           for m in pkgutil.iter_modules(package.__path__)}
  return {name: module.build for name, module in found.items() if hasattr(module, 'build')}


def call(section: str, spec, choices: Mapping[str, Callable], *args, **given):
  """Calls the function that `spec['name']` names with the rest of `spec`.

  Args:
    section: of the config, for messages.
    spec: {'name': ..., keyword: value}, a mapping or ConfigDict.
    choices: functions by name.
    *args, **given: what the caller adds; these keywords are not the config's to set.

  Raises:
    ConfigError: an unknown name or key, a missing key, a wrong type, or the function's ValueError.
    DataError: the config is right, the files are not.
  """
  spec = plain(spec)
  if not isinstance(spec, Mapping) or 'name' not in spec:
    raise ConfigError(f'config.{section} needs a name, one of {sorted(choices)}')
  function = find(section, spec.pop('name'), choices)
  arguments = {key: p for key, p in signature(function).items() if key not in given}
  for key, value in spec.items():
    if key not in arguments:
      raise ConfigError(
        f'config.{section}.{key} is unknown{did_you_mean(key, arguments)}')
    hint = arguments[key].annotation
    if not fits(value, hint):
      raise ConfigError(f'config.{section}.{key} must be {_spelled(hint)}, got {value!r}'
                        f'{_nearest_literal(value, hint)}')
    _check_numbers(f'config.{section}.{key}', key, value)
    if key == 'dtype' and isinstance(value, str) and value not in DTYPES:
      raise ConfigError(f'config.{section}.dtype {value!r} is unknown{did_you_mean(value, DTYPES)}')
  for key, parameter in arguments.items():
    if parameter.default is parameter.empty and key not in spec:
      raise ConfigError(f'config.{section}.{key} is missing: {function.__module__} needs it')
  try:
    return function(*args, **spec, **given)
  except DataError:
    raise
  except (ValueError, TypeError) as error:
    raise ConfigError(f'config.{section}: {error}') from error


def find(section: str, name: str, choices: Mapping[str, Callable]) -> Callable:
  """The builder of this name: one of `choices`, or `build` of the module whose dotted path it is."""
  if name in choices:
    return choices[name]
  if '.' not in str(name):
    raise ConfigError(f'config.{section}.name {name!r} is unknown{did_you_mean(name, choices)}')
  try:
    return importlib.import_module(name).build
  except (ImportError, AttributeError) as error:
    raise ConfigError(f'config.{section}.name: {name!r} is not a module with a build function '
                      f'({error})') from error


def signature(function: Callable) -> dict[str, inspect.Parameter]:
  """The keyword-only parameters of a builder: the schema of its section."""
  hints = typing.get_type_hints(function)
  return {name: p.replace(annotation=hints.get(name, Any))
          for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def fits(value, hint) -> bool:
  """Whether a config value is of the kind that an annotation asks for; True where it cannot tell."""
  origin = typing.get_origin(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, one) for one in typing.get_args(hint))
  if origin is typing.Literal:
    return value in typing.get_args(hint)
  if hint in (int, float):
    numbers = (int,) if hint is int else (int, float)
    return isinstance(value, numbers) and not isinstance(value, bool)
  if hint in (bool, str, types.NoneType):
    return isinstance(value, hint)
  if hint is tuple or origin in (tuple, list, Sequence):
    return isinstance(value, (tuple, list)) and _elements_fit(value, typing.get_args(hint))
  return True


def _elements_fit(values, hints: tuple) -> bool:
  """`hints`: the arguments of tuple[float, float], tuple[float, ...] or Sequence[int]."""
  if len(hints) == 1 or hints[1:] == (...,):
    return all(fits(value, hints[0]) for value in values)
  return not hints or len(values) == len(hints) and all(map(fits, values, hints))


def _check_numbers(field: str, name: str, value) -> None:
  """Raises ConfigError for a number in `value` that is not finite, or where its name forbids it."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _check_numbers(f'{field}.{key}', key, inner)
  elif isinstance(value, (tuple, list)):
    for inner in value:
      _check_numbers(field, name, inner)
  elif isinstance(value, (int, float)) and not isinstance(value, bool):
    if isinstance(value, float) and not math.isfinite(value):
      raise ConfigError(f'{field} must be finite, got {value!r}')
    interval = INTERVALS.get(name)
    if interval is not None and not _inside(value, interval):
      raise ConfigError(f'{field} must be in {interval}, got {value!r}')


def _inside(value: float, interval: str) -> bool:
  """Whether a number lies in '[0, 1)'; a round bracket leaves its end out."""
  low, high = map(float, interval[1:-1].split(','))
  return (low < value or interval[0] == '[' and value == low) and (
    value < high or interval[-1] == ']' and value == high)


def _spelled(hint) -> str:
  """An annotation in words: "one of 'nsp', 'sop', None"."""
  if isinstance(hint, type) and not typing.get_args(hint):
    return 'None' if hint is types.NoneType else hint.__name__
  if typing.get_origin(hint) in (typing.Union, types.UnionType, typing.Literal):
    parts = typing.get_args(hint)
    words = [repr(part) if isinstance(part, str) else _spelled(part) for part in parts]
    return ('one of ' if typing.get_origin(hint) is typing.Literal else '') + (
      ', ' if typing.get_origin(hint) is typing.Literal else ' or ').join(words)
  return str(hint).replace('collections.abc.', '').replace('typing.', '')


def _nearest_literal(value, hint) -> str:
  words = [word for part in (hint, *typing.get_args(hint))
           if typing.get_origin(part) is typing.Literal for word in typing.get_args(part)]
  close = difflib.get_close_matches(str(value), [str(word) for word in words], n=1)
  return f'; did you mean {close[0]!r}?' if close else ''


def did_you_mean(word, choices) -> str:
  """The end of a message about an unknown word."""
  choices = [str(choice) for choice in choices]
  close = difflib.get_close_matches(str(word), choices, n=1)
  known = ', '.join(sorted(choices))
  return f'; did you mean {close[0]!r}? Known: {known}' if close else f'; known: {known}'


def plain(spec):
  """A ConfigDict as a dict of its own; lists (what JSON makes of tuples) as tuples."""
  if isinstance(spec, Mapping) or hasattr(spec, 'to_dict'):
    return {key: plain(value) for key, value in spec.items()}
  return tuple(map(plain, spec)) if isinstance(spec, (list, tuple)) else spec
