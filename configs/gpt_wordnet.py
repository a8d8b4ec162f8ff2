"""Causal language modelling (GPT-2's decoder) on WordNet's glosses, which ship with the package.

  python -m ssl_jax train --config=configs/gpt_wordnet.py --workdir=runs/gpt

Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).

Expected: not measured.
"""

from ml_collections import ConfigDict

VOCABULARY = 8192


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='wordnet_glosses', split='train', length=32 if smoke else 128)
  config.batch_size = 16 if smoke else 256 if local else 32
  config.steps = 4 if smoke else 20_000 if local else 1000
  config.views = dict(name='next_token')
  config.network = dict(name='transformer', architecture='gpt2', vocabulary=VOCABULARY,
                        width=32 if smoke else 256, depth=1 if smoke else 4, heads=2 if smoke else 4,
                        length=128, dropout=0.1 if smoke or local else 0.0,
                        attention_dropout=0.1 if smoke or local else 0.0)
  config.head = dict(name='tied')
  config.method = dict(name='causal_lm')
  config.optimizer = dict(name='adamw', weight_decay=0.1, b2=0.95, clip_norm=1.0,
                          exclude='one_dimensional')
  config.schedule = dict(name='warmup_cosine', learning_rate=2e-3, warmup_steps=0 if smoke else 100)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 300, keep=2)
  config.evaluate = dict(every=2 if smoke else 200, health_every=None if smoke else 200,
                         train_split='train', test_split='test')
  return config
