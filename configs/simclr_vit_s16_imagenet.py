"""SimCLR on ImageNet with a ViT-S/16: the frame of MoCo v3's study of ViTs (arXiv:2104.02057).

  python -m ssl_jax train --config=configs/simclr_vit_s16_imagenet.py --workdir=runs/vit_s16 \
      --config.data.path='/data/imagenet/{split}'

Data: a folder per class of JPEGs in /data/imagenet/train and /data/imagenet/test, or shards made by
`python -m ssl_jax pack` (docs/data.md).
Recipe: AdamW 1.5e-4 x batch / 256, weight decay 0.1, batch 4096, 300 epochs, 40 of warm-up, the
three-layer head and the frozen patch projection of MoCo v3 (its paper and README); SimCLR's loss and
views, which differ from those of that study.
Cost: not run by us.
Expected: for SimCLR with ViT-S/16 after 300 epochs that study reports linear top-1 of 69.0 % (the
paper's, from memory, with MoCo v3's views). Not reproduced by us.
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
  config.batch_size = 256 if arg == 'local' else 4096
  config.epochs = 300
  config.views = dict(name='simclr', size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
  config.network = dict(name='vit_small', heads=12, position='sincos', weight_init='xavier',
                        fixed_patch_projection=True, dtype='bfloat16')
  config.head = dict(name='moco_v3')
  config.method = dict(name='simclr', temperature=0.2)
  config.optimizer = dict(name='adamw', weight_decay=0.1)
  config.schedule = dict(
    name='warmup_cosine', learning_rate=1.5e-4, scaling='linear', warmup_epochs=40)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views.update(dict(size=16, mean=(0.5,), std=(0.5,)))
  config.network.update(dict(name='vit_tiny', image_size=16, patch_size=8, heads=3, dtype=None))
  config.head.update(dict(hidden=16, out=8))
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
