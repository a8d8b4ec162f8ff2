"""`python -m ssl_jax embed`: representations of a run's images, or of yours, to a file."""

import pathlib

import numpy as np

from ssl_jax import build, runs
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.data.batches import in_order
from ssl_jax.data.sources import DataError

DESCRIPTION = '''Writes 'embedding' float32 [N, D] and every other field of the data but the image
(such as 'label') to a .npz or .safetensors file.'''
FORMATS = ('.npz', '.safetensors')


def run(argv: list[str]) -> int:
  parser = Parser('embed', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', help='a run')
  parser.add_argument('--output', metavar='FILE', help='.npz or .safetensors')
  parser.add_argument('--split', default='test', help="which split of the run's own data")
  parser.add_argument('--data', metavar='FILE', help="other images: .npz with uint8 [N, H, W, C] "
                      "under 'image', .npy, or a folder of .npy files")
  parser.add_argument('--step', type=int, help='which checkpoint; default the newest')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  args, _ = parser.read(argv)
  if not args.workdir or not args.output:
    parser.error('needs --workdir=FOLDER and --output=FILE')
  output = pathlib.Path(args.output).expanduser()
  if output.suffix not in FORMATS:
    parser.error(f'--output must end in {" or ".join(FORMATS)}, got {args.output!r}')
  use_compilation_cache(args.cache_dir)
  loaded = runs.load(args.workdir, step=args.step)
  source = _source(loaded.config, args)
  arrays = next(in_order(source, batch_size=len(source)))
  del arrays['weight']  # all are real
  if 'image' not in arrays:
    raise DataError(f"embed needs a field 'image', the data have {', '.join(arrays)}")
  try:
    embedding = loaded.embed(arrays.pop('image'))
  except (ValueError, TypeError) as error:  # such as colour images for a network of grey ones
    raise DataError(f'these images do not fit the network: {error}') from error
  output.parent.mkdir(parents=True, exist_ok=True)
  _write(output, dict(arrays, embedding=embedding))
  print(f'{len(embedding)} representations of {embedding.shape[1]} numbers (step {loaded.step}) '
        f'in {output}')
  return 0


def _source(config, args):
  if args.data is None:
    return build.source(config, args.split)
  other = config.copy_and_resolve_references()
  with other.unlocked(), other.ignore_type():
    other.data = dict(name='array_files', path=args.data)
  return build.source(other)


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  if path.suffix == '.npz':
    np.savez(path, **arrays)
    return
  from safetensors.numpy import save_file
  save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
