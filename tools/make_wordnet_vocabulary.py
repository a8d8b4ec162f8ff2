"""Makes ssl_jax/data/embedded/wordnet_glosses/vocab.txt, byte for byte.

An uncased WordPiece vocabulary in BERT's format, learned from the training split of the glosses:
  python tools/make_wordnet_vocabulary.py --output=vocab.txt
"""

import argparse
import hashlib
import pathlib

from ssl_jax.data.corpora import wordnet_glosses
from ssl_jax.data.tokenize import train

SIZE = 8192


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', type=pathlib.Path, required=True)
  args = parser.parse_args()
  corpus = wordnet_glosses(split='train')
  sentences = (text for i in range(len(corpus)) for text in corpus[i].sentences)
  tokenizer = train(sentences, kind='wordpiece', size=SIZE)
  args.output.write_text(''.join(f'{piece}\n' for piece in tokenizer.pieces()), 'utf-8')
  print(f'{hashlib.sha256(args.output.read_bytes()).hexdigest()}  {args.output}')


if __name__ == '__main__':
  main()
