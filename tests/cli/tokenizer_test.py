"""A vocabulary from text and text as shards of tokens, by command; what it prints can be pasted."""

import pytest
from ml_collections import ConfigDict

from ssl_jax.cli import main
from ssl_jax.data import token_sources
from ssl_jax.data.tokenize import load


@pytest.fixture
def text(tmp_path):
  """Two files of lines."""
  for name in 'ab':
    lines = [f'the {name} cat sat on mat {i % 7}, unhappily' for i in range(30)]
    (tmp_path / f'{name}.txt').write_text('\n'.join(lines) + '\n')
  return str(tmp_path / '*.txt')


def train(text, out, *options) -> int:
  return main(['tokenizer', 'train', f'--text={text}', '--size=120', f'--out={out}', *options])


def encode(text, tokenizer, out, *options) -> int:
  return main(['tokenizer', 'encode', f'--text={text}', f'--tokenizer={tokenizer}', f'--out={out}',
               *options])


def pasted(out: str) -> ConfigDict:
  """The config that the printed lines make."""
  config = ConfigDict(dict(network={}, views={}, data={}))
  config.unlock()
  for line in out.splitlines():
    if line.startswith('config.'):
      exec(line, dict(config=config))
  return config


def source_of(config):
  arguments = dict(config.data)
  return getattr(token_sources, arguments.pop('name'))(**arguments)


def test_a_vocabulary_and_what_to_paste(text, tmp_path, capsys):
  file = tmp_path / 'new' / 'tokenizer.json'
  assert train(text, file) == 0
  out, err = capsys.readouterr()
  config, vocabulary = pasted(out), load(file).vocabulary
  assert 'wordpiece with' in out and '60 documents' in err
  assert config.network.vocabulary == config.views.vocabulary == vocabulary.size
  assert config.views.mask == vocabulary.mask and config.views.special == vocabulary.special
  assert source_of(config).vocabulary == vocabulary


def test_the_kinds(text, tmp_path):
  assert train(text, tmp_path / 'tokenizer.json', '--kind=unigram', '--cased') == 0
  assert train(text, tmp_path / 'tokenizer.json', '--kind=bpe', '--size=300') == 0
  tokenizer = load(tmp_path)
  assert tokenizer.decode(tokenizer.encode(['the cat'])[0].tokens) == 'the cat'


def test_shards_and_what_to_paste(text, tmp_path, capsys):
  assert train(text, tmp_path / 'tokenizer.json') == 0
  capsys.readouterr()
  assert encode(text, tmp_path / 'tokenizer.json', tmp_path / 'tokens', '--workers=1') == 0
  out, err = capsys.readouterr()
  source = source_of(pasted(out))
  assert '60 documents' in out and '(0.00% unknown)' in out and 'tokens/s' in err
  assert len(source.store) == 60 and source.vocabulary.mask == 4
  with pytest.raises(SystemExit) as stop:
    encode(text, tmp_path / 'tokenizer.json', tmp_path / 'tokens')
  assert stop.value.code == 2 and '--overwrite replaces it' in capsys.readouterr().err
  assert encode(text, tmp_path / 'tokenizer.json', tmp_path / 'tokens', '--overwrite') == 0
  assert encode(text, tmp_path / 'tokenizer.json', tmp_path / 'tokens', '--split=test') == 0


def test_data_that_is_none(text, tmp_path, capsys):
  (tmp_path / 'tokenizer.json').write_text('{}')
  assert encode(text, tmp_path / 'tokenizer.json', tmp_path / 'tokens') == 3
  assert 'is no tokenizer.json' in capsys.readouterr().err
  assert encode(text, tmp_path / 'missing.json', tmp_path / 'tokens') == 3
  assert not (tmp_path / 'tokens').exists()
  assert train(str(tmp_path / 'nothing*.md'), tmp_path / 'tokenizer.json') == 3


@pytest.mark.parametrize('words, message', [
  ([], 'needs a command, train or encode'), (['bake'], 'invalid choice'),
  (['train', '--text=x'], 'needs --text=GLOB and --out'),
  (['train', '--text=x', '--out=y'], 'must be a .json file, such as y/tokenizer.json'),
  (['encode', '--text=x', '--out=y'], 'needs --text=GLOB, --tokenizer=FILE'),
  (['encode', '--text=x', '--tokenizer=t', '--out=y', '--workers=-1'], 'at least 0'),
  (['encode', '--txt=x'], 'did you mean --text')])
def test_wrong_options(words, message, capsys):
  with pytest.raises(SystemExit) as stop:
    main(['tokenizer', *words])
  assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_size_that_is_too_small(text, tmp_path, capsys):
  with pytest.raises(SystemExit) as stop:
    train(text, tmp_path / 'tokenizer.json', '--size=9')
  assert stop.value.code == 2 and '--size=9: a vocabulary of 9' in capsys.readouterr().err
