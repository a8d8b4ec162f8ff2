"""SimCLR on your own photographs: a folder of JPEG, PNG or WebP files of any size.

  python -m ssl_jax train --config=configs/simclr_folder.py --workdir=runs/photos \
      --config.data.path=photos
  python -m ssl_jax embed --workdir=runs/photos --split=train --output=features.npz

Data: `photos/` holds images, flat, or one folder per class (docs/data.md). Labels are not used in
training; with `photos/train` and `photos/test` (--config.data.path='photos/{split}') and a folder per
class `python -m ssl_jax evaluate` tells what the representation is worth.
Recipe: ResNet-50 at 224 pixels, LARS with the square-root rule of SimCLR's appendix B.1
(arXiv:2002.05709), which holds for batches from 256 on. From some 10,000 images on, training from
scratch makes sense; below, start from weights: --init_from=RUN:backbone.
Expected: depends on your images; watch kNN, the health line and `python -m ssl_jax report`.
Variants: `:local`, ResNet-18 at 128 pixels, for a small GPU or a patient CPU; `:smoke`, seconds on a
CPU: a tiny network on the images that ship with the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :local and :smoke')
  local = arg == 'local'
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_folder', path='photos', split='train', size=144 if local else 256)
  config.batch_size = 256
  config.epochs = 200
  config.views = dict(name='simclr', size=128 if local else 224)
  config.network = (dict(name='resnet18', stem='imagenet') if local else
                    dict(name='resnet50', stem='imagenet', dtype='bfloat16'))
  config.head = dict(name='mlp', out=128)
  config.method = dict(name='simclr', temperature=0.2)
  config.optimizer = dict(name='lars', weight_decay=1e-6)
  config.schedule = dict(name='warmup_cosine', learning_rate=0.075, scaling='sqrt', warmup_epochs=10)
  config.workers = 4
  config.log_every = 20
  config.checkpoint = dict(every=500, keep=3)
  config.evaluate = dict(every=None, health_every=200, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views.size = 16
  config.network = dict(name='convnet', channels=(8, 16), strides=(2, 2))
  config.head.update(dict(hidden=16, out=8))
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
