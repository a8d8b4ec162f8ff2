"""Contrastive losses at pod scale, compiled for TPU slices on a machine without one.

  python -m benchmarks.contrastive_memory [CLIP-1048576-ring ...]      (needs the extra [plan]: libtpu)

Value and gradient in bfloat16. HBM temporaries and VMEM are per device, of the optimised program; FLOPs
are those of the formula's products, loops counted with their trips, beside one forward product.
Arguments choose cases, by parts of their names: loss-rows-implementation.
"""

import re
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssl_jax.losses.contrastive import clip, nt_xent
from ssl_jax.parallel import over

MIB = 1 << 20


def mesh_of(topology: str, shape: dict[str, int]) -> Mesh:
  devices = np.array(topologies.get_topology_desc(platform='tpu', topology_name=topology).devices)
  return Mesh(devices.reshape(tuple(shape.values())), tuple(shape),
              axis_types=(AxisType.Auto,) * len(shape))


def compiled(loss, rows: int, dim: int, mesh: Mesh, learnable: bool):
  """The compiled value and gradient of `loss(a, b[, scale])` of `rows` rows of either."""
  spec = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
  x = jax.ShapeDtypeStruct((rows, dim), jnp.bfloat16, sharding=spec)
  scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))

  def with_scale(a, b, scale, *, axis_name):
    return loss(a, b, scale=scale, axis_name=axis_name)

  axes = tuple(mesh.axis_names) if len(mesh.axis_names) > 1 else mesh.axis_names[0]
  if learnable:
    run, args = over(mesh, axes)(with_scale, shared=1), (x, x, scale)
  else:
    run, args = over(mesh, axes)(loss), (x, x)
  grad = jax.jit(jax.value_and_grad(run, argnums=tuple(range(len(args)))))
  return grad.lower(*args).compile()


def vmem(text: str) -> int:
  """Bytes of the arrays that the program places in VMEM, memory space S(1); each shape once."""
  widths = dict(bf16=2, f32=4, s32=4, u32=4, pred=1)
  shapes = set(re.findall(r'(bf16|f32|s32|u32|pred)\[([\d,]+)\]\{[^}]*S\(1\)\}', text))
  return sum(widths[kind] * int(np.prod([int(n) for n in dims.split(',')])) for kind, dims in shapes)


def collectives(text: str) -> str:
  names = re.findall(r' (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)'
                     r'(?:-start)?\(', text)
  return ', '.join(f'{names.count(name)} {name}' for name in sorted(set(names)))


CASES = [
  # loss, topology, mesh, rows of each view or tower, D, implementation
  ('NT-Xent', 'v5e:16x16', {'data': 256}, 1 << 19, 512, 'ring'),
  ('NT-Xent', 'v5e:16x16', {'data': 256}, 1 << 15, 512, 'ring'),
  ('NT-Xent', 'v5e:16x16', {'data': 256}, 1 << 15, 512, 'chunked'),
  ('NT-Xent', 'v5e:16x16', {'data': 256}, 1 << 19, 512, 'chunked'),
  ('NT-Xent', 'v5e:16x16', {'data': 16, 'fsdp': 16}, 1 << 19, 512, 'grid'),
  ('NT-Xent', 'v5e:16x16', {'data': 256}, 1 << 19, 512, 'gather'),
  ('CLIP', 'v5e:4x8', {'data': 32}, 1 << 15, 768, 'ring'),
  ('CLIP', 'v5e:4x8', {'data': 32}, 1 << 20, 768, 'ring'),
  ('CLIP', 'v5e:4x8', {'data': 32}, 1 << 15, 768, 'gather'),
  ('CLIP', 'v5e:4x8', {'data': 4, 'fsdp': 8}, 1 << 15, 768, 'grid'),
]


def main(argv: list[str]) -> None:
  print('| loss | rows of a view | D | slice | implementation | HBM temporaries | arrays in VMEM | '
        'arguments and results | collectives in the program | compiled in |')
  print('|' + '---|' * 10)
  for name, topology, shape, rows, dim, implementation in CASES:
    if not any(part in f'{name}-{rows}-{implementation}' for part in argv or ['']):
      continue
    mesh = mesh_of(topology, shape)
    loss = (partial(nt_xent, temperature=.1, implementation=implementation) if name == 'NT-Xent'
            else partial(clip, implementation=implementation))
    began = time.monotonic()
    try:
      program = compiled(loss, rows, dim, mesh, name == 'CLIP')
    except jax.errors.JaxRuntimeError as error:
      found = re.search(r'Used ([\d.]+\w) of ([\d.]+\w)', str(error))
      print(f'| {name} | {rows:,} | {dim} | {topology} | {implementation} | does not fit'
            + (f': {found[1]} of {found[2]}' if found else '') + ' | | | | |', flush=True)
      continue
    memory, text = program.memory_analysis(), program.as_text()
    print(f'| {name} | {rows:,} | {dim} | {topology} | {implementation} '
          f'| {memory.temp_size_in_bytes / MIB:.2f} MiB | {vmem(text) / MIB:.1f} MiB '
          f'| {(memory.argument_size_in_bytes + memory.output_size_in_bytes) / MIB:.1f} MiB '
          f'| {collectives(text)} | {time.monotonic() - began:.0f} s |', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
