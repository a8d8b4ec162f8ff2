"""The papers' full configs, compiled for the slices they are for, on a machine without one.

  python -m benchmarks.full_scale [NAME ...]          (needs the extra [plan]: libtpu)

The real train step with views, optimizer and states, abstract data. Minutes each on two cores. HBM is
per device: arguments (parameters, optimizer and method state, the batch), and the temporaries of the
step.
"""

import os
import re
import sys
import time

import jax
import numpy as np
from jax.experimental import topologies

from ssl_jax import build
from ssl_jax.cli.options import load_config

GIB = 1 << 30
IMAGENET = 1_281_167
CAPACITY = {'v3': 16, 'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32}  # GiB of HBM of a device

# name: (config, slice, how its devices are arranged, overrides)
CASES = {
  'simclr': ('simclr_resnet50_imagenet.py', 'v5e:8x16', {'data': -1}),
  'simclr_one_chip': ('simclr_resnet50_imagenet.py:one_chip', 'v5e:1x1', {'data': -1}),
  'moco_v3': ('moco_v3_vit_b16_imagenet.py', 'v5e:16x16', {'data': -1}),
  'swav': ('swav_resnet50_imagenet.py', 'v5e:8x16', {'data': -1}),
  'dino': ('dino_vit_s16_imagenet.py', 'v5e:4x8', {'data': -1}),
  'clip': ('clip_vit_b32.py', 'v5e:16x16', {'data': -1}),
}


def devices(topology: str):
  bounds = dict(chips_per_host_bounds=[1, 1, 1]) if topology.endswith('1x1') else {}
  found = topologies.get_topology_desc(platform='tpu', topology_name=topology, **bounds)
  return list(np.array(found.devices).flat)


def shape_of(config) -> build.Shape:
  """Of data as a host hands them over: crops where it cuts them, else square images, and tokens."""
  views = build.image_views(config)
  size = config.views.get('size', 224)
  image = {'image': jax.ShapeDtypeStruct((256, 256, 3), np.uint8)}
  if views.crops and config.data.get('crop') == 'host':
    image = {name: jax.ShapeDtypeStruct((len(wishes), *[wishes[0]['size']] * 2, 3), np.uint8)
             for name, wishes in views.crops.items()}
  if config.method.name in ('clip', 'siglip'):
    length = config.data.get('length', 77)
    image = {'image': jax.ShapeDtypeStruct((size, size, 3), np.uint8),
             'tokens': jax.ShapeDtypeStruct((length,), np.int32),
             'segments': jax.ShapeDtypeStruct((length,), np.int32)}
  return build.Shape(IMAGENET, image | {'label': jax.ShapeDtypeStruct((), np.int32)})


def compiled(config_name: str, topology: str, mesh: dict):
  config = load_config(f'configs/{config_name}')
  with config.ignore_type():
    config.mesh = mesh
  experiment = build.abstract(config, shape_of(config), devices(topology))
  program = experiment.program(config)
  return config, program.step.lower(program.state, program.batch).compile()


def main(argv: list[str]) -> None:
  print('| config | slice | global batch | arguments | temporaries | of | TFLOP | GB accessed '
        '| collectives | compiled in |')
  print('|' + '---|' * 10)
  for name in argv or CASES:
    config_name, topology, mesh = CASES[name]
    began = time.monotonic()
    config, program = compiled(config_name, topology, mesh)
    memory, cost, text = program.memory_analysis(), program.cost_analysis(), program.as_text()
    names = re.findall(r' (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
                       r'(?:-start)?\(', text)
    counts = ', '.join(f'{names.count(kind)} {kind}' for kind in sorted(set(names)))
    print(f'| {config_name} | {topology} | {config.batch_size:,} '
          f'| {memory.argument_size_in_bytes / GIB:.2f} GiB '
          f'| {memory.temp_size_in_bytes / GIB:.2f} GiB '
          f'| {CAPACITY[topology.split(":")[0]]} GiB | {cost["flops"] / 1e12:.2f} '
          f'| {cost["bytes accessed"] / 1e9:.1f} | {counts} | {time.monotonic() - began:.0f} s |',
          flush=True)


if __name__ == '__main__':
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  main(sys.argv[1:])
