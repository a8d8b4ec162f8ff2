"""Evaluation protocols of the literature by name: each does what its source does and says where it
selected.

Published numbers differ by the protocol as much as by the method: the same MoCo v3 ViT-S is 73.2 by
its linear probe and 32.5 by DINO's kNN script (facebookresearch/moco-v3 issue 5). A `Result`
therefore names the protocol and states on which data its hyper-parameters were chosen. All of them
work on frozen features, except `finetune` and, given a network, `percent_1` and `percent_10`.

Batches are those of `probes.batch_shape`: where the training set is smaller than the batch of the
source, the batch is the training set and learning rates scale with it.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from ssl_jax.evals.features import standardize
from ssl_jax.evals.finetune import Encode, Inputs, finetune, finetuned_accuracy
from ssl_jax.evals.knn import knn_sweep
from ssl_jax.evals.labelled import draw, fraction_counts, labelled_pair
from ssl_jax.evals.linear import few_labels
from ssl_jax.evals.probes import Probes, batch_shape, probe_accuracies, train_probes
from ssl_jax.evals.ridge import ridge_scores
from ssl_jax.train.schedules import scale_learning_rate
from ssl_jax.types import Batch, PyTree

HELD_OUT = 0.1
TEMPERATURE = 0.07
BYOL_RATES = (0.4, 0.3, 0.2, 0.1, 0.05)
DINO_NEIGHBOURS, DINO_REPORTED = (10, 20, 100, 200), 20
INSTDISC_NEIGHBOURS = 200
DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
DINOV2_STEPS = 12_500
SHOTS, SHOTS_REPORTED, SHOT_DRAWS, RIDGE_L2 = (1, 5, 10, 25), 10, 3, 2.0**10
LABEL_DRAWS = 5
FINETUNE_EPOCHS = 30
FIXED = 'none: all values are fixed by the protocol, last epoch'


class Trainable(NamedTuple):
  """What fine-tuning needs beside labels.

  encode: (params, state, inputs, *, train) -> (representation [B, D], state); a pure function
  params, state: of the encoder, to start from
  train_batches: (rows int [n], *, batch_size, seed) -> endless batches of these training rows, in
    epochs of their own order; 'label' [B], and 'weight' [B] where some are padding
  test_batches: () -> batches of the whole test set, once
  train_inputs: batch -> inputs with a random crop and flip
  inputs: batch -> inputs for measuring
  batch_size: at most this many rows at once; 4096 in SimCLR
  """

  encode: Encode
  params: PyTree
  state: PyTree
  train_batches: Callable[..., Iterator[Batch]]
  test_batches: Callable[[], Iterable[Batch]]
  train_inputs: Inputs
  inputs: Inputs
  batch_size: int = 4096


class Material(NamedTuple):
  """What protocols work on.

  train_features, test_features: [N, D] and [M, D], any floating dtype, as the encoder gives them
  train_labels, test_labels: [N] and [M], whole numbers in [0, classes)
  classes: C
  mesh: spreads the bank of nearest neighbours over its devices; None: one device
  augmented: epoch -> (features, labels) chunks of all training images, randomly cropped and flipped
  layers: {name: (train features, test features)}, more representations for `dinov2_grid` to try,
    such as the last four blocks concatenated
  trainable: the network itself
  """

  train_features: np.ndarray
  train_labels: np.ndarray
  test_features: np.ndarray
  test_labels: np.ndarray
  classes: int
  mesh: Mesh | None = None
  augmented: Callable[[int], Iterable[tuple[np.ndarray, np.ndarray]]] | None = None
  layers: Mapping[str, tuple[np.ndarray, np.ndarray]] = MappingProxyType({})
  trainable: Trainable | None = None


class Result(NamedTuple):
  """What a protocol found.

  accuracy: in [0, 1], on the test set
  selection: one sentence on where hyper-parameters were chosen
  details: plain values for JSON, among them accuracy_std where there are several draws
  """

  protocol: str
  accuracy: float
  selection: str
  details: dict[str, Any]


# --- linear probes --------------------------------------------------------------------------------


def _heads(train, rates: Sequence[float], *, classes: int, batch_size: int, epochs: int, **recipe):
  """(one head per rate * batch / 256, the sizes it took)."""
  steps, batch = batch_shape(len(train[1]), batch_size)
  probes = train_probes(
    *train, classes=classes, batch_size=batch_size, epochs=epochs,
    learning_rates=[scale_learning_rate(rate, batch_size=batch) for rate in rates], **recipe)
  return probes, dict(epochs=epochs, batch_size=batch, steps=steps * epochs)


def _measured(probes: Probes, data, top: int = 1) -> list[float]:
  return probe_accuracies(probes, *data, top=top).tolist()


def _train(material: Material):
  return material.train_features, material.train_labels


def _test(material: Material):
  return material.test_features, material.test_labels


def _split(labels: np.ndarray, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """(rows to train on, rows held out), the latter a tenth of every class."""
  away = draw(labels, fraction_counts(labels, HELD_OUT, classes),
              np.random.default_rng((seed, 0)))
  kept = np.setdiff1d(np.arange(len(labels)), away)
  if len(np.unique(labels[kept])) < 2:
    raise ValueError(f'holding out {HELD_OUT:.0%} of {len(labels)} training rows leaves fewer than '
                     'two classes to train on')
  return kept, away


def simclr_linear(material: Material, *, seed: int) -> Result:
  """SGD, Nesterov 0.9, rate 0.1 * batch / 256, batch 4096, cosine over 90 epochs, from zero.

  Source: Chen et al. 2020 (arXiv:2002.05709), appendices B.5 and B.6 (no decay, no warm-up);
  google-research/simclr README.md (whose ImageNet command adds a decay of 1e-6). There images are
  cropped at random in training; here features are those of the one view that was embedded.
  """
  probes, sizes = _heads(_train(material), [0.1], batch_size=4096, epochs=90, nesterov=True,
                         classes=material.classes, seed=seed)
  test = _test(material)
  return Result('simclr_linear', _measured(probes, test)[0], FIXED,
                dict(top5=_measured(probes, test, 5)[0], learning_rate=0.1, **sizes))


def moco_linear(material: Material, *, seed: int) -> Result:
  """SGD 0.9, rate 30 divided by ten at epochs 60 and 80 of 100, batch 256, augmented features.

  Source: He et al. 2020 (arXiv:1911.05722), section 4.1; facebookresearch/moco main_lincls.py
  (which also keeps the best epoch on the test set; here it is the last one).
  """

  def epoch(number):
    features, labels = zip(*material.augmented(number))
    return np.concatenate(features).astype(np.float32), np.concatenate(labels).astype(np.int32)

  probes = train_probes(epoch, None, classes=material.classes, learning_rates=[30.], batch_size=256,
                        epochs=100, schedule='step', initial_std=0.01, seed=seed)
  test = _test(material)
  return Result('moco_linear', _measured(probes, test)[0], FIXED, dict(
    top5=_measured(probes, test, 5)[0], learning_rate=30., epochs=100, batch_size=256))


def byol_sweep_heldout(material: Material, *, seed: int) -> Result:
  """SGD, Nesterov 0.9, batch 1024, cosine over 80 epochs; one of five rates * batch / 256.

  Source: Grill et al. 2020 (arXiv:2006.07733), appendix C.1; google-deepmind/deepmind-research
  byol/README.md, whose last step measures the chosen head as it is. They hold out 10,009 of
  1,281,167 images, and crop at random in training.
  """
  features, labels = _train(material)
  kept, away = _split(labels, material.classes, seed)
  probes, sizes = _heads((features[kept], labels[kept]), BYOL_RATES, batch_size=1024, epochs=80,
                         nesterov=True, classes=material.classes, seed=seed,
                         initial_std=features.shape[1] ** -0.5)
  held_out = _measured(probes, (features[away], labels[away]))
  best = int(np.argmax(held_out))
  accuracies = _measured(probes, _test(material))
  return Result(
    'byol_sweep_heldout', accuracies[best],
    f'learning rate: held-out {HELD_OUT:.0%} of train; the chosen head is not trained again',
    dict(learning_rate=BYOL_RATES[best], held_out_accuracy=held_out[best],
         top5=_measured(probes, _test(material), 5)[best],
         accuracies=dict(zip(map(str, BYOL_RATES), accuracies)), **sizes))


def dinov2_grid(material: Material, *, seed: int) -> Result:
  """SGD 0.9, cosine over 12,500 steps of 1024; 13 rates * batch / 256 on each representation.

  Source: Oquab et al. 2023 (arXiv:2304.07193), appendix B.3; facebookresearch/dinov2
  eval/linear.py: {1, 4} blocks x {class token, and the patches' mean} x 13 rates, on augmented
  images, the best head on the validation set reported. That number is
  `optimistic_accuracy`; `accuracy` is of the head that is best on held-out training rows, trained
  again on all of them. `Material.layers` are the other representations.
  """
  labels = material.train_labels
  kept, away = _split(labels, material.classes, seed)
  candidates = {'representation': (material.train_features, material.test_features)}
  epochs = -(-DINOV2_STEPS // batch_shape(len(labels), 1024)[0])
  recipe = dict(classes=material.classes, batch_size=1024, epochs=epochs, initial_std=0.01,
                seed=seed)
  held_out, accuracies, top5 = [], {}, []
  for name, (train, test) in (candidates | dict(material.layers)).items():
    train, test = np.asarray(train, np.float32), np.asarray(test, np.float32)
    selecting, _ = _heads((train[kept], labels[kept]), DINOV2_RATES, **recipe)
    held_out += _measured(selecting, (train[away], labels[away]))
    final, sizes = _heads((train, labels), DINOV2_RATES, **recipe)
    measured = _measured(final, (test, material.test_labels))
    accuracies |= {(name, rate): value for rate, value in zip(DINOV2_RATES, measured)}
    top5 += _measured(final, (test, material.test_labels), 5)
  best = int(np.argmax(held_out))
  name, rate = chosen = list(accuracies)[best]
  return Result(
    'dinov2_grid', accuracies[chosen],
    f'learning rate and representation: held-out {HELD_OUT:.0%} of train, then trained on all of '
    'it (their code: on the test split, optimistic)',
    dict(learning_rate=rate, representation=name, held_out_accuracy=held_out[best],
         top5=top5[best], optimistic_accuracy=max(accuracies.values()),
         accuracies={f'{name} {rate:g}': value for (name, rate), value in accuracies.items()},
         **sizes))


# --- nearest neighbours ---------------------------------------------------------------------------


def _neighbours(material: Material, ks: Sequence[int]) -> dict[int, dict[str, float]]:
  return knn_sweep(*_train(material), *_test(material), ks=ks, classes=material.classes,
                   temperature=TEMPERATURE, mesh=material.mesh)


def dino_knn(material: Material, *, seed: int) -> Result:
  """Cosine kNN, votes exp(similarity / 0.07), k in 10, 20, 100, 200; k = 20 is the accuracy.

  Source: Caron et al. 2021 (arXiv:2104.14294), section 4.1 and appendix F;
  facebookresearch/dino eval_knn.py, which prints all four.
  """
  found = _neighbours(material, DINO_NEIGHBOURS)
  reported = found[DINO_REPORTED]
  return Result('dino_knn', reported['accuracy'],
                f'none: k = {DINO_REPORTED} whatever the others give',
                dict(k=DINO_REPORTED, temperature=TEMPERATURE, top5=reported['top5'],
                     accuracies={str(k): values['accuracy'] for k, values in found.items()}))


def instdisc_knn(material: Material, *, seed: int) -> Result:
  """Cosine kNN, votes exp(similarity / 0.07), k = 200.

  Source: Wu et al. 2018 (arXiv:1805.01978), section 3.4; zhirongw/lemniscate.pytorch test.py.
  """
  found = _neighbours(material, [INSTDISC_NEIGHBOURS])[INSTDISC_NEIGHBOURS]
  return Result('instdisc_knn', found['accuracy'], 'none: k and temperature are fixed',
                dict(k=INSTDISC_NEIGHBOURS, temperature=TEMPERATURE, top5=found['top5']))


# --- few labels and fine-tuning -------------------------------------------------------------------


def _spread(accuracies: Sequence[float]) -> dict[str, float | int]:
  return dict(accuracy_std=float(np.std(accuracies, ddof=1)), draws=len(accuracies))


def fewshot_ridge(material: Material, *, seed: int) -> Result:
  """Ridge regression onto +-1 with l2 = 2^10 on 10 whitened examples per class, three draws.

  Source: google-research/big_vision evaluators/fewshot_lsr.py and configs/common_fewshot.py.
  1, 5 and 25 examples are in the details where every class has as many.
  """
  (features, labels), test = _train(material), _test(material)
  fewest = np.bincount(labels, minlength=material.classes).min()
  means, spread = {}, {}
  for shots in (n for n in SHOTS if n <= max(fewest, SHOTS_REPORTED)):
    counts, accuracies = np.full(material.classes, shots), []
    for i in range(SHOT_DRAWS):
      rows = draw(labels, counts, np.random.default_rng((seed, i)))
      scores = ridge_scores(features[rows], labels[rows], test[0], classes=material.classes,
                            l2=[RIDGE_L2])[0]
      accuracies.append(float(np.mean(scores.argmax(axis=1) == test[1])))
    means[str(shots)], spread[shots] = float(np.mean(accuracies)), _spread(accuracies)
  return Result('fewshot_ridge', means[str(SHOTS_REPORTED)],
                'none: l2 is 2^10 for every data set and number of shots',
                dict(shots=SHOTS_REPORTED, l2=RIDGE_L2, accuracies=means,
                     **spread[SHOTS_REPORTED]))


def _tune(name: str, material: Material, rows: np.ndarray, epochs: int, seed: int) -> Result:
  network = material.trainable
  batch_size = min(network.batch_size, len(rows))
  steps = max(1, epochs * len(rows) // batch_size)
  tuned = finetune(network.encode, network.params, network.state,
                   network.train_batches(rows, batch_size=batch_size, seed=seed),
                   inputs=network.train_inputs, classes=material.classes, steps=steps,
                   batch_size=batch_size)
  accuracy = finetuned_accuracy(network.encode, tuned, network.test_batches(),
                                inputs=network.inputs)
  return Result(name, accuracy, FIXED, dict(classifier='the whole network, fine-tuned',
                                            labels=len(rows), epochs=epochs, steps=steps,
                                            batch_size=batch_size))


def _percent(name: str, fraction: float, epochs: int, material: Material, seed: int) -> Result:
  labels, classes = material.train_labels, material.classes
  counts = fraction_counts(labels, fraction, classes)
  if material.trainable is not None:
    rows = draw(labels, counts, np.random.default_rng((seed, 0)))
    return _tune(name, material, rows, epochs, seed)
  train, test = standardize(material.train_features, material.test_features)
  found = few_labels(train, labels, test, material.test_labels, classes=classes, fraction=fraction,
                     draws=LABEL_DRAWS, seed=seed)
  return Result(name, found['mean'], 'none: the penalty is fixed (C = 1)', dict(
    classifier='logistic regression on frozen, standardised features', labels=int(counts.sum()),
    accuracy_std=found['std'], draws=LABEL_DRAWS))


def percent_1(material: Material, *, seed: int) -> Result:
  """1 % of the labels of every class: 60 epochs of fine-tuning, or logistic regression.

  Source: Chen et al. 2020 (arXiv:2002.05709), section 4.2 and appendix B.5; `finetune` has the
  recipe. Without `Material.trainable` it is logistic regression on frozen features, five draws.
  """
  return _percent('percent_1', 0.01, 60, material, seed)


def percent_10(material: Material, *, seed: int) -> Result:
  """10 % of the labels of every class: 30 epochs of fine-tuning, else as `percent_1`."""
  return _percent('percent_10', 0.1, 30, material, seed)


def finetune_all(material: Material, *, seed: int) -> Result:
  """The whole network on all labels, 30 epochs of SimCLR's fine-tuning recipe.

  Source: `ssl_jax.evals.finetune`; 30 epochs as for 10 % of the labels, which SimCLR v2 also takes
  for all of them (Chen et al. 2020, arXiv:2006.10029, section 3).
  """
  return _tune('finetune', material, np.arange(len(material.train_labels)), FINETUNE_EPOCHS, seed)


# --- by name --------------------------------------------------------------------------------------


PROTOCOLS: Mapping[str, Callable[..., Result]] = MappingProxyType(dict(
  simclr_linear=simclr_linear, moco_linear=moco_linear, byol_sweep_heldout=byol_sweep_heldout,
  dinov2_grid=dinov2_grid, dino_knn=dino_knn, instdisc_knn=instdisc_knn,
  fewshot_ridge=fewshot_ridge, percent_1=percent_1, percent_10=percent_10, finetune=finetune_all))

# The optional field of Material that a protocol cannot do without.
NEEDS = MappingProxyType(dict(
  moco_linear=('augmented', 'features of randomly cropped and flipped training images'),
  finetune=('trainable', 'the network, and batches of images')))


def check_names(names: Sequence[str]) -> None:
  """Raises ValueError for a protocol that does not exist, with the nearest name that does."""
  for name in names:
    if name not in PROTOCOLS:
      close = difflib.get_close_matches(name, PROTOCOLS, n=1)
      hint = f'did you mean {close[0]!r}? ' if close else ''
      raise ValueError(f'unknown protocol {name!r}; {hint}There are {", ".join(PROTOCOLS)}')


# Neighbours that a protocol asks for, so many training rows it needs at least.
LEAST_ROWS = MappingProxyType(dict(dino_knn=max(DINO_NEIGHBOURS), instdisc_knn=INSTDISC_NEIGHBOURS))


def check_rows(names: Sequence[str], labels: np.ndarray, classes: int) -> None:
  """Whether there are training rows enough; needs no features, so that it can come before all work.

  Args:
    names: of protocols.
    labels: of the training rows, int [N] in [0, classes).
    classes: C.

  Raises:
    ValueError: too few rows, or too few of a class; names the protocol.
  """
  for name in names:
    least = LEAST_ROWS.get(name, 1)
    if len(labels) < least:
      raise ValueError(f'protocol {name} looks at {least} neighbours, and there are only '
                       f'{len(labels)} training examples; leave it out')
    try:
      if name == 'fewshot_ridge':
        draw(labels, np.full(classes, SHOTS_REPORTED), np.random.default_rng(0))
      if name in ('byol_sweep_heldout', 'dinov2_grid'):
        _split(labels, classes, seed=0)
    except ValueError as error:
      raise ValueError(f'protocol {name}: {error}') from error


def check(names: Sequence[str], material: Material) -> None:
  """Raises ValueError for what can be known to be wrong before a protocol runs."""
  check_names(names)
  for name in names:
    field, what = NEEDS.get(name, (None, None))
    if field is not None and getattr(material, field) is None:
      raise ValueError(f'protocol {name!r} needs {what}: give Material.{field}')
  _, labels = labelled_pair(*material[:4], material.classes)[0]
  check_rows(names, labels, material.classes)


def run_protocols(names: Sequence[str], material: Material, *, seed: int = 0) -> list[Result]:
  """Runs protocols by name, in the order given.

  Everything that can be wrong with names and material is found before the first one runs.

  Raises:
    ValueError: an unknown protocol; material that is missing; see `labelled_pair`; a training set
      too small for a protocol (fewer than 200 rows for kNN, 10 of a class for `fewshot_ridge`).
  """
  check(names, material)
  train, test = labelled_pair(*material[:4], material.classes)
  material = material._replace(train_features=train[0], train_labels=train[1],
                               test_features=test[0], test_labels=test[1])
  return [PROTOCOLS[name](material, seed=seed) for name in names]


def format_protocols(results: Sequence[Result]) -> str:
  """A Markdown table, aligned so that it also reads well as plain text."""

  def cells(result):
    std = result.details.get('accuracy_std')
    spread = '' if std is None else f' ± {std:.3f}'
    return result.protocol, f'{result.accuracy:.3f}{spread}', result.selection

  table = [('protocol', 'accuracy', 'selected on'), *map(cells, results)]
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = ['| ' + ' | '.join(text.ljust(width) for text, width in zip(line, widths)) + ' |'
           for line in table]
  return '\n'.join([lines[0], '|' + '|'.join('-' * (width + 2) for width in widths) + '|',
                    *lines[1:]])
