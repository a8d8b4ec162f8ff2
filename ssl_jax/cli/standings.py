"""How far a sweep is, and what it has found: sweep.md and sweep.jsonl."""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax import runs
from ssl_jax.cli import NUMERICS
from ssl_jax.cli.compare import (
  GAIN,
  TITLES,
  Group,
  accuracy_names,
  accuracy_table,
  column,
  groups,
)
from ssl_jax.cli.grid import Job
from ssl_jax.data.sources import DataError
from ssl_jax.evals.aggregate import (
  ENOUGH,
  markdown,
  paired_difference,
  separated,
  spelled,
  summarise,
)
from ssl_jax.train.checkpoint import Checkpoints

NON_FINITE = 'non_finite.json'  # what train leaves when it stops with code 4


def state(folder: pathlib.Path, job: Job) -> str:
  """'new', 'started', 'failed' (numerics), 'trained' or 'evaluated', by the files of the run."""
  here = folder / job.folder
  newest = max(Checkpoints(here / runs.CHECKPOINTS).steps(), default=0)
  if newest >= job.steps:
    found = read_json(here / runs.EVALUATION)
    whole = found.get('step') == newest and not found.get('pending')  # see evaluate
    return 'evaluated' if whole else 'trained'
  # Written when training gave up. A run that was taken further since, by hand, is a started one.
  if newest <= read_json(here / NON_FINITE).get('step', -1) + 1 and (here / NON_FINITE).is_file():
    return 'failed'
  return 'started' if (here / runs.CONFIG).is_file() else 'new'


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A file of ours; {} where there is none. Raises DataError if it is damaged."""
  try:
    return json.loads(path.read_text()) if path.is_file() else {}
  except json.JSONDecodeError as error:
    raise DataError(f'{path} is damaged ({error}); delete it and start the sweep again') from error


def write(path: pathlib.Path, text: str) -> None:
  """All of it or nothing."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text.rstrip('\n') + '\n', encoding='utf-8')
  partial.replace(path)


def plain(value):
  """For json.dumps: sections of a config."""
  return value.to_dict() if hasattr(value, 'to_dict') else str(value)


def finish(folder: pathlib.Path, jobs: Sequence[Job]) -> int:
  """Prints and writes the table of what there is; `NUMERICS` if every run has failed, else 0."""
  states = {job.folder: state(folder, job) for job in jobs}
  if set(states.values()) == {'new'}:
    return 0
  found = groups(folder, folder.resolve().name, alone=True)
  title = f'# Sweep {folder.resolve().name}'
  text = '\n\n'.join([title, _table(found), *_remarks(found, jobs, states)])
  write(folder / 'sweep.md', text)
  write(folder / 'sweep.jsonl', '\n'.join(
    json.dumps(_line(one, jobs, states), default=plain) for one in found))
  print(text)
  print(f'\nin {folder / "sweep.md"}; every run: python -m ssl_jax compare {folder}', file=sys.stderr)
  return NUMERICS if set(states.values()) == {'failed'} else 0


def _table(found: Sequence[Group]) -> str:
  """Accuracies, or where nothing is evaluated the last losses."""
  if accuracy_names(found):
    return accuracy_table(found)
  losses = {one.name: _losses(one) for one in found}
  return markdown(['', 'n', 'final loss'], [
    [name, str(len(values)), spelled(summarise(values)) if values else '-']
    for name, values in losses.items()])


def _losses(one: Group) -> list[float]:
  found = [outcome.training.get('loss', math.nan) for outcome in one.runs.values()]
  return [loss for loss in found if math.isfinite(loss)]


def _remarks(found: Sequence[Group], jobs: Sequence[Job], states: Mapping[str, str]) -> list[str]:
  """What is best by which column, how far that can be trusted, and what is missing."""
  parts = []
  best = [line for name in accuracy_names(found) if (line := verdict(found, name))]
  if best:
    split = next(iter(found[0].runs.values())).config['evaluate.test_split']
    parts += ['Best by', '\n'.join(best), (
      f'The best was chosen on the split that is reported, {split!r}: its number is optimistic. '
      'Choose on data kept apart from it (config.evaluate.test_split), then evaluate once.')]
  failed = [job.name for job in jobs if states[job.folder] == 'failed']
  if failed:
    parts.append(f'Failed (loss or gradient not finite): {"; ".join(failed)}.')
  left = sum(one in ('new', 'started') for one in states.values())
  if left:
    parts.append(f'{left} of {len(jobs)} runs are not finished.')
  return parts


def verdict(found: Sequence[Group], name: str) -> str | None:
  """Which setting has the highest mean in a column, and whether the next one can be told from it."""
  ranked = sorted((one for one in found if column(one, name)), reverse=True,
                  key=lambda one: summarise(column(one, name).values()).mean)
  if len(ranked) < 2:
    return None
  best, second = ranked[:2]
  sign = name == GAIN
  text = (f'* {TITLES.get(name, name)}: {best.name} with '
          f'{spelled(summarise(column(best, name).values()), sign=sign)}')
  difference = paired_difference(column(second, name), column(best, name))
  if difference is None:
    return f'{text}; no seed in common with the next, {second.name}'
  text += f'; {spelled(difference, sign=True)} over the next, {second.name}, paired by seed'
  if difference.n < ENOUGH:
    return f'{text}: fewer than {ENOUGH} seeds cannot tell'
  return f'{text}: {"told apart" if separated(difference) else "not told apart"}'


def _line(one: Group, jobs: Sequence[Job], states: Mapping[str, str]) -> dict[str, Any]:
  """A setting as one line of sweep.jsonl."""
  mine = [job for job in jobs if job.setting == one.setting]
  losses = {seed: outcome.training.get('loss', math.nan) for seed, outcome in one.runs.items()}
  return dict(
    setting=one.setting, values=mine[0].values,
    summary={name: summarise(column(one, name).values())._asdict() for name in accuracy_names([one])},
    runs=[dict(seed=job.seed, folder=job.folder, state=states[job.folder],
               accuracies=one.runs[job.seed].accuracies if job.seed in one.runs else {},
               loss=losses[job.seed] if math.isfinite(losses.get(job.seed, math.nan)) else None)
          for job in mine])
