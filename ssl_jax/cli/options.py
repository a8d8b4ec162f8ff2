"""Config files, `--config.key=value` overrides, and the help text that lists every field."""

import argparse
import ast
import difflib
import importlib.util
import pathlib
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.build import complete
from ssl_jax.schema import ConfigError


def load_config(spec: str) -> ConfigDict:
  """The config of 'path.py' or 'path.py:variant'.

  Raises:
    ConfigError: no such file, no get_config in it, or it refuses the variant.
  """
  name, _, variant = spec.partition(':')
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    near = sorted(str(p) for p in path.parent.glob('*.py')) if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), near, n=1)
    hint = f'; did you mean {close[0]}?' if close else f'; there are: {", ".join(near) or "none"}'
    raise ConfigError(f'no config file {name}{hint}')
  module_spec = importlib.util.spec_from_file_location(f'ssl_jax_config_{path.stem}', path)
  module = importlib.util.module_from_spec(module_spec)
  try:
    module_spec.loader.exec_module(module)
  except Exception as error:  # whatever is in the user's file
    raise ConfigError(f'{name} cannot be loaded: {type(error).__name__}: {error}') from error
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{name} has no function get_config(arg) that returns a ConfigDict')
  try:
    return complete(module.get_config(variant))
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(f'{spec}: get_config({variant!r}) failed: {type(error).__name__}: {error}'
                      ) from error


def override(config: ConfigDict, arguments: list[str]) -> ConfigDict:
  """Applies ['--config.a.b=1', '--config.c', '2', ...] to a copy of `config`.

  Raises:
    ConfigError: an unknown field, or a value of the wrong type.
  """
  config = config.copy_and_resolve_references()
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    key, equals, text = argument.partition('=')
    if not equals:
      if not rest:
        raise ConfigError(f'{key} needs a value: {key}=...')
      text = rest.pop(0)
    _set(config, key.removeprefix('--config.'), text)
  return complete(config)  # A section that was replaced by a dict may lack fields.


def _set(config: ConfigDict, key: str, text: str) -> None:
  *parents, leaf = key.split('.')
  section = config
  for name in parents:
    if isinstance(section, ConfigDict) and 'name' in section and section.get(name) is None:
      with section.unlocked(), section.ignore_type():
        section[name] = ConfigDict()  # an argument that is itself a dict, such as batch_norm
    section = section.get(name) if isinstance(section, ConfigDict) else None
  # A field that is not in the file may be an argument of what the section names, or a mesh axis;
  # build.py knows.
  is_open = isinstance(section, ConfigDict) and (
    'name' in section or parents == ['mesh'] or len(parents) > 1)
  if not isinstance(section, ConfigDict) or not (leaf in section or is_open):
    raise ConfigError(f'config.{key} is unknown{_near(key, config)}')
  with section.unlocked(), section.ignore_type():
    section[leaf] = _parse(key, text, section[leaf]) if leaf in section else _literal(text)


def _parse(key: str, text: str, old: Any) -> Any:
  """`text` as a value of the type that `old` has; None may become anything, and anything 'none'."""
  if isinstance(old, str):
    return None if text.lower() == 'none' else text
  value = _literal(text)
  if isinstance(old, ConfigDict):
    if isinstance(value, dict):
      return ConfigDict(value)
    raise ConfigError(f'config.{key} is a section; set its fields '
                      f'({", ".join(f"config.{key}.{name}" for name in old)}) or give a dict')
  kind = type(old)
  if old is None or value is None or isinstance(value, kind) and not (
      kind is int and isinstance(value, bool)):
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind in (tuple, list) and isinstance(value, (tuple, list)):
    return kind(value)
  raise ConfigError(f'config.{key} must be {kind.__name__} (it is {old!r}), got {text!r}')


def _literal(text: str) -> Any:
  words = {'true': True, 'false': False, 'none': None}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def fields(config: ConfigDict, prefix: str = '') -> list[tuple[str, Any]]:
  """[('batch_size', 256), ('data.name', ...), ...]."""
  found = []
  for name in config:
    value = config[name]
    if isinstance(value, ConfigDict):
      found += fields(value, f'{prefix}{name}.')
    else:
      found.append((prefix + name, value))
  return found


def _near(key: str, config: ConfigDict) -> str:
  names = [name for name, _ in fields(config)]
  close = difflib.get_close_matches(key, names, n=1)
  if close:
    return f'; did you mean config.{close[0]}?'
  return f'; there are {", ".join(names)}'


def help_text(config: ConfigDict) -> str:
  """Every field of the config with its value, and the defaults that the config leaves alone."""
  from ssl_jax import build
  lines = ['fields of this config (set with --config.FIELD=VALUE):']
  lines += [f'  --config.{name}={value!r}' for name, value in fields(config)]
  defaults = build.defaults(config)
  if defaults:
    lines += ['', 'defaults of what it names, which can be set too:']
    lines += [f'  --config.{name}={value!r}' for name, value in defaults]
  if config.views.get('name') == 'masks':
    from ssl_jax.views import masks
    lines += ['', 'masks:', masks.describe(config.views.get('profile', masks.DEFAULT))]
  return '\n'.join(lines)


class Parser(argparse.ArgumentParser):
  """Options of a command; knows --config and overrides where `with_config`."""

  def __init__(self, command: str, description: str, *, with_config: bool = False):
    super().__init__(prog=f'python -m ssl_jax {command}', description=description,
                     allow_abbrev=False, add_help=False)
    self.add_argument('-h', '--help', action='store_true', help='this text; with --config also '
                      'every field of the config')
    self._with_config = with_config
    if with_config:
      self.add_argument('--config', metavar='FILE.py[:variant]', help='what to train; fields are '
                        'changed by --config.FIELD=VALUE')

  def read(self, argv: list[str]) -> tuple[argparse.Namespace, ConfigDict | None]:
    """Parsed options and the config, overrides applied. `--help` prints and exits 0."""
    args, rest = self.parse_known_args(argv)
    config = None
    for i, word in enumerate(rest):
      is_value = i > 0 and rest[i - 1].startswith('--config.') and '=' not in rest[i - 1]
      if not (self._with_config and (word.startswith('--config.') or is_value)):
        self.error(f'unknown argument {word!r}{self._suggest(word)}')
    if self._with_config and args.config is not None:
      config = override(load_config(args.config), rest)
    if args.help:
      self.print_help()
      if config is not None:
        print('\n' + help_text(config))
      self.exit(0)
    return args, config

  def _suggest(self, word: str) -> str:
    options = [name for action in self._actions for name in action.option_strings]
    close = difflib.get_close_matches(word.partition('=')[0], options, n=1)
    return f'; did you mean {close[0]}?' if close else ''
