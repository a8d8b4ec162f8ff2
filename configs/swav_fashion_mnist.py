"""SwAV with multi-crop on the 10,000 images of the demo, some minutes of two CPU cores.

  python -m ssl_jax train --config=configs/swav_fashion_mnist.py --workdir=runs/swav
  python -m ssl_jax evaluate --workdir=runs/swav

A tenth of the paper's prototypes, for classes are few; no queue, except in `:smoke`, which tests it.
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
  config.head = dict(name='swav', hidden=32 if smoke else 256, out=16 if smoke else 64)
  config.method = dict(name='swav', prototypes=12 if smoke else 300, queue=32 if smoke else 0,
                       queue_from_epoch=0., freeze_prototypes_steps=1 if smoke else 20)
  config.optimizer = dict(name='adamw', weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=3e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
