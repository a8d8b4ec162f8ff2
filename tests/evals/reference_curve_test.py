"""Reference curves: what is sampled, how wide the band is, who lies in it."""

import json

import numpy as np
import pytest

from ssl_jax.evals.reference_curve import FLOOR, WIDTH, differences, judge, make, sampled

CONFIG = {'seed': 0, 'steps': 40, 'schedule.learning_rate': .1, 'workers': 2}


def lines(offset=0., steps=40):
  """A loss of 10 - step / 10, logged every 5 steps; held-out numbers every 10."""
  made = [dict(step=k, loss=10 - k / 10 + offset, seconds=k) for k in range(5, steps + 1, 5)]
  return made + [dict(step=k, heldout_accuracy=k / 100 + offset) for k in range(10, steps + 1, 10)]


def reference():
  return make([lines(-.1), lines(0.), lines(.1)], config=CONFIG, every=20, about={'by': 'test'})


def test_training_numbers_are_means_since_the_last_point_and_held_out_ones_are_not():
  got = sampled(lines(), 20)
  np.testing.assert_allclose(list(got['loss'].values()), [10 - np.mean([.5, 1, 1.5, 2]),
                                                          10 - np.mean([2.5, 3, 3.5, 4])])
  assert got['heldout_accuracy'] == {20: .2, 40: .4} and list(got['loss']) == [20, 40]


def test_the_band_is_that_of_the_seeds_or_a_share_of_the_mean():
  curves = reference()['curves']
  np.testing.assert_allclose(curves['loss']['band'], WIDTH * .1, rtol=1e-4)
  same = make([lines(), lines()], config=CONFIG, every=20, about={})['curves']['loss']
  np.testing.assert_allclose(same['band'], FLOOR * np.array(same['mean']), atol=1e-5)


def test_a_run_within_and_one_beside_the_band():
  plain = json.loads(json.dumps(reference()))  # as it is read from a file
  inside = judge(lines(.3), plain)
  assert len(inside) == 4 and all(point.inside for point in inside)
  outside = [point for point in judge(lines(.5), plain) if not point.inside]
  assert [(point.step, point.name) for point in outside][0] == (20, 'loss') and len(outside) == 4
  assert not any(point.inside for point in judge(
    [dict(line, loss=float('nan')) for line in lines() if 'loss' in line], plain))


def test_a_run_that_is_not_finished_is_judged_as_far_as_it_is():
  assert {point.step for point in judge(lines(steps=30), reference())} == {20}


def test_configs_differ_in_what_is_learned_only():
  assert differences(CONFIG | {'seed': 3, 'workers': 0}, reference()) == []
  assert differences(CONFIG | {'schedule.learning_rate': .2}, reference()) == [
    'config.schedule.learning_rate is 0.2, in the reference 0.1']


def test_too_little_for_a_reference():
  with pytest.raises(ValueError, match='at least two seeds'):
    make([lines()], config=CONFIG, every=20, about={})
  with pytest.raises(ValueError, match='none of'):
    make([lines(steps=10)] * 2, config=CONFIG, every=50, about={})
