"""BERT base (arXiv:1810.04805), its masks and optimizer, on tokens of your own, such as Wikipedia's.

  python -m ssl_jax tokenizer encode --text='wiki/*.txt' --documents=blank \
    --tokenizer=vocab.txt --out=data/wikipedia
  python -m ssl_jax train --config=configs/bert_base_wikipedia.py --workdir=runs/bert_base
  python -m ssl_jax train --config=configs/bert_base_wikipedia.py:phase2 --workdir=runs/bert_512 \
    --init_from=runs/bert_base

`vocab.txt` is that of BERT base uncased. Phase 1 is 90 % of a million steps at 128 tokens, phase 2
the rest at 512. Rows are packed, documents do not see each other; the paper's rows are sentence
pairs (NSP: configs/bert_wordnet.py). Variants: `:phase2`, `:smoke` (seconds, for tests), `:local`
(one accelerator).

Expected: MNLI 84.6 after fine-tuning (paper, not reproduced by us).
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 30522, 103, (0, 100, 101, 102, 103)


def get_config(arg: str = '') -> ConfigDict:
  phase2, smoke, local = arg == 'phase2', arg == 'smoke', arg == 'local'
  if arg not in ('', 'phase2', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :phase2, :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='token_records', path='data/wikipedia', length=512 if phase2 else 128)
  config.batch_size = 16 if smoke else 64 if local else 256
  config.steps = 4 if smoke else 100_000 if phase2 or local else 900_000
  config.views = dict(name='masks', profile='bert_tf2018', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL, slots=None if smoke else 80 if phase2 else 20)
  config.network = dict(name='transformer', architecture='bert_base', vocabulary=VOCABULARY,
                        types=0, activation='gelu_tanh', scan=not smoke,
                        remat='dots' if phase2 else None,
                        dtype='float32' if smoke else 'bfloat16')
  if smoke:
    config.data = dict(name='wordnet_glosses', split='train', length=32)
    config.network.update(vocabulary=8192, length=128, width=32, depth=2, heads=2)
    config.views.update(vocabulary=8192, mask=4, special=(0, 1, 2, 3, 4))
  config.head = dict(name='masked_lm', dtype=config.network.dtype)
  config.method = dict(name='masked_lm')
  config.optimizer = dict(name='adamw', epsilon=1e-6, weight_decay=0.01, bias_correction=False,
                          clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', form='from_start', learning_rate=1e-4,
                         warmup_steps=0 if smoke or phase2 else 10_000)
  config.checkpoint = dict(every=2 if smoke else 10_000, keep=3)
  config.evaluate = dict(every=None, health_every=None, train_split='train', test_split='test')
  return config
