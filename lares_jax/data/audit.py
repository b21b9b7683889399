"""What there is to know about a prepared data set before trusting results on it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from lares_jax.data.log import repeats
from lares_jax.data.store import PARTS, Store

_BLOCK = 1 << 20  # interactions turned into text at a time


def audit(store: Store) -> dict[str, Any]:
  """Counts, shares (0 to 1) and warnings, all of what was kept, as plain JSON values."""
  users, items, interactions = store.num_users, store.num_items, len(store.items_N)
  repeat_N = repeats(store.items_N, store.offsets)
  found = {
    'users': users,
    'items': items,
    'interactions': interactions,
    'density': interactions / (users * items),
    'length': _quantiles(np.diff(store.offsets)),
    'popularity': _quantiles(np.bincount(store.items_N, minlength=items)),
    'duplicates': float(repeat_N.mean()),
    'tied_times': _tied_times(store),
    'items_not_in_training': int((store.train_count_V == 0).sum()),
    'users_not_in_training': int((store.valid_start_U == store.offsets[:-1]).sum()),
    'training_after_first_test': _leakage(store),
    'splits': {name: _split(store, name, repeat_N) for name in PARTS},
  }
  return {**found, 'warnings': _warnings(found)}


def table(found: Mapping[str, Any]) -> str:
  """The audit as a few lines for people."""
  spread = lambda name: '  '.join(f'{key} {value:.6g}' for key, value in found[name].items())
  share = lambda name: 'no times' if found[name] is None else f'{found[name]:.2%}'
  lines = [
    ('users, items, interactions', '{users:,}  {items:,}  {interactions:,}'.format(**found)),
    ('density', f'{found["density"]:.4%}'),
    ('interactions of a user', spread('length')),
    ('interactions of an item', spread('popularity')),
    ('same time as the one before', share('tied_times')),
    ('repeats of an earlier item', share('duplicates')),
    ('training after the first test', share('training_after_first_test')),
  ]
  for name, split in found['splits'].items():
    text = '{interactions:,} interactions, {targets:,} targets'.format(**split)
    if name != 'train':
      text += ', {in_history:.2%} in their history, {not_in_training:,} unseen'.format(**split)
    lines.append((name, text))
  lines += [('warning', text) for text in found['warnings']]
  return '\n'.join(f'  {name:<30} {text}' for name, text in lines)


def _quantiles(count: np.ndarray) -> dict[str, float]:
  low, median, high, most = np.quantile(count, [0, 0.5, 0.9, 1]).tolist()
  return {'min': low, 'median': median, 'mean': float(count.mean()), 'p90': high, 'max': most}


def _split(store: Store, name: str, repeat_N: np.ndarray) -> dict[str, Any]:
  user_N, index_N = store.interactions(name)
  _, index_M = store.targets(name)
  split: dict[str, Any] = {'interactions': len(index_N), 'targets': len(index_M)}
  if name != 'train':
    split |= {
      'without_history': len(index_N) - len(index_M),
      'in_history': float(repeat_N[index_M].mean()) if len(index_M) else 0.0,
      'not_in_training': int((store.train_count_V[store.items_N[index_M]] == 0).sum()),
    }
  return {**split, 'sha256': _digest(store, user_N, index_N)}


def _tied_times(store: Store) -> float | None:
  """Share of interactions with the time of the one before: only the tie-break orders them."""
  if store.times_N is None:
    return None
  tied_N = np.diff(store.times_N, prepend=-1) == 0
  tied_N[store.offsets[:-1]] = False
  return float(tied_N.mean())


def _leakage(store: Store) -> float | None:
  """Share of training interactions later than the earliest test target."""
  _, index_M = store.targets('test')
  if store.times_N is None or not len(index_M):
    return None
  training_M = store.interactions('train')[1]
  return float((store.times_N[training_M] > store.times_N[index_M].min()).mean())


def _digest(store: Store, user_N: np.ndarray, index_N: np.ndarray) -> str:
  """SHA-256 of interactions as lines `user item time` of raw ids, tabs between, in store order."""
  digest = hashlib.sha256()
  for low in range(0, len(index_N), _BLOCK):
    user, index = user_N[low : low + _BLOCK], index_N[low : low + _BLOCK]
    lines = {'user': store.user_ids[user], 'item': store.item_ids[store.items_N[index]]}
    if store.times_N is not None:
      lines['time'] = pl.Series(store.times_N[index])
    text = pl.DataFrame(lines).write_csv(include_header=False, separator='\t')
    digest.update(text.encode())
  return digest.hexdigest()


def _warnings(found: Mapping[str, Any]) -> list[str]:
  late, tied = found['training_after_first_test'] or 0, found['tied_times'] or 0
  said = []
  if late > 0:
    said.append(f'{late:.1%} of training is later than the first test target: models see ahead')
  if tied > 0.05:
    said.append(f'{tied:.1%} of interactions are ordered by the tie-break alone: equal times')
  return said + [f'no targets in {name}' for name in ('valid', 'test')
                 if not found['splits'][name]['targets']]
