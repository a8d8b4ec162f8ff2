"""Masking of tokens for masked language models, on the accelerator and without state.

Devlin et al. (2019), BERT, https://arxiv.org/abs/1810.04805: some tokens are chosen; of these most
become [MASK], some another token, some stay; the model predicts what they were. What a row's masks
are depends on (seed, epoch, example id) alone, in a program of fixed shapes: every row has `slots`
places for chosen tokens, those that are not used have weight 0.

`PROFILES` are the rules of published code bases, which differ in more than the rate; `describe` says
how. Special and padding tokens are never chosen, except where a profile says that its reference does.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.types import TEXT_INPUTS, Views


class Profile(NamedTuple):
  """The rules of one code base.

  Attributes:
    source: where they stand.
    rate: share of tokens to choose.
    count: how many of the n tokens of a row (special ones counted, padding not):
      'rounded' max(1, round(rate n)), halves to even;  'random' floor(rate n + U[0, 1));
      'independent' every candidate with probability `rate`;  'fixed' round(rate L) of rows of L.
    masked, changed: shares of the chosen that become the mask token, or a random one; the rest stay.
    exact: these shares hold exactly in each row, instead of for each token by itself.
    repeats: chosen with replacement; a token chosen twice has weight 2.
    special: special tokens can be chosen too.
    drawn: random tokens come from the 'whole' vocabulary, or from 'after' its leading special ones.
    note: what else the reference does, and what of it is not done here.
  """

  source: str
  rate: float = .15
  count: str = 'rounded'
  masked: float = .8
  changed: float = .1
  exact: bool = False
  repeats: bool = False
  special: bool = False
  drawn: str = 'whole'
  note: str = ''


PROFILES: Mapping[str, Profile] = dict(
  bert_tf2018=Profile(
    'google-research/bert create_pretraining_data.py',
    note='The reference draws ten fixed variants of each text once (dupe_factor); here every epoch '
         'draws anew.'),
  roberta_fairseq=Profile(
    'fairseq data/mask_tokens_dataset.py', count='random', special=True, drawn='after',
    note='<s> and </s> can be chosen, as there. The reference has 1e6 distinct seeds, here all '
         'examples and epochs differ.'),
  electra=Profile(
    'google-research/electra pretrain/pretrain_helpers.py', masked=.85, changed=0., repeats=True,
    note='The large model has rate 0.25. Where a token is chosen twice the reference averages the '
         'replacements, which are equal.'),
  mosaic30=Profile(
    'mosaicml/examples and ModernBERT sequence_packer.py', rate=.3, count='independent',
    note='Evaluation there masks 15 %. The reference also chooses [CLS], [SEP] and padding '
         '(ModernBERT issue 212), which is not repeated here.'),
  cramming_fixed_k=Profile(
    'JonasGeiping/cramming backend/utils.py', rate=.25, count='fixed', exact=True,
    note='Every row has the same number of masks.'),
  hf_collator=Profile(
    'transformers DataCollatorForLanguageModeling', count='independent',
    note='Random tokens can be special ones, as there.'),
)


DEFAULT = 'bert_tf2018'


def describe(name: str) -> str:
  """How a profile differs from the others, in words; one line for each field."""
  profile, lines = PROFILES[name], [f'{name}: {PROFILES[name].source}']
  for field in Profile._fields[1:-1]:
    value = getattr(profile, field)
    others = [other for other, p in PROFILES.items() if getattr(p, field) != value]
    if others:
      different = ', '.join(f'{other} {getattr(PROFILES[other], field)}' for other in others)
      lines.append(f'  {field} {value} ({different})')
  return '\n'.join([*lines, f'  {profile.note}'])


def build(
  *, vocabulary: int, mask: int, special: tuple[int, ...], profile: str = DEFAULT,
  rate: float | None = None, slots: int | None = None, whole_word: bool = False,
  span: Literal['geometric', 't5'] | None = None, mean_span: float = 3.,
) -> Views:
  """Masks batches whose 'tokens' are integers [B, L], see `ssl_jax.data.token_sources`.

  `prepare` gives the encoder's fields with 'tokens' masked, and 'slots' int32 [B, K] (places of the
  chosen tokens), 'targets' int32 [B, K] (what stood there), 'weights' float32 [B, K] (0 for slots
  that are not used), 'overflow' int32 [B] (chosen tokens for which there was no slot: they stay as
  they are, words and spans as a whole), 'next' and 'label' where the data have them. `inputs` are
  the tokens as they are.

  Args:
    vocabulary: number of tokens.
    mask: id of the mask token.
    special: ids of special tokens, the mask token among them.
    profile: a name in `PROFILES`.
    rate: share of tokens to choose, instead of the profile's.
    slots: K; by default what the profile needs for rows of L tokens: its count, 4 standard deviations
      more where that is random.
    whole_word: choose words instead of tokens; needs the field 'words'. A word that does not fit
      into the rest of the count is passed over, as in google-research/bert; so with words and spans
      the count 'independent' is 'rounded'.
    span: choose spans: 'geometric' (SpanBERT, arXiv:1907.10529: whole words, lengths of p = 0.2 up to
      10) or 't5' (arXiv:1910.10683: the count and number of spans are fixed, lengths of mean
      `mean_span`). A span is masked, changed or kept as one. It ends with its document, and where a
      special token stands; one of T5's goes on behind as another span.

  Raises:
    ValueError: an argument out of its range; at tracing, a field that is missing.
  """
  if profile not in PROFILES:
    raise ValueError(f'unknown profile {profile!r}; known: {", ".join(PROFILES)}')
  rules = PROFILES[profile]
  if rate is not None:
    rules = rules._replace(rate=rate)
  special = tuple(sorted({*special, mask}))
  _check(rules, vocabulary, special, slots, whole_word, span, mean_span)
  choose = _chooser(rules, whole_word, span, mean_span)
  low = _leading(special) if rules.drawn == 'after' else 0

  def prepare(keys: jax.Array, batch) -> dict[str, jax.Array]:
    if 'tokens' not in batch:
      raise ValueError(f"masking needs a field 'tokens'; the data have {', '.join(sorted(batch))}")
    if (whole_word or span == 'geometric') and 'words' not in batch:
      raise ValueError("choosing words needs a field 'words'; the data have "
                       f'{", ".join(sorted(batch))}')
    tokens = batch['tokens'].astype(jnp.int32)
    segments = batch['segments'] if 'segments' in batch else jnp.ones_like(tokens)
    words = batch['words'] if 'words' in batch else jnp.broadcast_to(
      jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    k = slots or default_slots(rules, tokens.shape[1])
    row = lambda *fields: _masked_row(
      *fields, rules=rules, choose=choose, k=min(k, tokens.shape[1]), vocabulary=vocabulary,
      mask=mask, special=special, low=low)
    kept = {name: batch[name] for name in (*TEXT_INPUTS[1:], 'next', 'label') if name in batch}
    return kept | jax.vmap(row)(keys, tokens, segments, words)

  def inputs(batch):
    return {name: jnp.asarray(batch[name]) for name in TEXT_INPUTS if name in batch}

  return Views(prepare, inputs)


def default_slots(rules: Profile, length: int) -> int:
  """How many slots a row of `length` tokens needs."""
  mean = rules.rate * length
  if rules.count == 'independent':
    return min(length, int(mean + 4 * (mean * (1 - rules.rate))**.5) + 1)
  return min(length, max(1, round(mean)) + (rules.count == 'random'))


def _check(rules, vocabulary, special, slots, whole_word, span, mean_span) -> None:
  if vocabulary < 2 or special[0] < 0 or special[-1] >= vocabulary:
    raise ValueError(f'special tokens {special} must have ids below the vocabulary of {vocabulary}')
  if not 0 < rules.rate < 1:
    raise ValueError(f'rate must be between 0 and 1, got {rules.rate}')
  if slots is not None and slots < 1:
    raise ValueError(f'slots must be at least 1, got {slots}')
  if span not in (None, 'geometric', 't5'):
    raise ValueError(f"span must be one of ('geometric', 't5'), or None, not {span!r}")
  if span is not None and mean_span < 1:
    raise ValueError(f'mean_span must be at least 1, got {mean_span}')
  if whole_word and span is not None:
    raise ValueError('give whole_word or span, not both: spans are of whole words already')
  if (whole_word or span) and (rules.repeats or rules.special):
    raise ValueError('words and spans are chosen once and have no special tokens; use another profile')


def _leading(special: tuple[int, ...]) -> int:
  """How many special tokens stand at the beginning of the vocabulary."""
  return next((i for i, token in enumerate(special) if token != i), len(special))


# --- one row --------------------------------------------------------------------------------------


def _masked_row(key, tokens, segments, words, *, rules, choose, k, vocabulary, mask, special, low):
  real = segments > 0
  is_special = (tokens[:, None] == jnp.array(special)[None]).any(1)
  candidates = real if rules.special else real & ~is_special
  choosing, deciding, drawing = jax.random.split(key, 3)
  count = _count(rules, jax.random.fold_in(choosing, 0), real, candidates)
  # times: how often each token is chosen; order: who gets a slot first; unit: what is decided as one
  # A run is what no span leaves: tokens of one document with no special token among them.
  runs = jnp.cumsum(~candidates | (segments != jnp.roll(segments, 1)), dtype=jnp.int32)
  times, order, unit = choose(jax.random.fold_in(choosing, 1), Row(candidates, runs, words, count))
  score, slots = lax.top_k(jnp.append(jnp.where(times > 0, order, -1.), -1.), k + 1)
  # Tokens of a word or span share their order: where not all have a slot, none has.
  used, slots = score[:k] > score[k], slots[:k]
  chosen = jnp.zeros(len(tokens), bool).at[slots].set(used)
  shown = _replaced(rules, deciding, drawing, tokens, chosen, times, unit, vocabulary, mask, low)
  weights = jnp.where(used, times[slots], 0).astype(jnp.float32)
  overflow = jnp.sum(times > 0, dtype=jnp.int32) - jnp.sum(used, dtype=jnp.int32)
  return dict(tokens=shown, slots=slots.astype(jnp.int32), targets=tokens[slots], weights=weights,
              overflow=overflow)


def _count(rules, key, real, candidates):
  """How many tokens of the row to choose; what 'independent' rows do not use."""
  n = jnp.sum(real)
  if rules.count == 'fixed':
    count = jnp.asarray(round(rules.rate * len(real)))
  elif rules.count == 'random':
    count = jnp.floor(rules.rate * n + jax.random.uniform(key)).astype(jnp.int32)
  else:
    # google-research/electra multiplies in float32, where 0.15 * 190 is above 28.5; bert in Python.
    count = jnp.round(rules.rate * n) if rules.repeats else _rounded(rules.rate, len(real))[n]
    count = jnp.maximum(1, count)
  return jnp.minimum(count, jnp.sum(candidates)).astype(jnp.int32)


def _rounded(share: float, length: int) -> jax.Array:
  """round(share n) for n = 0 ... length, as Python has it."""
  return jnp.asarray(np.array([round(share * n) for n in range(length + 1)], np.int32))


def _replaced(rules, deciding, drawing, tokens, chosen, times, unit, vocabulary, mask, low):
  """The tokens that the encoder sees."""
  length = len(tokens)
  u = jax.random.uniform(deciding, (length,))[unit]
  edges = rules.masked, rules.masked + rules.changed
  if rules.repeats:
    # Each time that a token is chosen has its own draw: the least of so many.
    u = 1 - (1 - u) ** (1 / jnp.maximum(times, 1).astype(u.dtype))
  if rules.exact:
    # Ranks among the chosen instead of independent draws: exactly these shares of each row.
    u = jnp.sum(chosen[None, :] & (u[None, :] < u[:, None]), axis=1)
    edges = (_rounded(edge, length)[jnp.sum(chosen)] for edge in edges)
  masked, changed = edges
  drawn = jax.random.randint(drawing, (length,), low, vocabulary)
  new = jnp.where(u < masked, mask, jnp.where(u < changed, drawn, tokens))
  return jnp.where(chosen, new, tokens).astype(jnp.int32)


# --- what is chosen: (key, row) -> (times, order, unit), [L] each -----------------------------------


class Row(NamedTuple):
  """candidates, runs, words [L], and how many tokens to choose."""

  candidates: jax.Array
  runs: jax.Array
  words: jax.Array
  count: jax.Array


def _chooser(rules, whole_word, span, mean_span):
  if whole_word:
    return _whole_words
  if span == 'geometric':
    return _geometric_spans
  if span == 't5':
    return lambda key, row: _t5_spans(key, row, rules.rate, mean_span)
  if rules.repeats:
    return _with_replacement
  if rules.count == 'independent':
    return lambda key, row: _independent(key, row, rules.rate)
  return _without_replacement


def _each(row):
  """Every token is a unit of its own."""
  return jnp.arange(len(row.candidates))


def _without_replacement(key, row):
  u = jnp.where(row.candidates, jax.random.uniform(key, row.candidates.shape), 2.)
  rank = jnp.argsort(jnp.argsort(u))
  return (row.candidates & (rank < row.count)).astype(jnp.int32), 1. - u, _each(row)


def _independent(key, row, rate):
  u = jax.random.uniform(key, row.candidates.shape)
  return (row.candidates & (u < rate)).astype(jnp.int32), 1. - u, _each(row)


def _with_replacement(key, row):
  length = len(row.candidates)
  total = jnp.sum(row.candidates)
  draws = jnp.floor(jax.random.uniform(key, (length,)) * total).astype(jnp.int32)
  rank = jnp.cumsum(row.candidates) - 1
  hits = (draws[:, None] == rank[None, :]) & row.candidates[None, :]
  hits &= (jnp.arange(length) < row.count)[:, None]
  return jnp.sum(hits, axis=0), jax.random.uniform(jax.random.fold_in(key, 1), (length,)), _each(row)


def _word_lengths(row):
  """(how many candidates each word has, the run in which it stands); word numbers are below L."""
  length = len(row.words)
  place = jnp.where(row.candidates & (row.words >= 0), row.words, length)
  zeros = jnp.zeros(length, jnp.int32)
  return zeros.at[place].add(1, mode='drop'), zeros.at[place].max(row.runs, mode='drop')


def _whole_words(key, row):
  lengths, _ = _word_lengths(row)
  length = len(lengths)
  order = jax.random.permutation(key, length)

  def one(covered, word):
    fits = (lengths[word] > 0) & (covered + lengths[word] <= row.count)
    return covered + jnp.where(fits, lengths[word], 0), fits

  _, taken = lax.scan(one, jnp.int32(0), order)
  taken = jnp.zeros(length, bool).at[order].set(taken)
  turn = jnp.zeros(length).at[order].set(jnp.arange(length, 0, -1) / length)
  mine = jnp.clip(row.words, 0)
  times = row.candidates & (row.words >= 0) & taken[mine]
  # Replacement is decided for each token, also inside a word.
  return times.astype(jnp.int32), turn[mine], _each(row)


def _geometric_spans(key, row, p=.2, longest=10):
  lengths, run = _word_lengths(row)
  length = len(lengths)
  number = jnp.arange(length)
  starts, sizes = jax.random.split(key)
  starts = jnp.floor(jax.random.uniform(starts, (length,)) * jnp.sum(lengths > 0)).astype(jnp.int32)
  starts = jnp.argsort(lengths == 0, stable=True)[starts]  # of the words that have candidates
  u = jax.random.uniform(sizes, (length,), minval=1e-7)
  cut = 1 - (1 - p)**longest  # the geometric distribution within 1 ... longest
  sizes = 1 + jnp.floor(jnp.log1p(-u * cut) / jnp.log(1 - p)).astype(jnp.int32)
  sizes = jnp.minimum(sizes, longest)

  def one(carry, drawn):
    span, covered = carry
    start, size, i = drawn
    wanted = (number >= start) & (number < start + size) & (lengths > 0) & (run == run[start])
    wanted &= (span < 0) & (span[start] < 0)
    fits = covered + jnp.cumsum(jnp.where(wanted, lengths, 0)) <= row.count
    new = wanted & fits
    covered += jnp.sum(jnp.where(new, lengths, 0), dtype=jnp.int32)
    return (jnp.where(new, i, span), covered), None

  span = jnp.full(length, -1, number.dtype)
  (span, _), _ = lax.scan(one, (span, jnp.int32(0)), (starts, sizes, number))
  mine = jnp.where(row.words >= 0, span[jnp.clip(row.words, 0)], -1)
  times = row.candidates & (mine >= 0)
  return times.astype(jnp.int32), 1. - mine / length, jnp.clip(mine, 0)


def _t5_spans(key, row, rate, mean):
  length = len(row.candidates)
  total = jnp.sum(row.candidates)
  noise = jnp.clip(jnp.round(total * rate).astype(jnp.int32), jnp.minimum(1, total),
                   jnp.maximum(total - 1, 0))
  spans = jnp.maximum(1, jnp.round(noise / mean).astype(jnp.int32))
  spans = jnp.minimum(spans, jnp.maximum(total - noise, 1))
  first, second, third = jax.random.split(key, 3)
  parts = jnp.stack([_composition(first, total - noise, spans, length),
                     _composition(second, noise, spans, length)], axis=1)
  edges = jnp.cumsum(parts.reshape(-1))  # other tokens, then noise, in turns
  rank = jnp.cumsum(row.candidates) - 1
  passed = jnp.sum(edges[None, :] <= rank[:, None], axis=1)
  times = row.candidates & (passed % 2 == 1) & (rank < total)
  # A span is named by its first token in this run.
  change = jnp.roll(times, 1) & (row.runs == jnp.roll(row.runs, 1))
  unit = lax.cummax(jnp.where(times & ~change, jnp.arange(length), 0))
  return times.astype(jnp.int32), jax.random.uniform(third, (length,))[unit], unit


def _composition(key, total, parts, length):
  """`total` as a random sum of `parts` positive numbers, [length], zeros behind them."""
  places = jnp.arange(length)
  u = jnp.where((places > 0) & (places < total), jax.random.uniform(key, (length,)), 2.)
  cuts = jnp.argsort(jnp.argsort(u)) < parts - 1
  part = jnp.cumsum(cuts)
  return jnp.zeros(length, jnp.int32).at[part].add((places < total).astype(jnp.int32))
