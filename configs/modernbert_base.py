"""ModernBERT base (arXiv:2412.13663): rotary positions, GeGLU, windows of 128, 30 % masks, packed.

  python -m ssl_jax tokenizer encode --text='corpus/*.txt' --documents=blank \
    --tokenizer=modernbert/tokenizer.json --out=data/corpus
  python -m ssl_jax train --config=configs/modernbert_base.py --workdir=runs/modernbert

Rows of 1,024 tokens, as in the authors' first phase; `--config.data.length=8192` is the second. On
TPUs attention is JAX's splash kernel. The authors' optimizer is StableAdamW and their rate
trapezoidal; here AdamW with clipping and warm-up, then linear decay. Variants: `:smoke` (seconds,
for tests), `:local` (one accelerator).

Expected: GLUE 88.4 after 2 trillion tokens (paper, not reproduced by us).
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 50368, 50284, (50279, 50280, 50281, 50282, 50283, 50284)


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='token_records', path='data/corpus', length=1024)
  config.batch_size = 16 if smoke else 64 if local else 4608
  config.steps = 4 if smoke else 100_000
  config.views = dict(name='masks', profile='mosaic30', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL)
  config.network = dict(name='transformer', architecture='modernbert_base', vocabulary=VOCABULARY,
                        dtype='float32' if smoke else 'bfloat16')
  if smoke:
    config.data = dict(name='wordnet_glosses', split='train', length=32)
    config.network.update(vocabulary=8192, length=128, width=32, depth=2, heads=2)
    config.views.update(vocabulary=8192, mask=4, special=(0, 1, 2, 3, 4))
  config.head = dict(name='masked_lm', dtype=config.network.dtype)
  config.method = dict(name='masked_lm')
  config.optimizer = dict(name='adamw', b1=0.9, b2=0.98, epsilon=1e-6, weight_decay=1e-5,
                          clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', learning_rate=8e-4,
                         warmup_steps=0 if smoke else 3000)
  config.checkpoint = dict(every=2 if smoke else 2000, keep=3)
  config.evaluate = dict(every=None, health_every=None, train_split='train', test_split='test')
  return config
