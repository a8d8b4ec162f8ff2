"""Masked language modelling on WordNet's glosses, real text that ships with the package.

  python -m ssl_jax train --config=configs/mlm_wordnet.py --workdir=runs/mlm
  python -m ssl_jax evaluate --workdir=runs/mlm

A BERT of 4 layers x 256 (as BERT mini), rows of 128 tokens packed with several glosses each, BERT's
masking. Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).

Expected: see docs/results.md (measured by us).
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
  config.views = dict(name='masks', profile='bert_tf2018', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL)
  config.network = dict(name='transformer', architecture='bert_mini', vocabulary=VOCABULARY,
                        length=128, types=0, dropout=0.1 if local else 0.0,
                        attention_dropout=0.1 if local else 0.0)
  if smoke:
    config.network.update(width=32, depth=1, heads=2, dropout=0.1, attention_dropout=0.1)
  config.head = dict(name='masked_lm')
  config.method = dict(name='masked_lm')
  config.optimizer = dict(name='adamw', weight_decay=0.01, b2=0.98, clip_norm=1.0)
  config.schedule = dict(name='warmup_cosine', learning_rate=2e-3,
                         warmup_steps=0 if smoke else 100)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 300, keep=2)
  config.evaluate = dict(every=2 if smoke else 500, health_every=None if smoke else 500,
                         train_split='train', test_split='test')
  return config
