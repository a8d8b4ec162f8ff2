"""SigLIP on 10,000 images of clothing and captions with the names of their classes, on two cores.

  python -m ssl_jax train --config=configs/siglip_fashion_mnist.py --workdir=runs/siglip
  python -m ssl_jax evaluate --workdir=runs/siglip

The images and the vocabulary ship with the package. Captions name the ten classes, so that naming
the class of a test image by its nearest caption is no test of unseen classes, but of whether both
towers meet.
Expected: see docs/results.md (measured by us).
Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).
"""

from ml_collections import ConfigDict

VOCABULARY = 8192


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='fashion_mnist_captions', split='train', length=16)
  config.batch_size = 16 if smoke else 1024 if local else 256
  config.steps = 4 if smoke else 5000 if local else 300
  config.views = dict(name='image_text', size=28, area=(0.6, 1.0), mean=(0.5,), std=(0.5,))
  config.network = dict(name='convnet')
  width = 16 if smoke else 64
  config.head = dict(name='mlp', layers=1, out=width, output_norm=None)
  text = dict(name='transformer', architecture='gpt2', vocabulary=VOCABULARY, width=width,
              depth=1 if smoke else 2, heads=2, length=16, dropout=0.0, attention_dropout=0.0,
              pool='last', head=dict(name='mlp', layers=1, out=width, output_norm=None))
  config.method = dict(name='siglip', text=text)
  config.optimizer = dict(name='adamw', b2=0.95, weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=2e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
