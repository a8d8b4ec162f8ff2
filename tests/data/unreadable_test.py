"""Images that cannot be read are replaced, counted once, named, and too many of them refused."""

import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.batches import batches, in_order
from ssl_jax.data.images import EncodedImages
from ssl_jax.data.sources import DataError
from ssl_jax.data.unreadable import forget


@pytest.fixture(autouse=True)
def command():
  """Every test is a command of its own."""
  forget()


def tile(i) -> bytes:
  out = io.BytesIO()
  Image.new('L', (4, 4), i).save(out, 'PNG')
  return out.getvalue()


class Tiles(EncodedImages):
  """Tile i is i everywhere; those in `bad` are damaged."""

  def __init__(self, bad, length=20, unreadable=0.25):
    super().__init__(size=4, channels=1, unreadable=unreadable, crops=None)
    self.bad, self.length = bad, length

  def __len__(self):
    return self.length

  def read(self, index):
    return b'damaged' if index in self.bad else tile(index), {'number': np.int32(index)}

  def name(self, index):
    return f'tiles/{index}.png'

  def fingerprint(self):
    return 'tiles'


def taken(source, count, **options):
  stream = batches(source, batch_size=10, seed=0, **options)
  try:
    return list(islice(stream, count))
  finally:
    stream.close()


def test_the_next_readable_one_takes_its_place_under_its_id(capsys):
  got = taken(Tiles({3, 4, 19}), 4)
  for batch in got:
    assert sorted(batch) == ['epoch', 'id', 'image', 'number']
    for i, number, image in zip(batch['id'], batch['number'], batch['image']):
      assert number == {3: 5, 4: 5, 19: 0}.get(i, i) and (image == number).all()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 3  # each once, though each was met in two epochs
  assert any('tiles/19.png' in line for line in lines)
  assert '(15.00% of 20)' in lines[-1]


def test_each_is_named_once_whatever_the_passes_and_sources(capsys):
  for source in (Tiles({3}), Tiles({3}), Tiles({3, 4})):
    list(in_order(source, batch_size=8))
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition('tiles/')[2][:5] for line in lines] == ['3.png', '4.png']


@pytest.mark.slow
def test_the_same_with_workers(capsys):
  want, lines = taken(Tiles({3, 4, 19}), 3), capsys.readouterr().err
  forget()
  got = taken(Tiles({3, 4, 19}), 3, workers=2)
  assert capsys.readouterr().err == lines
  for a, b in zip(got, want):
    assert list(a) == list(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_a_resumed_stream_is_the_same():
  source = Tiles({3, 4, 19})
  resumed, = taken(source, 1, start=2)
  for name, array in taken(source, 3)[2].items():
    np.testing.assert_array_equal(array, resumed[name])


def test_beyond_the_share_training_stops_and_names_ten():
  with pytest.raises(DataError, match=r'more than the share of 25.00%') as error:
    taken(Tiles(set(range(12))), 8)
  assert str(error.value).count('.png') <= 10
  with pytest.raises(DataError, match='1 of 20 images cannot be read') as error:
    taken(Tiles({7}, unreadable=0.0), 2)
  assert 'tiles/7.png: no image' in str(error.value)


def test_exactly_the_share_is_allowed():
  assert len(taken(Tiles({1, 2, 3, 4, 5}), 8)) == 8


def test_ten_are_named_and_the_others_counted():
  with pytest.raises(DataError) as error:
    taken(Tiles(set(range(19))), 4)
  count = int(str(error.value).split()[0])
  assert count > 10 and str(error.value).count('.png') == 10
  assert f'and {count - 10} more' in str(error.value)


def test_a_pass_leaves_them_out():
  got = list(in_order(Tiles({3, 19}), batch_size=8))
  ids = np.concatenate([batch['id'][batch['weight'] > 0] for batch in got])
  assert ids.tolist() == [i for i in range(20) if i not in (3, 19)]
  assert all('unreadable' not in batch for batch in got)
