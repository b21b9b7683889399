"""Recommends from this directory alone, with jax, numpy and flatbuffers; `export` put it here.

    python example.py ITEM ITEM ...     # a history of raw item ids, oldest first
"""

import json
import pathlib
import sys

import jax
import numpy as np
from jax import export

_HERE = pathlib.Path(__file__).parent
ABOUT = json.loads((_HERE / 'about.json').read_text('utf-8'))
ITEM_IDS = json.loads((_HERE / 'items.json').read_text('utf-8'))
_NUMBER = {raw: number for number, raw in enumerate(ITEM_IDS)}
_PARAMS = jax.device_put(dict(np.load(_HERE / 'params.npz')))
_PROGRAM = jax.jit(export.deserialize(bytearray((_HERE / 'program.bin').read_bytes())).call)


def recommend(histories, depth=ABOUT['depth'], exclude_history=True):
  """(raw id, score) pairs, best first, for each of up to `max_batch` histories."""
  known = [[_NUMBER[item] for item in history if item in _NUMBER] for history in histories]
  read = ABOUT['max_history']
  history_bxl = np.full((len(known), read), -1, np.int32)  # -1 fills, on the right
  wide = 1 << max([3, *(len(items).bit_length() for items in known)])  # few shapes, few compilations
  hidden_bxh = np.full((len(known), wide), -1, np.int32)
  for b, items in enumerate(known):
    history_bxl[b, : min(len(items), read)] = items[-read:]
    if exclude_history:
      hidden_bxh[b, : len(items)] = items
  scores, items, _ = _PROGRAM(_PARAMS, history_bxl, hidden_bxh, np.int32(depth))
  pairs = [zip(i, s, strict=True) for i, s in zip(items.tolist(), scores.tolist(), strict=True)]
  return [[(ITEM_IDS[item], score) for item, score in row if item >= 0] for row in pairs]


if __name__ == '__main__':
  for raw_id, value in recommend([sys.argv[1:]])[0]:
    print(f'{value:10.4f}  {raw_id}')
