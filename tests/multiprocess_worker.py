"""One process of a training run: run by multiprocess_test.py, not collected by pytest.

  python multiprocess_worker.py INDEX COUNT PORT ORDER OUTPUT CONFIG ...

ORDER names the devices in the order of the mesh, '0213'; each process has its share of them. OUTPUT
gets what this process saw of every config, by its name.
"""

import json
import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
STEPS = 3


def main(index: int, count: int, port: str, order: str, output: str, *specs: str) -> None:
  import jax
  jax.config.update('jax_num_cpu_devices', len(order) // count)
  root = pathlib.Path(__file__).parent.parent
  jax.config.update('jax_compilation_cache_dir', str(root / '.jax_cache'))
  if count > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'127.0.0.1:{port}', count, index, initialization_timeout=60)
  devices = [jax.devices()[int(i)] for i in order]
  seen = {spec: train(f'{root}/configs/{spec}', devices) for spec in specs}
  pathlib.Path(output).write_text(json.dumps(seen))


def train(spec: str, devices) -> dict:
  """Three steps; sums over every leaf after the first; rows that this process fed; features."""
  import jax
  import numpy as np

  from ssl_jax import build, runs
  from ssl_jax.cli.options import load_config
  from ssl_jax.cli.train import global_batches
  from ssl_jax.data.sources import ArraySource
  from ssl_jax.parallel import local_rows
  config = load_config(spec)
  # Adam would make a step of its full rate out of a gradient that is nothing but rounding.
  config.optimizer = dict(name='sgd')
  experiment = build.experiment(config, devices)
  assert [d.id for d in experiment.mesh.devices.flat] == [d.id for d in devices]
  program = experiment.program(config)
  ts, lines = program.init(), []
  leaves = []  # after the first step, every leaf
  magnitudes = jax.jit(lambda tree: jax.tree.map(lambda x: abs(x).sum(), tree))
  feed = global_batches(config, experiment, program, 0)
  whole = jax.sharding.NamedSharding(experiment.mesh, jax.sharding.PartitionSpec())
  for _ in range(STEPS):
    batch = next(feed)
    ts, metrics = program.step(ts, batch)
    leaves = leaves or [float(x) for x in jax.tree.leaves(magnitudes((ts.params, ts.state)))]
    ids = jax.jit(lambda x: x, out_shardings=whole)(batch['id'])
    lines.append({name: float(value) for name, value in metrics.items()}
                 | {'ids': np.asarray(ids).tolist()})
  result = dict(steps=lines, leaves=leaves,
                rows=local_rows(batch['id'].sharding, config.batch_size).tolist())
  if config.method.name == 'simclr':
    few = ArraySource(experiment.source.take(np.arange(60)))
    features, labels = runs.embed_split(experiment, ts.params, ts.state, few)
    result |= dict(features=features.tolist(), labels=labels.tolist())
  return result


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
