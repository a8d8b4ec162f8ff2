"""One masked-LM training step of BERT: tokens/s on a CPU beside PyTorch's, and its program for a TPU.

  python -m benchmarks.mlm_step [--torch-python PYTHON] [--rounds 9]
  python -m benchmarks.mlm_step --tpu [--remat dots] [--timeout 900]

CPU: BERT of 4 layers x 256 with 30,522 tokens, 16 rows of 128 tokens, 20 masks in each, AdamW,
float32, no dropout. Ours draws its masks in the step; PyTorch (transformers' BertForMaskedLM, as
many threads as cores) gets rows that are masked already. transformers may live in another
environment, whose interpreter --torch-python names. Contestants take turns, one step each per
round; medians, because a shared machine is noisy. Where neighbours are busy PyTorch's threads wait
for each other and lose more than ours: `taskset -c 0` runs both on one core, and CPU milliseconds
per core (PyTorch's include threads that spin) depend less on the neighbours.

--tpu: the step of configs/bert_base_wikipedia.py:phase2 (BERT base, bfloat16, dropout, masks drawn
in the step) with 64 rows of 512 tokens on each chip of a v5e:4x4, compiled by libtpu without a TPU;
beside it the same step with the output layer at all 512 positions instead of 80. Memory is that of
the program as it is. FLOPs and bytes are the compiler's count, which has the body of a loop once: so
they are those of the same step with one block, not in a loop, 11 times what a second block adds, and
those of a turn of the loops over the vocabulary, compiled alone, for each further turn. The head's
part of the FLOPs is printed beside what its matrix products have by formula. Nothing is run. Every
program is compiled in a process of its own that --timeout bounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROWS, LENGTH, SLOTS, VOCABULARY, MASK = 16, 128, 20, 30522, 103
SPECIAL = (0, 100, 101, 102, 103)
WIDTH, DEPTH, HEADS = 256, 4, 4
RATE, DECAY, EPSILON = 1e-4, 0.01, 1e-8
READY = 'ready'

CHIPS, CHIP_ROWS, TPU_LENGTH, TPU_SLOTS, BLOCKS, TPU_WIDTH = 16, 64, 512, 80, 12, 768
SHARE, HEAD_MIB = 0.10, 10


# --- ours -----------------------------------------------------------------------------------------


def our_step():
  """A function that trains one step and waits for it; compiled and warmed up."""
  import jax
  import numpy as np

  from ssl_jax.methods import masked_lm
  from ssl_jax.models import language_heads
  from ssl_jax.models.network import from_linen
  from ssl_jax.models.transformer import LanguageModel, transformer
  from ssl_jax.parallel import make_mesh, over
  from ssl_jax.train import optimizers
  from ssl_jax.train.step import make_program
  from ssl_jax.views import masks

  backbone = transformer(architecture='bert_mini', vocabulary=VOCABULARY, dropout=0.,
                         attention_dropout=0.)
  mesh = make_mesh(devices=jax.devices()[:1])
  method = masked_lm.build(from_linen(LanguageModel(backbone, language_heads.masked_lm())),
                           on_batch=over(mesh))
  views = masks.build(vocabulary=VOCABULARY, mask=MASK, special=SPECIAL, rate=SLOTS / LENGTH)
  tokens = np.random.default_rng(0).integers(1000, VOCABULARY, (ROWS, LENGTH), np.int32)
  batch = dict(tokens=tokens, id=np.arange(ROWS, dtype=np.uint32), epoch=np.zeros(ROWS, np.uint32))
  program = make_program(method, optimizers.adamw(RATE, epsilon=EPSILON, weight_decay=DECAY), batch,
                         seed=0, mesh=mesh, prepare=views.prepare)
  state = [program.init()]

  def step():
    state[0], metrics = program.step(state[0], batch)
    metrics['loss'].block_until_ready()

  step()
  step()
  return step


# --- PyTorch --------------------------------------------------------------------------------------


def torch_step():
  """The same for transformers, in its own process."""
  import torch
  from transformers import BertConfig, BertForMaskedLM

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  model = BertForMaskedLM(BertConfig(
    vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH, hidden_dropout_prob=0., attention_probs_dropout_prob=0.)).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=DECAY)
  tokens = torch.randint(1000, VOCABULARY, (ROWS, LENGTH))
  chosen = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
  for row in chosen:
    row[torch.randperm(LENGTH)[:SLOTS]] = True
  labels = torch.where(chosen, tokens, -100)
  tokens = torch.where(chosen, MASK, tokens)

  def step():
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=tokens, labels=labels).loss.backward()
    optimizer.step()

  step()
  step()
  return step


def serve() -> None:
  """Trains one step for every line on stdin and prints its `timed`."""
  step = torch_step()
  print(READY, flush=True)
  for _ in sys.stdin:
    print(*timed(step), flush=True)


def torch_process(python: str) -> subprocess.Popen | None:
  """A process that serves steps, or None where PyTorch or transformers is missing."""
  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
  process = subprocess.Popen([python, __file__, '--serve'], stdin=subprocess.PIPE, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
  if process.stdout.readline().strip() == READY:
    return process
  reason = process.communicate()[1].strip().splitlines()[-1:]
  print(f'PyTorch skipped: {python} says {reason}; see --torch-python', file=sys.stderr)
  return None


# --- the table of the CPU -------------------------------------------------------------------------


def timed(step) -> tuple[float, float]:
  """Seconds that a step took, and CPU seconds per core."""
  start, start_cpu = time.perf_counter(), time.process_time()
  step()
  cpu = (time.process_time() - start_cpu) / len(os.sched_getaffinity(0))
  return time.perf_counter() - start, cpu


def cpu(rounds: int, python: str) -> None:
  step = our_step()
  contestants = {'ours': lambda: timed(step)}
  process = torch_process(python)
  if process:
    def ask():
      process.stdin.write('\n')
      process.stdin.flush()
      return tuple(map(float, process.stdout.readline().split()))

    contestants['transformers, PyTorch'] = ask
  times = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, run in contestants.items():
      times[name].append(run())
  if process:
    process.communicate('')
  print('| one step | tokens/s | median ms | fastest ms | CPU ms per core | its ms / ours | '
        'its CPU ms / ours |\n|---|---|---|---|---|---|---|')
  for name, spent in times.items():
    middle, middle_cpu = (statistics.median(one) for one in zip(*spent))
    ratios = [statistics.median(theirs[i] / own[i] for own, theirs in zip(times['ours'], spent))
              for i in (0, 1)]
    print(f'| {name} | {ROWS * LENGTH / middle:.0f} | {middle * 1e3:.0f} | {min(spent)[0] * 1e3:.0f} '
          f'| {middle_cpu * 1e3:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |')


# --- programs for a TPU ---------------------------------------------------------------------------


def chips(name: str, **options):
  """Devices of a slice that need not exist."""
  from jax.experimental import topologies
  return topologies.get_topology_desc(platform='tpu', topology_name=name, **options).devices


def numbers(compiled) -> dict:
  """Of one device: bytes of memory, FLOPs and bytes accessed, bodies of loops counted once."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  return dict(
    temp=memory.temp_size_in_bytes,
    peak=(memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
          + memory.temp_size_in_bytes),
    flops=cost['flops'], accessed=cost['bytes accessed'])


def one_chip():
  """A function that makes shapes on the chip of a v5e:1x1."""
  import jax

  chip = chips('v5e:1x1', chips_per_host_bounds=[1, 1, 1])[0]
  one = jax.sharding.SingleDeviceSharding(chip)
  return lambda dims, dtype: jax.ShapeDtypeStruct(dims, dtype, sharding=one)


def compile_turn(tokens: int) -> dict:
  """Value and gradient of one turn of the loops over the vocabulary, and how many turns they take.

  The program has two, since of one the compiler makes no loops and need not compute logits again;
  it counts one.
  """
  import jax
  import jax.numpy as jnp

  from ssl_jax.losses import prediction

  chunk = prediction._chunk_size(None, VOCABULARY, tokens)

  def loss(hidden, table, bias, column):
    own, lse, *_ = prediction._chunked(chunk, hidden, table, bias, column)
    return jnp.sum(lse - own)

  shape = one_chip()
  compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(
    shape((tokens, TPU_WIDTH), jnp.bfloat16), shape((2 * chunk, TPU_WIDTH), jnp.float32),
    shape((2 * chunk,), jnp.float32), shape((tokens,), jnp.int32)).compile()
  return numbers(compiled) | dict(turns=-(-VOCABULARY // chunk))


def all_positions(prepare):
  """`prepare`, for an output layer at every position, weighted as the masks are."""
  import jax.numpy as jnp

  def prepared(keys, batch):
    masked = dict(prepare(keys, batch))
    slots, weights = masked.pop('slots'), masked['weights']
    rows = jnp.arange(len(slots))[:, None]
    everywhere = jnp.zeros(batch['tokens'].shape, weights.dtype).at[rows, slots].add(weights)
    return masked | dict(targets=batch['tokens'], weights=everywhere)

  return prepared


def compile_step(positions: str, depth: int, remat: str | None) -> dict:
  """The step with all blocks in a loop, or with one or two that are not."""
  import jax
  import jax.numpy as jnp

  from ssl_jax import build
  from ssl_jax.cli.options import load_config
  from ssl_jax.parallel import make_mesh, over
  from ssl_jax.train.step import make_program

  config = load_config('configs/bert_base_wikipedia.py:phase2')
  with config.unlocked(), config.ignore_type():
    config.batch_size = CHIPS * CHIP_ROWS
    config.network.update(depth=depth, scan=depth == BLOCKS, remat=remat)
    config.views.slots = TPU_SLOTS
  mesh = make_mesh({'data': -1}, chips('v5e:4x4'))
  row = jax.ShapeDtypeStruct((config.batch_size, TPU_LENGTH), jnp.int32)
  number = jax.ShapeDtypeStruct((config.batch_size,), jnp.uint32)
  batch = dict(tokens=row, segments=row, positions=row, words=row, id=number, epoch=number)
  prepare = build.image_views(config).prepare
  if positions == 'all':
    prepare = all_positions(prepare)
  tx = build.call('optimizer', config.optimizer, build.optimizers.OPTIMIZERS, 1e-4)
  program = make_program(build.method(config, over(mesh)), tx, batch, seed=0, mesh=mesh,
                         prepare=prepare)
  return numbers(program.step.lower(program.state, program.batch).compile())


def compile_head(table: str, transform: bool) -> dict:
  """Value and gradient of the head, on one chip: the masked tokens of 64 x 512, then the vocabulary.

  table: dtype of the embedding; float32 is that of training, bfloat16 that of a bfloat16 copy.
  transform: with the dense layer before it, for the head's part of the step.
  """
  import jax
  import jax.numpy as jnp

  from ssl_jax.losses.prediction import masked_cross_entropy
  from ssl_jax.models.language_heads import masked_lm
  from ssl_jax.models.transformer import ARCHITECTURES
  from ssl_jax.types import Mode

  entries = VOCABULARY if transform else 30528
  a = ARCHITECTURES['bert_base']
  module = masked_lm(dtype=jnp.bfloat16)

  def loss(params, h, table, slots, targets, weights):
    hidden = jnp.take_along_axis(h, slots[:, :, None], axis=1)
    bias = params['params']['bias']
    if transform:
      hidden = module.apply(params, hidden, None, a, Mode(train=True))
    return masked_cross_entropy(hidden, table, bias, targets, weights)

  shape, slots = one_chip(), (CHIP_ROWS, TPU_SLOTS)
  params = {'params': {'bias': jax.ShapeDtypeStruct((entries,), table)}}
  if transform:
    params = jax.eval_shape(lambda: module.init(
      jax.random.key(0), jnp.zeros((1, 1, a.width)), None, a, Mode()))
  params = jax.tree.map(lambda x: shape(x.shape, x.dtype), params)
  compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(
    params, shape((CHIP_ROWS, TPU_LENGTH, a.width), jnp.bfloat16), shape((entries, a.width), table),
    shape(slots, jnp.int32), shape(slots, jnp.int32), shape(slots, jnp.float32)).compile()
  return numbers(compiled)


def in_a_process(kind: str, timeout: float, **arguments) -> dict | None:
  """What the function `compile_<kind>` returns, or None with the reason on stderr."""
  began = time.monotonic()
  command = [sys.executable, '-m', 'benchmarks.mlm_step', '--compile',
             json.dumps(dict(kind=kind, **arguments))]
  name = f'{kind} {arguments}'
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
  except subprocess.TimeoutExpired:
    print(f'{name} skipped: it took more than --timeout={timeout:.0f} s', file=sys.stderr)
    return None
  if done.returncode:
    lines = [line for line in done.stderr.splitlines() if 'RESOURCE_EXHAUSTED' in line]
    reason = (lines or done.stderr.strip().splitlines())[-1][:300]
    print(f'{name} cannot be compiled: {reason}', file=sys.stderr)
    return None
  print(f'{name}: compiled in {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
  return json.loads(done.stdout.splitlines()[-1])


def tpu(remat: str | None, timeout: float) -> None:
  tokens = CHIP_ROWS * TPU_LENGTH
  step = lambda positions, depth: in_a_process(
    'step', timeout, positions=positions, depth=depth, remat=remat)
  one, two = step('masked', 1), step('masked', 2)
  head = in_a_process('head', timeout, table='float32', transform=True)
  print(f'BERT base on v5e:4x4, {CHIP_ROWS} rows of {TPU_LENGTH} tokens per chip, bfloat16, '
        f'remat {remat}; per chip\n')
  print('| output layer at | peak HBM, GiB | TFLOP | GB accessed | MFLOP per token | '
        'kB accessed per token |\n|---|---|---|---|---|---|')
  for positions, count, title in (('masked', TPU_SLOTS, f'{TPU_SLOTS} masked positions'),
                                  ('all', TPU_LENGTH, f'all {TPU_LENGTH} positions')):
    first = one if positions == 'masked' else step(positions, 1)
    whole, turn = step(positions, BLOCKS), in_a_process('turn', timeout, tokens=CHIP_ROWS * count)
    peak = f'{whole["peak"] / 2**30:.2f}' if whole else 'does not compile'
    flops, accessed = (deep(first, one, two, turn, of) for of in ('flops', 'accessed'))
    print(f'| {title} | {peak} | {flops / 1e12:.2f} | {accessed / 1e9:.0f} | '
          f'{flops / tokens / 1e6:.0f} | {accessed / tokens / 1e3:.0f} |', flush=True)
    if positions == 'masked':
      counted = other_turns(head, turn, 'flops') if head and turn else float('nan')
      share, formula = counted / flops, head_products() / flops
  print(f'\nthe head has {share:.1%} of the FLOPs of the first ({formula:.1%} by formula); target '
        f'at most {SHARE:.0%}: {"met" if share <= SHARE else "missed"}')
  print('\n| head alone, v5e:1x1, value and gradient | temporary memory, MiB |\n|---|---|')
  for table in ('bfloat16', 'float32'):
    alone = in_a_process('head', timeout, table=table, transform=False)
    if alone:
      print(f'| states in bfloat16, embedding in {table} | {alone["temp"] / 2**20:.1f} |')
  print(f'\ntarget: at most {HEAD_MIB} MiB')


def head_products() -> float:
  """FLOPs of the head's matrix products, masked tokens, with all turns of the loops: four with the
  vocabulary (the logits, the same again, two gradients), three of the dense layer."""
  return 2. * CHIP_ROWS * TPU_SLOTS * TPU_WIDTH * (4 * VOCABULARY + 3 * TPU_WIDTH)


def other_turns(program: dict, turn: dict, of: str) -> float:
  """What a program has whose loops over the vocabulary were counted for one turn."""
  return program[of] + (turn['turns'] - 1) * turn[of]


def deep(first, one, two, turn, of: str) -> float:
  """What a step with all blocks has, from that with one and from what a second adds."""
  if not (first and one and two and turn):
    return float('nan')
  return other_turns(first, turn, of) + (BLOCKS - 1) * (two[of] - one[of])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--torch-python', '--torch_python', default=sys.executable,
                      help='interpreter with PyTorch and transformers')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--tpu', action='store_true', help='programs for a TPU instead of the CPU')
  parser.add_argument('--remat', choices=('none', 'dots', 'full'), default='dots')
  parser.add_argument('--timeout', type=float, default=900, help='seconds for each program')
  parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--compile', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve()
  elif args.compile:
    # Before JAX is imported: libtpu only compiles, and must not look for a TPU.
    os.environ.update(JAX_PLATFORMS='cpu', TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
    arguments = json.loads(args.compile)
    compiler = dict(step=compile_step, head=compile_head, turn=compile_turn)[arguments.pop('kind')]
    print(json.dumps(compiler(**arguments)))
  elif args.tpu:
    tpu(None if args.remat == 'none' else args.remat, args.timeout)
  else:
    cpu(args.rounds, args.torch_python)


if __name__ == '__main__':
  main()
