"""Masks of tokens: what each profile's reference counts, chooses and replaces, in NumPy again."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from ssl_jax.parallel import make_mesh
from ssl_jax.views import masks

VOCABULARY, PAD, UNKNOWN, CLS, SEP, MASK = 40, 0, 1, 2, 3, 4
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)
ROWS, LENGTH = 512, 64
build = partial(masks.build, vocabulary=VOCABULARY, mask=MASK, special=SPECIAL)


@cache
def batch(rows=ROWS, length=LENGTH):
  """Packed rows of documents [CLS] words [SEP], numbered as `data.token_sources` numbers them."""
  r = np.random.default_rng(0)
  tokens, segments, words = np.zeros((3, rows, length), np.int32)
  words -= 1
  for i in range(rows):
    at = word = 0
    for number in range(1, 4):
      body = r.integers(1, length // 3)
      if at + body + 2 > length:
        break
      starts = r.random(body) < .6
      starts[0] = True
      tokens[i, at], tokens[i, at + body + 1] = CLS, SEP
      tokens[i, at + 1:at + body + 1] = r.integers(5, VOCABULARY, body)
      words[i, at + 1:at + body + 1] = word + np.cumsum(starts) - 1
      word += starts.sum()
      segments[i, at:at + body + 2] = number
      at += body + 2
  tokens[::7, 1] = UNKNOWN  # has a word, but is no candidate
  return dict(tokens=tokens, segments=segments, words=words)


def keys(count=ROWS, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@cache
def masked(profile='bert_tf2018', **options):
  """(the batch, what `prepare` made of it, how often each token was chosen, the candidates)."""
  b = batch()
  new = jax.device_get(jax.jit(build(profile=profile, **options).prepare)(keys(), b))
  times = np.zeros((ROWS, LENGTH))
  np.add.at(times, (np.arange(ROWS)[:, None], new['slots']), new['weights'])
  return b, new, times, (b['segments'] > 0) & ~np.isin(b['tokens'], SPECIAL)


@pytest.mark.parametrize('profile, options', [
  *((name, {}) for name in masks.PROFILES), ('bert_tf2018', {'whole_word': True}),
  ('bert_tf2018', {'span': 'geometric'}), ('bert_tf2018', {'span': 't5'}),
  ('bert_tf2018', {'slots': 3}), ('bert_tf2018', {'whole_word': True, 'slots': 3})])
def test_slots_hold_what_was_chosen_and_nothing_else_changes(profile, options):
  b, new, times, candidates = masked(profile, **options)
  rows = np.arange(ROWS)[:, None]
  np.testing.assert_array_equal(new['targets'], b['tokens'][rows, new['slots']])
  for slots, weights in zip(new['slots'], new['weights']):
    assert len(set(slots[weights > 0])) == (weights > 0).sum()
  untouched = new['tokens'] == b['tokens']
  assert untouched[times == 0].all() and not untouched[times > 0].all()
  if profile == 'roberta_fairseq':  # <s> and </s> can be chosen there
    assert not times[b['segments'] == 0].any() and times[b['tokens'] == CLS].any()
  else:
    assert not times[~candidates].any()
  np.testing.assert_array_equal(new['segments'], b['segments'])
  assert {new[name].dtype for name in ('tokens', 'slots', 'targets', 'overflow')} == {
    np.dtype('int32')} and new['weights'].dtype == np.float32


def test_counts():
  b, _, _, candidates = masked()
  n, most = (b['segments'] > 0).sum(1), candidates.sum(1)
  rounded = np.minimum([max(1, round(.15 * k)) for k in n], most)
  count = lambda profile: masked(profile)[2].sum(1)
  np.testing.assert_array_equal(count('bert_tf2018'), rounded)
  np.testing.assert_array_equal(count('electra'), rounded)  # one that is chosen twice counts twice
  np.testing.assert_array_equal(count('cramming_fixed_k'), np.minimum(16, most))
  assert (masked('electra')[2] == 2).any() and masked('bert_tf2018')[2].max() == 1
  drawn = count('roberta_fairseq') - np.floor(.15 * n)
  assert set(drawn) == {0, 1}
  np.testing.assert_allclose(drawn.mean(), (.15 * n % 1).mean(), atol=4 * .5 / ROWS**.5)
  for profile, rate in (('hf_collator', .15), ('mosaic30', .3)):
    standard = (count(profile) - rate * most) / np.sqrt(rate * (1 - rate) * most)
    assert abs(standard.mean()) < 4 / ROWS**.5 and abs(standard.std() - 1) < .15
  for profile in masks.PROFILES:
    assert not masked(profile)[1]['overflow'].any()


def test_halves_are_rounded_as_the_references_do():
  """0.15 n of 190 tokens is 28.5: 28 in Python (BERT), 29 in float32 (ELECTRA, T5)."""
  real = np.ones(200, bool)
  count = lambda profile, n: int(masks._count(
    masks.PROFILES[profile], None, jnp.arange(200) < n, jnp.asarray(real)))
  got = [count('bert_tf2018', n) for n in range(201)]
  assert got == [max(1, round(.15 * n)) for n in range(201)]
  assert got[190] == 28 and count('electra', 190) == 29


def shares(profile, times=1, **options):
  """(share of masked, share of changed, share of kept, number) of the tokens chosen so often."""
  b, new, chosen, _ = masked(profile, **options)
  shown, original = new['tokens'][chosen == times], b['tokens'][chosen == times]
  found = np.mean(shown == MASK), np.mean((shown != MASK) & (shown != original)), np.mean(
    shown == original)
  return *found, len(shown)


@pytest.mark.parametrize('profile, masked_share, drawn', [
  ('bert_tf2018', .8, VOCABULARY), ('hf_collator', .8, VOCABULARY), ('mosaic30', .8, VOCABULARY),
  ('roberta_fairseq', .8, VOCABULARY - 5), ('electra', .85, None)])
def test_what_chosen_tokens_become(profile, masked_share, drawn):
  *found, n = shares(profile)
  changed = 0. if drawn is None else .1
  same = changed / drawn if drawn else 0.  # a random token can be the one that stood there,
  mask = same if drawn == VOCABULARY else 0.  # or the mask token
  expected = masked_share + mask, changed - same - mask, 1 - masked_share - changed + same
  for got, share in zip(found, expected):
    assert abs(got - share) < 4 * np.sqrt(share * (1 - share) / n) + 1e-9


def test_electra_decides_each_time_that_a_token_is_chosen():
  share, _, kept, n = shares('electra', times=2)
  assert n > 50 and abs(share - (1 - .15**2)) < 4 * np.sqrt(.0225 * .9775 / n) and share + kept == 1


@pytest.mark.parametrize('profile, lowest', [('bert_tf2018', 0), ('roberta_fairseq', 5)])
def test_the_range_of_random_tokens(profile, lowest):
  b, new, times, _ = masked(profile)
  changed = (new['tokens'] != b['tokens']) & (new['tokens'] != MASK)
  assert set(new['tokens'][changed]) == set(range(lowest, VOCABULARY)) - {MASK}


def test_cramming_is_exact_in_each_row():
  b, new, times, _ = masked('cramming_fixed_k')
  rules = masks.PROFILES['cramming_fixed_k']
  tokens = jnp.full(64, 30)
  replaced = jax.jit(jax.vmap(lambda k, n: masks._replaced(
    rules, k, jax.random.fold_in(k, 1), tokens, jnp.arange(64) < n, jnp.ones(64), jnp.arange(64),
    10, MASK, 5)))
  n = np.arange(1, 65)
  shown = np.asarray(replaced(keys(64), n))
  np.testing.assert_array_equal((shown == MASK).sum(1), [round(.8 * k) for k in n])
  drawn = (shown < 10) & (shown != MASK)
  np.testing.assert_array_equal(drawn.sum(1), [round(.9 * k) - round(.8 * k) for k in n])
  full = times.sum(1) == 16
  assert full.any()
  exactly = ((new['tokens'] == MASK) & (times > 0)).sum(1)[full]
  assert exactly.min() >= 13 and exactly.max() <= 15  # 12.8, and a random token may be the mask


def test_too_few_slots_are_counted():
  few, all_ = masked(slots=3), masked()
  np.testing.assert_array_equal(few[2].sum(1), np.minimum(3, all_[2].sum(1)))
  np.testing.assert_array_equal(few[1]['overflow'], np.maximum(all_[2].sum(1) - 3, 0))
  assert few[1]['slots'].shape == (ROWS, 3) and few[1]['overflow'].any()
  assert ((few[2] > 0) <= (all_[2] > 0)).all()
  # Not the first of the row.
  share = few[2][:, :20].sum() / few[2].sum(), all_[2][:, :20].sum() / all_[2].sum()
  assert abs(share[0] - share[1]) < .1


# --- words ----------------------------------------------------------------------------------------


def bert_whole_words(words, candidates, order, count):
  """google-research/bert create_pretraining_data.py: chosen places, words shuffled into `order`."""
  chosen = set()
  for word in order:
    index_set = [i for i in range(len(words)) if words[i] == word and candidates[i]]
    if len(chosen) >= count:
      break
    if not index_set or len(chosen) + len(index_set) > count:
      continue
    chosen.update(index_set)
  return chosen


def test_whole_words_are_those_of_bert():
  b, _, _, candidates = masked()
  counts = np.minimum(np.arange(ROWS) % 12, candidates.sum(1))
  row = masks.Row(candidates, np.zeros((ROWS, LENGTH), np.int32), b['words'], counts)
  times, _, _ = jax.jit(jax.vmap(masks._whole_words))(keys(), jax.tree.map(jnp.asarray, row))
  for i in range(48):
    order = np.asarray(jax.random.permutation(keys()[i], LENGTH))
    expected = bert_whole_words(b['words'][i], candidates[i], order, counts[i])
    assert set(np.flatnonzero(times[i])) == expected


def whole(chosen, b, candidates):
  """Is each word chosen with all its candidates, or with none?"""
  for row, words, inside in zip(chosen, b['words'], candidates):
    for word in set(words[row]):
      if not row[(words == word) & inside].all():
        return False
  return True


@pytest.mark.parametrize('options', [{'whole_word': True}, {'span': 'geometric'}], ids=str)
def test_words_are_chosen_whole_and_never_more_than_the_count(options):
  b, new, times, candidates = masked(**options)
  assert whole(times > 0, b, candidates) and not whole(masked()[2] > 0, b, candidates)
  limit = masked()[2].sum(1)
  assert (times.sum(1) <= limit).all() and times.sum() > .9 * limit.sum()
  few = masked(slots=3, **options)
  assert whole(few[2] > 0, b, candidates) and few[2].sum() > ROWS
  np.testing.assert_array_equal(few[1]['overflow'], times.sum(1) - few[2].sum(1))


def test_characters_that_are_words_are_chosen_one_by_one():
  """CJK: an unspaced passage is not a single word, if the tokenizer numbers its characters."""
  tokens = np.full((64, LENGTH), 30, np.int32)
  words = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
  new = jax.jit(build(whole_word=True).prepare)(keys(64), dict(tokens=tokens, words=words))
  np.testing.assert_array_equal(new['weights'].sum(1), 10)
  gaps = np.diff(np.sort(np.asarray(new['slots']), 1), axis=1)
  assert (gaps > 1).mean() > .7


# --- spans ----------------------------------------------------------------------------------------

LENGTHS = .2 * .8 ** np.arange(10)
LENGTHS /= LENGTHS.sum()


def test_lengths_of_spans_are_geometric_within_ten():
  """The first span of rows of 128 words; those that start near the end are cut."""
  n = 3000
  ones = jnp.ones(128, bool)
  row = masks.Row(ones, jnp.zeros(128, jnp.int32), jnp.arange(128), jnp.int32(20))
  draw = jax.jit(jax.vmap(masks._geometric_spans, (0, None)))
  times, _, unit = jax.device_get(draw(keys(n), row))
  first = (times > 0) & (unit == 0)
  start, sizes = first.argmax(1), first.sum(1)
  assert stats.kstest(start / 128, 'uniform').pvalue > .01
  sizes = sizes[start <= 118]
  assert sizes.min() == 1 and sizes.max() == 10
  mean = LENGTHS @ np.arange(1, 11)
  assert abs(mean - 3.797) < 1e-3 and abs(sizes.mean() - mean) < .2
  counts = np.bincount(sizes, minlength=11)[1:]
  assert stats.chisquare(counts, LENGTHS * len(sizes)).pvalue > .001


@pytest.mark.parametrize('choose', [
  masks._geometric_spans, partial(masks._t5_spans, rate=.5, mean=3.)], ids=['geometric', 't5'])
def test_no_span_leaves_its_document(choose):
  """Documents follow each other without special tokens; one token inside is special."""
  segments = np.repeat([1, 2, 3, 0], [20, 8, 24, 12])
  candidates = (segments > 0) & (np.arange(LENGTH) != 40)
  words = np.where(candidates, np.arange(LENGTH) // 2, -1)
  runs = np.cumsum(~candidates | (segments != np.roll(segments, 1)))
  row = masks.Row(*(jnp.asarray(x, jnp.int32) for x in (candidates, runs, words)), jnp.int32(26))
  row = row._replace(candidates=jnp.asarray(candidates))
  times, order, unit = jax.device_get(jax.jit(jax.vmap(choose, (0, None)))(keys(200), row))
  both = 0
  for chosen, rank, span in zip(times > 0, order, unit):
    for name in set(span[chosen]):
      inside = np.flatnonzero(chosen & (span == name))
      assert len(set(runs[inside])) == 1 and len(set(rank[inside])) == 1
    both += chosen[19] and chosen[20]  # a pair that one span over the boundary would hold
  assert both


def test_spans_of_packed_rows_end_with_their_document():
  """Two tokens of 16 are chosen; a span that begins with the last of a document cannot go on."""
  tokens = np.full((4 * ROWS, 16), 30, np.int32)
  words = np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
  prepare = jax.jit(build(span='geometric').prepare)
  new = prepare(keys(len(tokens)), dict(tokens=tokens, words=words, segments=words // 8 + 1))
  pairs = np.sort(new['slots'], axis=1)
  assert pairs.shape[1] == 2
  inside, across = ((pairs == [i, i + 1]).all(1).sum() for i in (6, 7))
  assert across < .4 * inside


def test_every_word_can_begin_a_span():
  """Words whose tokens are no candidates are passed over, and the last ones are not forgotten."""
  candidates = jnp.arange(LENGTH) % 2 == 0
  row = masks.Row(candidates, jnp.zeros(LENGTH, jnp.int32), jnp.arange(LENGTH), jnp.int32(4))
  times, *_ = jax.jit(jax.vmap(masks._geometric_spans, (0, None)))(keys(), row)
  assert np.asarray(times).sum(0)[::2].all()


def test_t5_spans_have_fixed_count_and_number():
  """t5 preprocessors.py random_spans_noise_mask: rows of n tokens have round(rate n) in
  round(round(rate n) / mean) spans, and do not begin with one."""
  chosen = jax.jit(jax.vmap(lambda key, n: masks._t5_spans(
    key, masks.Row(jnp.arange(LENGTH) < n, jnp.zeros(LENGTH, jnp.int32), None, None), .15, 3.)[0]))
  n = np.arange(ROWS) % (LENGTH + 1)
  times = np.asarray(chosen(keys(), n)) > 0
  noise = np.clip([round(.15 * k) for k in n], np.minimum(1, n), np.maximum(n - 1, 0))
  np.testing.assert_array_equal(times.sum(1), noise)
  begins = times & ~np.roll(times, 1, axis=1)
  spans = np.where(noise > 0, np.maximum(1, np.round(noise / 3)), 0)
  np.testing.assert_array_equal(begins.sum(1), spans)
  assert not times[:, 0].any()
  assert all(not row[k:].any() for row, k in zip(times, n))


def test_a_span_is_replaced_as_one():
  b, new, times, _ = masked(span='t5')
  mask = new['tokens'] == MASK
  neighbours = (times[:, 1:] > 0) & (times[:, :-1] > 0)
  agree = lambda mask: np.mean((mask[:, 1:] == mask[:, :-1])[neighbours])
  assert agree(mask) > .97  # a random token can be the mask token


# --- what masks depend on -------------------------------------------------------------------------


def test_masks_depend_on_the_key_and_the_row_alone():
  b, new, *_ = masked()
  prepare = jax.jit(build().prepare)
  turned = np.random.default_rng(0).permutation(ROWS)[:100]
  some = prepare(keys()[turned], {name: x[turned] for name, x in b.items()})
  rows = NamedSharding(make_mesh(), P('data'))
  spread = prepare(jax.device_put(keys(), rows), jax.device_put(b, rows))
  assert spread['tokens'].sharding.is_equivalent_to(rows, 2)
  for name, x in new.items():
    np.testing.assert_array_equal(some[name], x[turned])
    np.testing.assert_array_equal(spread[name], x)
  other = prepare(keys(seed=1), b)
  assert (other['tokens'] != new['tokens']).any(1).mean() > .9


def test_one_program_for_all_batches():
  prepare = jax.jit(build(profile='hf_collator').prepare)
  for seed in range(2):
    prepare(keys(16, seed), {name: x[16 * seed:16 * seed + 16] for name, x in batch().items()})
  assert prepare._cache_size() == 1


def test_rows_without_candidates_have_no_weight():
  tokens = np.array([[CLS, SEP, PAD, PAD], [CLS, 30, SEP, PAD], [PAD] * 4])
  b = dict(tokens=tokens, segments=(tokens != PAD).astype(np.int32), words=tokens * 0 - 1)
  b['words'][1, 1] = 0
  for options in ({}, {'whole_word': True}, {'span': 'geometric'}, {'profile': 'electra'}):
    new = jax.jit(build(**options).prepare)(keys(3), b)
    np.testing.assert_array_equal(new['weights'].sum(1), [0, 1, 0])
    np.testing.assert_array_equal(new['tokens'][::2], tokens[::2])


def test_other_fields_and_inputs():
  b = batch() | dict(label=np.arange(ROWS), next=np.arange(ROWS), id=np.arange(ROWS))
  views = build()
  assert set(jax.eval_shape(views.prepare, keys(), b)) == {
    'tokens', 'segments', 'slots', 'targets', 'weights', 'overflow', 'label', 'next'}
  inputs = views.inputs(b)
  assert set(inputs) == {'tokens', 'segments'}
  np.testing.assert_array_equal(inputs['tokens'], b['tokens'])


# --- words about profiles, and errors -------------------------------------------------------------


def test_descriptions_name_what_differs():
  for name, profile in masks.PROFILES.items():
    text = masks.describe(name)
    assert text.startswith(f'{name}: {profile.source}') and profile.note in text
  text = masks.describe('electra')
  assert 'masked 0.85 (' in text and 'bert_tf2018 0.8' in text and 'repeats True' in text
  assert 'rate 0.15 (mosaic30 0.3, cramming_fixed_k 0.25)' in text


@pytest.mark.parametrize('options, message', [
  ({'profile': 'bert'}, "unknown profile 'bert'; known: bert_tf2018"),
  ({'rate': 0.}, 'rate must be between 0 and 1, got 0'), ({'slots': 0}, 'slots must be at least 1'),
  ({'special': (0, 40)}, 'below the vocabulary of 40'), ({'mask': -1}, 'below the vocabulary'),
  ({'whole_word': True, 'span': 't5'}, 'not both'), ({'span': 't5', 'mean_span': .5}, 'mean_span'),
  ({'whole_word': True, 'profile': 'electra'}, 'use another profile'),
  ({'span': 't5', 'profile': 'roberta_fairseq'}, 'use another profile'),
  ({'span': 'wide'}, "span must be one of .*'t5'.*, not 'wide'")])
def test_wrong_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)


def test_missing_fields_are_refused():
  with pytest.raises(ValueError, match="needs a field 'tokens'; the data have image"):
    build().prepare(keys(1), dict(image=np.zeros(1)))
  with pytest.raises(ValueError, match="needs a field 'words'; the data have tokens"):
    build(whole_word=True).prepare(keys(1), dict(tokens=np.zeros((1, 8), np.int32)))
