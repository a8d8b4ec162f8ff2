"""`python -m ssl_jax tokenizer train|encode`: a vocabulary from text; text as shards of tokens."""

import pathlib
import sys
import time
from collections.abc import Iterator

from ssl_jax.cli.options import Parser
from ssl_jax.data.corpora import Corpus, text_files
from ssl_jax.data.sources import DataError
from ssl_jax.data.token_records import Progress, write_records
from ssl_jax.data.tokenize import Vocabulary, load, train

TRAIN = '''Learns a vocabulary from text and writes it as tokenizer.json, which Hugging Face reads
too. --kind=wordpiece is BERT's; bpe is byte-level, so nothing is unknown; unigram is
SentencePiece's.'''
ENCODE = '''Tokenises text once and writes it as shards that training reads in any order. All or
nothing: an interrupted run leaves what was there before.'''
KINDS = ('wordpiece', 'bpe', 'unigram')


def run(argv: list[str]) -> int:
  commands = dict(train=_train, encode=_encode)
  parser = Parser('tokenizer', f'train: {TRAIN} encode: {ENCODE} '
                  '`python -m ssl_jax tokenizer train --help` tells more.')
  parser.add_argument('command', choices=commands, nargs='?', help='what to do')
  args, _ = parser.read(argv[:1])
  if args.command is None:
    parser.error('needs a command, train or encode')
  return commands[args.command](argv[1:])


# --- train ----------------------------------------------------------------------------------------


def _train(argv: list[str]) -> int:
  parser = Parser('tokenizer train', TRAIN)
  _add_text(parser)
  parser.add_argument('--kind', default='wordpiece', choices=KINDS, help='of the model')
  parser.add_argument('--size', type=int, default=30522, help='pieces of the vocabulary')
  parser.add_argument('--cased', action='store_true', help='tell upper case from lower case')
  parser.add_argument('--out', metavar='FILE.json', help='where the tokenizer goes')
  args, _ = parser.read(argv)
  if not args.text or not args.out:
    parser.error('needs --text=GLOB and --out=FILE.json')
  out = pathlib.Path(args.out).expanduser()
  if out.suffix != '.json':
    parser.error(f'--out must be a .json file, such as {out / "tokenizer.json"}; got {args.out}')
  corpus = text_files(path=args.text, documents=args.documents)
  began = time.monotonic()
  try:
    tokenizer = train(_sentences(corpus), kind=args.kind, size=args.size, lowercase=not args.cased)
  except DataError:
    raise
  except ValueError as error:
    parser.error(f'--size={args.size}: {error}')
  print(f'{len(corpus):,} documents in {time.monotonic() - began:.1f} s', file=sys.stderr,
        flush=True)
  tokenizer.save(out)
  print(f'{args.kind} with {tokenizer.vocabulary.size:,} pieces in {out}')
  _print_vocabulary(tokenizer.vocabulary)
  print(f"config.data = dict(name='text_files', path={args.text!r}, documents={args.documents!r}, "
        f'tokenizer={str(out)!r}, length=128)')
  return 0


def _sentences(corpus: Corpus) -> Iterator[str]:
  progress = Progress(len(corpus), 'read')
  for i in range(len(corpus)):
    yield from corpus[i].sentences
    progress(1)


# --- encode ---------------------------------------------------------------------------------------


def _encode(argv: list[str]) -> int:
  parser = Parser('tokenizer encode', ENCODE)
  _add_text(parser)
  parser.add_argument('--tokenizer', metavar='FILE', help='tokenizer.json, or vocab.txt of a BERT')
  parser.add_argument('--out', metavar='FOLDER', help='where the shards go')
  parser.add_argument('--split', default='train', help='what to call them')
  parser.add_argument('--workers', type=int, default=0, help='processes that tokenise')
  parser.add_argument('--overwrite', action='store_true', help='replace a split of this name')
  args, _ = parser.read(argv)
  if not (args.text and args.tokenizer and args.out):
    parser.error('needs --text=GLOB, --tokenizer=FILE and --out=FOLDER')
  if args.workers < 0:
    parser.error(f'--workers must be at least 0, got {args.workers}')
  out = pathlib.Path(args.out).expanduser()
  if (out / f'{args.split}.json').exists() and not args.overwrite:
    parser.error(f'{out} has a split {args.split!r} already; --overwrite replaces it')
  tokenizer = load(args.tokenizer)
  corpus = text_files(path=args.text, documents=args.documents)
  began = time.monotonic()
  about = write_records(out, args.split, corpus, tokenizer, workers=args.workers,
                        overwrite=args.overwrite, about=dict(origin=args.text),
                        progress=Progress(len(corpus), 'tokenised'))
  seconds = time.monotonic() - began
  print(f'{about["documents"]:,} documents in {seconds:.1f} s, '
        f'{about["tokens"] / max(seconds, 1e-9):,.0f} tokens/s', file=sys.stderr, flush=True)
  print(f'{about["documents"]:,} documents, {about["tokens"]:,} tokens '
        f'({about["unknown"] / max(about["tokens"], 1):.2%} unknown) in {out}')
  _print_vocabulary(tokenizer.vocabulary)
  print(f"config.data = dict(name='token_records', path={str(out)!r}, split={args.split!r}, "
        'length=128)')
  return 0


def _add_text(parser: Parser) -> None:
  parser.add_argument('--text', metavar='GLOB', help="text in UTF-8: 'books/*.txt'")
  parser.add_argument('--documents', default='line', choices=('line', 'blank'),
                      help='a document per line, or empty lines between them')


def _print_vocabulary(vocabulary: Vocabulary) -> None:
  """What the network and the masks of a config need to know."""
  print(f'config.network.vocabulary = {vocabulary.size}')
  if vocabulary.mask is None:
    print('# there is no mask token: this vocabulary is for causal models')
  else:
    print(f'config.views.update(vocabulary={vocabulary.size}, mask={vocabulary.mask}, '
          f'special={vocabulary.special})')
