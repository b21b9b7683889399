"""Recommends for raw histories, a JSON line in, a JSON line out.

    python -m lares_jax.recommend --workdir=DIR --k=10 [--depth=N|adaptive] [--noexclude_history] \\
        < histories.jsonl > recommendations.jsonl

In:   {"user": "u7", "history": ["1482", "933"]}, oldest item first; or the bare list.
Out:  {"user": "u7", "items": [..], "scores": [..], "source": "model", "unknown": [..]}

Line n of the output answers line n of the input. Items that the model does not know are ignored
and listed under "unknown"; where that leaves nothing, "source" is "popularity" and the scores are
training counts. A bad line gets {"line": n, "error": ".."} and the rest goes on. Lines are taken
--batch at a time, so memory does not grow with the input; --batch=1 answers each line at once.

With --all_users nothing is read: every user of the run's data set, which must be where it was, is
answered, by all that they have.
"""

import collections
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple, NoReturn, TextIO

import numpy as np
import tqdm
from absl import flags

from lares_jax.data.store import Store
from lares_jax.errors import front_door
from lares_jax.recommender import Recommendation, Recommender

MAX_LINE = 4 << 20  # bytes; a longer line is an error, and is not kept
_MAX_BATCH_BYTES = 16 << 20  # a batch of very long lines ends early
_IDS = (str, int)  # not bool, which is an int


Answer = Callable[..., list[Recommendation]]


class Request(NamedTuple):
  """One history to answer."""

  user: str | int | None
  history: list[str] | np.ndarray  # raw ids; of `everyone`, item numbers


def _define_flags() -> None:
  flags.DEFINE_string('workdir', None, 'A trained run.', required=True)
  flags.DEFINE_integer('k', 10, 'Items for each user.', lower_bound=1)
  flags.DEFINE_string('depth', None, 'Reasoning steps, or adaptive; what validation chose if empty.')
  flags.DEFINE_bool('exclude_history', True, 'Leave items of the history out.')
  flags.DEFINE_integer('batch', 4096, 'Lines, or users, at a time.', lower_bound=1)
  flags.DEFINE_bool('all_users', False, "Answer for every user of the run's data set.")


def main() -> None:
  given = flags.FLAGS
  recommender = Recommender.load(given.workdir)
  depth = recommender.checked_depth(given.depth or None)
  answer: Answer
  if given.all_users:
    store = recommender.experiment.store
    answer, requests = recommender.recommend_numbers, everyone(store, given.batch)
    total = store.num_users
  else:
    answer, requests, total = recommender.recommend, asked(sys.stdin.buffer, given.batch), None
  try:
    done = run(answer, requests, sys.stdout, total, k=given.k, depth=depth,
               exclude_history=given.exclude_history)
    print(done, file=sys.stderr)
  except BrokenPipeError:  # the reader has had enough; nor may closing stdout complain
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(answer: Answer, batches: Iterable[list[Request | str]], sink: TextIO,
        total: int | None = None, **options) -> str:
  """Answers every request in `sink`, a line each, in order; returns a sentence on what was done.

  Args:
    answer: `Recommender.recommend`, or `recommend_numbers` for `everyone`.
    batches: of `asked` or `everyone`.
    sink: where the answers go; flushed after each batch.
    total: how many requests there are, if that is known.
    **options: of `Recommender.recommend`.
  """
  answered: collections.Counter[str] = collections.Counter()  # lines by where they come from
  with tqdm.tqdm(total=total, unit=' users', desc='recommend', leave=False, disable=None) as bar:
    for requests in batches:
      good = [r for r in requests if isinstance(r, Request)]
      answers = iter(answer([r.history for r in good], **options))
      for request in requests:
        if isinstance(request, Request):
          found = next(answers)
          answered[found.source] += 1
          out = {'user': request.user, **found._asdict()}
        else:
          answered['error'] += 1
          out = {'line': answered.total(), 'error': request}
        sink.write(json.dumps(out) + '\n')
      sink.flush()
      bar.update(len(requests))
  return (f'wrote {answered.total():,} lines to stdout: {answered["model"]:,} from the model, '
          f'{answered["popularity"]:,} from popularity, {answered["error"]:,} errors')


def asked(source: BinaryIO, batch: int) -> Iterator[list[Request | str]]:
  """What the JSON lines of a stream ask for; of a bad one, what is wrong.

  Up to `batch` at a time, fewer where they are long.
  """
  requests: list[Request | str] = []
  size = 0
  for line in _lines(source):
    requests.append(parse(line))
    size += len(line)
    if len(requests) == batch or size > _MAX_BATCH_BYTES:
      yield requests
      requests, size = [], 0
  if requests:
    yield requests


def everyone(store: Store, batch: int) -> Iterator[list[Request | str]]:
  """Every user with all of their items, validation and test included, `batch` at a time."""
  for low in range(0, store.num_users, batch):
    edges = store.offsets[low : low + batch + 1]
    histories = np.split(store.items_N[edges[0] : edges[-1]], edges[1:-1] - edges[0])
    yield list(map(Request, store.user_ids[low : low + batch], histories))


def parse(line: bytes) -> Request | str:
  """What a line asks for; or why it is not what the head of this file describes."""
  if len(line) > MAX_LINE:
    return f'longer than {MAX_LINE >> 20} MiB'
  try:
    # Some editors begin a file with a mark of its encoding: -sig takes it off.
    content = json.loads(line.decode('utf-8-sig'), parse_constant=_no_constant)
  except UnicodeDecodeError:
    return 'not UTF-8'
  except RecursionError:
    return 'nested too deeply'
  except ValueError as error:
    return f'not JSON: {error}'
  if isinstance(content, list):
    content = {'history': content}
  if not isinstance(content, dict) or 'history' not in content:
    return 'neither a list of item ids nor an object with a "history"'
  user, history = content.get('user'), content['history']
  if user is not None and type(user) not in _IDS:
    return '"user" is neither a string nor a whole number'
  if not isinstance(history, list):
    return '"history" is not a list of item ids'
  for n, item in enumerate(history):
    if type(item) not in _IDS:
      return f'"history"[{n}] is neither a string nor a whole number'
  return Request(user, [str(item) for item in history])


def _no_constant(name: str) -> NoReturn:
  raise ValueError(f'{name} is not JSON')


def _lines(source: BinaryIO) -> Iterator[bytes]:
  """The lines of a stream; of one that is too long, enough of its beginning to tell."""
  while line := source.readline(MAX_LINE + 1):
    rest = line
    while len(rest) > MAX_LINE and not rest.endswith(b'\n'):
      rest = source.readline(MAX_LINE + 1)
    yield line.removesuffix(b'\n')


if __name__ == '__main__':
  _define_flags()
  front_door(main)
