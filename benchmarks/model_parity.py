"""Our networks beside torchvision's and timm's, given the same weights: parameters and outputs.

  python benchmarks/model_parity.py [--torch-python PYTHON] [--model NAME ...]

torch, torchvision and timm may live in another environment, whose interpreter --torch-python names.
Its process writes random weights (BatchNorm with the statistics of one random batch), images and
the representation; ours reads them, and both compute in float64. Exits 1 where parameter counts
differ or where the representation differs by more than 1e-9 of its largest value.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np

RESNETS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')
VITS = ('vit_tiny', 'vit_small', 'vit_base', 'vit_large')
IMAGES, SIDE, SEED, TOLERANCE = 2, 224, 0, 1e-9


# --- theirs ---------------------------------------------------------------------------------------


def write_reference(name: str, path: str) -> None:
  """Weights, images [B, H, W, C] and representation [B, D] of the torch model, as .npz."""
  import torch

  torch.manual_seed(SEED)
  model = _torch_model(name)
  with torch.no_grad():
    for parameter in model.parameters():  # no constant initial value may hide a difference
      parameter.add_(.02 * torch.randn_like(parameter))
    model = model.double().train()
    for module in model.modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.momentum = 1.
    images = torch.randn(IMAGES, 3, SIDE, SIDE, dtype=torch.float64)
    model(images)
    weights = {key: value for key, value in model.state_dict().items() if value.ndim}
    output = model.eval()(images)
  arrays = {f'weights/{key}': value.numpy() for key, value in weights.items()}
  np.savez(path, images=images.numpy().transpose(0, 2, 3, 1), output=output.numpy(),
           parameters=sum(p.numel() for p in model.parameters()), **arrays)


def _torch_model(name: str):
  import torch

  if name in RESNETS:
    import torchvision
    model = getattr(torchvision.models, name)()
    model.fc = torch.nn.Identity()
    return model
  import timm
  return timm.create_model(f'{name}_patch16_224', pretrained=False, num_classes=0)


# --- ours -----------------------------------------------------------------------------------------


def our_name(key: str) -> str:
  """The module in our variables that holds an array of torchvision's ResNet or timm's ViT."""
  if key in ('cls_token', 'pos_embed'):
    return {'cls_token': 'token', 'pos_embed': 'position'}[key]
  module, _ = key.rsplit('.', 1)
  module = re.sub(r'^(conv|bn)1$', r'stem_\g<1>', module)
  module = re.sub(r'^layer(\d)\.(\d+)\.', lambda m: f'stage{m[1]}_block{int(m[2]) + 1}/', module)
  module = re.sub(r'^blocks\.(\d+)\.', lambda m: f'block{int(m[1]) + 1}/', module)
  module = module.replace('downsample.0', 'shortcut_conv').replace('downsample.1', 'shortcut_norm')
  module = re.sub(r'(^|/|_)bn', r'\g<1>norm', module)
  return re.sub(r'^patch_embed\.proj$', 'patch', re.sub(r'(attn|mlp)\.', '', module))


def from_torch(weights: dict[str, np.ndarray]) -> tuple[dict, dict]:
  """(params, batch_stats) of our network from a torch state dict; kernels transposed."""
  params, stats = {}, {}
  for key, value in weights.items():
    path, kind = our_name(key), key.rsplit('.', 1)[-1]
    if kind in ('cls_token', 'pos_embed'):
      params[path] = value[0]
      continue
    if kind == 'weight':
      kind = 'scale' if value.ndim == 1 else 'kernel'
      value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    tree = stats if kind.startswith('running') else params
    for part in path.split('/'):
      tree = tree.setdefault(part, {})
    tree[kind.removeprefix('running_')] = value
  return params, stats


def compare(name: str, path: str) -> tuple[int, int, float]:
  """(parameters of theirs, of ours, largest difference relative to the largest value)."""
  import jax

  from ssl_jax.models import resnet, vit
  from ssl_jax.models.network import from_linen
  from ssl_jax.types import Mode

  with np.load(path) as file:
    arrays = dict(file)
  params, stats = from_torch({key.removeprefix('weights/'): value for key, value in arrays.items()
                              if key.startswith('weights/')})
  state = {'batch_stats': stats} if stats else {}
  with jax.enable_x64(True):
    net = from_linen(getattr(resnet if name in RESNETS else vit, name)())
    expected = jax.eval_shape(net.init, jax.random.key(0), arrays['images'])
    ours = sum(leaf.size for leaf in jax.tree.leaves(expected[0]))
    if _shapes((params, state)) != _shapes(expected):
      return int(arrays['parameters']), ours, float('nan')
    output, _ = jax.jit(net.apply, static_argnames='mode')(
      params, state, arrays['images'], mode=Mode())
  difference = np.abs(np.asarray(output) - arrays['output']).max() / np.abs(arrays['output']).max()
  return int(arrays['parameters']), ours, float(difference)


def _shapes(tree) -> dict:
  import jax

  return {jax.tree_util.keystr(path): leaf.shape
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--torch-python', default=sys.executable)
  parser.add_argument('--model', nargs='*', choices=RESNETS + VITS, default=RESNETS + VITS)
  parser.add_argument('--write', nargs=2, help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.write:
    write_reference(*options.write)
    return 0
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
  wrong = False
  print(f'{"model":<12}{"theirs":>13}{"ours":>13}{"difference":>12}')
  for name in options.model:
    with tempfile.TemporaryDirectory() as folder:
      path = f'{folder}/reference.npz'
      subprocess.run([options.torch_python, __file__, '--write', name, path], check=True)
      theirs, ours, difference = compare(name, path)
    print(f'{name:<12}{theirs:>13,}{ours:>13,}{difference:>12.1e}', flush=True)
    wrong |= theirs != ours or not difference <= TOLERANCE
  return int(wrong)


if __name__ == '__main__':
  sys.exit(main())
