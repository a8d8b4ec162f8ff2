"""SimCLR on ImageNet with ResNet-50 as in the paper (arXiv:2002.05709): batch 4096, LARS.

  python -m ssl_jax train --config=configs/simclr_resnet50_imagenet.py --workdir=runs/r50 \
      --config.data.path='/data/imagenet/{split}'
  ... --config=configs/simclr_resnet50_imagenet.py:1000 ...          1000 epochs instead of 100

Data: you bring them. /data/imagenet/train/ holds image.npy, uint8 [1281167, 256, 256, 3], and
label.npy, int [1281167] (memory-mapped); /data/imagenet/test/ the same for evaluation.
Cost: not run by us. The reference needed about 6 hours for 100 epochs on 32 TPU v3 cores
(google-research/simclr, README).
Expected: linear top-1 of about 64.5 % after 100 epochs (reference's README) and 69.3 % after 1000
(paper). Not reproduced by us.
Variants: `:1000`; `:one_chip`, the whole batch of 4096 on one accelerator: 64 images at a time go
through the encoder and the loss sees all (docs/contrastive.md has the memory), BatchNorm in groups
of 64 images x 2 views, as on 64 devices without synchronisation; `:local`, batch 256 on one
accelerator with the same square-root rule (62.8 % after 100 epochs with batch 256, quoted by
lightly as the paper's; not reproduced by us); `:smoke`, seconds on a CPU: a tiny network on the
images that ship with the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', '1000', 'one_chip', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :1000, :one_chip, :local and :smoke')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='array_files', path='/data/imagenet/{split}', split='train')
  config.batch_size = 256 if arg == 'local' else 4096
  config.epochs = 1000 if arg == '1000' else 100
  config.views = dict(name='simclr', size=224)
  config.network = dict(name='resnet50', stem='imagenet', dtype='bfloat16')
  config.head = dict(name='mlp', hidden=2048, out=128)
  config.method = dict(name='simclr', temperature=0.1)
  config.optimizer = dict(name='lars', weight_decay=1e-4 if config.epochs == 100 else 1e-6)
  # 0.075 sqrt(4096) = 0.3 * 4096 / 256 = 4.8: the two rules meet at the paper's batch.
  config.schedule = dict(name='warmup_cosine', learning_rate=0.075, scaling='sqrt', warmup_epochs=10)
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  if arg == 'one_chip':
    config.microbatch = 64
    config.network.batch_norm = dict(group_size=128)
    config.head.batch_norm = dict(group_size=128)
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps = 16, None, 2
  config.views.size = 16
  config.network = dict(name='convnet', channels=(8, 16), strides=(2, 2))
  config.head.update(dict(hidden=16, out=8))
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
