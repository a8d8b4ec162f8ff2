"""RoBERTa base (arXiv:1907.11692; fairseq's recipe) on tokens of your own.

  python -m ssl_jax tokenizer encode --text='corpus/*.txt' --documents=blank \
    --tokenizer=roberta/tokenizer.json --out=data/corpus
  python -m ssl_jax train --config=configs/roberta_base.py --workdir=runs/roberta

Full rows of 512 tokens, masks drawn anew in every epoch, 8,192 rows, no clipping, decay of all
parameters. Variants: `:smoke` (seconds, for tests), `:local` (one accelerator: 256 rows at 1e-4).

Expected: MNLI 87.6, SST-2 94.8 after fine-tuning (fairseq's README, not reproduced by us).
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 50265, 50264, (0, 1, 2, 3, 50264)


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='token_records', path='data/corpus', length=512)
  config.batch_size = 16 if smoke else 256 if local else 8192
  config.steps = 4 if smoke else 125_000
  config.views = dict(name='masks', profile='roberta_fairseq', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL)
  config.network = dict(name='transformer', architecture='roberta_base', vocabulary=VOCABULARY,
                        scan=not smoke, remat=None if smoke else 'dots',
                        dtype='float32' if smoke else 'bfloat16')
  if smoke:
    config.data = dict(name='wordnet_glosses', split='train', length=32)
    config.network.update(vocabulary=8192, length=128, width=32, depth=2, heads=2)
    config.views.update(vocabulary=8192, mask=4, special=(0, 1, 2, 3, 4))
  config.head = dict(name='masked_lm', dtype=config.network.dtype)
  config.method = dict(name='masked_lm')
  config.optimizer = dict(name='adamw', b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=0.01,
                          exclude='nothing')
  config.schedule = dict(name='warmup_linear', learning_rate=1e-4 if local else 7e-4,
                         warmup_steps=0 if smoke else 10_000)
  config.checkpoint = dict(every=2 if smoke else 5000, keep=3)
  config.evaluate = dict(every=None, health_every=None, train_split='train', test_split='test')
  return config
