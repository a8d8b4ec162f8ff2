"""Supervised ResNet-50 on ImageNet: the upper line of every table, on the same step and network.

  python -m ssl_jax train --config=configs/supervised_resnet50_imagenet.py --workdir=runs/sup_r50 \
      --config.data.path='/data/imagenet/{split}'

Data: a folder per class of JPEGs in /data/imagenet/train and /data/imagenet/test, or shards made by
`python -m ssl_jax pack` (docs/data.md).
Recipe: Goyal et al., arXiv:1706.02677: SGD with momentum 0.9, 0.1 x batch / 256, 5 epochs of warm-up,
weight decay 1e-4, 90 epochs, blocks that start as the identity; cosine instead of steps.
Cost: not run by us.
Expected: 76.3 % top-1 after 90 epochs with steps (the paper's). Not reproduced by us.
Variants: `:local`, batch 256 on one accelerator; `:smoke`, seconds on a CPU: a tiny network on the
images that ship with the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :local and :smoke')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_folder', path='/data/imagenet/{split}', split='train')
  config.batch_size = 256 if arg == 'local' else 1024
  config.epochs = 90
  config.views = dict(name='supervised', size=224)
  config.network = dict(name='resnet50', stem='imagenet', dtype='bfloat16')
  config.head = dict(name='linear', out=1000)
  config.method = dict(name='supervised')
  config.optimizer = dict(name='sgd', weight_decay=1e-4, momentum=0.9)
  config.schedule = dict(name='warmup_cosine', learning_rate=0.1, scaling='linear', warmup_epochs=5)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views = dict(name='supervised', size=16, mean=None, std=None)
  config.network = dict(name='convnet', channels=(8, 16), strides=(2, 2))
  config.head.out = 10
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
