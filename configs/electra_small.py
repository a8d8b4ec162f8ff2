"""ELECTRA small (arXiv:2003.10555): a generator of 1/4 width, shared embeddings, on tokens of your own.

  python -m ssl_jax tokenizer encode --text='corpus/*.txt' --documents=blank \
    --tokenizer=vocab.txt --out=data/corpus
  python -m ssl_jax train --config=configs/electra_small.py --workdir=runs/electra_small

`vocab.txt` is that of BERT base uncased. Variants: `:smoke` (seconds, for tests), `:local` (one
accelerator; that is what the authors used).

Expected: GLUE test 77.4, MNLI 81.3 after fine-tuning (electra's README, not reproduced by us).
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 30522, 103, (0, 100, 101, 102, 103)


def get_config(arg: str = '') -> ConfigDict:
  smoke = arg == 'smoke'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='token_records', path='data/corpus', length=128)
  config.batch_size = 16 if smoke else 128
  config.steps = 4 if smoke else 1_000_000
  config.views = dict(name='masks', profile='electra', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL, slots=None if smoke else 19)
  shared = dict(name='transformer', architecture='electra_small', vocabulary=VOCABULARY, types=0,
                activation='gelu_tanh', scan=not smoke, dtype='float32' if smoke else 'bfloat16')
  if smoke:
    config.data = dict(name='wordnet_glosses', split='train', length=32)
    config.views.update(vocabulary=8192, mask=4, special=(0, 1, 2, 3, 4))
    shared.update(vocabulary=8192, length=128, embedding=16, depth=2)
  config.network = dict(shared, width=32, heads=2) if smoke else shared
  config.head = dict(name='replaced_token', dtype=shared['dtype'])
  config.method = dict(name='electra', generator=dict(shared, width=16 if smoke else 64, heads=1))
  config.optimizer = dict(name='adamw', epsilon=1e-6, weight_decay=0.01, bias_correction=False,
                          clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', form='product', learning_rate=5e-4,
                         warmup_steps=0 if smoke else 10_000)
  config.checkpoint = dict(every=2 if smoke else 10_000, keep=3)
  config.evaluate = dict(every=None, health_every=None, train_split='train', test_split='test')
  return config
