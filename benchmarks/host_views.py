"""What the host does for a batch of photographs: images per second and core, beside torchvision.

  python -m benchmarks.host_views [--torch-python=PATH] [--images=64] [--rounds=7]

Photographs are synthetic: JPEGs of 500 x 375 pixels at quality 90 and with 4:2:0 chroma, smooth areas,
edges and grain, to weigh what ImageNet's do (printed). Everything runs in one thread of one
process; processor seconds are counted, the best of several rounds, so that neighbours matter less.
The other interpreter, if given, needs torch and torchvision.
"""

import argparse
import io
import json
import subprocess
import sys
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SHAPE = 500, 375


def photograph(seed: int) -> bytes:
  """A JPEG with the statistics that matter for decoding: edges, smooth shading, grain."""
  rng = np.random.default_rng(seed)
  image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(SHAPE, 3)
  draw = ImageDraw.Draw(image)
  for _ in range(40):
    corner, extent = rng.integers(0, 480, 2), rng.integers(5, 120, 2)
    box = [*corner.tolist(), *(corner + extent).tolist()]
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
  image = np.asarray(image.filter(ImageFilter.GaussianBlur(0.7)), np.float32)
  grain = rng.normal(0, 6, image.shape[:2])[..., None]
  out = io.BytesIO()
  Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8)).save(out, 'JPEG', quality=90)
  return out.getvalue()


def per_second(work, photographs: list[bytes], rounds: int) -> float:
  """Images per processor second: the best round."""
  best = 0.0
  for _ in range(rounds):
    began = time.process_time()
    for data in photographs:
      work(data)
    best = max(best, len(photographs) / (time.process_time() - began))
  return best


def ours() -> dict:
  from ssl_jax.data.images import Crop, centre, random_crops
  crop = Crop(224, (0.08, 1.0), (3 / 4, 4 / 3))
  rngs = [np.random.default_rng(view) for view in range(2)]
  return {
    'decode': lambda data: np.array(Image.open(io.BytesIO(data)).convert('RGB')),
    'decode, central square of 256': lambda data: centre(data, size=256, channels=3),
    'decode, one crop of 224': lambda data: random_crops(
      data, [crop], rngs=rngs[:1], channels=3),
    'decode, two crops of 224 (all the host does for two SimCLR views)': lambda data: random_crops(
      data, [crop] * 2, rngs=rngs, channels=3),
  }


def torchvisions() -> dict:
  import torch
  from torchvision.transforms import v2
  torch.set_num_threads(1)
  crop = v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
  colour = [v2.RandomHorizontalFlip(), v2.RandomApply([v2.ColorJitter(.8, .8, .8, .2)], .8),
            v2.RandomGrayscale(.2), v2.RandomApply([v2.GaussianBlur(23, (.1, 2.))], .5)]
  to_tensor = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
  full = v2.Compose([crop, *colour, *to_tensor])
  opened = lambda data: Image.open(io.BytesIO(data)).convert('RGB')

  def two(transform):
    def work(data):
      image = opened(data)
      return transform(image), transform(image)
    return work

  return {'decode, two crops of 224 (torchvision v2)': two(v2.Compose([crop, v2.PILToTensor()])),
          'decode, two SimCLR views (torchvision v2)': two(full)}


def measure(works: dict, images: int, rounds: int) -> dict[str, float]:
  photographs = [photograph(seed) for seed in range(images)]
  return {'kilobytes': float(np.mean([len(data) for data in photographs]) / 1000),
          **{name: per_second(work, photographs, rounds) for name, work in works.items()}}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--torch-python', help='an interpreter with torchvision')
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--only-torchvision', action='store_true', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.only_torchvision:
    print(json.dumps(measure(torchvisions(), args.images, args.rounds)))
    return
  rows = measure(ours(), args.images, args.rounds)
  print(f'{args.images} JPEGs of {SHAPE[0]} x {SHAPE[1]}, {rows.pop("kilobytes"):.0f} kB each')
  if args.torch_python:
    command = [args.torch_python, '-m', 'benchmarks.host_views', '--only-torchvision',
               f'--images={args.images}', f'--rounds={args.rounds}']
    other = subprocess.run(command, check=True, capture_output=True, text=True)
    rows |= json.loads(other.stdout)
    rows.pop('kilobytes')
  for name, value in rows.items():
    print(f'{value:8.0f} images/s per core  {name}')


if __name__ == '__main__':
  sys.exit(main())
