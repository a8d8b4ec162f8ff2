"""MoCo v2 on the 10,000 images of the demo, some minutes of two CPU cores.

  python -m ssl_jax train --config=configs/moco_fashion_mnist.py --workdir=runs/moco
  python -m ssl_jax evaluate --workdir=runs/moco

A queue of ten batches and a faster key encoder than the paper's: the run is short.
Expected: see docs/results.md (measured by us).
Variants: `:v1` (one linear layer, T = 0.07 and the views of v1), `:smoke` (seconds, for tests),
`:local` (one accelerator, longer).
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'v1', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :v1, :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size = 16 if smoke else 1024 if local else 256
  config.steps = 4 if smoke else 10_000 if local else 400
  config.views = dict(name='simclr', size=28, area=(0.2, 1.0), strength=0.5, blur=0.0)
  config.network = dict(name='convnet')
  config.head = dict(name='moco_v2', hidden=32 if smoke else 256, out=16 if smoke else 64)
  config.method = dict(name='moco', queue=64 if smoke else 8192 if local else 2560, temperature=0.2,
                       momentum=0.99 if local else 0.97)
  if arg == 'v1':
    config.views = dict(name='moco_v1', size=28, mean=None, std=None)
    config.head = dict(name='linear', out=64)
    config.method.temperature = 0.07
  config.optimizer = dict(name='adamw', weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=3e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
