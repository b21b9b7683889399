"""Generated files in the format of the 5-core benchmark of Amazon Reviews 2023."""

import collections

import numpy as np

from lares_jax.data.store import PARTS


def log(users=200, items=60):
  """Rows as in a 5-core category: milliseconds, no item twice, at least five of everything."""
  rng = np.random.default_rng(1)
  rows = []
  for user in range(users):
    chosen = rng.permutation(items)[: rng.integers(5, 15)]
    times = np.sort(rng.integers(1_500_000_000_000, 1_690_000_000_000, len(chosen)))
    rows += [(f'AG{user:026d}', f'B0{item:08d}', float(rng.integers(1, 6)), int(time))
             for item, time in zip(chosen, times)]
  return rows


def write(directory, rows, with_history=False, opened=open, ending='csv') -> str:
  """The three files of the benchmark: test holds each user's last, valid the one before."""
  histories = collections.defaultdict(list)
  for row in rows:
    histories[row[0]].append(row)
  header = 'user_id,parent_asin,rating,timestamp' + ',history' * with_history
  lines = {part: [header] for part in PARTS}
  for history in histories.values():
    for at, row in enumerate(history):
      part = PARTS[max(0, at - len(history) + 3)]
      earlier = [' '.join(other[1] for other in history[:at])] if with_history else []
      lines[part].append(','.join([*map(str, row), *earlier]))
  directory.mkdir()
  for part in PARTS:
    with opened(directory / f'Musical_Instruments.{part}.{ending}', 'wt') as file:
      file.write('\n'.join(lines[part]) + '\n')
  return str(directory / f'Musical_Instruments.*.{ending}')
