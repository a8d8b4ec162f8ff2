"""`python -m launch tpu VERB`: Cloud TPU VMs from the request to the last byte."""

import argparse

from launch import commands, options, record, verbs

DESCRIPTION = '''Cloud TPU VMs, through the gcloud command. In the order of a run:

  create    ask for a machine, wait until it is there
  setup     Python, pinned wheels, the code and the bucket on every worker; `doctor` looks at it
  run       start `python -m ssl_jax ...` on every worker, detached
  status, logs, attach      look
  stop, resume              save and end; start the same again
  delete    delete the machine

or all of it, again and again until the run is done: babysit.'''


def main(argv: list[str]) -> int:
  ours, program = options.split(argv)
  args = _parser().parse_args(ours)
  world = commands.dry() if args.dry_run else commands.real()
  if args.name is not None:
    record.check_name(args.name)
  return args.verb_function(world, args, program)


# --- the command line -----------------------------------------------------------------------------


def _parser() -> options.Parser:
  parser = options.Parser('python -m launch tpu', description=DESCRIPTION,
                          formatter_class=argparse.RawDescriptionHelpFormatter)
  choices = parser.add_subparsers(dest='verb', required=True, metavar='VERB')

  def add(name, function, text):
    verb = choices.add_parser(name, help=text, description=text)
    verb.set_defaults(verb_function=function)
    verb.add_argument('name', metavar='NAME', nargs='?' if name == 'status' else None)
    verb.add_argument('--dry-run', action='store_true', help='print the exact commands instead')
    return verb

  _machine_options(add('create', verbs.create, 'ask for a machine and wait until it is there'))
  _release_option(add('setup', verbs.setup, 'install code and packages on every worker'))
  add('run', verbs.run, 'start `python -m ssl_jax ...` (after --) on every worker, detached')
  add('status', verbs.status, 'how machine and workers stand; without NAME: what was created')
  verb = add('logs', verbs.logs, "the ends of all logs; those in the bucket if the machine is gone")
  verb.add_argument('--lines', type=int, default=40)
  verb = add('attach', verbs.attach, "follow one worker's log; Ctrl-C ends watching, not training")
  verb.add_argument('--slice', type=int, default=0)
  verb.add_argument('--worker', type=int, default=0)
  add('resume', verbs.resume, 'start the last program again')
  add('stop', verbs.stop, 'let the program save and end; the machine stays')
  verb = add('delete', verbs.delete, 'delete the machine and what is on its disks')
  verb.add_argument('--yes', action='store_true', help='do not ask')
  verb.add_argument('--not-mine', metavar='NAME', help='the name once more: delete a machine that '
                    'was not created by this command')
  verb.add_argument('--project', help='of a machine that is not on record here')
  verb.add_argument('--zone', help='of a machine that is not on record here')
  verb = add('babysit', verbs.babysit, 'create, set up and run (after --), until the run is done')
  _machine_options(verb)
  _release_option(verb)
  verb.add_argument('--autodelete', action='store_true', help='delete the machine when the run is '
                    'done; never after a failure')
  return parser


def _machine_options(verb) -> None:
  verb.add_argument('--project', help='the Google Cloud project that pays')
  verb.add_argument('--zone', help='such as us-west4-a')
  verb.add_argument('--accelerator', help='such as v5litepod-16, v4-8, v5p-8, v6e-8')
  verb.add_argument('--slices', type=int, help='several of them as one run; default 1')
  verb.add_argument('--capacity', choices=('on-demand', 'spot', 'reserved'), help='default '
                    'on-demand; spot is cheaper and may be taken away at any time')
  verb.add_argument('--bucket', help='gs://...: runs and logs that outlive the machine; mounted on '
                    'every worker, its folder runs/ is the runs/ of the checkout')
  verb.add_argument('--data', help='what training reads, gs://... or a path: setup looks for it')


def _release_option(verb) -> None:
  verb.add_argument('--release', metavar='TAG', default='', help='the code of this tag, not the '
                    'checkout as it is')
