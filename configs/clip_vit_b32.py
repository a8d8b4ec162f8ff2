"""CLIP with ViT-B/32 on your pairs of images and texts: the recipe of arXiv:2103.00020.

  python -m ssl_jax train --config=configs/clip_vit_b32.py --workdir=runs/clip_b32 \
      --config.data.path=photos --config.data.tokenizer=tokenizer.json
  python -m ssl_jax evaluate --workdir=runs/clip_b32

Data: `photos/train` and `photos/test` with images and a table `captions.csv` (docs/data.md); a
tokenizer with the 49,408 entries of CLIP's, or another and --config.method.text.vocabulary.
Recipe (appendix F of the paper): 390,625 batches of 32,768 (32 epochs of 400 million pairs), AdamW
5e-4 with b2 0.98, epsilon 1e-6 and weight decay 0.2 but not on gains and biases, 2,000 steps of
warm-up, then a cosine; scale at most 100; text of 77 tokens through 12 causal blocks of width 512
with 8 heads, read at its last token. The paper's code has a LayerNorm in front of the image's blocks,
GELU as x sigmoid(1.702 x) and other initial weights; here both towers are plain.
Cost: not run by us.
Expected: 63.2 % zero-shot top-1 on ImageNet after the 400 million private pairs of the paper (the
paper's, from memory). Not reproduced by us.
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
                     tokenizer='tokenizer.json', length=77, size=224)
  config.batch_size = 512 if local else 32768
  config.microbatch = 64 if local else None
  config.steps = 20_000 if local else 390_625
  config.views = dict(name='image_text', size=224)
  config.network = dict(name='vit_base', patch_size=32, dtype='bfloat16')
  projection = dict(name='mlp', layers=1, out=512, output_norm=None)
  config.head = dict(projection)
  text = dict(name='transformer', architecture='gpt2', vocabulary=49408, width=512, depth=12,
              heads=8, length=77, dropout=0.0, attention_dropout=0.0, pool='last', dtype='bfloat16',
              head=projection)
  config.method = dict(name='clip', text=text)
  config.optimizer = dict(name='adamw', b2=0.98, epsilon=1e-6, weight_decay=0.2)
  config.schedule = dict(name='warmup_cosine', learning_rate=5e-4, warmup_steps=2000)
  config.workers = 8
  config.log_every = 100
  config.checkpoint = dict(every=1000, keep=3)
  config.evaluate = dict(every=None, health_every=1000, train_split='train', test_split='test')
  return _tiny(config) if arg == 'smoke' else config


def _tiny(config: ConfigDict) -> ConfigDict:
  config.data = dict(name='fashion_mnist_captions', split='train', length=16)
  config.batch_size, config.steps, config.workers = 16, 2, 0
  config.views.update(dict(size=16))
  config.network.update(dict(name='vit_tiny', image_size=16, patch_size=8, dtype=None))
  config.method.text.update(dict(vocabulary=8192, width=16, depth=1, heads=2, length=16,
                                 dtype=None))
  config.head.out = config.method.text.head.out = 8
  config.schedule.warmup_steps = 0
  config.log_every = 1
  config.evaluate.health_every = None
  return config
