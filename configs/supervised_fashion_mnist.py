"""The supervised baseline of the demo: the same network, data and step, with labels.

  python -m ssl_jax train --config=configs/supervised_fashion_mnist.py --workdir=runs/supervised
  python -m ssl_jax evaluate --workdir=runs/supervised

Its row in the table is what the labels of all 10,000 images are worth to this encoder in as many
steps as the demo's; the other methods see none.
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
  config.views = dict(name='supervised', size=28, area=(0.5, 1.0), mean=(0.286,), std=(0.353,))
  config.network = dict(name='convnet')
  config.head = dict(name='linear', out=10)
  config.method = dict(name='supervised')
  config.optimizer = dict(name='adamw', weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=6e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
