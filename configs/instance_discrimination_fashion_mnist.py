"""Instance discrimination on the 10,000 images of the demo, some minutes of two CPU cores.

  python -m ssl_jax train --config=configs/instance_discrimination_fashion_mnist.py \
      --workdir=runs/instances
  python -m ssl_jax evaluate --workdir=runs/instances

The paper's NCE over one view of each image, with fewer negatives, as there are only 10,000 classes.
In a run this short SimCLR's head and a higher temperature learn more than the paper's linear layer
and 0.07.
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
  config.batch_size = 16 if smoke else 256
  config.steps = 4 if smoke else 10_000 if local else 600
  config.views = dict(name='simclr', size=28, views=1, area=(0.2, 1.0), strength=0.5, blur=0.0)
  config.network = dict(name='convnet')
  config.head = dict(name='mlp', hidden=32 if smoke else 256, out=16 if smoke else 64)
  config.method = dict(name='instance_discrimination', negatives=32 if smoke else 1024,
                       temperature=0.2)
  config.optimizer = dict(name='adamw', weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=3e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
