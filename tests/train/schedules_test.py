"""Schedules against formulas in NumPy: google-research's simclr, bert and electra, fairseq."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.train import schedules


def simclr_rate(step, peak, total, warmup):
  """TF's cosine_decay(peak, step - warmup, total - warmup) after step / warmup * peak."""
  if step < warmup:
    return step / warmup * peak
  elapsed = min(step - warmup, total - warmup)
  return peak * 0.5 * (1 + np.cos(np.pi * elapsed / (total - warmup)))


@pytest.mark.parametrize('warmup', [0, 1, 10])
def test_every_step_equals_the_simclr_formula(warmup):
  schedule = schedules.warmup_cosine(4.8, steps=50, warmup_steps=warmup)
  expected = [simclr_rate(step, 4.8, 50, warmup) for step in range(60)]
  np.testing.assert_allclose(schedule(jnp.arange(60)), expected, rtol=1e-5)


def test_simclr_imagenet_schedule_at_known_steps():
  # 1,281,167 images, batch 4096, 100 epochs, 10 of warm-up: total = n * epochs // bs + 1 = 31279,
  # warm-up = round(10 * n // bs) = 3127, peak = 0.3 * 4096 / 256. Values by hand.
  total, warmup = 1_281_167 * 100 // 4096 + 1, 1_281_167 * 10 // 4096
  assert (total, warmup) == (31279, 3127)
  schedule = schedules.warmup_cosine(4.8, steps=total, warmup_steps=warmup)
  middle = warmup + (total - warmup) // 2
  assert float(schedule(0)) == 0
  np.testing.assert_allclose(schedule(1), 4.8 / 3127, rtol=1e-6)
  np.testing.assert_allclose(schedule(warmup - 1), 4.8 * 3126 / 3127, rtol=1e-6)
  assert float(schedule(warmup)) == np.float32(4.8)
  np.testing.assert_allclose(schedule(middle), 2.4, rtol=1e-6)
  np.testing.assert_allclose(schedule(total - 1), 4.8 * (np.pi / 2 / 28152) ** 2, rtol=1e-6)
  assert float(schedule(total)) == 0


def bert_rate(step, peak, total, warmup, final):
  """polynomial_decay(peak, step, total, final, power=1), replaced by a ramp during warm-up."""
  decay = (peak - final) * (1 - min(step, total) / total) + final
  return peak * step / warmup if step < warmup else decay


def electra_rate(step, peak, total, warmup, final):
  """The same decay times min(1, step / warmup)."""
  return bert_rate(step, peak, total, 0, final) * min(1, step / warmup if warmup else 1)


def fairseq_rate(step, peak, total, warmup, final):
  """step_update of fairseq's polynomial_decay, power 1."""
  if warmup and step <= warmup:
    return peak * step / warmup
  left = 1 - (step - warmup) / (total - warmup)
  return final if step >= total else (peak - final) * left + final


@pytest.mark.parametrize('final', [0.0, 0.1])
@pytest.mark.parametrize('warmup', [0, 1, 10])
@pytest.mark.parametrize('form, rate', [('from_start', bert_rate), ('product', electra_rate),
                                        ('after', fairseq_rate)])
def test_every_step_equals_the_linear_formulas(form, rate, warmup, final):
  with jax.enable_x64(True):
    schedule = schedules.warmup_linear(0.4, steps=50, warmup_steps=warmup, final=final, form=form)
    got = schedule(jnp.arange(60))
  expected = [rate(step, 0.4, 50, warmup, final) for step in range(60)]
  np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-16)


def test_berts_rate_jumps_where_warm_up_ends():
  # 1,000,000 steps, 10,000 of warm-up, 1e-4: 1 % is missing when the decay takes over.
  bert, electra, roberta = (
    schedules.warmup_linear(1e-4, steps=1_000_000, warmup_steps=10_000, form=form)
    for form in ('from_start', 'product', 'after'))
  at = [0, 5_000, 9_999, 10_000, 10_001, 505_000, 999_999, 1_000_000, 1_200_000]
  np.testing.assert_allclose(
    bert(jnp.array(at)),
    [0, 5e-5, 9.999e-5, 9.9e-5, 9.89999e-5, 4.95e-5, 1e-10, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(
    electra(jnp.array(at)),
    [0, 4.975e-5, 9.999e-5 * .990001, 9.9e-5, 9.89999e-5, 4.95e-5, 1e-10, 0, 0], rtol=1e-6)
  np.testing.assert_allclose(
    roberta(jnp.array(at)),
    [0, 5e-5, 9.999e-5, 1e-4, 1e-4 * 989_999 / 990_000, 5e-5, 1e-4 / 990_000, 0, 0], rtol=1e-6)


def test_an_unknown_form_is_explained():
  with pytest.raises(ValueError, match="'bert'.*'after', 'from_start', 'product'"):
    schedules.warmup_linear(1.0, steps=10, form='bert')


def test_final_value_is_reached_and_kept():
  schedule = schedules.warmup_cosine(1.0, steps=8, warmup_steps=2, final=0.25)
  # One sixth of the way: 0.25 + 0.75 (1 + cos 30 deg) / 2.
  np.testing.assert_allclose(schedule(3), 0.25 + 0.375 * (1 + np.sqrt(3) / 2), rtol=1e-6)
  np.testing.assert_allclose(schedule(5), 0.625, rtol=1e-6)
  assert float(schedule(8)) == float(schedule(10**9)) == 0.25


def test_the_same_value_for_ints_arrays_and_traced_steps():
  schedule = schedules.warmup_cosine(0.3, steps=1000, warmup_steps=100)
  for step in (0, 7, 100, 555, 999):
    traced = jax.jit(schedule)(jnp.int32(step))
    np.testing.assert_allclose(traced, schedule(step), rtol=1e-6)
    assert traced.shape == () and traced.dtype == jnp.float32


def test_no_warm_up_starts_at_the_peak_and_makes_no_nan_on_the_way():
  with jax.debug_nans(True):
    assert float(schedules.warmup_cosine(0.3, steps=10)(jnp.int32(0))) == np.float32(0.3)


def test_64_bits_give_float64():
  with jax.enable_x64(True):
    value = schedules.warmup_cosine(0.3, steps=1000, warmup_steps=10)(jnp.int32(123))
    np.testing.assert_allclose(value, simclr_rate(123, 0.3, 1000, 10), rtol=1e-14)


def test_constant():
  np.testing.assert_array_equal(schedules.constant(0.1)(jnp.arange(3)), np.float32([0.1] * 3))


@pytest.mark.parametrize('steps, warmup', [(10, 10), (10, 11), (0, 0), (10, -1)])
def test_warm_up_must_end_before_the_run(steps, warmup):
  with pytest.raises(ValueError, match=f'warmup_steps={warmup}, steps={steps}'):
    schedules.warmup_cosine(1.0, steps=steps, warmup_steps=warmup)
  with pytest.raises(ValueError, match=f'warmup_steps={warmup}, steps={steps}'):
    schedules.warmup_linear(1.0, steps=steps, warmup_steps=warmup)


def test_scaling_rules_give_the_papers_rates():
  # SimCLR, section 2.2: 0.3 x 4096 / 256 = 4.8. Appendix B.1: 0.075 x sqrt(4096) = 4.8 as well.
  assert schedules.scale_learning_rate(0.3, batch_size=4096) == pytest.approx(4.8)
  assert schedules.scale_learning_rate(0.075, batch_size=4096, rule='sqrt') == pytest.approx(4.8)
  assert schedules.scale_learning_rate(0.075, batch_size=256, rule='sqrt') == pytest.approx(1.2)
  assert schedules.scale_learning_rate(0.1, batch_size=64, rule=None) == 0.1


def test_scaling_mistakes_are_explained():
  with pytest.raises(ValueError, match="'quadratic'.*'linear', 'sqrt', None"):
    schedules.scale_learning_rate(0.1, batch_size=64, rule='quadratic')
  with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
    schedules.scale_learning_rate(0.1, batch_size=0)
