"""A section of a config is a function call: the function's signature is its schema.

The section's `name` is looked up among choices (or is a dotted path to a module of yours with a
`build` function), the other keys are its keyword arguments. An unknown key, a missing key or a wrong
type is a ConfigError.
"""

import difflib
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ssl_jax.data.sources import DataError


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
      raise ConfigError(f'config.{section}.{key} must be {_spelled(hint)}, got {value!r}')
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
  if hint is tuple or origin in (tuple, list):
    return isinstance(value, (tuple, list))
  return True


def _spelled(hint) -> str:
  return getattr(hint, '__name__', None) if isinstance(hint, type) else str(hint)


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
