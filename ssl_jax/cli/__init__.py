"""`python -m ssl_jax COMMAND`: arguments in, exit codes out.

Exit codes: 0 done, 42 start me again (interrupted, state saved), 1 bug, 2 configuration,
3 data or checkpoint, 4 numerics. A user's mistake is answered in words, never with a traceback.
"""

import argparse
import importlib
import re
import sys
import traceback

COMMANDS = {
  'train': 'pretrain what a config describes; the same command again resumes',
  'evaluate': 'what the representation of a run is worth: kNN, few labels, linear probe',
  'embed': 'write representations to .npz or .safetensors',
  'finetune': 'train a pretrained text encoder on a task: GLUE, SQuAD, CoNLL, WordNet, your own',
  'sweep': 'several seeds and small grids in one command that resumes; mean and spread',
  'compare': 'runs and sweeps beside each other, and how their configs differ',
  'report': 'one page about a run: curves, evaluation, embedding, neighbours, views',
  'pack': 'a folder of images or a TFDS dataset as shards that are read fast',
  'tokenizer': 'a vocabulary learned from text; text as shards of tokens that are read fast',
  'plan': 'memory, work and least time of a config on a machine that is not here',
  'doctor': 'versions, devices, data and disk: is this machine ready?',
}
AGAIN, CONFIGURATION, DATA, NUMERICS = 42, 2, 3, 4


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  for stream in (sys.stdout, sys.stderr):  # one that knows no ± must not end a command
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='backslashreplace')
  parser = argparse.ArgumentParser(
    prog='python -m ssl_jax', description='Self-supervised pretraining in JAX.',
    epilog='`python -m ssl_jax COMMAND --help` tells more.', allow_abbrev=False)
  commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
  for name, text in COMMANDS.items():
    commands.add_parser(name, help=text, add_help=False)
  command = parser.parse_known_args(argv[:1])[0].command
  try:
    importlib.import_module('ssl_jax.cli.devices').quiet_start()
    # Imported only now: `--help` and a typo should not wait for JAX.
    module = importlib.import_module(f'ssl_jax.cli.{command}')
    importlib.import_module('ssl_jax.data.unreadable').forget()
    return module.run(argv[1:])
  except Exception as error:
    code, lines = explain(error)
    if code == 1:
      raise
    print('\n'.join(lines), file=sys.stderr)
    return code


# Packages that pip knows by another name than Python's.
PIP = {'PIL': 'pillow', 'array_record': 'array-record', 'orbax': 'orbax-checkpoint',
       'sklearn': 'scikit-learn', 'tensorflow_datasets': 'tensorflow-datasets',
       'ml_collections': 'ml-collections', 'yaml': 'pyyaml'}


def explain(error: Exception) -> tuple[int, list[str]]:
  """The exit code of an error and what to tell the user; 1 is a bug, which deserves a traceback."""
  from ssl_jax.data.sources import DataError
  from ssl_jax.schema import ConfigError
  from ssl_jax.train.checkpoint import CheckpointError
  from ssl_jax.train.loop import NonFiniteError
  kinds = {ConfigError: CONFIGURATION, DataError: DATA, CheckpointError: DATA,
           NonFiniteError: NUMERICS}
  if isinstance(error, FloatingPointError):  # --debug_nans: the traceback is what was asked for
    traceback.print_exception(error)
    return NUMERICS, ['error (numerics): stopped at the operation above']
  code = next((code for kind, code in kinds.items() if isinstance(error, kind)), 1)
  if code == 1 and isinstance(error, OSError) and error.filename is not None:
    code = DATA
  if code == 1 and str(error).startswith('Unable to initialize backend'):
    from ssl_jax.cli.devices import no_backend
    return CONFIGURATION, [f'error (configuration): {no_backend(error)}']
  if code == 1 and isinstance(error, ImportError) and (name := _package(error)):
    return CONFIGURATION, [f'error (configuration): this needs the package {name}, which is not '
                           f'installed: pip install {name}']
  what = {CONFIGURATION: 'configuration', DATA: 'data or checkpoint', NUMERICS: 'numerics'}
  return code, [f'error ({what.get(code, "bug")}): {error}']


def _package(error: ImportError) -> str | None:
  """What pip calls the package whose absence an error tells of; None where our own code is at fault."""
  told = re.match(r'(?:Please i|I)nstall (\w+) to access', str(error))
  if told:  # fsspec about the file system of a remote path
    return told[1]
  top = (error.name or '').partition('.')[0]
  if not isinstance(error, ModuleNotFoundError) or top in ('', 'ssl_jax', *sys.stdlib_module_names):
    return None
  return PIP.get(top, top)
