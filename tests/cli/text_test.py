"""A language model from text to evaluation, on sixty documents; mistakes are answered in words."""

import json

import numpy as np
import pytest

import ssl_jax
from ssl_jax.cli import main
from ssl_jax.data import tokenize

CACHE = ['--cache_dir=none']
ANIMALS, TOOLS = 'dog cat horse wolf bird fish'.split(), 'hammer saw drill knife axe file'.split()


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """train.jsonl and test.jsonl of two classes, a tokenizer and a config."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  for split, count in (('train', 60), ('test', 12)):
    with open(folder / f'{split}.jsonl', 'w') as file:
      for i in range(count):
        words = [ANIMALS, TOOLS][i % 2]
        text = ' '.join(['the', rng.choice(words), 'and', *rng.choice(words, rng.integers(1, 9))])
        file.write(json.dumps(dict(text=text, label=i % 2)) + '\n')
  lines = [line['text'] for line in read(folder / 'train.jsonl')]
  tokenize.train(iter(lines), kind='wordpiece', size=90).save(folder / 'tokenizer.json')
  vocabulary = tokenize.load(folder / 'tokenizer.json').vocabulary
  (folder / 'config.py').write_text(f'''
from ml_collections import ConfigDict

def get_config(arg):
  return ConfigDict(dict(
    seed=0, batch_size=8, steps=2, log_every=1,
    data=dict(name='jsonl', path={str(folder)!r} + '/{{split}}.jsonl', split='train', label='label',
              tokenizer={str(folder / 'tokenizer.json')!r}, length=24),
    views=dict(name='masks', vocabulary={vocabulary.size}, mask={vocabulary.mask},
               special={vocabulary.special}),
    network=dict(name='transformer', architecture='bert_tiny', vocabulary={vocabulary.size}, width=16,
                 depth=1, heads=2, length=24, types=0),
    head=dict(name='masked_lm'), method=dict(name='masked_lm'),
    optimizer=dict(name='adamw'), schedule=dict(name='constant', learning_rate=0.01),
    checkpoint=dict(every=2), evaluate=dict(every=2, health_every=2)))
''')
  return folder


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  assert main(['train', f'--config={folder}/config.py', f'--workdir={workdir}', *CACHE]) == 0
  return workdir


def test_training_measures_the_objective_on_held_out_text(run):
  lines = read(run / 'metrics.jsonl')
  held_out = [line for line in lines if 'heldout_loss' in line]
  assert [line['step'] for line in held_out] == [2] and 0 <= held_out[0]['heldout_accuracy'] <= 1
  assert any('effective_rank' in line for line in lines)


def test_evaluation_has_the_objective_and_the_probes(run, capsys):
  assert main(['evaluate', f'--workdir={run}', *CACHE]) == 0
  out = capsys.readouterr().out
  for name in ('frequencies', 'random init', 'masked_lm', 'bag of words'):
    assert f'| {name} ' in out
  saved = json.loads((run / 'evaluation.json').read_text())
  assert saved['accuracies']['bag of words']['linear'] > .9
  held_out = [line for line in read(run / 'metrics.jsonl') if 'heldout_loss' in line][-1]
  assert saved['objective']['masked_lm']['loss'] == pytest.approx(held_out['heldout_loss'], rel=1e-5)
  assert main(['evaluate', f'--workdir={run}', *CACHE]) == 0  # the same again: masks are fixed
  assert json.loads((run / 'evaluation.json').read_text())['objective'] == saved['objective']


def test_protocols_of_images_are_refused(run, capsys):
  with pytest.raises(SystemExit) as stop:
    main(['evaluate', f'--workdir={run}', '--protocols=dino_knn', *CACHE])
  assert stop.value.code == 2 and 'look at images' in capsys.readouterr().err


def test_a_run_embeds_texts_and_fills_gaps(run, folder, tmp_path):
  loaded = ssl_jax.load(run)
  texts = ['the dog and the cat', 'the saw', 'the wolf and the bird and the fish']
  z = loaded.embed(texts)
  assert z.shape == (3, 16) and z.dtype == np.float32
  np.testing.assert_allclose(loaded.embed(texts[::-1])[::-1], z, atol=1e-6)
  guesses = loaded.fill_masks('the [MASK] and the [MASK]', count=3)
  assert [len(one) for one in guesses] == [3, 3]
  assert guesses[0][0].probability >= guesses[0][1].probability > 0
  with pytest.raises(ValueError, match='has no .MASK.'):
    loaded.fill_masks('no gap')
  with pytest.raises(ValueError, match='a list of texts'):
    loaded.embed('one text')
  (tmp_path / 'mine.txt').write_text('\n'.join(texts) + '\n')
  assert main(['embed', f'--workdir={run}', f'--data={tmp_path}/mine.txt',
               f'--output={tmp_path}/z.npz', *CACHE]) == 0
  np.testing.assert_allclose(np.load(tmp_path / 'z.npz')['embedding'], z, atol=1e-6)
  assert main(['embed', f'--workdir={run}', f'--output={tmp_path}/test.npz', *CACHE]) == 0
  found = np.load(tmp_path / 'test.npz')
  assert found['embedding'].shape == (12, 16) and set(found['label']) == {0, 1}


def test_a_curve_and_a_run_beside_it(run, tmp_path, capsys):
  curve = tmp_path / 'curve.json'
  other = tmp_path / 'other'
  other.mkdir()
  for name in ('config.json', 'metrics.jsonl', 'starts.jsonl'):
    (other / name).write_text((run / name).read_text())
  config = json.loads((other / 'config.json').read_text())
  (other / 'config.json').write_text(json.dumps(config | {'seed': 1}))
  text = (other / 'metrics.jsonl').read_text()
  # Every 200 steps: these runs have two, so the lines are moved there.
  for path in (run, other):
    moved = [dict(line, step=line['step'] * 100) for line in map(json.loads, text.splitlines())]
    (tmp_path / path.name).mkdir(exist_ok=True)
    (tmp_path / path.name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, moved)))
    (tmp_path / path.name / 'config.json').write_text((path / 'config.json').read_text())
  runs = [str(tmp_path / path.name) for path in (run, other)]
  assert main(['compare', f'--write_reference={curve}', *runs]) == 0
  assert main(['compare', f'--workdir={runs[1]}', f'--reference={curve}']) == 0
  assert 'lies in the band' in capsys.readouterr().out
  bad = [dict(line, heldout_loss=99.) for line in read(tmp_path / other.name / 'metrics.jsonl')
         if 'heldout_loss' in line]
  (tmp_path / other.name / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, bad)))
  assert main(['compare', f'--workdir={runs[1]}', f'--reference={curve}']) == 4
  assert 'leaves the band' in capsys.readouterr().out
  assert main(['compare', f'--workdir={runs[1]}', f'--reference={tmp_path}/none.json']) == 2


@pytest.mark.parametrize('override, message', [
  ('--config.network.vocabulary=20', 'but the tokenizer of config.data has'),
  ('--config.views.mask=7', 'use config.views.mask='),
  ('--config.views.special=(0,)', 'use config.views.special='),
  ('--config.network.length=16', 'longer than the position table of 16'),
  ('--config.views.profile=bert', 'unknown profile'),
  ('--config.views.rate=1.0', 'rate must be between 0 and 1'),
  ('--config.head.name=mlp', 'config.head.name'),
  ('--config.method.name=simclr', "needs the field 'views'"),
  ('--config.data.length=2', 'length must be at least 3'),
  ('--config.network.architecture=bert_huge', 'unknown architecture'),
])
def test_mistakes_are_found_before_training(folder, tmp_path, capsys, override, message):
  code = main(['train', f'--config={folder}/config.py', f'--workdir={tmp_path}/run', override, *CACHE])
  assert code == 2 and message in capsys.readouterr().err


def test_missing_text_and_tokenizers_are_named(folder, tmp_path, capsys):
  for override in ('--config.data.path=nowhere.jsonl', '--config.data.tokenizer=nowhere.json'):
    assert main(['train', f'--config={folder}/config.py', f'--workdir={tmp_path}/run', override,
                 *CACHE]) == 3
    assert 'nowhere.json' in capsys.readouterr().err
