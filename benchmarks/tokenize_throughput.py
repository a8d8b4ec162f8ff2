"""MB/s per core of tokenising WordNet's glosses, beside the map of Hugging Face's datasets.

  python -m benchmarks.tokenize_throughput [--datasets-python PYTHON] [--rounds 5]

Ours is what `text_files` does before training and `tokenizer encode` before it writes: documents to
tokens, words and lengths in NumPy arrays. Theirs is Dataset.map(batched=True, batch_size=1000) with the
same tokenizer.json through the `tokenizers` library, which writes input_ids to an Arrow file; word
numbers, which whole-word masking needs, in a row of their own. datasets may live in another
environment, whose interpreter --datasets-python names. One process and one thread each; bytes of UTF-8
per CPU second, because a shared machine is noisy; contestants take turns, medians.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

READY = 'ready'
COLUMNS = {'datasets.map': ['input_ids'], 'datasets.map, with words': ['input_ids', 'words']}


def ours(tokenizer_file: str, texts: list[str]):
  from ssl_jax.data.corpora import Document
  from ssl_jax.data.tokenize import chunks, load, tokenised

  tokenizer = load(tokenizer_file)
  documents = [Document((text,)) for text in texts]

  def work():
    for chunk in chunks(documents):
      tokenised(chunk, tokenizer)

  return work


def theirs(tokenizer_file: str, texts: list[str], columns: list[str]):
  """The same by datasets; its cache is not used, so that it works each time."""
  import datasets
  import tokenizers

  datasets.disable_progress_bars()
  inner = tokenizers.Tokenizer.from_file(tokenizer_file)
  data = datasets.Dataset.from_dict({'text': texts})
  cache = tempfile.TemporaryDirectory()
  numbers = iter(range(1 << 30))

  def encode(batch):
    found = inner.encode_batch(batch['text'], add_special_tokens=False)
    known = dict(input_ids=[one.ids for one in found])
    return known | (dict(words=[one.word_ids for one in found]) if 'words' in columns else {})

  def work():
    file = f'{cache.name}/{next(numbers)}.arrow'
    data.map(encode, batched=True, batch_size=1000, remove_columns=['text'], cache_file_name=file,
             load_from_cache_file=False)
    os.remove(file)

  return work


def cpu_seconds(work) -> float:
  began = time.process_time()
  work()
  return time.process_time() - began


def serve(tokenizer_file: str, text_file: str) -> None:
  """Runs the contestant that a line on stdin names and prints its CPU seconds."""
  texts = json.loads(pathlib.Path(text_file).read_text())
  rivals = {name: theirs(tokenizer_file, texts, columns) for name, columns in COLUMNS.items()}
  for work in rivals.values():
    work()
  print(READY, flush=True)
  for line in sys.stdin:
    print(cpu_seconds(rivals[line.strip()]), flush=True)


def datasets_process(python: str, tokenizer_file: str, text_file: str) -> subprocess.Popen | None:
  """A process that serves, or None where datasets is missing."""
  environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
  process = subprocess.Popen(
    [python, __file__, '--serve', tokenizer_file, text_file], stdin=subprocess.PIPE, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
  if process.stdout.readline().strip() == READY:
    return process
  reason = process.communicate()[1].strip().splitlines()[-1:]
  print(f'datasets skipped: {python} says {reason}; see --datasets-python', file=sys.stderr)
  return None


def measure(rounds: int, python: str, folder: pathlib.Path) -> None:
  from ssl_jax.data.corpora import wordnet_glosses
  from ssl_jax.data.token_sources import WORDNET_VOCABULARY
  from ssl_jax.data.tokenize import load

  glosses = wordnet_glosses(split='train')
  texts = ['; '.join(glosses[i].sentences) for i in range(len(glosses))]
  size = sum(len(text.encode()) for text in texts)
  tokenizer_file, text_file = str(folder / 'tokenizer.json'), str(folder / 'texts.json')
  load(WORDNET_VOCABULARY).save(tokenizer_file)
  pathlib.Path(text_file).write_text(json.dumps(texts))
  work = ours(tokenizer_file, texts)
  work()
  contestants = {'ours, with words': lambda: cpu_seconds(work)}
  process = datasets_process(python, tokenizer_file, text_file)
  if process:
    def ask(name):
      process.stdin.write(name + '\n')
      process.stdin.flush()
      return float(process.stdout.readline())

    contestants |= {name: (lambda name=name: ask(name)) for name in COLUMNS}
  spent = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, run in contestants.items():
      spent[name].append(run())
  if process:
    process.communicate('')
  own = spent['ours, with words']
  print(f'{len(texts):,} texts, {size / 1e6:.2f} MB, WordPiece of 8,192 pieces\n')
  print('| tokenised by | MB/s per core | its seconds / ours |\n|---|---|---|')
  for name, seconds in spent.items():
    ratio = statistics.median(theirs / mine for mine, theirs in zip(own, seconds))
    print(f'| {name} | {size / 1e6 / statistics.median(seconds):.2f} | {ratio:.2f} |')


def main() -> None:
  os.environ.update(TOKENIZERS_PARALLELISM='false', RAYON_NUM_THREADS='1')
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--datasets-python', '--datasets_python', default=sys.executable,
                      help='interpreter with datasets and tokenizers')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--serve', nargs=2, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(*args.serve)
    return
  with tempfile.TemporaryDirectory() as folder:
    measure(args.rounds, args.datasets_python, pathlib.Path(folder))


if __name__ == '__main__':
  main()
