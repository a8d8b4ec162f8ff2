"""Supervised ResNet-18 on CIFAR-10: the baseline of `simclr_cifar10`, on the same step and network.

  python -m ssl_jax train --config=configs/supervised_cifar10.py --workdir=runs/supervised_cifar10
  python -m ssl_jax evaluate --workdir=runs/supervised_cifar10

Data: TFDS's `cifar10`, see docs/data.md.
Recipe: SGD with Nesterov momentum 0.9, 0.1 x batch / 128, weight decay 5e-4, 200 epochs of cosine;
crops and flips.
Cost: not run by us.
Expected: about 95 % in the literature for ResNet-18 with such a recipe (from memory; not reproduced
by us). `evaluate` judges the representation, by the protocol of all methods; the classifier's own
accuracy on training batches is in metrics.jsonl.
Variants: `:local`, 30 epochs; `:smoke`, seconds on a CPU: a tiny network on the images that ship with
the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :local and :smoke')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='tfds', builder='cifar10', split='train', size=32, crop='device')
  config.batch_size = 512
  config.epochs = 30 if arg == 'local' else 200
  config.views = dict(name='supervised', size=32, area=(0.5, 1.0), mean=(0.491, 0.482, 0.447),
                      std=(0.247, 0.243, 0.262))
  config.network = dict(name='resnet18', stem='cifar')
  config.head = dict(name='linear', out=10)
  config.method = dict(name='supervised')
  config.optimizer = dict(name='sgd', weight_decay=5e-4, momentum=0.9, nesterov=True)
  config.schedule = dict(name='warmup_cosine', learning_rate=0.2, scaling='linear', warmup_epochs=5)
  config.workers = 4
  config.log_every = 50
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=2000, health_every=None, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views = dict(name='supervised', size=16, mean=None, std=None)
  config.network.width = 1 / 16
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.every = None
  return config
