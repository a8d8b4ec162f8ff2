"""Evaluating and embedding a run on a folder of photographs, some of them damaged."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_jax.cli import main

CACHE = ['--cache_dir=none']
CLASSES, TRAIN, TEST = 3, 24, 8


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Pictures of 40 x 30 whose colour tells the class, one of each split damaged."""
  root = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for split, count in (('train', TRAIN), ('test', TEST)):
    for label in range(CLASSES):
      folder = root / split / f'class {label}'
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 120, (30, 40, 3))
        pixels[..., label] += 100
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i:02}.png')
    (root / split / 'class 1' / '03.png').write_bytes(b'damaged')
  return root


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
  """Two steps, with crops on the host."""
  workdir = tmp_path_factory.mktemp('run')
  (workdir / 'config.py').write_text(f'''
from ml_collections import ConfigDict

def get_config(arg):
  return ConfigDict(dict(
    seed=0, batch_size=24, steps=2, log_every=1,
    data=dict(name='image_folder', path={str(photos)!r}, split='train', size=20, unreadable=0.05),
    views=dict(name='moco_v1', size=12), network=dict(name='convnet', channels=(4, 8), strides=(2, 2)),
    head=dict(name='mlp', hidden=8, out=8), method=dict(name='simclr'),
    optimizer=dict(name='sgd'), schedule=dict(name='constant', learning_rate=0.01),
    checkpoint=dict(every=2), evaluate=dict(every=2, health_every=2)))
''')
  assert main(['train', f'--config={workdir}/config.py', f'--workdir={workdir}', *CACHE]) == 0
  return workdir


@pytest.mark.slow
def test_damaged_photographs_are_named_and_left_out(run, capsys):
  """Both tables come from the rows that can be read; numbers of the same step are kept."""
  assert main(['evaluate', f'--workdir={run}', *CACHE]) == 0
  out, err = capsys.readouterr()
  assert '| raw pixels ' in out
  for split in ('train', 'test'):  # each once, though they are read in every pass
    assert err.count(f'{split}/class 1/03.png: no image') == 1
  assert main(['evaluate', f'--workdir={run}', *CACHE,
               '--protocols=fewshot_ridge,finetune']) == 0
  out, err = capsys.readouterr()
  assert 'selected on' in out and '| finetune ' in out
  written = json.loads((run / 'evaluation.json').read_text())
  assert set(written['accuracies']) == {'raw pixels', 'random init', 'simclr'}
  rows = {row['protocol']: row for row in written['protocols']}
  assert list(rows) == ['fewshot_ridge', 'finetune']
  assert rows['finetune']['details']['labels'] == CLASSES * TRAIN - 1
  assert rows['finetune']['accuracy'] > 0.6  # the colour tells the class
  assert main(['evaluate', f'--workdir={run}', '--protocols=fewshot_ridge', '--seed=5', *CACHE]) == 0
  again = json.loads((run / 'evaluation.json').read_text())
  seeds = {row['protocol']: row['seed'] for row in again['protocols']}
  assert seeds == dict(fewshot_ridge=5, finetune=0) and 'pending' not in again


def test_augmented_features_are_of_crops(run, monkeypatch, capsys):
  from ssl_jax.evals import protocols
  seen = []

  def two_epochs(material, *, seed):
    for epoch in (0, 0, 1):
      (features, labels), = material.augmented(epoch)
      seen.append((features, labels))
    return protocols.Result('moco_linear', 0.5, 'none', {})

  monkeypatch.setattr(protocols, 'PROTOCOLS', {**protocols.PROTOCOLS, 'moco_linear': two_epochs})
  assert main(['evaluate', f'--workdir={run}', '--protocols=moco_linear', *CACHE]) == 0
  (first, labels), (again, _), (second, _) = seen
  assert first.shape == second.shape == (CLASSES * TRAIN - 1, 8)
  assert np.bincount(labels).tolist() == [TRAIN, TRAIN - 1, TRAIN]
  np.testing.assert_array_equal(first, again)
  assert (first != second).any(axis=1).mean() > 0.9


def test_what_is_finished_stays_when_a_later_protocol_fails(run, monkeypatch, capsys):
  from ssl_jax.evals import protocols

  def fails(material, *, seed):
    raise ValueError('no')

  (run / 'evaluation.json').unlink(missing_ok=True)
  names = 'fewshot_ridge,simclr_linear,percent_10'
  monkeypatch.setattr(protocols, 'PROTOCOLS', {**protocols.PROTOCOLS, 'simclr_linear': fails})
  assert main(['evaluate', f'--workdir={run}', f'--protocols={names}', *CACHE]) == 3
  saved = json.loads((run / 'evaluation.json').read_text())
  assert [row['protocol'] for row in saved['protocols']] == ['fewshot_ridge']
  assert saved['pending'] == ['simclr_linear', 'percent_10']  # a sweep evaluates once more


def test_too_few_images_for_a_protocol_are_found_before_work(run, capsys):
  assert main(['evaluate', f'--workdir={run}', '--protocols=fixed,dino_knn', *CACHE]) == 3
  out, err = capsys.readouterr()
  assert 'dino_knn looks at 200 neighbours' in err and 'evaluating' not in err and out == ''


def test_classes_are_matched_by_name(photos, run, tmp_path, capsys):
  """A test split without the first class: its numbers are others, its accuracy is the same."""
  shutil.copytree(run, tmp_path / 'run')
  shutil.copytree(photos, tmp_path / 'photos')
  shutil.rmtree(tmp_path / 'photos' / 'test' / 'class 0')
  (tmp_path / 'photos' / 'test' / 'class 1' / '03.png').unlink()  # the damaged one
  config = (tmp_path / 'run' / 'config.json').read_text()
  (tmp_path / 'run' / 'config.json').write_text(
    config.replace(json.dumps(str(photos)), json.dumps(str(tmp_path / 'photos'))))
  command = ['evaluate', f'--workdir={tmp_path}/run', '--protocols=finetune', *CACHE]
  assert main(command) == 0
  saved = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())
  assert saved['protocols'][-1]['accuracy'] > 0.6
  (tmp_path / 'photos' / 'test' / 'class 1').rename(tmp_path / 'photos' / 'test' / 'class 9')
  assert main(command) == 3 and 'class 9 are not among those of training' in capsys.readouterr().err


def test_unknown_protocols_are_answered_before_work(run, capsys):
  with pytest.raises(SystemExit) as stop:
    main(['evaluate', f'--workdir={run}', '--protocols=fixed,dino_nkn', *CACHE])
  assert stop.value.code == 2 and "did you mean 'dino_knn'?" in capsys.readouterr().err


def test_embedding_the_splits_and_any_folder(run, photos, tmp_path):
  assert main(['embed', f'--workdir={run}', f'--output={tmp_path}/test.npz', *CACHE]) == 0
  z = np.load(tmp_path / 'test.npz')
  assert z['embedding'].shape == (CLASSES * TEST - 1, 8)
  assert not any('class 1/03.png' in name for name in z['name'])
  assert np.bincount(z['label']).tolist() == [TEST, TEST - 1, TEST]
  folder = photos / 'test' / 'class 0'
  assert main(['embed', f'--workdir={run}', f'--data={folder}', f'--output={tmp_path}/mine.npz',
               *CACHE]) == 0
  mine = np.load(tmp_path / 'mine.npz')
  np.testing.assert_allclose(mine['embedding'], z['embedding'][:TEST], rtol=1e-5, atol=1e-5)
  assert 'label' not in mine
