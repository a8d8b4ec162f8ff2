"""Images/s of one SimCLR training step on CPU: ours, with plain Flax convolutions, and PyTorch.

  python benchmarks/simclr_step.py [--torch-python PYTHON] [--rounds N] [--job NAME ...]

Forward, NT-Xent, backward and SGD on fixed views, float32, without augmentation. PyTorch runs with
channels_last, as many threads as cores, torchvision's ResNet-18 and lightly's NTXentLoss; it may
live in another environment, whose interpreter --torch-python names. Contestants take turns, one
step each per round, and medians are printed, because a shared machine is noisy. CPU milliseconds
per core say what our step would take on an idle one; PyTorch's include threads that spin.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

# name: (pairs, image shape); two views of each.
JOBS = {'resnet18': (32, (32, 32, 3)), 'convnet': (256, (28, 28, 1))}
TEMPERATURE, RATE, MOMENTUM, PROJECTION = 0.5, 0.03, 0.9, 128
READY = 'ready'


# --- ours -----------------------------------------------------------------------------------------


def jax_step(job: str, plain: bool):
  """A function that trains one step and waits for it; compiled and warmed up."""
  from functools import partial
  from unittest import mock

  import jax
  import optax
  from flax import linen as nn

  from ssl_jax.losses.contrastive import nt_xent
  from ssl_jax.models import convnet, mlp, resnet
  from ssl_jax.models.network import apply_views, from_linen, with_head
  from ssl_jax.types import Mode

  backbone = resnet.resnet18(stem='cifar') if job == 'resnet18' else convnet.convnet()
  net = from_linen(with_head(backbone, mlp.mlp(out=PROJECTION)))
  pairs, shape = JOBS[job]
  views = jax.random.normal(jax.random.key(0), (pairs, 2, *shape))
  params, state = jax.jit(net.init)(jax.random.key(1), views[:, 0])
  optimizer = optax.sgd(RATE, MOMENTUM)

  def loss(params, state):
    ((_, z1), (_, z2)), state = apply_views(net, params, state, views, Mode(train=True))
    return nt_xent(z1, z2, temperature=TEMPERATURE), state

  @partial(jax.jit, donate_argnums=0)
  def train(carry):
    params, state, opt = carry
    (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(params, state)
    updates, opt = optimizer.update(gradient, opt, params)
    return (optax.apply_updates(params, updates), state, opt), value

  carry = [(params, state, jax.jit(optimizer.init)(params))]

  def step():
    carry[0], value = train(carry[0])
    value.block_until_ready()

  conv = partial(nn.Conv, use_bias=False) if plain else resnet.Conv
  with mock.patch.object(resnet, 'Conv', conv), mock.patch.object(convnet, 'Conv', conv):
    step()
  step()
  return step


# --- PyTorch --------------------------------------------------------------------------------------


def torch_step(job: str):
  """The same for PyTorch, in its own process."""
  import torch
  import torchvision
  from lightly.loss import NTXentLoss
  from torch import nn

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  pairs, (height, width, channels) = JOBS[job]
  if job == 'resnet18':
    backbone, features = torchvision.models.resnet18(zero_init_residual=True), 512
    backbone.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    backbone.maxpool, backbone.fc = nn.Identity(), nn.Identity()
  else:
    widths, features = (channels, 32, 64, 128), 128
    layers = [layer for i in range(3) for layer in (
        nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1, bias=False),
        nn.BatchNorm2d(widths[i + 1]), nn.ReLU(inplace=True))]
    backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
  head = nn.Sequential(
      nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True),
      nn.Linear(features, PROJECTION, bias=False), nn.BatchNorm1d(PROJECTION))
  model = nn.Sequential(backbone, head).to(memory_format=torch.channels_last).train()
  views = torch.randn(2 * pairs, channels, height, width)
  views = views.contiguous(memory_format=torch.channels_last)
  criterion = NTXentLoss(temperature=TEMPERATURE)
  optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

  def step():
    optimizer.zero_grad(set_to_none=True)
    z1, z2 = model(views).chunk(2)
    criterion(z1, z2).backward()
    optimizer.step()

  step()
  step()
  return step


def serve(job: str) -> None:
  """Trains one step for every line on stdin and prints its `timed`."""
  step = torch_step(job)
  print(READY, flush=True)
  for _ in sys.stdin:
    print(*timed(step), flush=True)


def torch_process(python: str, job: str) -> subprocess.Popen | None:
  """A process that serves steps, or None where PyTorch, torchvision or lightly is missing."""
  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
  process = subprocess.Popen([python, __file__, '--serve', job], stdin=subprocess.PIPE, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
  if process.stdout.readline().strip() == READY:
    return process
  reason = process.communicate()[1].strip().splitlines()[-1:]
  print(f'PyTorch skipped: {python} says {reason}; see --torch-python', file=sys.stderr)
  return None


# --- the table ------------------------------------------------------------------------------------


def timed(step) -> tuple[float, float]:
  """Seconds that a step took, and CPU seconds per core."""
  start, start_cpu = time.perf_counter(), time.process_time()
  step()
  cpu = (time.process_time() - start_cpu) / len(os.sched_getaffinity(0))
  return time.perf_counter() - start, cpu


def measure(job: str, rounds: int, python: str) -> None:
  steps = {'ours': jax_step(job, plain=False), 'plain Flax conv': jax_step(job, plain=True)}
  seconds = {name: (lambda step=step: timed(step)) for name, step in steps.items()}
  process = torch_process(python, job)
  if process:
    def ask():
      process.stdin.write('\n')
      process.stdin.flush()
      return tuple(map(float, process.stdout.readline().split()))

    seconds['PyTorch'] = ask
  times = {name: [] for name in seconds}
  for _ in range(rounds):
    for name, run in seconds.items():
      times[name].append(run())
  if process:
    process.communicate('')
  images = 2 * JOBS[job][0]
  own, _ = zip(*times['ours'])
  for name, both in times.items():
    spent, cpu = zip(*both)
    ratio = statistics.median(t / ours for ours, t in zip(own, spent))
    print(f'{job:<10} {images:>6} {name:<16} {images / statistics.median(spent):>8.0f} '
          f'{statistics.median(spent) * 1e3:>6.0f} {min(spent) * 1e3:>6.0f} '
          f'{statistics.median(cpu) * 1e3:>11.0f} {ratio:>11.2f}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--torch-python', default=sys.executable, help='interpreter with PyTorch')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--job', nargs='+', choices=JOBS, default=list(JOBS))
  parser.add_argument('--serve', choices=JOBS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(args.serve)
    return
  print(f'{"network":<10} {"images":>6} {"contestant":<16} {"images/s":>8} {"ms":>6} {"min ms":>6} '
        f'{"cpu ms/core":>11} {"its ms/ours":>11}')
  for job in args.job:
    measure(job, args.rounds, args.torch_python)


if __name__ == '__main__':
  main()
