"""The metrics file survives kills and resumes; the terminal output is plain where it must be."""

import io
import json

import pytest

from ssl_jax.train.metrics import JsonLines, Progress, TensorBoard, duration, read_lines


def write(path, steps, resume_step=0):
  lines = JsonLines(path, resume_step=resume_step)
  for k in steps:
    lines(k, {'loss': 1 / k})
  lines.close()


def without_time(path):
  return [{k: v for k, v in line.items() if k != 'seconds'} for line in read_lines(path)]


def test_a_resumed_file_equals_an_undisturbed_one(tmp_path):
  write(tmp_path / 'a.jsonl', range(1, 9))
  write(tmp_path / 'b.jsonl', range(1, 7))  # died after 6, last checkpoint at 4
  with (tmp_path / 'b.jsonl').open('a') as file:
    file.write('{"step": 7, "lo')  # cut by the kill
  write(tmp_path / 'b.jsonl', range(5, 9), resume_step=4)
  assert without_time(tmp_path / 'b.jsonl') == without_time(tmp_path / 'a.jsonl')


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
  write(tmp_path / 'a.jsonl', [1, 2])
  write(tmp_path / 'a.jsonl', [1])
  assert len(read_lines(tmp_path / 'a.jsonl')) == 1


def test_every_line_is_strict_json_even_with_nan(tmp_path):
  lines = JsonLines(tmp_path / 'a.jsonl')
  lines(1, {'loss': float('nan'), 'x': float('inf')})
  lines.close()
  line = json.loads((tmp_path / 'a.jsonl').read_text(), parse_constant=pytest.fail)
  assert line['loss'] == 'nan' and line['x'] == 'inf'


def test_tensorboard_gets_the_scalars(tmp_path):
  board = TensorBoard(tmp_path)
  board(3, {'loss': 0.5})
  board.close()
  assert b'loss' in next(tmp_path.glob('events*')).read_bytes()


def test_plain_lines_where_there_is_no_terminal():
  out = io.StringIO()
  progress = Progress(10, batch_size=32, every=5, stream=out)
  for k in range(1, 11):
    progress(k, {'loss': 2.0})
  text = out.getvalue()
  assert text.count('\n') == 2 and '\r' not in text and '\x1b' not in text
  for word in ('step 5/10', 'loss 2', 'ms/step', 'examples/s', 'ETA'):
    assert word in text


def test_a_bar_on_a_terminal():
  class Terminal(io.StringIO):
    isatty = lambda self: True
  out = Terminal()
  progress = Progress(3, batch_size=32, every=5, stream=out)
  for k in range(1, 4):
    progress(k, {'loss': 2.0})
  progress.close()
  assert '3/3' in out.getvalue()


@pytest.mark.parametrize('seconds, text', [(0, '0:00'), (61.4, '1:01'), (3600, '1:00:00')])
def test_duration(seconds, text):
  assert duration(seconds) == text
