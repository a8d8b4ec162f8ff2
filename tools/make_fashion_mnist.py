"""Makes ssl_jax/data/embedded/fashion_mnist_12k/fashion_mnist_12k.npz, bit for bit.

The input is Debian's package `dataset-fashion-mnist` (apt-get install dataset-fashion-mnist):
  python tools/make_fashion_mnist.py --output=fashion_mnist_12k.npz
The first 1,000 images of each class of the training set and the first 200 of each class of the test
set are kept, in the order of the original files; no pixel is changed.
"""

import argparse
import gzip
import hashlib
import io
import pathlib
import zipfile

import numpy as np

FOLDER = pathlib.Path('/usr/share/datasets/fashion-mnist')
# Version 0.0~git20200523.55506a9-1 of the package.
INPUTS = {
  'train-images-idx3-ubyte.gz': 'b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7',
  'train-labels-idx1-ubyte.gz': '0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056',
  't10k-images-idx3-ubyte.gz': 'cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa',
  't10k-labels-idx1-ubyte.gz': '8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05',
}
PER_CLASS = {'train': 1000, 'test': 200}
PREFIX = {'train': 'train', 'test': 't10k'}


def read_idx(path: pathlib.Path) -> np.ndarray:
  """An array from a gzipped IDX file: 0 0 8 rank, big-endian sizes, then uint8 values."""
  data = path.read_bytes()
  digest = hashlib.sha256(data).hexdigest()
  if digest != INPUTS[path.name]:
    raise ValueError(f'{path} has SHA-256 {digest}, expected {INPUTS[path.name]}: '
                     'another version of the package?')
  data = gzip.decompress(data)
  rank = data[3]
  shape = np.frombuffer(data, '>u4', count=rank, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
  """Positions of the first `count` examples of each class, ascending."""
  return np.sort(np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)]))


def select(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """{train,test}_image uint8 [N, 28, 28] and {train,test}_label uint8 [N]."""
  arrays = {}
  for split, count in PER_CLASS.items():
    images = read_idx(folder / f'{PREFIX[split]}-images-idx3-ubyte.gz')
    labels = read_idx(folder / f'{PREFIX[split]}-labels-idx1-ubyte.gz')
    kept = first_per_class(labels, count)
    arrays[f'{split}_image'], arrays[f'{split}_label'] = images[kept], labels[kept]
  return arrays


def write_npz(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Like np.savez_compressed, at the highest level and without the date in the file."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, array in arrays.items():
      member = io.BytesIO()
      np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0),
                                allow_pickle=False)
      info = zipfile.ZipInfo(f'{name}.npy', date_time=(1980, 1, 1, 0, 0, 0))
      # Otherwise the machine's kind (Windows or not) is written beside the name.
      info.create_system = 3
      archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER, help='of the Debian package')
  parser.add_argument('--output', type=pathlib.Path, required=True)
  args = parser.parse_args()
  arrays = select(args.folder)
  write_npz(args.output, arrays)
  print(f'{hashlib.sha256(args.output.read_bytes()).hexdigest()}  {args.output}')
  for name, array in arrays.items():
    print(f'{hashlib.sha256(array.tobytes()).hexdigest()}  {name} {array.dtype} {array.shape}')


if __name__ == '__main__':
  main()
