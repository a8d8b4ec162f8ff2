"""A run on photographs with captions: training, retrieval, embedding, and what is answered."""

import json

import numpy as np
import pytest
from PIL import Image

import ssl_jax
from ssl_jax.cli import main

CACHE = ['--cache_dir=none']
COLOURS = ('red', 'green', 'blue')
TRAIN, TEST = 16, 4  # images of each colour


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Pictures of one colour with two captions each, that name it; one test image is damaged."""
  root = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for split, count in (('train', TRAIN), ('test', TEST)):
    (root / split).mkdir()
    lines = ['image,caption']
    for i in range(3 * count):
      pixels = rng.integers(0, 60, (18, 20, 3))
      pixels[..., i % 3] += 150
      Image.fromarray(pixels.astype(np.uint8)).save(root / split / f'{i:02}.png')
      lines += [f'{i:02}.png,all of it is {COLOURS[i % 3]}',
                f'{i:02}.png,picture number {i} of a {COLOURS[i % 3]} wall']
    (root / split / 'captions.csv').write_text('\n'.join(lines) + '\n')
  (root / 'test' / '05.png').write_bytes(b'damaged')
  return root


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
  """A few steps in chunks, with crops on the host."""
  workdir = tmp_path_factory.mktemp('run')
  (workdir / 'config.py').write_text(f'''
from ml_collections import ConfigDict

def get_config(arg):
  head = dict(name='mlp', layers=1, out=8, output_norm=None)
  text = dict(name='transformer', architecture='gpt2', vocabulary=8192, width=16, depth=1, heads=2,
              length=12, dropout=0., attention_dropout=0., pool='last', head=dict(head))
  return ConfigDict(dict(
    seed=0, batch_size=32, microbatch=16, steps=40, log_every=20,
    data=dict(name='image_text_folder', path={str(photos)!r}, split='train', length=12, size=16,
              unreadable=0.2),
    views=dict(name='image_text', size=12), network=dict(name='convnet', channels=(8,), strides=(2,)),
    head=head, method=dict(name='clip', text=text), optimizer=dict(name='adamw'),
    schedule=dict(name='constant', learning_rate=0.01),
    checkpoint=dict(every=40), evaluate=dict(every=None, health_every=40)))
''')
  assert main(['train', f'--config={workdir}/config.py', f'--workdir={workdir}', *CACHE]) == 0
  return workdir


def test_retrieval_of_held_out_pairs(run, capsys):
  """Two captions of each image; equal ones are one text, and the damaged image is left out."""
  assert main(['evaluate', f'--workdir={run}', *CACHE]) == 0
  out, err = capsys.readouterr()
  assert '| image to text |' in out and 'by chance' in out and 'class by its captions' not in out
  assert err.count('test/05.png: no image') == 1 and 'no probes: the images have no labels' in err
  saved = json.loads((run / 'evaluation.json').read_text())
  assert saved['step'] == 40 and 'pending' not in saved
  to_text, to_image = (saved['retrieval'][name] for name in ('image to text', 'text to image'))
  assert (to_text['queries'], to_text['items']) == (3 * TEST - 1, 3 * TEST + 3)
  # The text of the damaged image is no query, but 'all of it is blue' still has other images.
  assert (to_image['queries'], to_image['items']) == (3 * TEST - 1 + 3, 3 * TEST - 1)
  # All images of a colour find the text that they share.
  assert to_text['recall']['1'] > 3 * to_text['chance']['1']
  assert main(['evaluate', f'--workdir={run}', '--protocols=dino_knn', *CACHE]) == 3
  assert 'evaluation needs labels' in capsys.readouterr().err


def test_images_are_embedded_and_compared_with_texts(run, photos, tmp_path):
  assert main(['embed', f'--workdir={run}', f'--output={tmp_path}/z.npz', *CACHE]) == 0
  z = np.load(tmp_path / 'z.npz')
  assert z['embedding'].shape == (6 * TEST - 2, 8) and set(z) == {'embedding', 'id', 'name'}
  assert not any('05.png' in name for name in z['name'])
  loaded = ssl_jax.load(run)
  images = np.stack([np.asarray(Image.open(photos / 'test' / f'{i:02}.png').resize((16, 16)))
                     for i in range(3)])
  cosine = loaded.similarity(images, [f'all of it is {colour}' for colour in COLOURS])
  assert cosine.shape == (3, 3) and (np.abs(cosine) <= 1 + 1e-5).all()
  assert np.argmax(cosine, axis=1).tolist() == [0, 1, 2]
  np.testing.assert_allclose(loaded.embed(images[:1]).shape, (1, 8))


@pytest.mark.parametrize('override, code, message', [
  ('--config.method.text.vocabulary=100', 2, 'config.method.text.vocabulary is 100, but the tokenizer'),
  ('--config.method.text.length=8', 2, 'longer than the position table of 8'),
  ('--config.method.text.head.out=9', 2, 'images are projected to 8 numbers and texts to 9'),
  ('--config.method.text.haed=1', 2, "config.method.text.haed is unknown"),
  ('--config.method.implementation=rings', 2, "implementation must be one of"),
  ('--config.evaluate.every=2', 2, 'evaluation needs labels'),
  ('--config.data.table=none.csv', 3, 'none.csv'),
  ('--config.data.caption=text', 3, "no column 'text'"),
])
def test_mistakes_are_answered_before_training(run, tmp_path, capsys, override, code, message):
  words = ['train', f'--config={run}/config.py', f'--workdir={tmp_path}/run', *CACHE]
  assert main([*words, override]) == code
  assert message in capsys.readouterr().err
