"""NT-Xent, value and gradient on CPU: our implementations, plain JAX, and lightly's in PyTorch.

  python -m benchmarks.contrastive [--torch-python PYTHON] [--sizes 1024 2048 ...] [--dim 128]

Each contestant and size is a process of its own; the best of several turns, because a shared machine is
noisy, and the largest memory it held (its libraries included, some 200 to 400 MB). Plain JAX is z @ z.T
with the whole matrix of logits. PyTorch may live in another environment, whose interpreter
--torch-python names. `over` is a process that passed the limit of 4 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

LIMIT = 4 << 30
SIZES = (1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15)
OURS = ('chunked', 'gather', 'plain')


def jax_loss(name: str):
  import jax
  import jax.numpy as jnp

  from ssl_jax.losses.contrastive import nt_xent

  def plain(z1, z2):
    z = jnp.concatenate([z1, z2])
    z = z / jnp.linalg.norm(z, axis=1, keepdims=True)
    logits = z @ z.T / .1
    positives = jnp.concatenate([jnp.diag(logits, len(z1)), jnp.diag(logits, -len(z1))])
    logits = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, logits)
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - positives)

  if name == 'plain':
    return plain
  return lambda z1, z2: nt_xent(z1, z2, temperature=.1, implementation=name)


def run_jax(name: str, rows: int, dim: int):
  import jax

  keys = jax.random.split(jax.random.key(0))
  z = [jax.random.normal(key, (rows, dim)) for key in keys]
  step = jax.jit(jax.value_and_grad(jax_loss(name), argnums=(0, 1)))
  return lambda: float(jax.block_until_ready(step(*z))[0])


def run_torch(rows: int, dim: int):
  import torch
  from lightly.loss import NTXentLoss

  loss = NTXentLoss(temperature=.1)
  z = [torch.randn(rows, dim, requires_grad=True) for _ in range(2)]

  def step():
    value = loss(*z)
    torch.autograd.grad(value, z)
    return float(value.detach())

  return step


def contestant(name: str, rows: int, dim: int) -> None:
  """Prints {'seconds', 'bytes', 'loss'} of one contestant in this process."""
  step = run_torch(rows, dim) if name == 'lightly' else run_jax(name, rows, dim)
  loss, best, began = step(), float('inf'), time.monotonic()
  while best == float('inf') or time.monotonic() - began < 6:
    start = time.monotonic()
    step()
    best = min(best, time.monotonic() - start)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps(dict(seconds=best, bytes=peak, loss=loss)))


def measure(python: str, name: str, rows: int, dim: int) -> str:
  """A cell of the table. What needs more than twice the limit is not started."""
  if name != 'chunked' and 3 * 4 * (2 * rows) ** 2 > 6 * LIMIT:
    return 'not tried'
  args = [python, '-W', 'ignore', __file__, '--run', name, '--sizes', str(rows), '--dim', str(dim)]
  done = subprocess.run(args, capture_output=True, text=True)
  if done.returncode:
    return 'out of memory' if done.returncode < 0 else 'failed'
  found = json.loads(done.stdout.splitlines()[-1])
  over = ' over' if found['bytes'] > LIMIT else ''
  return f'{found["seconds"]:.3f} s, {found["bytes"] / (1 << 30):.1f} GiB{over}'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--torch-python')
  parser.add_argument('--sizes', nargs='+', type=int, default=SIZES)
  parser.add_argument('--dim', type=int, default=128)
  parser.add_argument('--run', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.run:
    contestant(options.run, options.sizes[0], options.dim)
    return
  names = [*OURS, *(['lightly'] if options.torch_python else [])]
  print(f'| samples (D = {options.dim}) | ' + ' | '.join(names) + ' |')
  print('|---' * (len(names) + 1) + '|')
  for rows in options.sizes:
    cells = [measure(options.torch_python if name == 'lightly' else sys.executable, name, rows,
                     options.dim) for name in names]
    print(f'| {rows:,} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
  main()
