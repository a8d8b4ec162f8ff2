"""Where negatives come from, as one switch: the batch, a memory bank, or a queue.

MoCo's comparison (arXiv:1911.05722, figure 2) on the 10,000 images of the demo.

  python -m ssl_jax train --config=configs/negatives_fashion_mnist.py:memory_bank --workdir=runs/bank
  python -m benchmarks.negatives --workdir=runs/negatives          all of them, one plot

Network, head, views, batch, steps, optimizer and temperature are the same; the loss is InfoNCE in
all three, of a query against its key and K others:
  end_to_end   keys of the second view from the same encoder, with gradient; K + 1 is the batch
  memory_bank  the example's and K drawn rows of a bank with an embedding of every example
  queue        keys of the second view from a slow encoder, and K earlier ones: MoCo
Expected: see docs/results.md (measured by us).
Variants: `:end_to_end`, `:memory_bank`, `:queue` (also without a variant), `:smoke` (seconds, for
tests) and `:local` (one accelerator, longer), both with the queue.
"""

from ml_collections import ConfigDict

METHODS = {
  'end_to_end': dict(name='moco', queue=None),
  'memory_bank': dict(name='instance_discrimination', objective='softmax', negatives=2560),
  'queue': dict(name='moco', queue=2560, momentum=0.97),
}


def get_config(arg: str = '') -> ConfigDict:
  smoke, local = arg == 'smoke', arg == 'local'
  if arg not in ('', 'smoke', 'local', *METHODS):
    raise ValueError(f'unknown variant {arg!r}; there are :end_to_end, :memory_bank, :queue, :smoke '
                     'and :local')
  config = ConfigDict()
  config.seed = 0
  config.data = dict(name='fashion_mnist_12k', split='train')
  config.batch_size = 16 if smoke else 256
  config.steps = 4 if smoke else 10_000 if local else 400
  config.views = dict(name='simclr', size=28, area=(0.2, 1.0), strength=0.5, blur=0.0)
  config.network = dict(name='convnet')
  config.head = dict(name='mlp', hidden=32 if smoke else 256, out=16 if smoke else 64)
  config.method = dict(METHODS.get(arg, METHODS['queue']), temperature=0.2)
  if smoke:
    config.method.queue = 64
  config.optimizer = dict(name='adamw', weight_decay=1e-4)
  config.schedule = dict(name='warmup_cosine', learning_rate=3e-3, warmup_steps=0 if smoke else 20)
  config.log_every = 1 if smoke else 20
  config.checkpoint = dict(every=2 if smoke else 100, keep=2)
  config.evaluate = dict(every=2 if smoke else 100, train_split='train', test_split='test')
  return config
