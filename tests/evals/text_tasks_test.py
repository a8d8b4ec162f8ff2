"""Reading labelled text as it comes: GLUE's files, TFDS, tables; measures of labels."""

import numpy as np
import pytest

from ssl_jax.data.sources import DataError
from ssl_jax.evals.text_metrics import TASKS
from ssl_jax.evals.text_tasks import (
  measure_labels,
  read_glue,
  read_glue_tfds,
  read_table,
  tfds_examples,
  wordnet,
)


def write(folder, name, *rows):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text('\n'.join('\t'.join(row) for row in rows) + '\n', 'utf-8')


# --- reading --------------------------------------------------------------------------------------

MNLI = ('index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse '
        'sentence2_parse sentence1 sentence2').split()
STSB = 'index genre filename year old_index source1 source2 sentence1 sentence2'.split()
MRPC = ['Quality', '#1 ID', '#2 ID', '#1 String', '#2 String']
FILES = dict(
  cola={'train.tsv': [('gj04', '1', '', 'One "quoted'), ('gj04', '0', '*', 'Two')],
        'dev.tsv': [('gj04', '1', '', 'Three')],
        'test.tsv': [('index', 'sentence'), ('0', 'Four')]},
  sst2={'train.tsv': [('sentence', 'label'), ('One "quoted', '1'), ('Two', '0')],
        'dev.tsv': [('sentence', 'label'), ('Three', '1')],
        'test.tsv': [('index', 'sentence'), ('0', 'Four')]},
  mrpc={'train.tsv': [('\ufeffQuality', *MRPC[1:]), ('1', '7', '8', 'One "quoted', 'b'),
                      ('0', '7', '8', 'Two', 'b')],
        'dev.tsv': [MRPC, ('1', '7', '8', 'Three', 'b')],
        'test.tsv': [('index', *MRPC[1:]), ('0', '7', '8', 'Four', 'b')]},
  qqp={'train.tsv': [('id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate'),
                     ('0', '1', '2', 'One "quoted', 'b', '1'), ('0', '1', '2', 'Two', 'b', '0')],
       'dev.tsv': [('id', 'qid1', 'qid2', 'question1', 'question2', 'is_duplicate'),
                   ('0', '1', '2', 'Three', 'b', '1')],
       'test.tsv': [('id', 'question1', 'question2'), ('0', 'Four', 'b')]},
  stsb={'train.tsv': [(*STSB, 'score'), (*'01234567'[:7], 'One "quoted', 'b', '3.800'),
                      (*'0123456', 'Two', 'b', '0.25')],
        'dev.tsv': [(*STSB, 'score'), (*'0123456', 'Three', 'b', '5')],
        'test.tsv': [STSB, (*'0123456', 'Four', 'b')]},
  mnli={'train.tsv': [(*MNLI, 'label1', 'gold_label'),
                      (*'01234567', 'One "quoted', 'b', 'neutral', 'neutral'),
                      (*'01234567', 'Two', 'b', 'entailment', 'entailment')],
        'dev_matched.tsv': [(*MNLI, *(f'label{i}' for i in range(1, 6)), 'gold_label'),
                            (*'01234567', 'Three', 'b', *['neutral'] * 5, 'contradiction')],
        'dev_mismatched.tsv': [(*MNLI, 'label1', 'gold_label'),
                               (*'01234567', 'Four', 'b', 'neutral', 'neutral')],
        'test_matched.tsv': [MNLI, (*'01234567', 'Five', 'b')],
        'test_mismatched.tsv': [MNLI, (*'01234567', 'Six', 'b')]},
  qnli={'train.tsv': [('index', 'question', 'sentence', 'label'),
                      ('0', 'One "quoted', 'b', 'not_entailment'), ('1', 'Two', 'b', 'entailment')],
        'dev.tsv': [('index', 'question', 'sentence', 'label'), ('0', 'Three', 'b', 'entailment')],
        'test.tsv': [('index', 'question', 'sentence'), ('0', 'Four', 'b')]},
  rte={'train.tsv': [('index', 'sentence1', 'sentence2', 'label'),
                     ('0', 'One "quoted', 'b', 'not_entailment'), ('1', 'Two', 'b', 'entailment')],
       'dev.tsv': [('index', 'sentence1', 'sentence2', 'label'), ('0', 'Three', 'b', 'entailment')],
       'test.tsv': [('index', 'sentence1', 'sentence2'), ('0', 'Four', 'b')]})
LABELS = dict(stsb=[np.float32(3.8), .25], mnli=[1, 0])


def glue(folder, name):
  for file, rows in FILES[name].items():
    write(folder / TASKS[name].folder, file, *rows)
  return folder


@pytest.mark.parametrize('name', TASKS)
def test_glue_is_read_from_its_official_files(name, tmp_path):
  task, folder = TASKS[name], glue(tmp_path, name)
  found = read_glue(name, folder, 'train')
  assert found.texts == (['One "quoted', 'Two'], ['b', 'b'])[:1 + task.pair]
  assert found.labels.tolist() == LABELS.get(name, [1, 0]) and found.skipped == 0
  assert found.labels.dtype == (np.float32 if task.regression else np.int32)
  assert found.classes == task.classes
  texts = ['Three', 'Four', 'Five', 'Six']
  for split, text in zip((*task.validation, *task.test), texts):
    found = read_glue(name, folder / task.folder, split)  # the folder of the task is as good
    assert found.texts[0] == [text] and (found.labels is None) == (split in task.test)


def test_mnli_has_two_validation_splits(tmp_path):
  folder = glue(tmp_path, 'mnli')
  labels = [read_glue('mnli', folder, f'validation_{name}').labels[0]
            for name in ('matched', 'mismatched')]
  assert [TASKS['mnli'].classes[i] for i in labels] == ['contradiction', 'neutral']


def test_damaged_rows_are_counted(tmp_path):
  header, *rows = FILES['qqp']['train.tsv']
  write(tmp_path, 'train.tsv', header, *rows, ('0', '1', '2', 'cut'), ('0', '1', '2', 'c', 'd', ''),
        ('0', '1', '2', 'c\u2028\r c', 'd', '1'))
  found = read_glue('qqp', tmp_path, 'train')
  assert found.skipped == 2 and found.texts[0][-1] == 'c\u2028\r c' and found.count == 3
  write(tmp_path, 'dev.tsv', *FILES['stsb']['dev.tsv'], (*'0123456', 'a', 'b', 'nan'))
  assert read_glue('stsb', tmp_path, 'validation').skipped == 1


def test_mistakes_about_glue_are_answered(tmp_path):
  with pytest.raises(ValueError, match="unknown task 'wnli'; GLUE has cola"):
    read_glue('wnli', tmp_path, 'train')
  with pytest.raises(ValueError, match='mnli has the splits train, validation_matched'):
    read_glue('mnli', tmp_path, 'validation')
  with pytest.raises(FileNotFoundError, match='no dev.tsv, nor RTE/dev.tsv'):
    read_glue('rte', tmp_path, 'validation')
  write(tmp_path, 'train.tsv', ('a', 'b'), ('1', '2'))
  with pytest.raises(DataError, match="no column 'sentence1', but a, b"):
    read_glue('rte', tmp_path, 'train')
  write(tmp_path, 'train.tsv', ('sentence', 'label'), ('1',))
  with pytest.raises(DataError, match=r'no examples \(1 damaged'):
    read_glue('sst2', tmp_path, 'train')


def test_glue_of_tfds():
  records = [dict(premise=b'p \xff', hypothesis=b'h', label=np.int64(2), idx=0)]
  found = tfds_examples(records, TASKS['mnli'], labelled=True)
  assert found.texts == (['p \ufffd'], ['h']) and found.labels.tolist() == [2]
  assert found.classes[2] == 'contradiction'
  score = tfds_examples([dict(sentence1=b'', sentence2=b'', label=np.float32(2.5))], TASKS['stsb'],
                        labelled=True)
  assert score.labels.dtype == np.float32 and score.classes == ()
  assert tfds_examples(records, TASKS['mnli'], labelled=False).labels is None


def test_glue_of_tfds_that_is_not_prepared(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  with pytest.raises(DataError, match="(?s)glue/rte is not in .*download_and_prepare"):
    read_glue_tfds('rte', 'train', str(tmp_path))


def test_glue_prepared_by_tfds(tmp_path, monkeypatch):
  """The builder of TFDS itself, with rows of our own instead of a download."""
  package = pytest.importorskip('tensorflow_datasets')
  glue = package.text.glue.Glue
  rows = [dict(question1=f'a {i}', question2='b', label=i % 2, idx=i) for i in range(3)]
  monkeypatch.setattr(glue, '_split_generators', lambda self, manager: {
    'train': ((row['idx'], row) for row in rows)})
  glue(config='qqp', data_dir=tmp_path, file_format='array_record').download_and_prepare()
  found = read_glue_tfds('qqp', 'train', str(tmp_path))
  assert sorted(zip(*found.texts, found.labels)) == [(f'a {i}', 'b', i % 2) for i in range(3)]
  with pytest.raises(ValueError, match="glue/qqp: .*validation"):
    read_glue_tfds('qqp', 'validation', str(tmp_path))


def test_data_of_ones_own(tmp_path):
  write(tmp_path, 'a.tsv', ('y', 'one', 'two'), ('no', 'a', 'b'), ('yes', 'c', 'd'), ('broken',))
  (tmp_path / 'b.jsonl').write_text('{"y": "yes", "one": "e", "two": "f", "more": []}\n\n[1]\n')
  found = read_table(tmp_path / 'a.tsv', text='one', text_pair='two', label='y')
  assert found == (((['a', 'c'], ['b', 'd'])), pytest.approx([0, 1]), ('no', 'yes'), 1)
  other = read_table(tmp_path / 'b.jsonl', text='two', label='y', classes=found.classes)
  assert other.texts == (['f'],) and other.labels.tolist() == [1] and other.skipped == 1
  write(tmp_path, 'c.tsv', ('y', 'one'), ('1e-1', 'a'), ('-', 'b'))
  numbers = read_table(tmp_path / 'c.tsv', text='one', label='y', regression=True)
  assert numbers.labels.tolist() == [np.float32(.1)] and numbers.skipped == 1
  with pytest.raises(DataError, match="'1e-1' does not occur in training, which has 'no', 'yes'"):
    read_table(tmp_path / 'c.tsv', text='one', label='y', classes=found.classes)
  with pytest.raises(DataError, match="no column 'z', but y, one"):
    read_table(tmp_path / 'c.tsv', text='one', label='z')
  with pytest.raises(FileNotFoundError):
    read_table(tmp_path / 'd.tsv', text='one', label='y')
  (tmp_path / 'e.jsonl').write_text('{')
  with pytest.raises(DataError, match='e.jsonl, line 1: expected a JSON object'):
    read_table(tmp_path / 'e.jsonl', text='one', label='y')


def test_wordnet_and_taking_some():
  found = wordnet('test')
  assert len(found.classes) == 45 and found.count == len(found.labels) > 5000
  some = found.take(np.array([5, 2]))
  assert some.texts[0] == [found.texts[0][5], found.texts[0][2]]
  assert some.labels.tolist() == found.labels[[5, 2]].tolist()


# --- measuring ------------------------------------------------------------------------------------


def test_measures_of_labels():
  outputs = np.array([[2, 1], [0, 1], [3, 0]], np.float32)
  rows = dict(label=np.array([0, 1, 1]))
  assert measure_labels(('accuracy', 'f1'))(outputs, rows) == pytest.approx(
    dict(accuracy=2 / 3, f1=2 / 3))
  assert measure_labels(('pearson',))(outputs[:, 0], dict(label=outputs[:, 0])) == pytest.approx(
    dict(pearson=1))
