"""BERT large with LAMB (arXiv:1904.00962) as MLPerf trains it, from a checkpoint, at 512 tokens.

  python -m ssl_jax train --config=configs/bert_large_lamb_mlperf.py --workdir=runs/bert_large \
    --init_from=runs/bert_large_phase1

MLPerf's task starts from a given checkpoint (masked-LM accuracy 0.34085) and stops at 0.720 on
10,000 fixed rows; from random weights it is another task. Hyper-parameters are those of 8 x H100
(v3.1); our clipping is of the global gradient. MLPerf trains NSP too (configs/bert_wordnet.py).
Variants: `:smoke` (seconds, for tests), `:local` (one accelerator).

Expected: masked-LM accuracy 0.720 after 3,680 steps (MLPerf's logs, not reproduced by us).
"""

from ml_collections import ConfigDict

VOCABULARY, MASK, SPECIAL = 30522, 103, (0, 100, 101, 102, 103)


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local'):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='token_records', path='data/wikipedia', length=512)
  config.batch_size = 16 if smoke else 32 if local else 768
  config.steps = 4 if smoke else 3680
  config.views = dict(name='masks', profile='bert_tf2018', vocabulary=VOCABULARY, mask=MASK,
                      special=SPECIAL, slots=None if smoke else 76)
  config.network = dict(name='transformer', architecture='bert_large', vocabulary=VOCABULARY,
                        types=0, activation='gelu_tanh', scan=not smoke,
                        remat=None if smoke else 'dots', dtype='float32' if smoke else 'bfloat16')
  if smoke:
    config.data = dict(name='wordnet_glosses', split='train', length=32)
    config.network.update(vocabulary=8192, length=128, width=32, depth=2, heads=2)
    config.views.update(vocabulary=8192, mask=4, special=(0, 1, 2, 3, 4))
  config.head = dict(name='masked_lm', dtype=config.network.dtype)
  config.method = dict(name='masked_lm')
  config.optimizer = dict(name='lamb', b1=0.60466, b2=0.85437, epsilon=1e-6, weight_decay=0.1,
                          split_qkv=True, clip_norm=1.0)
  config.schedule = dict(name='warmup_linear', form='from_start', learning_rate=9.6e-4,
                         warmup_steps=0)
  config.checkpoint = dict(every=2 if smoke else 500, keep=3)
  config.evaluate = dict(every=None, health_every=None, train_split='train', test_split='test')
  return config
