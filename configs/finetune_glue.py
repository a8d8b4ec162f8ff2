"""A pretrained text encoder fine-tuned on a task of GLUE (arXiv:1804.07461), as BERT was
(arXiv:1810.04805, section 4.1): batches of 32, 3 epochs, the best of four learning rates.

  python -m ssl_jax finetune --config=configs/finetune_glue.py:mrpc --weights=bert-base-uncased \
    --data=glue
  python -m ssl_jax finetune --config=configs/finetune_glue.py:rte --workdir=runs/bert_base \
    --data=tfds --seeds=5

Every field is an option of `finetune` (`--help`); options on the command line win. `--data` is a
folder with GLUE's TSV files, or `tfds`. Variants: `:cola`, `:sst2`, `:mrpc` (the default), `:stsb`,
`:qqp`, `:mnli`, `:qnli`, `:rte`; `:smoke` (seconds, for tests: the glosses of WordNet, which ship).

Expected of BERT base, on the development sets: MNLI-m 84.4, QNLI 88.4, MRPC 86.7, SST-2 92.7
(accuracy in %, Table 5; paper, not reproduced by us); google-research/bert's README gives 84 to 88
for MRPC, by the seed. Of the other tasks the paper has the test server's numbers only (Table 1):
CoLA 52.1 (Matthews), STS-B 85.8 (Spearman), QQP 71.2 (F1), RTE 66.4 (paper, not reproduced by us).
Cost: not measured.
"""

from ml_collections import ConfigDict

TASKS = ('cola', 'sst2', 'mrpc', 'stsb', 'qqp', 'mnli', 'qnli', 'rte')


def get_config(arg: str = '') -> ConfigDict:
  smoke = arg == 'smoke'
  if arg not in ('', 'smoke', *TASKS):
    raise ValueError(f'unknown variant {arg!r}; there are :smoke and '
                     f'{", ".join(f":{name}" for name in TASKS)}')
  config = ConfigDict()
  config.task = 'wordnet' if smoke else arg or 'mrpc'
  config.data = None if smoke else 'glue'
  config.learning_rates = (1e-3,) if smoke else (2e-5, 3e-5, 4e-5, 5e-5)
  config.epochs = 1 if smoke else 3
  config.batch_size = 32
  config.length = 32 if smoke else 128
  config.dropout = 0.1
  config.pool = 'token'
  config.seeds = 1
  if smoke:
    config.examples = 96
  return config
