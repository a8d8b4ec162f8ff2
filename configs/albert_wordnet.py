"""ALBERT's objective (arXiv:1909.11942), masked words and sentence order, on WordNet's glosses.

  python -m ssl_jax train --config=configs/albert_wordnet.py --workdir=runs/albert

The network is a BERT mini with embeddings of width 128 (ALBERT's factorised embedding). Unlike in
ALBERT, blocks do not share their parameters, words are masked one by one instead of in n-grams, and
AdamW takes the place of LAMB. Most glosses are one sentence, whose B then is from elsewhere, as in
ALBERT's code: this objective wants a corpus of longer documents (`text_files` with
documents='blank').

Variants: `:smoke` (seconds, for tests), `:local` (one accelerator, longer).

Expected: not measured.
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 8192, 4, (0, 1, 2, 3, 4)


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='wordnet_glosses', split='train', length=32 if smoke else 64, pack=False,
                     pairs='sop')
  config.batch_size = 16 if smoke else 256 if local else 64
  config.steps = 4 if smoke else 20_000 if local else 1000
  config.views = dict(name='masks', profile='bert_tf2018', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL)
  config.network = dict(name='transformer', architecture='bert_mini', vocabulary=VOCABULARY,
                        length=128, embedding=16 if smoke else 128, pool='token',
                        dropout=0.1 if smoke or local else 0.0,
                        attention_dropout=0.1 if smoke or local else 0.0)
  if smoke:
    config.network.update(width=32, depth=1, heads=2)
  config.head = dict(name='masked_lm_and_sentence')
  config.method = dict(name='sop')
  config.optimizer = dict(name='adamw', weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', form='from_start', learning_rate=1e-3,
                         warmup_steps=0 if smoke else 100)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 300, keep=2)
  config.evaluate = dict(every=2 if smoke else 200, health_every=None if smoke else 200,
                         train_split='train', test_split='test')
  return config
