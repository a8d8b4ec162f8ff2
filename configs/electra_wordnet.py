"""ELECTRA (arXiv:2003.10555) on WordNet's glosses: a generator of width 64, a discriminator of 256.

  python -m ssl_jax train --config=configs/electra_wordnet.py --workdir=runs/electra

Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).

Expected: not measured; the paper's models are in configs/electra_small.py.
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 8192, 4, (0, 1, 2, 3, 4)


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='wordnet_glosses', split='train', length=32 if smoke else 128)
  config.batch_size = 16 if smoke else 256 if local else 32
  config.steps = 4 if smoke else 20_000 if local else 1000
  config.views = dict(name='masks', profile='electra', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL)
  shared = dict(name='transformer', architecture='electra_small', vocabulary=VOCABULARY, length=128,
                types=0, embedding=16 if smoke else 128, dropout=0.1 if smoke or local else 0.0,
                attention_dropout=0.1 if smoke or local else 0.0)
  config.network = dict(shared, width=32 if smoke else 256, depth=1 if smoke else 4,
                        heads=2 if smoke else 4)
  config.head = dict(name='replaced_token')
  config.method = dict(name='electra', generator=dict(
    shared, width=16 if smoke else 64, depth=1 if smoke else 4, heads=1))
  config.optimizer = dict(name='adamw', weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', form='product', learning_rate=1e-3,
                         warmup_steps=0 if smoke else 100)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 300, keep=2)
  config.evaluate = dict(every=2 if smoke else 200, health_every=None if smoke else 200,
                         train_split='train', test_split='test')
  return config
