"""MoCo v3 on ImageNet with ViT-B/16 as in the paper (arXiv:2104.02057), and with ResNet-50.

  python -m ssl_jax train --config=configs/moco_v3_vit_b16_imagenet.py --workdir=runs/moco_v3_b16 \
      --config.data.path='/data/imagenet/{split}'
  ... --config=configs/moco_v3_vit_b16_imagenet.py:resnet50 ...      100 epochs of ResNet-50

Data: a folder per class of JPEGs in /data/imagenet/train and /data/imagenet/test, or shards made by
`python -m ssl_jax pack` (docs/data.md).
Recipe: batch 4096, momentum from 0.99 to 1 along a cosine. ViT: AdamW 1.5e-4 x batch / 256, weight
decay 0.1 on everything, 300 epochs, 40 of warm-up, T = 0.2, the patch projection random and fixed.
ResNet-50: LARS 0.6 x batch / 256, weight decay 1e-6, 100 epochs, 10 of warm-up, T = 1, crops from
0.2.
Cost: not run by us.
Expected: ViT-B/16 76.7 % linear and 83.2 % fine-tuned after 300 epochs, ResNet-50 68.9 % linear
after 100 (the reference's README). Not reproduced by us.
Variants: `:resnet50`; `:local`, ViT, batch 256 on one accelerator; `:smoke`, seconds on a CPU: a
tiny network on the images that ship with the package.
"""

from ml_collections import ConfigDict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'resnet50', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :resnet50, :local and :smoke')
  resnet = arg == 'resnet50'
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_folder', path='/data/imagenet/{split}', split='train')
  config.batch_size = 256 if arg == 'local' else 4096
  config.epochs = 100 if resnet else 300
  config.views = _views(224, 0.2 if resnet else 0.08, MEAN, STD)
  config.head = dict(name='moco_v3', layers=2 if resnet else 3)
  if resnet:
    config.network = dict(name='resnet50', stem='imagenet', dtype='bfloat16')
    predictor = dict(name='mlp', hidden=4096, out=256, output_norm=None)
    config.optimizer = dict(name='lars', weight_decay=1e-6, exclude='one_dimensional',
                            learning_rate_inside=False)
  else:
    config.network = dict(name='vit_base', position='sincos', weight_init='xavier',
                          fixed_patch_projection=True, dtype='bfloat16')
    predictor = dict(name='moco_v3', layers=2)
    config.optimizer = dict(name='adamw', weight_decay=0.1, exclude='nothing')
  config.method = dict(name='moco_v3', predictor=predictor, temperature=1.0 if resnet else 0.2,
                       momentum=0.99)
  config.schedule = dict(name='warmup_cosine', learning_rate=0.6 if resnet else 1.5e-4,
                         scaling='linear', warmup_epochs=10 if resnet else 40)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _views(size: int, smallest: float, mean: tuple, std: tuple) -> dict:
  """BYOL's probabilities in torchvision's forms of the operations."""
  first = dict(size=size, area=(smallest, 1.0), resample='bilinear', flip=0.5, jitter=0.8,
               brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grayscale=0.2, blur=1.0,
               blur_form='pillow')
  return dict(name='custom', views=(first, first | dict(blur=0.1, solarize=0.2)), mean=mean, std=std)


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size, config.epochs, config.steps, config.workers = 16, None, 2, 0
  config.views = _views(16, 0.2, (0.5,), (0.5,))
  config.network.update(dict(name='vit_tiny', image_size=16, patch_size=8, heads=3, dtype=None))
  config.head.update(dict(hidden=16, out=8))
  config.method.predictor.update(dict(hidden=16, out=8))
  config.schedule.warmup_epochs = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
