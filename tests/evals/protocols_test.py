"""Protocols: each gives a sane number, says where it selected, and selects nowhere else."""

import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from ssl_jax.evals import protocols
from ssl_jax.evals.knn import knn
from ssl_jax.evals.protocols import (
  PROTOCOLS,
  Material,
  Result,
  Trainable,
  format_protocols,
  run_protocols,
)
from ssl_jax.parallel import make_mesh

CLASSES, PER_CLASS, TEST = 4, 60, 120
FROZEN = [name for name in PROTOCOLS if name not in ('moco_linear', 'finetune')]


def material(noise=1.0, seed=0, **optional):
  """Four Gaussians in eight dimensions; noise 1 leaves a few per cent of errors."""
  rng = np.random.default_rng(seed)
  centres = 1.4 * rng.normal(size=(CLASSES, 8))
  make = lambda y: (centres[y] + noise * rng.normal(size=(len(y), 8))).astype(np.float32)
  y = rng.permutation(np.repeat(np.arange(CLASSES), PER_CLASS))
  labels = rng.integers(CLASSES, size=TEST)
  return Material(make(y), y, make(labels), labels, CLASSES, **optional)


@pytest.fixture(scope='module', autouse=True)
def fewer_steps():
  """12,500 steps of a grid are for ImageNet; these 240 rows need 100."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(protocols, 'DINOV2_STEPS', 100)
    yield


@pytest.fixture(scope='module')
def frozen():
  return {result.protocol: result for result in run_protocols(FROZEN, material(), seed=0)}


@pytest.mark.parametrize('name', FROZEN)
def test_separable_classes_are_found_and_the_record_is_json(frozen, name):
  result = frozen[name]
  # percent_1 has one label per class.
  assert result.accuracy > {'percent_1': .6}.get(name, .85)
  assert json.loads(json.dumps(result.details)) == result.details
  if 'top5' in result.details:  # there are four classes, so all labels are among the first five
    assert result.details['top5'] == 1. > result.accuracy


def test_selections_are_said(frozen):
  said = {name: result.selection for name, result in frozen.items()}
  assert 'held-out 10% of train' in said['byol_sweep_heldout']
  assert 'held-out 10% of train' in said['dinov2_grid'] and 'test split' in said['dinov2_grid']
  for name in set(FROZEN) - {'byol_sweep_heldout', 'dinov2_grid'}:
    assert said[name].startswith('none'), name


@pytest.mark.parametrize('name', ['byol_sweep_heldout', 'dinov2_grid'])
def test_what_is_selected_on_held_out_rows_never_sees_the_test_labels(frozen, name):
  data = material()
  wrong = data._replace(test_labels=(data.test_labels + 1) % CLASSES,
                        test_features=data.test_features[::-1])
  [other] = run_protocols([name], wrong, seed=0)
  assert other.accuracy < .4 < frozen[name].accuracy
  for key in ('learning_rate', 'held_out_accuracy', 'representation', 'steps'):
    assert other.details.get(key) == frozen[name].details.get(key)


def test_the_sweep_chooses_among_its_rates_and_reports_all(frozen):
  details = frozen['byol_sweep_heldout'].details
  assert [float(rate) for rate in details['accuracies']] == list(protocols.BYOL_RATES)
  assert details['accuracies'][str(details['learning_rate'])] == (
    frozen['byol_sweep_heldout'].accuracy)
  # 216 rows are one batch; 80 epochs.
  assert details['batch_size'] == 216 and details['steps'] == 80
  assert frozen['dinov2_grid'].details['steps'] == 100


def test_the_grid_tries_other_layers_and_tells_the_optimistic_number():
  data = material(noise=1.6)
  garbage = data._replace(train_features=0 * data.train_features + 1,
                          test_features=0 * data.test_features + 1)
  layers = {'last': (data.train_features, data.test_features)}
  [result] = run_protocols(['dinov2_grid'], garbage._replace(layers=layers), seed=0)
  details = result.details
  assert details['representation'] == 'last' and len(details['accuracies']) == 26
  assert details['optimistic_accuracy'] == max(details['accuracies'].values()) >= result.accuracy
  assert result.accuracy == details['accuracies'][f'last {details["learning_rate"]:g}'] > .6


def test_neighbours_are_the_weighted_ones_on_a_mesh_too(frozen):
  data = material()
  expected = {k: knn(*data[:4], k=k, classes=CLASSES, temperature=.07)['accuracy']
              for k in (10, 20, 200)}
  assert frozen['dino_knn'].accuracy == expected[20]
  assert frozen['dino_knn'].details['accuracies']['10'] == expected[10]
  assert frozen['instdisc_knn'].accuracy == expected[200]
  [sharded] = run_protocols(['dino_knn'], data._replace(mesh=make_mesh()), seed=0)
  assert sharded == frozen['dino_knn']


def test_few_shots_are_scikit_learns_ridge_on_the_same_draws():
  data, scores = material(noise=2.), []
  for i in range(3):
    rng = np.random.default_rng((5, i))
    rows = np.concatenate([rng.permutation(np.flatnonzero(data.train_labels == c))[:10]
                           for c in range(CLASSES)])
    x, y = data.train_features[rows].astype(np.float64), data.train_labels[rows]
    design = lambda a, x=x: np.hstack([(a - x.mean(0)) / (x.std(0) + 1e-5),
                                       np.full((len(a), 1), 100.)])
    peer = Ridge(alpha=2.**10, fit_intercept=False).fit(design(x), 2. * np.eye(CLASSES)[y] - 1)
    found = peer.predict(design(data.test_features)).argmax(1)
    scores.append(np.mean(found == data.test_labels))
  [result] = run_protocols(['fewshot_ridge'], data, seed=5)
  assert result.accuracy == pytest.approx(np.mean(scores))
  assert result.details['accuracy_std'] == pytest.approx(np.std(scores, ddof=1))
  assert sorted(result.details['accuracies'], key=int) == ['1', '5', '10', '25']
  assert result.accuracy < 1


def test_moco_trains_on_augmented_features_of_every_epoch():
  data, seen = material(), []

  def augmented(epoch):
    seen.append(epoch)
    rng = np.random.default_rng(epoch)
    features = data.train_features + .3 * rng.normal(size=data.train_features.shape)
    yield features[:100], data.train_labels[:100]
    yield features[100:], data.train_labels[100:]

  [result] = run_protocols(['moco_linear'], data._replace(augmented=augmented), seed=0)
  assert seen == list(range(100)) and result.accuracy > .85
  assert result.selection.startswith('none')


def trainable(data, **change):
  """An encoder that is a linear map which begins by hiding half of the features."""

  def batches(rows, *, batch_size, seed):
    rng = np.random.default_rng(seed)
    while True:
      some = rng.choice(rows, batch_size, replace=False)
      yield dict(x=data.train_features[some], label=data.train_labels[some].astype(np.int32))

  def test():
    yield dict(x=data.test_features, label=data.test_labels.astype(np.int32))

  network = Trainable(
    encode=lambda params, state, x, *, train: (x @ params, state),
    params=np.diag(np.r_[np.ones(4), np.zeros(4)]).astype(np.float32), state={},
    train_batches=batches, test_batches=test, inputs=lambda batch: batch['x'],
    train_inputs=lambda batch: batch['x'], batch_size=32)
  return data._replace(trainable=network._replace(**change))


def test_fine_tuning_takes_the_rows_and_steps_of_its_protocol():
  data = material()
  asked = []

  def batches(rows, *, batch_size, seed):
    asked.append((rows, batch_size, seed))
    return trainable(data).trainable.train_batches(rows, batch_size=batch_size, seed=seed)

  names = ['percent_1', 'percent_10', 'finetune']
  results = run_protocols(names, trainable(data, train_batches=batches), seed=3)
  for (rows, batch_size, seed), result, per_class, epochs in zip(asked, results, (1, 6, 60),
                                                                 (60, 30, 30)):
    assert np.bincount(data.train_labels[rows]).tolist() == [per_class] * 4 and seed == 3
    assert batch_size == min(32, 4 * per_class) == result.details['batch_size']
    assert result.details['steps'] == epochs * 4 * per_class // batch_size
    assert result.details['classifier'] == 'the whole network, fine-tuned'
  assert results[2].accuracy > .85


def test_everything_wrong_is_found_before_anything_runs(monkeypatch):
  monkeypatch.setattr(protocols, 'PROTOCOLS', {name: None for name in PROTOCOLS})  # none can run
  with pytest.raises(ValueError, match="unknown protocol 'simclr_liner'; did you mean 'simclr_l"):
    run_protocols(['dino_knn', 'simclr_liner'], material())
  with pytest.raises(ValueError, match="'moco_linear' needs .* give Material.augmented"):
    run_protocols(['dino_knn', 'moco_linear'], material())
  with pytest.raises(ValueError, match="'finetune' needs .* give Material.trainable"):
    run_protocols(['finetune'], material())
  with pytest.raises(ValueError, match='test: labels must be'):
    run_protocols(['dino_knn'], material()._replace(test_labels=np.full(TEST, 9)))


def test_too_few_rows_are_named():
  data = material()
  few = data._replace(train_features=data.train_features[:30], train_labels=data.train_labels[:30])
  with pytest.raises(ValueError, match='only 30 training examples'):
    run_protocols(['instdisc_knn'], few)
  with pytest.raises(ValueError, match=r'class \d has \d labelled rows, 10 were asked for'):
    run_protocols(['fewshot_ridge'], few)


def test_runs_under_the_transfer_guard():
  with jax.transfer_guard('disallow'):
    run_protocols(['simclr_linear', 'instdisc_knn'], material())


def test_the_table_is_aligned_markdown():
  results = [Result('dino_knn', .5, 'none', {}),
             Result('percent_1', .25, 'none: fixed', dict(accuracy_std=.0123))]
  assert format_protocols(results) == '''\
| protocol  | accuracy      | selected on |
|-----------|---------------|-------------|
| dino_knn  | 0.500         | none        |
| percent_1 | 0.250 ± 0.012 | none: fixed |'''


def test_sizes_are_found_wrong_before_anything_runs(monkeypatch):
  """With the name of the protocol, and before those in front of it have cost anything."""
  few = material()
  few = few._replace(train_features=few.train_features[:33], train_labels=few.train_labels[:33])
  monkeypatch.setattr(protocols, 'PROTOCOLS', dict(
    PROTOCOLS, simclr_linear=lambda *_, **__: pytest.fail('it ran')))
  with pytest.raises(ValueError, match='dino_knn looks at 200 neighbours.*only 33'):
    run_protocols(['simclr_linear', 'dino_knn'], few)
  with pytest.raises(ValueError, match=r'protocol fewshot_ridge: class \d has \d labelled rows'):
    run_protocols(['simclr_linear', 'fewshot_ridge'], few)
  single = few._replace(train_features=few.train_features[:2], train_labels=np.array([0, 1]))
  with pytest.raises(ValueError, match='protocol dinov2_grid: holding out'):
    run_protocols(['simclr_linear', 'dinov2_grid'], single)
