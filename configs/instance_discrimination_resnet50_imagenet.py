"""Instance discrimination on ImageNet with ResNet-50 as in the paper (arXiv:1805.01978).

  python -m ssl_jax train --config=configs/instance_discrimination_resnet50_imagenet.py \
      --workdir=runs/instances_r50 --config.data.path='/data/imagenet/{split}'
  ... --config=configs/instance_discrimination_resnet50_imagenet.py:softmax ...     65,536 negatives

Data: a folder per class of JPEGs in /data/imagenet/train and /data/imagenet/test, or shards made by
`python -m ssl_jax pack` (docs/data.md).
Recipe: 4096 negatives by NCE, T = 0.07, a bank of 1.28 million rows of 128 numbers (656 MB on every
device), SGD with 0.03 at batch 256, weight decay 1e-4 on everything, 200 epochs. The paper's rate
falls in steps, here along a cosine; its BatchNorm is that of each GPU, here that of the batch.
Without the proximal term, as in its released code.
Cost: not run by us.
Expected: 54.0 % linear and 46.8 % kNN top-1 (the paper's and its repository's), 58.5 % linear with
the softmax over 65,536 negatives (the repository's). Not reproduced by us.
Variants: `:softmax`; `:local`, 100 epochs on one accelerator; `:smoke`, seconds on a CPU: a tiny
network on the images that ship with the package.
"""

from ml_collections import ConfigDict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'softmax', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :softmax, :local and :smoke')
  softmax = arg == 'softmax'
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_folder', path='/data/imagenet/{split}', split='train')
  config.batch_size = 256
  config.epochs = 100 if arg == 'local' else 200
  config.views = _views(224, MEAN, STD)
  config.network = dict(name='resnet50', stem='imagenet', zero_init=False, dtype='bfloat16')
  config.head = dict(name='linear', out=128)
  config.method = dict(name='instance_discrimination', objective='softmax' if softmax else 'nce',
                       negatives=65536 if softmax else 4096, temperature=0.07, momentum=0.5)
  config.optimizer = dict(name='sgd', momentum=0.9, weight_decay=1e-4, exclude='nothing')
  config.schedule = dict(name='warmup_cosine', learning_rate=0.03)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _views(size: int, mean: tuple, std: tuple) -> dict:
  """One of the two views of the recipe 'moco_v1', which has them from this paper."""
  view = dict(size=size, area=(0.2, 1.0), resample='bilinear', flip=0.5,
              order=('grayscale', 'jitter', 'blur', 'solarize'), grayscale=0.2, jitter=1.0,
              brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
  return dict(name='custom', views=(view,), mean=mean, std=std)


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views = _views(16, (0.5,), (0.5,))
  config.network = dict(name='convnet', channels=(8, 16), strides=(2, 2))
  config.head.out = 8
  config.method.negatives = 32
  config.log_every = 1
  config.evaluate.health_every = None
  return config
