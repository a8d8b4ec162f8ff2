"""Fine-tuning by command: on what ships, on GLUE's files, on data of one's own; mistakes."""

import json
import sys

import jax
import numpy as np
import pytest

from ssl_jax.cli import main
from ssl_jax.cli.finetune import options
from ssl_jax.models.language_heads import masked_lm
from ssl_jax.models.transformer import LanguageModel, transformer
from ssl_jax.types import Mode
from ssl_jax.weights import to_huggingface

CACHE = '--cache_dir=none'
QUICK = ['--epochs=1', '--learning_rates=1e-3', CACHE]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Two steps of the smoke config."""
  workdir = tmp_path_factory.mktemp('run')
  assert main(['train', '--config=configs/mlm_wordnet.py:smoke', f'--workdir={workdir}', CACHE,
               '--config.steps=2', '--config.evaluate.every=None',
               '--config.evaluate.health_every=None']) == 0
  return workdir


def write(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join('\t'.join(row) for row in rows) + '\n')


def table(path, count=24):
  write(path, ('kind', 'a', 'b', 'size'), *(
    ('good' if i % 2 else 'bad', f'text {"good" if i % 2 else "bad"}', f'number {i}', str(i))
    for i in range(count)))
  return path


def finetune(*words) -> int:
  return main(['finetune', *words])


@pytest.mark.slow
def test_wordnet_beside_a_random_encoder(run, capsys):
  assert finetune(f'--workdir={run}', '--task=wordnet', '--examples=96', '--baseline', '--epochs=1',
                  '--learning_rates=1e-3,3e-3', CACHE) == 0
  out, err = capsys.readouterr()
  assert out.count('\n') == 4 and '| masked_lm ' in out and '| random init ' in out
  assert 'rate 0.003, seed 0, epoch 1/1: loss' in err
  written = json.loads((run / 'finetune.json').read_text())
  assert written['about']['step'] == 2
  result = written['tasks']['wordnet']
  assert result['examples'] == dict(train=96, validation=6399, test=6260)
  assert result['options']['length'] == 32  # as in pretraining
  found = result['encoders']['masked_lm']
  assert set(found['scores']) == {'validation', 'test'} and len(found['trials']) == 2
  assert 'chosen on validation' in found['selection']


def test_pairs_with_two_validation_splits(run, tmp_path, capsys):
  columns = ('sentence1', 'sentence2', 'gold_label')
  labels = ('entailment', 'neutral', 'contradiction')
  for name in ('train', 'dev_matched', 'dev_mismatched'):
    write(tmp_path / 'MNLI' / f'{name}.tsv', columns, ('cut',),
          *((f'a {i}', f'b {i}', labels[i % 3]) for i in range(12)))
  output = tmp_path / 'new' / 'mnli.json'
  assert finetune(f'--workdir={run}', '--task=mnli', f'--data={tmp_path}', f'--output={output}',
                  '--seeds=2', *QUICK) == 0
  out, err = capsys.readouterr()
  assert 'validation_matched accuracy' in out and 'validation_mismatched accuracy' in out
  assert '±' in out
  assert 'train: 1 damaged rows left out' in err
  assert json.loads(output.read_text())['tasks']['mnli']['examples']['validation_matched'] == 12


def test_data_of_ones_own(run, tmp_path, capsys):
  train, test = table(tmp_path / 'a.tsv'), table(tmp_path / 'b.tsv', 8)
  own = [f'--workdir={run}', f'--train={train}', f'--test={test}', '--text=a']
  assert finetune(*own, '--label=kind', '--text_pair=b', '--select=held_out', *QUICK) == 0
  assert 'test macro_f1' in capsys.readouterr().out
  assert finetune(*own, '--label=size', '--regression', *QUICK) == 0
  assert 'test spearman' in capsys.readouterr().out
  written = json.loads((run / 'finetune.json').read_text())
  assert 'pearson' in written['tasks']['own']['encoders']['masked_lm']['scores']['test']
  assert written['about']['step'] == 2
  assert finetune(*own, '--label=kin', *QUICK) == 3
  assert "no column 'kin', but kind, a, b, size" in capsys.readouterr().err
  assert finetune(*own, '--label=kind', '--learning_rates=1e38', '--epochs=1', CACHE) == 4
  assert 'diverged at every learning rate (1e+38)' in capsys.readouterr().err
  assert finetune(*own, '--label=kind', '--length=1000', *QUICK) == 2
  assert 'longer than the 128 positions' in capsys.readouterr().err


@pytest.mark.slow
def test_weights_of_hugging_face(run, tmp_path, capsys):
  folder, train = tmp_path / 'bert', table(tmp_path / 'a.tsv')
  a = dict(architecture='bert_tiny', vocabulary=8192, width=16, depth=1, heads=2, length=64)
  module = LanguageModel(transformer(**a), masked_lm())
  variables = module.init(jax.random.key(0), dict(tokens=np.zeros((1, 4), np.int32)), Mode())
  to_huggingface(module, variables, folder, tokenizer=run / 'tokenizer')
  words = [f'--weights={folder}', f'--train={train}', f'--test={train}', '--text=a',
           '--text_pair=b', '--label=kind', *QUICK]
  assert finetune(*words) == 0
  out, err = capsys.readouterr()
  assert '| bert ' in out and '--output=FILE.json keeps it' in err
  (folder / 'config.json').write_text('{"model_type": "t5"}')
  assert finetune(*words) == 3 and "unknown model_type 't5'" in capsys.readouterr().err


def test_without_the_module_of_weights(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'ssl_jax.weights', None)
  assert finetune(f'--weights={tmp_path}', '--task=wordnet', CACHE) == 2
  assert 'reads no weights' in capsys.readouterr().err


@pytest.mark.parametrize('words, message', [
  ([], 'needs --workdir=FOLDER or --weights=FOLDER'),
  (['--workdir=x', '--weights=y'], 'needs --workdir=FOLDER or'),
  (['--workdir=x'], 'needs --task=cola|'),
  (['--workdir=x', '--task=wnli'], 'is unknown; there are'),
  (['--workdir=x', '--task=cola'], 'needs --data=FOLDER'),
  (['--workdir=x', '--task=cola', '--train=y'], '--train is for data of your own'),
  (['--workdir=x', '--task=squad'], 'needs either --data=FOLDER with train-v1.1.json, dev-v1.1'),
  (['--workdir=x', '--task=conll', '--train=y'], 'or --train=FILE and --validation=FILE or --test'),
  (['--workdir=x', '--task=conll', '--data=z', '--train=y', '--test=y'], 'needs either --data'),
  (['--workdir=x', '--task=squad', '--data=z', '--validation=y'], 'needs either --data'),
  (['--workdir=x', '--task=conll', '--data=z', '--label=y'], 'it has no columns'),
  (['--workdir=x', '--task=squad', '--data=z', '--stride=0'], '--stride must be at least 1'),
  (['--workdir=x', '--task=squad', '--train=y', '--test=z', '--select=validation'],
   'needs --validation=FILE'), (['--workdir=x', '--config'], 'expected one argument'),
  (['--workdir=x', '--task=wordnet', '--learning_rates=fast'], 'must be numbers above 0'),
  (['--workdir=x', '--task=wordnet', '--seeds=0'], '--seeds must be at least 1'),
  (['--workdir=x', '--task=wordnet', '--dropout=1'], '--dropout must be in [0, 1)'),
  (['--workdir=x', '--train=a', '--test=b', '--text=c', '--label=d', '--select=validation'],
   'needs --validation=FILE'), (['--taks=cola'], 'did you mean --task')])
def test_wrong_options(words, message, capsys):
  with pytest.raises(SystemExit) as stop:
    finetune(*words)
  assert stop.value.code == 2 and message in capsys.readouterr().err


def test_missing_data_and_runs(run, tmp_path, capsys):
  assert finetune(f'--workdir={tmp_path}', '--task=wordnet', *QUICK) == 2
  assert finetune(f'--workdir={run}', '--task=rte', f'--data={tmp_path}', *QUICK) == 3
  assert 'no train.tsv, nor RTE/train.tsv, of rte in' in capsys.readouterr().err


# --- named entities and questions -----------------------------------------------------------------


def conll(path, count):
  lines = ['-DOCSTART- O', '']
  for i in range(count):
    lines += [f'word{i} O', 'Paris I-LOC', 'and O', 'Anna I-PER', 'Karenina I-PER', '']
  path.parent.mkdir(exist_ok=True)
  path.write_text('\n'.join(lines))
  return path


@pytest.mark.slow
def test_named_entities(run, tmp_path, capsys):
  for name, count in (('train', 20), ('valid', 4), ('test', 5)):
    conll(tmp_path / 'conll' / f'{name}.txt', count)
  output = tmp_path / 'a.json'
  words = [f'--workdir={run}', '--task=conll', f'--output={output}', '--epochs=4',
           '--learning_rates=1e-2', CACHE]
  assert finetune(*words, f'--data={tmp_path}/conll') == 0
  out, _ = capsys.readouterr()
  assert 'validation entity_f1' in out and 'test accuracy' in out
  result = json.loads(output.read_text())['tasks']['conll']
  assert result['examples'] == dict(train=20, validation=4, test=5)
  assert result['encoders']['masked_lm']['scores']['test']['entity_f1'] > 0.9
  own = [f'--train={tmp_path}/conll/train.txt', f'--test={tmp_path}/conll/test.txt']
  assert finetune(*words[:3], *own, '--examples=8', '--length=4', *QUICK) == 0
  assert "train: 32 words are cut off (or have no token) and count as 'O'" in (
    capsys.readouterr().err)
  (tmp_path / 'conll' / 'test.txt').write_text('a O\nb\n')
  assert finetune(*words[:3], *own, *QUICK) == 3
  assert 'test.txt, line 2: expected a word, then its tag' in capsys.readouterr().err
  assert finetune(*words[:3], f'--data={tmp_path}', *QUICK) == 3
  assert 'no train.txt or eng.train of conll in' in capsys.readouterr().err


def squad(path, count, impossible=False):
  qas = []
  for i in range(count):
    filler = 'a small animal of the kind ' * (1 + i % 9)
    context = f'{filler} lives in Paris {filler}'
    own = {'id': str(i), 'question': 'where does it live', 'answers': [
      {'text': 'Paris', 'answer_start': context.index('Paris')}]}
    if impossible:
      own['is_impossible'] = i % 2 == 0
    qas.append({'context': context, 'qas': [own]})
  path.write_text(json.dumps({'data': [{'paragraphs': qas}]}))
  return path


def test_questions(run, tmp_path, capsys):
  squad(tmp_path / 'train-v1.1.json', 30), squad(tmp_path / 'dev-v1.1.json', 9)
  output = tmp_path / 'a.json'
  words = [f'--workdir={run}', '--length=32', '--stride=8', CACHE, f'--output={output}']
  assert finetune(*words, '--task=squad', f'--data={tmp_path}', '--epochs=8', '--batch_size=16',
                  '--learning_rates=1e-2') == 0
  out, err = capsys.readouterr()
  assert 'validation exact_match' in out and 'validation span_f1' in out
  assert 'validation: 9 questions in ' in err
  result = json.loads(output.read_text())['tasks']['squad']
  assert result['examples'] == dict(train=30, validation=9) and result['options']['stride'] == 8
  assert result['encoders']['masked_lm']['scores']['validation']['exact_match'] > 0.8


def test_questions_that_may_have_no_answer(run, tmp_path, capsys):
  train = squad(tmp_path / 'train.json', 12, impossible=True)
  words = [f'--workdir={run}', f'--train={train}', f'--test={train}', '--length=32']
  assert finetune(*words, '--task=squad2', '--select=held_out', '--epochs=1',
                  '--learning_rates=1e-3,2e-3', CACHE) == 0
  out, _ = capsys.readouterr()
  assert 'test exact_match' in out and 'examples of the training set' in out
  assert finetune(*words, '--task=squad', *QUICK) == 3
  assert 'use --task=squad2' in capsys.readouterr().err
  train.write_text(train.read_text()[:-3])
  assert finetune(*words, '--task=squad2', *QUICK) == 3
  assert 'train.json: expected the JSON of SQuAD, but it is damaged' in capsys.readouterr().err


# --- configs --------------------------------------------------------------------------------------


def test_a_config_holds_options_and_the_command_line_wins(run, capsys):
  config = '--config=configs/finetune_glue.py:smoke'
  assert finetune(config, f'--workdir={run}', '--config.examples=64', '--length=16', CACHE) == 0
  assert 'test macro_f1' in capsys.readouterr().out
  result = json.loads((run / 'finetune.json').read_text())['tasks']['wordnet']
  assert result['examples']['train'] == 64 and result['options']['length'] == 16
  assert result['options']['learning_rates'] == [1e-3] and result['options']['epochs'] == 1


@pytest.mark.parametrize('text, message', [
  (None, 'no config file'), ('x = 1', "cannot be loaded: KeyError: 'get_config'"),
  ('def get_config(arg): return dict(task="wordnet", epoch=1)',
   "config.epoch is no option of `finetune`; did you mean 'epochs'"),
  ('def get_config(arg): raise ValueError(f"unknown variant {arg!r}")', "unknown variant 'a'")])
def test_configs_that_are_wrong(tmp_path, text, message, capsys):
  if text is not None:
    (tmp_path / 'c.py').write_text(text)
  assert finetune(f'--config={tmp_path}/c.py:a', '--workdir=x') == 2
  assert message in capsys.readouterr().err


def test_values_of_a_config_are_those_of_the_options(tmp_path, capsys):
  (tmp_path / 'c.py').write_text(
    'def get_config(arg): return dict(task="wordnet", workdir="x", baseline=True, step=None, '
    'learning_rates=(1e-3, 2e-3), regression=False, epochs=arg)')
  args = options([f'--config={tmp_path}/c.py:7', '--seeds=2'])
  assert (args.baseline, args.step, args.regression, args.epochs) == (True, None, False, 7)
  assert args.learning_rates == (1e-3, 2e-3) and args.seeds == 2
  with pytest.raises(SystemExit):
    options([f'--config={tmp_path}/c.py:many'])
  assert "--epochs: invalid int value: 'many'" in capsys.readouterr().err
