"""One process of a training run: run by multiprocess_test.py, not collected by pytest.

  python multiprocess_worker.py INDEX COUNT PORT ORDER OUTPUT
"""

import json
import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
DEVICES, STEPS = 4, 3


def main(index: int, count: int, port: str, order: str, output: str) -> None:
  import jax
  import numpy as np
  jax.config.update('jax_num_cpu_devices', DEVICES // count)
  root = pathlib.Path(__file__).parent.parent
  jax.config.update('jax_compilation_cache_dir', str(root / '.jax_cache'))
  if count > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'127.0.0.1:{port}', count, index, initialization_timeout=60)
  from ssl_jax import build, runs
  from ssl_jax.cli.options import load_config
  from ssl_jax.cli.train import global_batches
  from ssl_jax.data.sources import ArraySource
  from ssl_jax.parallel import local_rows
  config = load_config(f'{root}/configs/simclr_fashion_mnist.py:smoke')
  devices = [jax.devices()[int(i)] for i in order]
  experiment = build.experiment(config, devices)
  assert [d.id for d in experiment.mesh.devices.flat] == [d.id for d in devices]
  program = experiment.program(config)
  ts, lines = program.init(), []
  leaves = []  # after the first step, every leaf
  magnitudes = jax.jit(lambda tree: jax.tree.map(lambda x: abs(x).sum(), tree))
  feed = global_batches(config, experiment, program, 0)
  for _ in range(STEPS):
    batch = next(feed)
    ts, metrics = program.step(ts, batch)
    leaves = leaves or [float(x) for x in jax.tree.leaves(magnitudes((ts.params, ts.state)))]
    ids = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(
      experiment.mesh, jax.sharding.PartitionSpec()))(batch['id'])
    lines.append({name: float(value) for name, value in metrics.items()}
                 | {'ids': np.asarray(ids).tolist()})
  few = ArraySource(experiment.source.take(np.arange(60)))
  features, labels = runs.embed_split(experiment, ts.params, ts.state, few)
  rows = local_rows(batch['id'].sharding, config.batch_size).tolist()
  total = jax.jit(lambda tree: sum(abs(x).sum() for x in jax.tree.leaves(tree)))
  result = dict(steps=lines, rows=rows,
                params=float(total(ts.params)), state=float(total(ts.state)),
                leaves=leaves, features=features.tolist(), labels=labels.tolist())
  pathlib.Path(output).write_text(json.dumps(result))


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
