"""Which test proves which of the 63 faults, where no `test_NN_...` function here proves it alone.

Numbers that need hardware stand in `UNTESTED`, with the reason.
"""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FAULTS = range(1, 64)
RUNS, VERBS = 'tests/launch/babysit_run_test.py', 'tests/launch/tpu_test.py'

# number: node ids of the tests outside this folder that prove it, or the rest of it.
ELSEWHERE = {
  28: ['tests/train/step_test.py::test_a_step_that_is_not_finite_changes_nothing_but_the_count'],
  29: ['tests/train/loop_test.py::test_giving_up_names_the_examples_and_keeps_the_state',
       'tests/cli/hosts_test.py::test_steps_that_are_not_finite_end_all_processes_with_4'],
  31: ['tests/losses/prediction_test.py::test_unused_slots_may_hold_anything',
       'tests/losses/prediction_test.py::test_no_weight_at_all_is_zero',
       'tests/losses/all_pairs_test.py::test_anchors_without_a_positive_do_not_count'],
  32: ['tests/evals/health_test.py::test_verdicts_give_the_numbers',
       'tests/cli/monitor_test.py::test_a_head_that_gives_one_point_for_all_is_named',
       'tests/methods/collapse_test.py::test_byol'],
  51: [f'{RUNS}::TestPreemption::{name}' for name in (
    'test_while_creating', 'test_in_setup_and_start', 'test_while_running', 'test_while_deleting',
    'test_of_one_slice_takes_all', 'test_without_a_trace')]
  + ['tests/launch/life_test.py::test_a_preempted_run_equals_one_left_alone'],
  52: [f'{RUNS}::TestPrograms::test_a_fault_stops_shows_every_worker_and_keeps_the_machine',
       f'{RUNS}::TestPrograms::test_a_fault_whose_peers_were_aborted_is_a_fault'],
  53: [f'{RUNS}::TestRefusals::{name}' for name in (
    'test_that_stay_stop_at_once_with_the_fix', 'test_that_pass_are_waited_for',
    'test_no_capacity_is_waited_for', 'test_of_a_request_that_was_accepted_first')],
  54: [f'{RUNS}::TestConnections::test_setup_that_fails_on_one_of_four_names_it',
       f'{VERBS}::test_setup_names_the_worker_that_failed'],
  55: [f'{VERBS}::test_a_lost_connection_does_not_end_the_run_and_others_find_it',
       f'{RUNS}::TestConnections::test_a_dropped_one_does_not_end_training'],
  56: [f'{RUNS}::TestPrograms::test_a_crash_loop_ends',
       f'{RUNS}::TestPrograms::test_one_that_never_saved_ends_too'],
  57: [f'tests/launch/commands_test.py::{name}' for name in (
    'test_through_gcloud_and_the_shell_of_the_worker',
    'test_the_program_gets_its_arguments_through_every_layer')]
  + [f'{RUNS}::TestPrograms::test_arguments_arrive_unchanged',
     'tests/launch/slurm_test.py::test_arguments_arrive_unchanged',
     'tests/launch/local_test.py::test_arguments_arrive_unchanged'],
  58: [f'{VERBS}::TestDelete::{name}' for name in (
    'test_asks', 'test_refuses_what_others_created', 'test_refuses_a_namesake_of_what_was_created',
    'test_what_is_gone_already_is_forgotten')] + [f'{VERBS}::test_a_run_by_hand'],
  59: [f'tests/launch/slurm_test.py::{name}' for name in (
    'test_usr1_saves_and_requeues_once', 'test_an_element_of_an_array_requeues_itself_alone',
    'test_without_scontrol_it_says_so',
    'test_a_real_run_saves_requeues_and_ends_where_it_would_have')],
  60: ['tests/launch/docs_test.py::test_what_the_documented_commands_do',
       'tests/launch/docs_test.py::test_every_verb_is_documented',
       'tests/docs_test.py::test_the_commands_of_the_documents_are_accepted'],
  61: ['tests/colabs_test.py::test_runs', 'tests/colabs_test.py::test_is_kept_without_outputs'],
  62: ['tests/docs_test.py::test_every_block_is_executed_or_marked',
       'tests/docs_test.py::test_the_code_of_the_documents_runs',
       'tests/docs_test.py::test_the_python_of_the_readme_runs',
       'tests/cli/hosts_test.py::test_the_rehearsal_of_the_document',
       'tests/docs_test.py::test_the_examples_run_and_agree'],
  63: ['tests/configs_test.py::test_can_be_built'],
}
# number: why it cannot be tested without hardware.
UNTESTED: dict[int, str] = {}


@functools.cache
def names(path: pathlib.Path) -> frozenset[str]:
  """The tests of a file, as NAME or CLASS::NAME."""
  found = []
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.ClassDef):
      found += [f'{node.name}::{inner.name}' for inner in node.body
                if isinstance(inner, ast.FunctionDef)]
    elif isinstance(node, ast.FunctionDef):
      found.append(node.name)
  return frozenset(name for name in found if name.rpartition('::')[2].startswith('test_'))


def here() -> dict[int, list[str]]:
  """The tests of this folder by the number in their names."""
  found = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('*_test.py')):
    for name in names(path):
      if match := re.match(r'test_(\d\d)_', name):
        found.setdefault(int(match[1]), []).append(name)
  return found


def test_every_fault_is_proved_or_has_a_reason():
  proved = {*here(), *(n for n, nodes in ELSEWHERE.items() if nodes)}
  assert [n for n in FAULTS if n not in proved and not UNTESTED.get(n)] == []


@pytest.mark.parametrize('number', sorted(ELSEWHERE))
def test_what_is_named_exists(number):
  for node in ELSEWHERE[number]:
    path, _, name = node.partition('::')
    assert name in names(ROOT / path), node


def test_no_number_is_unknown():
  assert {*here(), *ELSEWHERE, *UNTESTED} <= {*FAULTS}
