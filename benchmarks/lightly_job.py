"""The demo's job in lightly and PyTorch, for benchmarks/demo_job.py; needs torch, torchvision, lightly.

  python benchmarks/lightly_job.py IMAGES.npz OUTPUT.npz [STEPS] [SEED]

The same convnet and head, batch, steps, schedule and AdamW as configs/simclr_fashion_mnist.py;
lightly's SimCLRTransform on PIL images and a DataLoader with two workers. Prints images/s of training
and writes features of both splits (BatchNorm statistics set by one pass over the training images).
"""

import json
import math
import sys
import time

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.transforms import SimCLRTransform
from PIL import Image
from torch import nn

BATCH, PEAK, WARMUP, TEMPERATURE = 256, 6e-3, 20, 0.2


class Views(torch.utils.data.Dataset):
  def __init__(self, images):
    self.images = images
    self.transform = SimCLRTransform(
      input_size=28, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0,
      normalize={'mean': [0.0] * 3, 'std': [1.0] * 3})

  def __len__(self):
    return len(self.images)

  def __getitem__(self, i):
    views = self.transform(Image.fromarray(self.images[i, :, :, 0]).convert('RGB'))
    return torch.stack([view[:1] for view in views])


def network():
  layers, width = [], 1
  for channels in (32, 64, 128):
    layers += [nn.Conv2d(width, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    width = channels
  backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
  head = nn.Sequential(nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
                       nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128))
  return backbone, head


def rate(step, steps):
  if step < WARMUP:
    return step / WARMUP
  return (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) / 2


def train(images, steps, seed):
  torch.manual_seed(seed)
  backbone, head = network()
  model = nn.Sequential(backbone, head).to(memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=1e-4)
  schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
  loss_of = NTXentLoss(temperature=TEMPERATURE)
  loader = torch.utils.data.DataLoader(
    Views(images), BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
  done, began = 0, time.monotonic()
  while done < steps:
    for views in loader:
      x = views.transpose(0, 1).reshape(-1, 1, 28, 28).to(memory_format=torch.channels_last)
      z1, z2 = model(x).chunk(2)
      loss = loss_of(z1, z2)
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      schedule.step()
      done += 1
      if done == steps:
        break
  return backbone, time.monotonic() - began


@torch.no_grad()
def features(backbone, train_images, test_images):
  norms = [m for m in backbone if isinstance(m, nn.BatchNorm2d)]
  for norm in norms:
    norm.reset_running_stats()
    norm.momentum = None  # cumulative average
  pieces = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255).split(500)
  backbone.train()
  for x in pieces(train_images):
    backbone(x)
  backbone.eval()
  return [torch.cat([backbone(x) for x in pieces(images)]).numpy()
          for images in (train_images, test_images)]


def main(source, output, steps=400, seed=0):
  data = np.load(source)
  backbone, seconds = train(data['train_image'], int(steps), int(seed))
  z, q = features(backbone, data['train_image'], data['test_image'])
  np.savez(output, train=z, test=q)
  print(json.dumps(dict(seconds=seconds, images_per_second=int(steps) * BATCH / seconds)))


if __name__ == '__main__':
  main(*sys.argv[1:])
