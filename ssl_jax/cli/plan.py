"""`python -m ssl_jax plan`: what a config costs on a machine that is not here."""

import json
import sys

import jax

from ssl_jax.cli import CONFIGURATION
from ssl_jax.cli.options import Parser
from ssl_jax.plan import report, search
from ssl_jax.plan.hardware import parse
from ssl_jax.plan.measure import measure
from ssl_jax.plan.stand_in import shape_of_data

DESCRIPTION = '''Compiles the train step of a config for a TPU slice or GPUs that this machine does not
have, and says whether it fits, what it does per step, and how fast it can be at most. Nothing is run
and no data are needed. Minutes for a large network. Exits with 2 where the config does not fit.'''


def run(argv: list[str]) -> int:
  parser = _parser()
  args, config = parser.read(argv)
  kinds = _check(parser, args, config)
  targets = [parse(name, args.slices) for name in (args.topology or args.sweep).split(',')]
  jax.config.update('jax_platforms', 'cpu')  # a TPU of this machine is not what is planned for
  shape, data = shape_of_data(config, args.examples)
  say = lambda line: print(line, file=sys.stderr, flush=True)
  if args.sweep:
    plans = list(search.sweep(config, shape, targets, say))
    _print(args, [report.as_json(p, args.config, data) for p in plans], report.scaling(plans))
    return 0 if all(plan.fits for plan in plans) else CONFIGURATION
  target, = targets
  if args.fit:
    found = search.fit(config, shape, target, kinds, say)
    _print(args, found.as_json(args.config, data), found.text(args.config, data))
    return CONFIGURATION if found.best is None else 0
  say(f'compiling for {target.name} ...')
  plan = measure(config, shape, target)
  words = report.text(plan, args.config, data)
  if args.explain and plan.counts is not None:
    words += '\n\n' + report.explain(plan)
  _print(args, report.as_json(plan, args.config, data), words)
  return 0 if plan.fits else CONFIGURATION


def _parser() -> Parser:
  parser = Parser('plan', DESCRIPTION, with_config=True)
  parser.add_argument('--topology', metavar='NAME', help='v5e-128, v4-64, v3-32, v6e:4x8, v5p:4x4x4, '
                      'tpu7x:2x2x1, 8xH100, 4x8xH100 ...')
  parser.add_argument('--slices', type=int, default=1, metavar='N', help='that many TPU slices, linked '
                      'by the network of the data centre')
  parser.add_argument('--examples', type=int, metavar='N', help='in the training data, where these are '
                      'not on this machine')
  parser.add_argument('--explain', action='store_true', help='also the largest arrays and the dearest '
                      'operations, by source line (--json has the costs by part in any case)')
  parser.add_argument('--fit', action='store_true', help='search for the largest batch per device that '
                      'fits (some compilations)')
  for name, text in search.SETTINGS.items():
    parser.add_argument(f'--{name}', action='store_true', help=f'with --fit: keep the batch and try '
                        f'{text}, for the cheapest setting that fits')
  parser.add_argument('--sweep', metavar='NAME,NAME,...', help='several machines, with the batch per '
                      'device of the first: weak scaling')
  parser.add_argument('--json', action='store_true', help='machine-readable, on stdout')
  return parser


def _check(parser: Parser, args, config) -> list[str]:
  """Refuses what does not go together; returns the settings that a search may change."""
  if config is None or not (args.topology or args.sweep):
    parser.error('needs --config=FILE.py and --topology=NAME, such as --topology=v5e-16')
  if args.topology and ',' in args.topology:
    parser.error('--topology is one machine; several are for --sweep')
  if args.sweep and (args.fit or args.topology):
    parser.error('--sweep names its machines itself and does not search; leave out --topology, --fit')
  if args.explain and (args.fit or args.sweep):
    parser.error('--explain is about one program; leave out --fit or --sweep, or ask again for the '
                 'setting they find')
  if args.examples is not None and args.examples < 1:
    parser.error(f'--examples must be at least 1, got {args.examples}')
  kinds = [name for name in search.SETTINGS if getattr(args, name)]
  if kinds and not args.fit:
    parser.error(f'--{kinds[0]} belongs to --fit')
  return kinds


def _print(args, numbers, words: str) -> None:
  print(json.dumps(numbers, indent=2) if args.json else words)
