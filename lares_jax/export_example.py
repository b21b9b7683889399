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
_NUMBER = {raw: n for n, raw in enumerate(ITEM_IDS)}
_PARAMS = jax.device_put(dict(np.load(_HERE / 'params.npz')))
_PROGRAM = jax.jit(export.deserialize(bytearray((_HERE / 'program.bin').read_bytes())).call)


def recommend(histories, depth=ABOUT['depth'], exclude_history=True):
  """(raw id, score) pairs, best first, for each of up to `max_batch` histories."""
  if not 0 <= depth <= ABOUT['max_depth']:
    raise ValueError(f'depth {depth}: from 0 to {ABOUT["max_depth"]}')
  known = [[_NUMBER[item] for item in history if item in _NUMBER] for history in histories]
  history_bxl = np.full((len(known), ABOUT['max_history']), -1, np.int32)  # -1 fills, on the right
  wide = 1 << max([3, *(len(items).bit_length() for items in known)])  # few shapes, few compilations
  hidden_bxh = np.full((len(known), wide), -1, np.int32)
  for b, items in enumerate(known):
    history_bxl[b, : len(items)] = items[-ABOUT['max_history'] :]
    hidden_bxh[b, : len(items)] = items if exclude_history else -1
  score_bxk, item_bxk, _ = _PROGRAM(_PARAMS, history_bxl, hidden_bxh, np.int32(depth))
  rows = zip(item_bxk.tolist(), score_bxk.tolist())
  return [[(ITEM_IDS[i], s) for i, s in zip(*row) if i >= 0] for row in rows]


if __name__ == '__main__':
  for raw_id, value in recommend([sys.argv[1:]])[0]:
    print(f'{value:10.4f}  {raw_id}', *[] if _NUMBER.keys() & sys.argv else ['(popular: none known)'])
