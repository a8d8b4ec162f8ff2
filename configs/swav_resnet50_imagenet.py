"""SwAV on ImageNet with ResNet-50 as in the paper (arXiv:2006.09882): batch 4096, multi-crop.

  python -m ssl_jax train --config=configs/swav_resnet50_imagenet.py --workdir=runs/swav_r50 \
      --config.data.path='/data/imagenet/{split}'
  ... --config=configs/swav_resnet50_imagenet.py:800 ...             800 epochs instead of 100

Data: a folder per class of JPEGs in /data/imagenet/train and /data/imagenet/test, or shards made by
`python -m ssl_jax pack` (docs/data.md).
Recipe: 2 crops of 224 and 6 of 96 pixels; 3000 prototypes, frozen for 313 steps; LARS without
exclusions, as apex's LARC has it, 0.6 x batch / 256 after 10 epochs of warm-up, decay 1e-6. The
reference warms up from 0.3, not from 0, and has BatchNorm statistics of 8 x 64 images; here they are
those of the batch.
Cost: not run by us.
Expected: linear top-1 of 72.1 % after 100 epochs, 75.3 % after 800 (the paper's and its repository's).
Not reproduced by us.
Variants: `:800`; `:local`, batch 256 on one accelerator with a queue of 3840 from epoch 15 on,
prototypes frozen for 5005 steps, no warm-up, 200 epochs: 72.7 % (the repository's, not reproduced by
us); `:smoke`, seconds on a CPU: a tiny network on the images that ship with the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', '800', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :800, :local and :smoke')
  local = arg == 'local'
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_folder', path='/data/imagenet/{split}', split='train')
  config.batch_size = 256 if local else 4096
  config.epochs = 800 if arg == '800' else 200 if local else 100
  config.views = dict(name='swav', size=224, local_size=96, local_views=6)
  config.network = dict(name='resnet50', stem='imagenet', zero_init=False, dtype='bfloat16')
  config.head = dict(name='swav', hidden=2048, out=128)
  config.method = dict(name='swav', prototypes=3000, temperature=0.1, epsilon=0.05,
                       queue=3840 if local else 0, freeze_prototypes_steps=5005 if local else 313)
  config.optimizer = dict(name='lars', weight_decay=1e-6, exclude='nothing', denominator='split',
                          learning_rate_inside=False, epsilon=1e-8)
  config.schedule = dict(name='warmup_cosine', learning_rate=0.6, scaling='linear',
                         warmup_epochs=0 if local else 10, final=6e-4 if local else 4.8e-3)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views.update(dict(size=16, local_size=8, local_views=2))
  config.network = dict(name='convnet', channels=(8, 16), strides=(2, 2))
  config.head.update(dict(hidden=16, out=8))
  config.method.update(dict(prototypes=12, freeze_prototypes_steps=1))
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
