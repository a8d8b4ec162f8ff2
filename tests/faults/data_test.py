"""Faults 33 to 42: images and records that are damaged, data that are too few, changed, or away."""

import errno
import io
import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from ssl_jax import build, runs
from ssl_jax.cli import explain, main, starting
from ssl_jax.cli.options import load_config, override
from ssl_jax.data import corpora, folders, retries, token_sources
from ssl_jax.data.array_records import Item, array_record, write_shards
from ssl_jax.data.batches import batches, describe_change, example_ids, fingerprint, in_order
from ssl_jax.data.folders import image_folder
from ssl_jax.data.sources import ArraySource, DataError
from ssl_jax.data.tokenize import train as train_tokenizer
from ssl_jax.data.unreadable import forget
from ssl_jax.parallel import make_mesh
from ssl_jax.schema import ConfigError
from ssl_jax.train.checkpoint import Checkpoints
from tests.processes import ends, free_port, lines, python, together
from tests.processes import train as train_alone

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
DEMO = f'{CONFIGS}/simclr_fashion_mnist.py:smoke'
QUIET = ('--config.evaluate.every=None', '--config.evaluate.health_every=None', '--cache_dir=none')


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
  """Every test is a command of its own, with a cache of its own."""
  forget()
  monkeypatch.setattr(retries, 'patience', True)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def pauses(monkeypatch):
  """Seconds that reading would have waited, without waiting."""
  waited = []
  monkeypatch.setattr(retries, 'wait', waited.append)
  return waited


def train(workdir, *arguments, config=DEMO):
  return main(['train', f'--config={config}', f'--workdir={workdir}', *QUIET, *arguments])


def encoded(image, kind, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def first(count, source, **options):
  stream = batches(source, **{'batch_size': 4, 'seed': 0, **options})
  try:
    return list(islice(stream, count))
  finally:
    stream.close()


# --- 33, 34, 35: what is damaged ------------------------------------------------------------------

GREY = Image.new('L', (60, 40), 128)
COLOUR = Image.new('RGB', (60, 40), (120, 130, 140))
TURNED = Image.Exif()
TURNED[0x0112] = 6

READABLE = {
  'grey.jpg': lambda: encoded(GREY, 'JPEG'),
  'cmyk.jpg': lambda: encoded(COLOUR.convert('CMYK'), 'JPEG'),
  'turned.jpg': lambda: encoded(COLOUR, 'JPEG', exif=TURNED),
  'damaged exif.jpg': lambda: encoded(COLOUR, 'JPEG', exif=b'Exif\0\0nothing of the kind'),
  'damaged exif.png': lambda: encoded(COLOUR, 'PNG', exif=b'Exif\0\0nothing of the kind'),
  'two values.png': lambda: encoded(GREY.convert('1'), 'PNG'),
  'palette.png': lambda: encoded(COLOUR.convert('P'), 'PNG', transparency=3),
  'grey alpha.png': lambda: encoded(GREY.convert('LA'), 'PNG'),
  'alpha.png': lambda: encoded(COLOUR.convert('RGBA'), 'PNG'),
  '16 bits.png': lambda: encoded(Image.fromarray(np.full((40, 60), 128 * 257, np.uint16)), 'PNG'),
  'animated.gif': lambda: encoded(COLOUR, 'GIF', save_all=True, append_images=[GREY]),
  'animated.webp': lambda: encoded(COLOUR, 'WEBP', save_all=True, append_images=[COLOUR]),
  'a png.jpg': lambda: encoded(COLOUR, 'PNG'),
  'one pixel.png': lambda: encoded(Image.new('RGB', (1, 1), (128,) * 3), 'PNG'),
  'thin.png': lambda: encoded(Image.new('RGB', (1, 3000), (128,) * 3), 'PNG'),
  'huge.jpg': lambda: encoded(Image.new('RGB', (10_000, 10_000), (128,) * 3), 'JPEG'),
}
UNREADABLE = {
  'truncated.jpg': lambda: encoded(COLOUR.resize((400, 300)), 'JPEG')[:900],
  'truncated.png': lambda: encoded(COLOUR.resize((400, 300)), 'PNG')[:200],
  'empty.jpg': lambda: b'',
  'page.jpg': lambda: b'<!DOCTYPE html><html><body>404 Not Found</body></html>',
  'script.jpg': lambda: b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n',
  'drawing.png': lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
  'flipped.png': lambda: encoded(COLOUR, 'PNG').replace(b'IDAT', b'IDAU'),
  'bomb.png': lambda: encoded(Image.new('1', (20_000, 20_000)), 'PNG', compress_level=1),
}


@pytest.fixture
def odd(tmp_path):
  """A flat folder of all of them."""
  folder = tmp_path / 'odd'
  folder.mkdir()
  for name, data in (READABLE | UNREADABLE).items():
    (folder / name).write_bytes(data())
  return folder


def test_33_odd_images_are_decoded_and_damaged_ones_skipped_and_counted(odd, capsys):
  """As training reads them (random crops) and as evaluation does (squares)."""
  wish = dict(size=8, area=(0.2, 1.0), aspect=(0.75, 1.33))
  source = image_folder(path=str(odd), size=8, unreadable=0.4, crops={'views': (wish, wish)})
  names = [pathlib.Path(source.name(i)).name for i in range(len(source))]
  for batch in in_order(source, batch_size=len(names)):
    assert batch['image'].dtype == np.uint8 and batch['image'].shape == (len(names), 8, 8, 3)
    assert {name for name, w in zip(names, batch['weight']) if w == 0} == set(UNREADABLE)
    for name, image in zip(names, batch['image']):
      assert name == 'palette.png' or abs(image.astype(int).mean() - 130) < 16, name
  err = capsys.readouterr().err
  assert err.count('skipped unreadable image') == len(UNREADABLE)
  assert all(name in err for name in UNREADABLE) and f'of {len(names)})' in err
  batch, = first(1, source, batch_size=len(names))
  assert batch['views'].shape == (len(names), 2, 8, 8, 3)


def test_33_beyond_the_share_it_is_exit_3_and_the_first_ten(odd):
  for i in range(12):
    (odd / f'more {i}.jpg').write_bytes(b'')
  with pytest.raises(DataError) as caught:
    list(in_order(image_folder(path=str(odd), size=8, unreadable=0.1), batch_size=36))
  code, (text,) = explain(caught.value)
  assert code == 3 and '20 of 36 images cannot be read, more than the share of 10.00%' in text
  assert text.count('.jpg: ') + text.count('.png: ') == 10 and 'and 10 more' in text


def test_34_a_bad_record_is_named_by_file_and_number(odd, tmp_path):
  """`unreadable=0` is "raise"."""
  kept = tmp_path / 'kept'
  kept.mkdir()
  for name in ('grey.jpg', 'page.jpg', 'thin.png', 'turned.jpg'):
    (kept / name).write_bytes((odd / name).read_bytes())
  with pytest.raises(DataError, match=f'example 1, {kept}/page.jpg: no image'):
    first(1, image_folder(path=str(kept), unreadable=0.0))

  with pytest.raises(DataError, match='cannot read example 5: OSError: not here'):
    first(1, WithoutTake(5, 8), batch_size=8)


class WithoutTake:
  """`length` numbers, of which one cannot be read."""

  def __init__(self, bad, length):
    self.bad, self.length = bad, length

  def __len__(self):
    return self.length

  def __getitem__(self, i):
    if i == self.bad:
      raise OSError('not here')
    return {'x': np.float32(i)}

  def fingerprint(self):
    return 'numbers'


def flip(file: pathlib.Path, at: int) -> None:
  data = bytearray(file.read_bytes())
  data[at] ^= 1
  file.write_bytes(data)


def pixels(i) -> np.ndarray:
  return np.random.default_rng(i).integers(0, 256, (8, 8, 1), np.uint8)


@pytest.fixture
def packed(tmp_path):
  """Two shards of ten images."""
  items = [Item(pixels(i), i % 2) for i in range(20)]
  write_shards(tmp_path / 'packed', 'train', [items[:10], items[10:]])
  return tmp_path / 'packed'


def test_35_a_flipped_bit_in_a_shard_of_images_ends_training_with_3(packed, tmp_path, capsys, pauses):
  number = int(example_ids(0, seed=0, length=20, batch_size=1)[0][0])  # the first that is read
  shard = packed / f'train-0000{number // 10}-of-00002.array_record'
  flip(shard, shard.read_bytes().index(pixels(number).tobytes()) + 9)
  code = train(tmp_path / 'run', '--config.data.name=array_record', f'--config.data.path={packed}',
               '--config.data.channels=1', '--config.data.size=8', '--config.views.size=8')
  err = capsys.readouterr().err
  assert code == 3 and 'Traceback' not in err
  assert f'{shard}[{number % 10}] is damaged: Corrupted' in err
  assert not pauses  # no second try would mend it


def test_35_a_flipped_bit_in_a_shard_of_tokens_is_named(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join(f'w{i} w{i + 1}' for i in range(40)))
  tokenizer = train_tokenizer([(tmp_path / 'a.txt').read_text()], size=60)
  tokenizer.save(tmp_path / 'tokenizer.json')
  assert main(['tokenizer', 'encode', f'--text={tmp_path}/a.txt', f'--out={tmp_path}/coded',
               f'--tokenizer={tmp_path}/tokenizer.json']) == 0
  file = next((tmp_path / 'coded').glob('*-00003-of-*.array_record'))
  flip(file, next(i for i in range(len(file.read_bytes()) // 2, 0, -1) if file.read_bytes()[i]))
  with pytest.raises(DataError, match=f'{file.name}.*damaged'):
    list(in_order(token_sources.token_records(path=str(tmp_path / 'coded'), length=8), batch_size=4))


# --- 36, 37, 38: too few, unequal -----------------------------------------------------------------


def arrays(path, count, classes=2):
  images = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)
  np.savez(path, image=images, label=np.arange(count) % classes)
  return ['--config.data.name=array_files', f'--config.data.path={path}']


@pytest.mark.parametrize('count, batch, code, words', [
  (0, 16, 3, 'there are no examples'),
  (15, 16, 2, 'config.batch_size is 16, but the data have only 15 examples; use at most 8'),
  (7, 8, 2, 'the data have only 7 examples, fewer than the 8 devices'),
  (16, 4, 2, 'config.batch_size is 4, which does not split over 8 devices; use 8')])
def test_36_too_few_examples_are_refused_with_the_numbers(count, batch, code, words, tmp_path, capsys):
  assert train(tmp_path / 'run', *arrays(tmp_path / 'few.npz', count),
               f'--config.batch_size={batch}') == code
  err = capsys.readouterr().err
  assert words in err and 'Traceback' not in err
  assert not (tmp_path / 'run').exists()


def test_36_an_empty_folder_is_refused(tmp_path, capsys):
  (tmp_path / 'none').mkdir()
  assert train(tmp_path / 'run', '--config.data.name=image_folder',
               f'--config.data.path={tmp_path}/none') == 3
  assert 'none holds no images' in capsys.readouterr().err


@pytest.mark.slow
def test_36_as_few_as_one_batch_train_and_are_evaluated(tmp_path):
  """With fewer examples to test on than devices."""
  arrays(tmp_path / 'few_train.npz', 16)
  arrays(tmp_path / 'few_test.npz', 3)
  assert main(['train', f'--config={DEMO}', f'--workdir={tmp_path}/run', '--cache_dir=none',
               '--config.data.name=array_files', f'--config.data.path={tmp_path}/few_{{split}}.npz',
               '--config.steps=2']) == 0


def test_37_evaluation_counts_every_example_once():
  """13 examples on 8 devices, in batches of 8."""
  source = ArraySource({'x': np.arange(13, dtype=np.float32)})
  mesh = make_mesh({'data': 8})
  found = list(runs.feed(source, mesh, rows=8))
  ids, weights = (np.concatenate([batch[name] for batch in found]) for name in ('id', 'weight'))
  assert sorted(ids[weights > 0]) == list(range(13)) and weights.sum() == 13
  assert {batch['x'].shape for batch in found} == {(8,)}


def test_37_hosts_with_unequal_shares_take_as_many_steps():
  """Rows of the global batch, not files, are shared out: no host runs out of data before another."""
  source = ArraySource({'x': np.arange(23)})
  shares = [first(9, source, batch_size=8, rows=rows) for rows in ([0, 1, 2, 5, 6], [3, 4, 7])]
  whole = first(9, source, batch_size=8)
  for k in range(9):
    ids = np.concatenate([share[k]['id'] for share in shares])
    assert [len(share[k]['id']) for share in shares] == [5, 3]
    assert sorted(ids) == sorted(whole[k]['id'])


@pytest.mark.slow
def test_37_two_hosts_evaluate_as_one(tmp_path):
  """29 test examples on 4 devices of two processes: the accuracy is a number of 29ths."""
  arrays(tmp_path / 'few_train.npz', 37)
  arrays(tmp_path / 'few_test.npz', 29)
  options = ('--config.data.name=array_files', f'--config.data.path={tmp_path}/few_{{split}}.npz',
             '--config.evaluate.every=2', '--config.steps=4')
  both = ends(together([tmp_path / 'two'] * 2, *options))
  assert [end.code for end in both] == [0, 0], both[0].err
  assert ends([train_alone(tmp_path / 'one', *options, devices=4)])[0].code == 0
  two, one = ([line['knn20'] for line in lines(tmp_path / name) if 'knn20' in line]
              for name in ('two', 'one'))
  assert len(one) == 2 and all(abs(value * 29 - round(value * 29)) < 1e-4 for value in one)
  np.testing.assert_allclose(two, one, atol=1.01 / 29)


RAGGED = """
import sys
import numpy as np
from ssl_jax.cli import agreement, hosts
process = int(sys.argv[2])
batch = dict(image=np.zeros((4 - process * int(sys.argv[3]), 8, 8, 1), np.uint8))
def work():
  agreement.check_batch(dict(image=np.zeros((4, 2))), rows=4)
  agreement.check_batch(batch, rows=4)
  return 0
sys.exit(hosts.run(hosts.find(sys.argv[1], 2, process), work))
"""


def test_38_ragged_batches_are_refused():
  """4 rows on one host and 2 on the other: JAX itself would compute with them."""
  port = free_port()
  both = ends([python(RAGGED, f'127.0.0.1:{port}', str(i), '2', devices=1) for i in range(2)])
  for end in both:
    assert end.code == 2, end.err
    assert "field 'image': uint8[8, 8, 1], all its rows on process 0" in end.err
    assert 'uint8[8, 8, 1], 2 rows instead of 4 on process 1' in end.err


# --- 39: another run in the same folder -----------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
  """A folder of 16 images; image i is 8 i everywhere."""
  folder = tmp_path / 'photographs'
  folder.mkdir()
  for i in range(16):
    Image.new('L', (30, 30), 8 * i).save(folder / f'{i:02}.png')
  return folder


def of_folder(folder):
  return ['--config.data.name=image_folder', f'--config.data.path={folder}',
          '--config.data.channels=1', '--config.data.size=28', '--config.views.size=28']


@pytest.mark.parametrize('change, words', [
  ('--config.batch_size=8', 'the batch size was 16, is 8'),
  ('--config.seed=1', 'the data seed was 0, is 1'),
  ('--config.views.strength=0.7', 'config.views.strength was 0.5, is 0.7'),
  ('--config.data.size=20', 'config.data.size was 28, is 20'),
  ('a file more', '...): the names of the files, the sizes of the files, the labels; the number of '
                  'examples was 16, is 17'),
  ('other bytes', '...): the sizes of the files'),
])
def test_39_a_resume_with_other_data_is_refused_unless_allowed(photographs, tmp_path, change, words):
  """That no message is lost between here and the terminal is proved in tests/cli/train_test.py."""
  def described(*changes):
    config = override(load_config(DEMO), [*of_folder(photographs), *changes])
    return config, build.experiment(config)

  saved = json.loads(json.dumps(starting.metadata(*described())))
  starting.refuse_changes(*refusal(*described('--config.workers=2')), saved)  # changes nothing
  if change == 'a file more':
    Image.new('L', (30, 30), 200).save(photographs / '99.png')
  elif change == 'other bytes':
    Image.new('L', (90, 30), 200).save(photographs / '03.png')
  now = described(*[change] if change.startswith('--') else [])
  with pytest.raises(ConfigError) as caught:
    starting.refuse_changes(*refusal(*now), saved)
  assert words in str(caught.value) and '--allow_changes' in str(caught.value)
  starting.refuse_changes(*refusal(*now, allow_changes=True), saved)


def refusal(config, experiment, **options):
  return config, starting.Options(pathlib.Path('run'), **options), experiment


def test_39_another_tokenizer_or_text_is_named(tmp_path):
  text = [f'w{i} w{i + 1} w{i + 2}' for i in range(30)]
  (tmp_path / 'a.txt').write_text('\n'.join(text))

  def found(length=8):
    source = token_sources.text_files(path=str(tmp_path / 'a.txt'), length=length,
                                      tokenizer=str(tmp_path / 'tokenizer.json'))
    return fingerprint(source, batch_size=2, seed=0)

  def named(new):
    return describe_change(old, new).partition('...): ')[2].partition(';')[0]

  train_tokenizer(text, size=60).save(tmp_path / 'tokenizer.json')
  old = found()
  assert describe_change(old, found()) is None
  assert named(found(length=9)) == 'the length of a row'
  train_tokenizer(text, size=50).save(tmp_path / 'tokenizer.json')  # under the same name
  assert named(found()) == 'the tokenizer'
  (tmp_path / 'a.txt').write_text('\n'.join(reversed(text)))
  assert named(found()) == 'the text, the tokenizer'
  # A checkpoint that does not know the parts.
  assert describe_change({key: old[key] for key in old if ': ' not in key}, old) is None


# --- 40: readers that are killed ------------------------------------------------------------------


def is_running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_40_a_killed_reader_is_an_error_within_seconds_and_leaves_no_other():
  stream = batches(WithoutTake(None, 23), batch_size=8, seed=5, workers=2, prefetch=1)
  next(stream)
  workers = [child.pid for child in multiprocessing.active_children()]
  os.kill(workers[0], signal.SIGKILL)  # as the system does when memory runs out
  began = time.monotonic()
  with pytest.raises(DataError, match=r'reads data was killed \(SIGKILL\).*config.workers'):
    for _ in range(8):
      next(stream)
  assert time.monotonic() - began < 20
  assert not multiprocessing.active_children() and not any(map(is_running, workers))


@pytest.mark.slow
def test_40_training_whose_reader_is_killed_ends_with_3(tmp_path, capsys):
  """And the same command goes on from the last checkpoint."""
  arguments = ('--config.workers=1', '--config.steps=4000', '--config.checkpoint.every=20')

  def kill():
    while not list((tmp_path / 'run').glob('checkpoints/20/*')):
      time.sleep(0.05)
    for child in multiprocessing.active_children():
      os.kill(child.pid, signal.SIGKILL)

  killer = threading.Thread(target=kill)
  killer.start()
  assert train(tmp_path / 'run', *arguments) == 3
  killer.join()
  assert 'the same command continues' in capsys.readouterr().err
  assert not multiprocessing.active_children()
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').latest() >= 20


def wait_for(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.05)
  return condition()


PARENT = '''
  import multiprocessing
  import sys
  import time
  import numpy as np
  from ssl_jax.data.batches import batches
  from ssl_jax.data.sources import ArraySource
  if __name__ == '__main__':
    stream = batches(ArraySource(dict(x=np.arange(16))), batch_size=4, seed=0, workers=2)
    next(stream)
    next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    for line in sys.stdin:
      print(next(stream)['x'].sum(), flush=True)
'''


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='looks into /proc')
def test_40_readers_survive_a_cluster_s_sigterm_but_not_their_parent(tmp_path, root):
  script = tmp_path / 'parent.py'
  script.write_text(textwrap.dedent(PARENT))
  parent = subprocess.Popen(
    [sys.executable, str(script)], env=dict(os.environ, PYTHONPATH=str(root)), text=True,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
  with parent:
    try:
      workers = [int(pid) for pid in parent.stdout.readline().split()]
      assert len(workers) == 2 and all(map(is_running, workers))
      for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
      for _ in range(8):  # More than what was read ahead.
        parent.stdin.write('next\n')
        parent.stdin.flush()
        assert int(parent.stdout.readline()) >= 0
    finally:
      parent.kill()
  assert wait_for(lambda: not any(map(is_running, workers)))


# --- 41: files and buckets that come back, or do not ----------------------------------------------


@pytest.fixture
def flaky(photographs, monkeypatch):
  """(images, fail): the next `times` reads of one raise an error."""
  source = image_folder(path=str(photographs), size=8, unreadable=0.2)
  failing = []
  read = folders.ImageFolder._bytes

  def sometimes(self, path):
    if failing:
      raise failing.pop()
    return read(self, path)

  monkeypatch.setattr(folders.ImageFolder, '_bytes', sometimes)
  return source, lambda error, times: failing.extend([error] * times)


@pytest.mark.parametrize('error', [
  FileNotFoundError(errno.ENOENT, 'No such file'), OSError(errno.ESTALE, 'Stale file handle'),
  OSError(errno.EIO, 'Input/output error'), TimeoutError('no answer')])
def test_41_a_file_that_comes_back_is_read(flaky, pauses, error):
  source, fail = flaky
  want = source[3]
  fail(error, 3)
  np.testing.assert_array_equal(source[3]['image'], want['image'])
  assert pauses == [0.25, 0.5, 1.0]


def test_41_a_storage_that_stays_away_ends_training_with_3(photographs, flaky, tmp_path, pauses,
                                                          capsys):
  """An image is not replaced because a server was away: the data would be others."""
  _, fail = flaky
  fail(OSError(errno.ESTALE, 'Stale file handle'), 1000)
  assert train(tmp_path / 'run', *of_folder(photographs)) == 3
  err = capsys.readouterr().err
  assert '.png cannot be read (6 tries in' in err and 'Stale file handle' in err
  assert 'trying again in 2 s' in err and 'skipped' not in err and 'Traceback' not in err
  assert sum(pauses) == 7.75


def test_41_a_file_that_stays_away_is_skipped_and_a_lost_folder_costs_no_hours(flaky, pauses, capsys):
  source, fail = flaky
  fail(FileNotFoundError(errno.ENOENT, 'No such file'), 4)
  batch, = in_order(source, batch_size=16)
  assert batch['weight'].tolist() == [0] + [1] * 15 and sum(pauses) == 1.75
  assert 'skipped unreadable image 1' in capsys.readouterr().err
  fail(FileNotFoundError(errno.ENOENT, 'No such file'), 1000)
  with pytest.raises(DataError, match='16 images in a row cannot be read'):
    list(in_order(source, batch_size=16))
  assert sum(pauses) == 2 * 1.75  # the first one's only


def test_41_a_bucket_is_asked_again_whatever_it_says(photographs, monkeypatch, pauses):
  """Its errors are of packages that we do not know."""
  real, failing = folders.epath.Path, [RuntimeError('503: try again')] * 3

  def path(name):
    if failing and str(name).startswith('mem://') and str(name).endswith('.png'):
      raise failing.pop()
    return real(str(name).replace('mem://', '/'))

  monkeypatch.setattr(folders.epath, 'Path', path)
  index = folders.walk(f'mem:/{photographs}')
  source = folders.ImageFolder(f'mem:/{photographs}', index, None, size=8, channels=1,
                               unreadable=0.0, crops=None)
  assert source[3]['image'].mean() == 24 and pauses == [0.25, 0.5, 1.0]
  failing.extend([RuntimeError('403: not yours')] * 6)
  with pytest.raises(DataError, match=r'03.png cannot be read \(6 tries .*RuntimeError: 403'):
    source[3]


def test_41_a_shard_that_comes_back_is_read(packed, tmp_path, pauses, monkeypatch):
  """Its reader is opened again: one that has failed may go on failing."""
  source = array_record(path=str(packed), channels=1, size=8)
  (packed / 'train-00001-of-00002.array_record').rename(tmp_path / 'away')

  def come_back(seconds):
    if (tmp_path / 'away').exists() and len(pauses) == 2:
      (tmp_path / 'away').rename(packed / 'train-00001-of-00002.array_record')
    pauses.append(seconds)

  monkeypatch.setattr(retries, 'wait', come_back)
  assert source[15]['image'].shape == (8, 8, 1) and pauses == [0.25, 0.5, 1.0]


def test_41_text_that_comes_back_is_read(tmp_path, pauses, monkeypatch):
  (tmp_path / 'a.txt').write_text('one\ntwo\n')
  corpus = corpora.text_files(path=str(tmp_path / 'a.txt'))
  (tmp_path / 'a.txt').rename(tmp_path / 'b.txt')
  monkeypatch.setattr(retries, 'wait', lambda seconds: (tmp_path / 'b.txt').rename(tmp_path / 'a.txt'))
  assert corpus[1].sentences == ('two',)


# --- 42: odd text ---------------------------------------------------------------------------------


def rows_of(tmp_path, data: bytes, length=8):
  """The rows of a text, as pieces of the vocabulary without padding."""
  (tmp_path / 'odd.txt').write_bytes(data)
  vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'b', 'c', 'd']
  (tmp_path / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
  source = token_sources.text_files(path=str(tmp_path / 'odd.txt'), length=length,
                                    tokenizer=str(tmp_path / 'vocab.txt'), pack=False)
  return [' '.join(vocabulary[i] for i in source[k]['tokens'] if i) for k in range(len(source))]


ODD_TEXT = {
  'empty lines': (b'\n\na b\n  \n\t\nc\n\n', ['[CLS] a b [SEP]', '[CLS] c [SEP]']),
  'no line end': (b'a b', ['[CLS] a b [SEP]']),
  'windows': (b'\xef\xbb\xbfa\r\nb\r\n', ['[CLS] a [SEP]', '[CLS] b [SEP]']),
  'invalid utf-8': (b'a \xff\xfe b\n', ['[CLS] a b [SEP]']),
  'nul': (b'a\0b\0\n\0\0\n', ['[CLS] a b [SEP]']),
  'unknown only': ('я ж\n'.encode(), ['[CLS] [UNK] [UNK] [SEP]']),
  'looks like special tokens': (b'[MASK] a\n', ['[CLS] [UNK] [UNK] [UNK] a [SEP]']),
  'longer than a row': (b'a b c d a b c d a\n', ['[CLS] a b c d a b [SEP]', '[CLS] c d a [SEP]']),
  'exactly a row': (b'a b c d a b\n', ['[CLS] a b c d a b [SEP]']),
}


@pytest.mark.parametrize('kind', ODD_TEXT)
def test_42_odd_text_has_defined_rows(kind, tmp_path):
  data, want = ODD_TEXT[kind]
  assert rows_of(tmp_path, data) == want


@pytest.mark.parametrize('megabytes', [1, pytest.param(10, marks=pytest.mark.slow)])
def test_42_a_line_of_megabytes_is_cut_into_rows_and_nothing_is_lost(tmp_path, megabytes):
  count = megabytes * 250_000
  rows = rows_of(tmp_path, b'a b ' * count + b'\nc\n', length=512)
  assert len(rows) == -(-2 * count // 510) + 1
  assert rows[0] == '[CLS] ' + 'a b ' * 255 + '[SEP]' and rows[-1] == '[CLS] c [SEP]'
  assert sum(row.count('a b') for row in rows) == count


@pytest.mark.parametrize('data, words', [
  (b'', 'holds no documents: it is empty'), (b'\n \n\0\n', 'or all of its lines are'),
  (b'\xff\xfea\0\n\0', 'is UTF-16, expected plain text in UTF-8'),
  (b'\x1f\x8b\x08\0', 'is gzip, expected plain text')])
def test_42_what_is_no_text_is_refused(data, words, tmp_path):
  with pytest.raises(DataError, match=words):
    rows_of(tmp_path, data)


@pytest.mark.slow
def test_42_training_on_odd_text_is_finite(tmp_path, capsys):
  """Rows of unknown tokens only, of one token, and cut ones, in one batch."""
  text = b'\n'.join([*(data for data, _ in ODD_TEXT.values())] * 4)
  rows_of(tmp_path, text)
  code = train(tmp_path / 'run', '--config.data.name=text_files', '--config.data.pack=False',
               f'--config.data.path={tmp_path}/odd.txt',
               f'--config.data.tokenizer={tmp_path}/vocab.txt', '--config.data.length=8',
               '--config.batch_size=8', '--config.views.vocabulary=9',
               '--config.network.vocabulary=9', '--config.network.length=8', '--config.steps=3',
               config=f'{CONFIGS}/mlm_wordnet.py:smoke')
  assert code == 0, capsys.readouterr().err
  assert all(np.isfinite(line['loss']) for line in lines(tmp_path / 'run'))
