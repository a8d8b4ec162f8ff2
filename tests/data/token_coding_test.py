"""Records of tokens byte by byte; the same from any number of processes."""

import numpy as np

from ssl_jax.data.token_coding import Coder, Sizes, coded, dtype_of, unknown


def test_a_record_holds_tokens_and_a_bit_for_each(tokenizer):
  chunk = [('w1 w2', 'w3'), ()]
  found = coded(chunk, tokenizer)
  tokens = np.concatenate([one.tokens for one in tokenizer.encode(['w1 w2', ' w3'])])
  record, empty = found.records
  size = 2 * len(tokens)
  np.testing.assert_array_equal(np.frombuffer(record[:size], '<u2'), tokens)
  starts = np.unpackbits(np.frombuffer(record[size:], np.uint8), count=len(tokens))
  assert starts[0] == 1 and starts.sum() == 3 and empty == b''
  assert found.sizes.sentences.sum() == len(tokens) and found.sizes.documents.tolist() == [2, 0]
  assert found.unknown == 0


def test_sizes():
  sizes = Sizes(np.array([3, 1, 5], np.int32), np.array([2, 0, 1], np.int32))
  assert sizes.sentence_ends().tolist() == [2, 2, 3] and sizes.tokens().tolist() == [4, 0, 5]


def test_large_vocabularies_take_four_bytes(tokenizer):
  vocabulary = tokenizer.vocabulary
  assert dtype_of(vocabulary._replace(size=1 << 16)) == '<u2'
  assert dtype_of(vocabulary._replace(size=(1 << 16) + 1)) == '<u4'
  assert unknown(np.array([1, 7, 1]), vocabulary) == 2
  assert unknown(np.array([1, 7, 1]), vocabulary._replace(unk=None)) == 0


def test_processes_give_the_same_in_the_same_order(tokenizer):
  chunks = [[(f'w{i} ' * (1 + i % 5),)] for i in range(20)]
  found = []
  for workers in (0, 2):
    with Coder(workers, tokenizer) as code:
      found.append([one.records for one in code(iter(chunks))])
  assert found[0] == found[1] and len(found[0]) == 20
