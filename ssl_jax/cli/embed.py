"""`python -m ssl_jax embed`: representations of a run's images or texts, or of yours, to a file."""

import pathlib

import numpy as np

from ssl_jax import build, runs
from ssl_jax.cli import hosts
from ssl_jax.cli.options import Parser
from ssl_jax.cli.setup import use_compilation_cache
from ssl_jax.cli.text_evaluation import embed_documents, is_text
from ssl_jax.data.batches import in_order
from ssl_jax.data.corpora import text_files
from ssl_jax.data.sources import DataError
from ssl_jax.types import TEXT_INPUTS

DESCRIPTION = '''Writes 'embedding' float32 [N, D] and every other field of the data but the image or
tokens (such as 'label'; 'id', the number of the example; in .npz 'name', the path of its file) to a
.npz or .safetensors file. Images that cannot be read are left out.'''
FORMATS = ('.npz', '.safetensors')
ROWS = 256  # at a time; as many as `Run.embed` computes at once


def run(argv: list[str]) -> int:
  parser = Parser('embed', DESCRIPTION)
  parser.add_argument('--workdir', metavar='FOLDER', help='a run')
  parser.add_argument('--output', metavar='FILE', help='.npz or .safetensors')
  parser.add_argument('--split', default='test', help="which split of the run's own data")
  parser.add_argument('--data', metavar='FILE', help='other images: a folder of JPEG, PNG, ... '
                      "files; .npz with uint8 [N, H, W, C] under 'image', .npy, or a folder of .npy "
                      'files; other texts: a file with a text per line')
  parser.add_argument('--step', type=int, help='which checkpoint; default the newest')
  parser.add_argument('--cache_dir', metavar='FOLDER', help='compilation cache')
  args, _ = parser.read(argv)
  hosts.note_alone()
  if not args.workdir or not args.output:
    parser.error('needs --workdir=FOLDER and --output=FILE')
  output = pathlib.Path(args.output).expanduser()
  if output.suffix not in FORMATS:
    parser.error(f'--output must end in {" or ".join(FORMATS)}, got {args.output!r}')
  use_compilation_cache(args.cache_dir)
  loaded = runs.load(args.workdir, step=args.step)
  if is_text(loaded):
    return _finish(loaded, _texts(loaded, args), output)
  source = _source(loaded, args)
  try:
    arrays = _embedded(loaded, source)
  except (TypeError, ValueError) as error:  # such as colour images for a network of grey ones
    if isinstance(error, DataError):
      raise
    raise DataError(f'these images do not fit the network: {error}') from error
  if output.suffix == '.npz' and hasattr(source, 'name'):
    arrays['name'] = np.array([source.name(int(i)) for i in arrays['id']])
  return _finish(loaded, arrays, output)


def _finish(loaded: runs.Run, arrays: dict[str, np.ndarray], output: pathlib.Path) -> int:
  output.parent.mkdir(parents=True, exist_ok=True)
  _write(output, arrays)
  count, width = arrays['embedding'].shape
  print(f'{count} representations of {width} numbers (step {loaded.step}) in {output}')
  return 0


def _texts(loaded: runs.Run, args) -> dict[str, np.ndarray]:
  """Every document of a split, or every line of a file."""
  if args.data is not None:
    corpus = text_files(path=args.data)
    texts = [' '.join(corpus[i].sentences) for i in range(len(corpus))]
    return dict(embedding=loaded.embed(texts), id=np.arange(len(texts), dtype=np.uint32))
  source = build.source(loaded.config, args.split)
  rows = np.arange(len(source))
  found = dict(embedding=embed_documents(loaded, loaded.params, loaded.state, source, rows),
               id=rows.astype(np.uint32))
  return found if source.labels is None else dict(found, label=source.labels)


def _embedded(loaded: runs.Run, source) -> dict[str, np.ndarray]:
  """Every readable example; a batch of images at a time is in memory."""
  pieces = []
  for batch in in_order(source, batch_size=min(ROWS, len(source)), workers=loaded.config.workers):
    if 'image' not in batch:
      raise DataError(f"embed needs a field 'image', the data have {', '.join(batch)}")
    readable = batch.pop('weight') > 0
    fields = {name: x[readable] for name, x in batch.items() if name not in TEXT_INPUTS}
    if readable.any():
      pieces.append(fields | {'embedding': loaded.embed(fields.pop('image'))})
  return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _source(loaded: runs.Run, args):
  config = loaded.config
  if args.data is None:
    return build.source(config, args.split)
  folder = pathlib.Path(args.data).expanduser()
  if folder.is_dir() and not any(folder.glob('*.npy')):
    fields = loaded.experiment.batch
    channels = (fields['image'] if 'image' in fields else fields['crops']).shape[-1]
    size = fields['image'].shape[1] if 'image' in fields else config.data.get('size', 256)
    data = dict(name='image_folder', path=args.data, size=size, channels=channels, crop='device')
  else:
    data = dict(name='array_files', path=args.data)
  other = config.copy_and_resolve_references()
  with other.unlocked(), other.ignore_type():
    other.data = data
  return build.source(other)


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  if path.suffix == '.npz':
    np.savez(path, **arrays)
    return
  from safetensors.numpy import save_file
  save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)
