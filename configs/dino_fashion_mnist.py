"""DINO with multi-crop on the 10,000 images of the demo, some minutes of two CPU cores.

  python -m ssl_jax train --config=configs/dino_fashion_mnist.py --workdir=runs/dino
  python -m ssl_jax evaluate --workdir=runs/dino

A short run wants a fast teacher, momentum 0.97 instead of the paper's 0.996, and a head with BatchNorm:
without it the outputs stay nearly even for the whole run.
Expected: see docs/results.md (measured by us).
Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size = 16 if smoke else 1024 if local else 256
  config.steps = 4 if smoke else 10_000 if local else 400
  # SimCLR's colours of the demo, without blur: two crops of 28 pixels and small ones of 16.
  colours = dict(flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4, grayscale=0.2)
  large = dict(colours, size=28, area=(0.3, 1.0))
  small = dict(colours, size=16, area=(0.1, 0.3))
  config.views = dict(name='custom', views=(large,) * 2, local=(small,) * (2 if smoke else 4))
  config.network = dict(name='convnet')
  config.head = dict(name='dino', hidden=32 if smoke else 256, bottleneck=16 if smoke else 64,
                     out=24 if smoke else 512, batch_norm={})
  config.method = dict(name='dino', momentum=0.996 if local else 0.97, warmup_teacher_epochs=3.)
  config.optimizer = dict(name='adamw', weight_decay=0.04, final_weight_decay=0.4, clip_per_tensor=3.,
                          exclude='one_dimensional')
  config.schedule = dict(name='warmup_cosine', learning_rate=3e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
