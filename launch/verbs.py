"""The verbs of `python -m launch tpu`: (world, args, program) -> exit code."""

import contextlib
import subprocess
import sys

from launch import archive, commands, gcloud, machine, options, record, worker
from launch import babysit as supervisor
from launch.accelerators import parse
from launch.commands import World
from launch.errors import AGAIN, CONFIGURATION, DONE, LaunchError
from launch.gcloud import REFUSALS, Trouble
from launch.machine import CloudError, Machine
from launch.record import Record

WAIT = 15, 120, 10  # seconds between looks: at a request, times; at a program that saves


def _new(world: World, args) -> Record:
  """A record from the command line, checked."""
  for option in ('project', 'zone', 'accelerator'):
    if not getattr(args, option):
      raise LaunchError(f'{args.name} is not on record here, so --{option}=... is needed; for '
                        'example\n  python -m launch tpu create simclr --project=acme-ssl '
                        '--zone=us-west4-a --accelerator=v5litepod-16')
  record.check_filled_in(project=args.project, zone=args.zone, bucket=args.bucket or '')
  slice_, slices = parse(args.accelerator), 1 if args.slices is None else args.slices
  if slices < 1:
    raise LaunchError(f'--slices={slices}: expected 1 or more')
  return Record(args.name, args.project, args.zone, slice_.name, slices,
                args.capacity or 'on-demand', (args.bucket or '').rstrip('/'), args.data or '',
                'TOKEN' if world.dry else record.new_token())


def _known(args) -> Record:
  found = record.load(args.name)
  if found is None:
    raise LaunchError(
      f'{args.name} is not on record in {record.state_folder()}: it was not created from here, or '
      'was deleted. `python -m launch tpu status` lists what there is, `create` makes a new one')
  return found


def _ready(world: World, args) -> Record:
  """The record of a machine whose workers can be reached."""
  known = _known(args)
  look = machine.look(world, known)
  if look.machine != Machine.READY or not look.mine:
    raise LaunchError(f'{known.name} is not ready, or not the machine that was created from here '
                      f'({look.text}); `python -m launch tpu babysit {known.name}` brings a lost '
                      'machine back')
  return known


def _driving(world: World, name: str):
  """A dry run changes nothing, so it may look on while another command drives."""
  return contextlib.nullcontext() if world.dry else record.driving(name)


def _save(world: World, new: Record) -> None:
  if not world.dry:
    record.save(new)


# --- verbs ----------------------------------------------------------------------------------------


def create(world: World, args, program) -> int:
  del program
  with _driving(world, args.name):
    new = _new(world, args)
    if (old := record.load(new.name)) is not None:
      if machine.look(world, old).machine != Machine.ABSENT:
        raise LaunchError(f'{old.name} is there already, {old.capacity} {old.accelerator} in '
                          f'{old.zone}; `python -m launch tpu status {old.name}` shows it')
      new = new._replace(token=old.token)  # a request whose answer was lost may still arrive
    _ask_for(world, new)
    _wait_until_ready(world, new)
  world.say(f'{new.name} is ready; next: python -m launch tpu setup {new.name}')
  return DONE


def _ask_for(world: World, new: Record) -> None:
  world.say(parse(new.accelerator).describe(new.slices) + f', {new.capacity} in {new.zone}')
  machine.check(world, new)
  _save(world, new)  # before: what might be rented must be on record
  try:
    machine.create(world, new)
  except CloudError as error:
    # Refused, so there is nothing to keep on record; without an answer there may be.
    if error.kind not in (Trouble.TRANSIENT, Trouble.UNKNOWN):
      record.forget(new)
    raise


def _wait_until_ready(world: World, new: Record) -> None:
  said = ''
  while True:
    look = machine.look(world, new)
    if look.machine == Machine.READY:
      return
    if look.machine == Machine.GONE or look.failure:
      kind = gcloud.trouble(look.failure)
      raise LaunchError(f'{new.name}: {look.failure or look.text}\nwhat to do: '
                        f'{gcloud.FIXES[kind]}; `python -m launch tpu delete {new.name}` clears '
                        'the request away',
                        CONFIGURATION if kind in REFUSALS else AGAIN)
    if look.text != said:
      world.say(f'{new.name}: {look.text}. Ctrl-C ends waiting, not the request, which `delete` '
                'cancels')
    said = look.text
    world.sleep(WAIT[0])


def setup(world: World, args, program) -> int:
  del program
  with _driving(world, args.name):
    known = _ready(world, args)
    if known.code:
      _refuse_running(world, known)
    known = known._replace(code=archive.pack(world, known, args.release), stopped='')
    _save(world, known)
    answers = machine.patiently(world, lambda: machine.setup(world, known))
    machine.refuse_failures(known, answers, 'setup')
  world.say(f'{len(answers)} workers are set up; next: python -m launch tpu run {known.name} -- '
            'train --config=... --workdir=runs/...')
  return DONE


def run(world: World, args, program) -> int:
  options.check_program(program)
  with _driving(world, args.name):
    known = _ready(world, args)
    if not known.code and not world.dry:
      raise LaunchError(f'{known.name} is not set up: python -m launch tpu setup {known.name}')
    _check_workdir(known, program, known.capacity == 'spot')
    _refuse_running(world, known)
    return _start(world, known._replace(arguments=program))


def resume(world: World, args, program) -> int:
  del program
  with _driving(world, args.name):
    known = _ready(world, args)
    if not known.arguments:
      raise LaunchError(f'nothing ran on {known.name} yet: python -m launch tpu run {known.name} '
                        '-- train ...')
    _refuse_running(world, known)
    return _start(world, known)


def _refuse_running(world: World, known: Record) -> None:
  if world.dry:
    return
  running = [state for state in machine.workers(world, known) if state.state == 'running']
  if running:
    raise LaunchError(f'a program is running on {len(running)} workers of {known.name} '
                      f'({commands.quoted(known.arguments)}); first: python -m launch tpu stop '
                      f'{known.name}')


def _start(world: World, known: Record) -> int:
  known = known._replace(attempt=known.attempt + 1, stopped='')
  _save(world, known)
  answers = machine.patiently(world, lambda: machine.start(world, known))
  machine.refuse_failures(known, answers, 'start')
  world.say(f'started on {len(answers)} workers; python -m launch tpu attach {known.name}')
  return DONE


def _check_workdir(known: Record, program: tuple[str, ...], lasting: bool) -> None:
  """Several hosts need one folder, and what is to outlive the machine cannot be on its disk."""
  folder = worker.workdir(program)
  if '://' in folder:
    raise LaunchError(f'--workdir={folder}: training writes to folders; with --bucket=gs://... the '
                      "machine's folder runs/ is the bucket's, so say --workdir=runs/...")
  shared = folder.startswith('/') or known.bucket and folder.split('/')[0] == 'runs'
  several = parse(known.accelerator).hosts * known.slices > 1
  if not folder or shared or not (several or lasting):
    return
  fix = ('use a folder below runs/, which is in the bucket' if known.bucket else
         'create the machine with --bucket=gs://..., then runs/... is in the bucket')
  raise LaunchError(f"--workdir={folder} would be on each VM's own disk, which other hosts do not "
                    f'see and which is lost with the machine; {fix}')


def status(world: World, args, program) -> int:
  del program
  if args.name is None:
    names = sorted(path.stem for path in record.state_folder().glob('*.json'))
    for found in filter(None, map(record.load, names)):
      print(f'{found.name}: {found.capacity} {found.slices} x {found.accelerator} in {found.zone}, '
            f'project {found.project}')
    print('nothing is on record' if not names else 'each costs until it is deleted')
    return DONE
  known = _known(args)
  look = machine.look(world, known)
  facts = {'machine': look.text, 'is': f'{known.capacity} {known.slices} x {known.accelerator} in '
           f'{known.zone}', 'program': commands.quoted(known.arguments)}
  if look.machine != Machine.ABSENT and not look.mine:
    facts['note'] = 'this is not the machine that was created from here: its label differs'
  if known.stopped:
    facts['babysitter stopped'] = known.stopped
  if look.machine == Machine.READY:
    for state in machine.workers(world, known):
      code = '' if state.code is None else f' with exit code {state.code}'
      pulse = f'{state.doing}, got on {state.still} s ago, ' if state.doing else ''
      facts[state.answer.name(known)] = (f'{state.state}{code}, attempt {state.attempt}, {pulse}'
                                         f'checkpoint {state.step}: {state.last}')
  if not world.dry:
    print('\n'.join(f'{key}: {value}' for key, value in facts.items() if value))
  return DONE


def logs(world: World, args, program) -> int:
  del program
  known = _known(args)
  if machine.look(world, known).machine == Machine.READY:
    text = machine.logs(world, known, args.lines)
  elif known.bucket:
    text = machine.cloud(world, gcloud.show_saved_logs(known)).out
  else:
    raise LaunchError(f'{known.name} is not there and had no bucket, so its logs are gone with it')
  if not world.dry:
    print(text)
  return DONE


def attach(world: World, args, program) -> int:
  del program
  known = _known(args)
  hosts = parse(known.accelerator).hosts
  if not (0 <= args.worker < hosts and 0 <= args.slice < known.slices):
    raise LaunchError(f'{known.name} has slices 0 to {known.slices - 1} with workers 0 to '
                      f'{hosts - 1}')
  node = gcloud.node_names(known)[args.slice]
  command = gcloud.follow(known, node, args.worker, worker.tail_and_follow())
  if world.dry:
    return world.run(command).code
  commands.need('gcloud')
  try:  # not through World: its output is the terminal's
    subprocess.run(command.argv)
  except KeyboardInterrupt:
    pass
  return DONE


def stop(world: World, args, program) -> int:
  del program
  with _driving(world, args.name):
    known = _ready(world, args)
    machine.refuse_failures(known, machine.ask(
      world, known, worker.stop(), note='SIGTERM: save and end'), 'stop')
    for _ in range(1 if world.dry else WAIT[1]):
      states = machine.workers(world, known)
      if world.dry or not any(state.state == 'running' for state in states):
        break
      world.sleep(WAIT[2])
    else:
      raise LaunchError(f'still saving after {WAIT[1] * WAIT[2]} s; see `python -m launch tpu logs '
                        f'{known.name}`', AGAIN)
  codes = sorted({state.code for state in states if state.code is not None})
  world.say(f'ended with exit codes {codes}; `resume` goes on, the machine still costs')
  return DONE


def delete(world: World, args, program) -> int:
  del program
  with _driving(world, args.name):
    known = record.load(args.name)
    if known is None:
      if not (args.project and args.zone):
        raise LaunchError(f'{args.name} is not on record here: it was deleted already, or created '
                          'elsewhere; for the latter --project and --zone are needed')
      known = Record(args.name, args.project, args.zone, 'v4-8')
    look = machine.look(world, known)
    if look.machine == Machine.ABSENT:
      record.forget(known)
      world.say(f'{known.name} is gone already')
      return DONE
    _refuse_other_peoples(known, look, args)
    if not (args.yes or world.dry):
      _confirm(known)
    machine.delete(world, known)
    if not world.dry and (left := machine.look(world, known)).machine != Machine.ABSENT:
      raise LaunchError(f'{known.name} is still there ({left.text}); the same command again', AGAIN)
    if not world.dry:
      record.forget(known)
  world.say(f'{known.name} is deleted')
  return DONE


def _refuse_other_peoples(known: Record, look: machine.Look, args) -> None:
  """Ours is what carries the token on record, or, without a record, the label of this command."""
  mine = look.mine if known.token else bool(look.label)
  if not mine and args.not_mine != known.name:
    raise LaunchError(f'{known.name} in {known.zone} was not created by this command; if it is to '
                      f'be deleted all the same, add --not-mine={known.name}')


def _confirm(known: Record) -> None:
  if not sys.stdin.isatty():
    raise LaunchError('nobody is there to be asked; --yes deletes without asking')
  if input(f'delete {known.name} ({known.zone}) and its disks? type its name: ') != known.name:
    raise LaunchError('not deleted')


def babysit(world: World, args, program) -> int:
  with _driving(world, args.name):
    known = record.load(args.name)
    new = known is None
    known = _new(world, args) if new else _agreeing(known, args)
    known = known._replace(arguments=program or known.arguments)
    options.check_program(known.arguments, restarts=True)
    _check_workdir(known, known.arguments, lasting=True)
    if new:
      world.say(parse(known.accelerator).describe(known.slices) + f', {known.capacity}')
      machine.check(world, known)
    else:
      _refuse_another_program(world, record.load(args.name), known)
    if not known.code or args.release:
      known = known._replace(code=archive.pack(world, known, args.release))
    # After it gave up, the old end must not be taken for the new one.
    known = known._replace(attempt=known.attempt + bool(known.stopped), stopped='')
    _save(world, known)
    if world.dry:
      return _rehearse(world, known)
    return supervisor.babysit(world, known, autodelete=args.autodelete)


def _agreeing(known: Record, args) -> Record:
  """The record, if the command line does not say otherwise."""
  for option in ('project', 'zone', 'accelerator', 'slices', 'capacity', 'bucket', 'data'):
    given = getattr(args, option)
    if option == 'accelerator' and given:
      given = parse(given).name
    if given and given != getattr(known, option):
      raise LaunchError(f'{known.name} is on record with --{option}={getattr(known, option)}, not '
                        f'{given}; leave the option out, or delete {known.name} first')
  return known


def _refuse_another_program(world: World, old: Record, known: Record) -> None:
  if old.arguments and old.arguments != known.arguments and not world.dry and (
      machine.look(world, known).machine == Machine.READY):
    _refuse_running(world, old)


def _rehearse(world: World, known: Record) -> int:
  """One life, every command of it once."""
  machine.create(world, known)
  machine.look(world, known)
  machine.setup(world, known)
  machine.start(world, known._replace(attempt=known.attempt + 1))
  world.say('every minute; after 42 or a kill started again:')
  machine.workers(world, known)
  world.say('when the machine was taken away, then all of it again:')
  machine.delete(world, known)
  return DONE
