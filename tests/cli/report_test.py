"""`report` on tiny runs: with everything, and with every part missing."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from ssl_jax.cli import main, report
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_sources import WORDNET_VOCABULARY
from ssl_jax.report import environment
from ssl_jax.report.page import Embedding, Evaluation, Missing
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import CheckpointError

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
DEMO, MASKED_LM = (str(CONFIGS / f'{name}.py') for name in ('simclr_fashion_mnist', 'mlm_wordnet'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two steps on 64 images of 3 classes."""
  folder = tmp_path_factory.mktemp('run')
  rng = np.random.default_rng(0)
  for split, count in (('train', 64), ('test', 20)):
    np.savez(folder / f'{split}.npz', label=np.arange(count) % 3,
             image=rng.integers(0, 256, (count, 12, 12, 1), np.uint8))
  workdir = folder / 'a run'
  assert main([
    'train', f'--config={DEMO}:smoke', f'--workdir={workdir}', '--cache_dir=none',
    '--config.data.name=array_files', f'--config.data.path={folder}/{{split}}.npz',
    '--config.views.size=12', '--config.steps=2', '--config.evaluate.every=None',
    '--config.views.mean=(0.5,)', '--config.views.std=(0.25,)',
    '--config.evaluate.health_every=None']) == 0
  return workdir


def gather(workdir, step=None):
  return report.gather(workdir, examples=12, seed=0, step=step, argv=['report'])


@pytest.fixture(scope='module')
def gathered(trained):
  return gather(trained)


def test_one_page_from_one_command(trained, capsys):
  assert report.run([f'--workdir={trained}', '--examples=12', '--cache_dir=none']) == 0
  page = (trained / 'report.html').read_text()
  assert str(trained / 'report.html') in capsys.readouterr().out
  assert f'python -m ssl_jax evaluate --workdir={trained}' in page
  assert 'a run</h1>' in page and 'data:image/png' in page and 'nan' not in page


def test_the_embedding_is_of_test_images_by_class(gathered):
  part = gathered.embedding
  assert isinstance(part, Embedding) and part.examples == 12 and part.others == 0
  assert [p.title.split(' · ')[0] for p in part.panels] == ['t-SNE', 't-SNE', 'PCA', 'PCA']
  assert all(p.points.shape == (12, 2) and np.isfinite(p.points).all() for p in part.panels)
  assert part.classes.names == ('class 0', 'class 1', 'class 2')
  assert list(part.spectra) == ['simclr, step 2', 'random init']


def test_neighbours_are_training_images_that_are_nearest(gathered, trained):
  part = gathered.neighbours
  first, second = part.groups
  assert part.queries.shape == (8, 12, 12, 1) and first.images.shape == (8, 8, 12, 12, 1)
  assert set(part.query_names[:3]) == {'class 0', 'class 1', 'class 2'}
  assert (np.diff(first.similarity, axis=1) <= 0).all() and (first.images != second.images).any()
  train = np.load(trained.parent / 'train.npz')['image']
  assert all((train == image).all((1, 2, 3)).any() for image in first.images[0])
  assert 0 <= first.precision <= 1


def test_views_are_shown_without_their_normalisation(gathered):
  views = gathered.augmentations[0].views['views']
  assert len(gathered.augmentations) == 6 and views.shape == (2, 12, 12, 1)
  assert -1e-6 <= views.min() and 0.5 < views.max() <= 1 + 1e-6


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Two steps of a masked language model on texts of two classes."""
  workdir = tmp_path_factory.mktemp('text') / 'run'
  for split, count in (('train', 80), ('test', 12)):
    (workdir.parent / f'{split}.jsonl').write_text('\n'.join(json.dumps(dict(
      text=f'the {"animal plant".split()[i % 2]} number {i}', label=i % 2)) for i in range(count)))
  assert main([
    'train', f'--config={MASKED_LM}:smoke', f'--workdir={workdir}', '--cache_dir=none',
    '--config.data.name=jsonl', f'--config.data.path={workdir.parent}/{{split}}.jsonl',
    '--config.data.label=label', f'--config.data.tokenizer={WORDNET_VOCABULARY}',
    '--config.batch_size=8', '--config.steps=2', '--config.evaluate.every=None']) == 0
  return workdir


def test_a_language_model_is_shown_with_its_texts(texts):
  found = gather(texts)
  assert found.embedding.kind == 'text' and found.embedding.examples == 12
  first = found.neighbours.groups[0]
  assert len(first.images) == len(found.neighbours.queries) == 8
  assert all(re.fullmatch('the (animal|plant) number \\d+', text)
             for text in [*found.neighbours.queries, *first.images[0]])
  assert first.names[0][0] in ('class 0', 'class 1')
  words = [word for row in found.augmentations for word in row.words]
  chosen = [word for word in words if word.was is not None]
  assert 0 < len(chosen) < len(words) and any(word.seen == '[MASK]' for word in chosen)
  assert {word.was for word in chosen} & {'the', 'animal', 'plant', 'number'}
  assert 'image' not in re.sub('<style>.*?</style>', '', report.render(found), flags=re.S)


def test_texts_without_masks_are_said_to_be_so(texts):
  config = report.runs.read_config(texts)
  with config.unlocked():
    config.views = dict(name='next_token')
  assert 'nothing is masked' in report.augmentations(config, 0).why


def test_examples_that_are_neither_are_said_to_be_so(trained, monkeypatch):
  monkeypatch.setattr(report, 'kind_of', lambda example: None)
  found = gather(trained)
  for part in (found.embedding, found.neighbours, found.augmentations):
    assert 'neither images nor texts' in part.why


def test_curves_tiles_and_config(gathered):
  assert {'loss', 'gradient norm', 'learning rate', 'time per step'} <= {
    c.title for c in gathered.curves}
  found = {tile.label: tile for tile in gathered.tiles}
  assert (found['steps'].value, found['steps'].note) == ('2', 'complete')
  rows = {field: (value, default) for field, value, default in gathered.config}
  assert rows['log_every'] == (1, 50) and rows['batch_size'] == (16, ...)
  assert rows['views.strength'] == (0.5, 1.0)
  assert dict(gathered.defaults_left)['views.flip'] == 0.5
  assert gathered.environment['command'].startswith('python -m ssl_jax train --config=')


def test_a_run_without_a_record_tells_what_its_checkpoint_knows(trained, tmp_path):
  shutil.copytree(trained, tmp_path / 'run')
  (tmp_path / 'run' / environment.STARTS).unlink()
  machine = gather(tmp_path / 'run').environment
  assert 'cores' in machine['trained with']
  assert machine['command'].startswith('python -m ssl_jax report')


def test_a_record_of_the_start_goes_before_what_is_known_now(trained, tmp_path):
  environment.record(tmp_path, ['train', '--config=x.py'], ['TPU v5e'] * 4)
  machine, note = report.provenance(tmp_path, None, [])
  assert machine['devices'] == '4 x TPU v5e' and 'Recorded' in note


def test_an_evaluation_is_read(trained, tmp_path):
  config = report.runs.read_config(trained)
  assert isinstance(report.evaluation(tmp_path, config), Missing)
  (tmp_path / 'evaluation.json').write_text(json.dumps(dict(
    step=2, protocol=dict(knn='cosine'), accuracies={'simclr': dict(knn20=0.5)}, health={})))
  found = report.evaluation(tmp_path, config)
  assert isinstance(found, Evaluation) and found.protocols == [] and 'cosine' in found.note
  tiles = {t.label: t.value for t in report.tiles(config, None, [], found, 2)}
  assert tiles['kNN-20'] == '0.500'
  (tmp_path / 'evaluation.json').write_text('{')
  with pytest.raises(DataError, match='evaluate again'):
    report.evaluation(tmp_path, config)


def test_time_per_step_leaves_evaluation_out():
  lines = [dict(step=10, loss=1., seconds=5.), dict(step=10, knn20=.5, seconds=9.),
           dict(step=20, loss=1., seconds=10.), dict(step=40, loss=1., seconds=14.)]
  np.testing.assert_allclose(report.seconds_per_step(lines), [[20, 0.1], [40, 0.2]])
  assert len(report.seconds_per_step(lines[:1])) == 0


def test_numbers_that_are_not_finite_are_read_from_their_words():
  curve, = report.curves([dict(step=1, loss='nan'), dict(step=2, loss='inf'), dict(step=3, loss=2.)])
  np.testing.assert_array_equal(curve.values, [np.nan, np.inf, 2])
  assert not report.curves([])


def test_twenty_classes_keep_their_colours():
  labels = np.repeat(np.arange(25), np.arange(25) + 1)
  found, others = report.classes(labels, None)
  assert others == 5 and found.names[0] == 'class 5' and len(found.names) == 20
  assert (found.index[labels == 4] == -1).all() and (found.index[labels == 24] == 19).all()


def test_a_run_without_checkpoint_or_data(trained, tmp_path, capsys):
  young = tmp_path / 'young'
  young.mkdir()
  for name in ('config.json', 'example.json'):
    shutil.copy(trained / name, young)
  found = gather(young)
  assert isinstance(found.embedding, Missing) and 'ssl_jax train' in found.embedding.command
  assert isinstance(found.curves, Missing)
  config = json.loads((young / 'config.json').read_text())
  config['data']['path'] = str(tmp_path / 'gone.npz')
  (young / 'config.json').write_text(json.dumps(config))
  assert 'cannot be read' in gather(young).augmentations.why
  shutil.copytree(trained / 'checkpoints', young / 'checkpoints')
  assert 'cannot be read' in gather(young).neighbours.why
  with pytest.raises(ConfigError, match='not the folder of a run'):
    gather(tmp_path)
  with pytest.raises(CheckpointError):
    gather(trained, step=7)


def test_where_there_is_no_test_split_training_images_are_parted(trained, tmp_path):
  config = report.runs.read_config(trained)
  path = tmp_path / 'photos.npy'
  np.save(path, np.arange(40, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 1), np.uint8))
  config.data.path = str(path)
  data = report.sample(config, 30, 0)
  test, bank = ({int(part[i]['image'][0, 0, 0]) for i in range(len(part))}
                for part in (data.test, data.bank))
  assert len(test) == 20 and len(bank) == 20 and not test & bank


@pytest.mark.parametrize('argv', [[], ['--workdir=x', '--examples=3'], ['--workdir=x', '--seed=-1']])
def test_mistakes_on_the_command_line(argv, capsys):
  with pytest.raises(SystemExit) as stop:
    report.run(argv)
  assert stop.value.code == 2
