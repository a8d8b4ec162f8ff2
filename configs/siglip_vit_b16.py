"""SigLIP with ViT-B/16 on your pairs of images and texts: the recipe of arXiv:2303.15343.

  python -m ssl_jax train --config=configs/siglip_vit_b16.py --workdir=runs/siglip_b16 \
      --config.data.path=photos --config.data.tokenizer=tokenizer.json
  python -m ssl_jax evaluate --workdir=runs/siglip_b16

Data: `photos/train` and `photos/test` with images and a table `captions.csv` (docs/data.md); a
tokenizer of 32,000 entries, or another and --config.method.text.vocabulary.
Recipe: 9 billion pairs in batches of 32,768, rate 1e-3, weight decay 1e-4, b2 0.95, scale from 10 and
bias from -10; text of 64 tokens through 12 blocks of width 768 that see both ways. The paper (from
memory) uses Adafactor, pools images by attention and reads the text at its last token, padding
included; here AdamW, the class token, and the mean of the tokens that are no padding.
Cost: not run by us.
Expected: not reproduced by us; the paper's private pairs are other data.
Variants: `:local`, batch 512 in chunks of 64 on one accelerator; `:smoke`, seconds on a CPU: tiny
towers on the images that ship with the package.
"""

from ml_collections import ConfigDict


def get_config(arg: str = '') -> ConfigDict:
  if arg not in ('', 'local', 'smoke'):
    raise ValueError(f'unknown variant {arg!r}; there are :local and :smoke')
  local = arg == 'local'
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='image_text_folder', path='photos', table='captions.csv', split='train',
                     tokenizer='tokenizer.json', length=64, size=224)
  config.batch_size = 512 if local else 32768
  config.microbatch = 64 if local else None
  config.steps = 20_000 if local else 274_658
  config.views = dict(name='image_text', size=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
  config.network = dict(name='vit_base', patch_size=16, dtype='bfloat16')
  projection = dict(name='mlp', layers=1, out=768, output_norm=None)
  config.head = dict(projection)
  text = dict(name='transformer', architecture='gpt2', causal=False, vocabulary=32000, width=768,
              depth=12, heads=12, length=64, dropout=0.0, attention_dropout=0.0, pool='mean',
              dtype='bfloat16', head=projection)
  config.method = dict(name='siglip', text=text)
  config.optimizer = dict(name='adamw', b2=0.95, weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=1e-3,
                         warmup_steps=2000 if local else 10_000)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_captions', split='train', length=16)
  config.batch_size, config.steps, config.workers = 16, 2, 0
  config.views.update(dict(size=16, mean=(0.5,), std=(0.5,)))
  config.network.update(dict(name='vit_tiny', image_size=16, patch_size=8, dtype=None))
  config.method.text.update(dict(vocabulary=8192, width=16, depth=1, heads=2, length=16,
                                 dtype=None))
  config.head.out = config.method.text.head.out = 8
  config.schedule.warmup_steps = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
