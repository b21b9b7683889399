"""A prepared data set on disk: every user's interactions in time order, memory-mapped.

    items.npy        int32 [N]    item of each interaction, by user, part and time
    times.npy        int64 [N]    its time, meta['time_scale'] to a unit of the log's, if it has times
    offsets.npy      int64 [U+1]  user u owns interactions offsets[u] .. offsets[u+1]
    valid_start.npy  int64 [U]    absolute index of the user's first validation interaction
    test_start.npy   int64 [U]    absolute index of the user's first test interaction
    users.arrow, items.arrow      column `id`, the raw ids; items also `train_count`
    meta.json                     where it came from, its counts, its audit, its fingerprint

User u trains on [offsets[u], valid_start[u]), is validated on [valid_start[u], test_start[u]) and
tested on [test_start[u], offsets[u+1]). Items are numbered by falling popularity in training, ties
by raw id: the order of item numbers is the popularity ranking.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from lares_jax.data.rows import ranges, units_per_tick
from lares_jax.errors import InputError

FORMAT_VERSION = 1
PARTS = ('train', 'valid', 'test')


@dataclasses.dataclass(frozen=True, eq=False)
class Store:
  """A prepared data set, opened with `Store.open`."""

  directory: str
  items_N: np.ndarray
  times_N: np.ndarray | None
  offsets: np.ndarray
  valid_start_U: np.ndarray
  test_start_U: np.ndarray
  meta: Mapping[str, Any]

  @classmethod
  def open(cls, directory: str | os.PathLike[str]) -> 'Store':
    """Maps the data set in `directory` into memory.

    Raises:
      InputError: a file is missing, not of the size that was written, or not readable.
    """
    directory = os.fspath(directory)
    meta = _read_meta(directory)
    mapped = functools.partial(np.load, mmap_mode='r')
    array = lambda name: _read(directory, f'{name}.npy', mapped)
    return cls(directory, array('items'), array('times') if 'times.npy' in meta['files'] else None,
               array('offsets'), array('valid_start'), array('test_start'), meta)

  @property
  def num_users(self) -> int:
    """U."""
    return self.meta['counts']['users']

  @property
  def num_items(self) -> int:
    """V, the items that only validation or test holds included."""
    return self.meta['counts']['items']

  @property
  def fingerprint(self) -> str:
    """Changes whenever anything that training or evaluation can see changes."""
    return self.meta['fingerprint']

  @functools.cached_property
  def user_ids(self) -> pl.Series:
    """Raw ids, [U] strings."""
    return _read(self.directory, 'users.arrow', pl.read_ipc)['id']

  @functools.cached_property
  def items(self) -> pl.DataFrame:
    """Raw `id` and `train_count` of each item, [V] rows."""
    return _read(self.directory, 'items.arrow', pl.read_ipc)

  @property
  def item_ids(self) -> pl.Series:
    """Raw ids, [V] strings."""
    return self.items['id']

  @property
  def train_count_V(self) -> np.ndarray:
    """How often each item occurs in training, int64, falling."""
    return self.items['train_count'].to_numpy()

  @functools.cached_property
  def clock(self) -> tuple[np.ndarray | None, int]:
    """Times of the interactions, or None, and how many units of them make a tick in rows."""
    return self.times_N, 1 if self.times_N is None else units_per_tick(self.times_N, self.offsets)

  def raw_histories(self, user_M: np.ndarray, end_M: np.ndarray) -> list[list[str]]:
    """What each user had before the interaction at `end`, as raw item ids, oldest first."""
    first_M = self.offsets[user_M]
    length_M = end_M - first_M
    items_N = self.items_N[ranges(length_M, first_M)]
    raw_N, end_M = self.item_ids.gather(items_N).to_list(), np.cumsum(length_M)
    return [raw_N[a:b] for a, b in zip((end_M - length_M).tolist(), end_M.tolist())]

  def targets(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The interactions of a split that can be predicted.

    Each by its user and where it stands in `items_N`, int64 [M]. The history of the target at
    absolute index n of user u is items_N[offsets[u]:n]. A target with no history at all (a new
    user's first interaction) is left out; the audit counts these.
    """
    user_M, index_M = self.interactions(split)
    has_history = index_M > self.offsets[user_M]
    return user_M[has_history], index_M[has_history]

  def interactions(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All interactions of a split, in the same terms as `targets`."""
    edges = [self.offsets[:-1], self.valid_start_U, self.test_start_U, self.offsets[1:]]
    part = PARTS.index(split)
    size_U = edges[part + 1] - edges[part]
    return np.repeat(np.arange(self.num_users), size_U), ranges(size_U, edges[part])


def write(
  directory: str | os.PathLike[str], *, items_N: np.ndarray, times_N: np.ndarray | None,
  offsets: np.ndarray, valid_start_U: np.ndarray, test_start_U: np.ndarray, user_ids: pl.Series,
  item_ids: pl.Series, meta: Mapping[str, Any],
) -> Store:
  """Writes a data set into an existing directory, renumbering its items by popularity.

  `items_N` are numbers into `item_ids`, in any numbering; `meta` is what to record besides the counts,
  the fingerprint and the sizes of the files.
  """
  training_M = ranges(valid_start_U - offsets[:-1], offsets[:-1])
  train_count_V = np.bincount(items_N[training_M], minlength=len(item_ids))
  by_id_V = id_order(item_ids)
  order_V = by_id_V[np.argsort(-train_count_V[by_id_V], kind='stable')]
  number_V = np.argsort(order_V).astype(np.int32)  # the inverse
  arrays = {'offsets': offsets, 'valid_start': valid_start_U, 'test_start': test_start_U}
  if times_N is not None:
    arrays['times'] = times_N
  arrays = {name: array.astype(np.int64, copy=False) for name, array in arrays.items()}
  arrays['items'] = number_V[items_N]
  for name, array in arrays.items():
    np.save(os.path.join(directory, f'{name}.npy'), array)
  item_ids = item_ids[order_V]
  tables = {'items': pl.DataFrame({'id': item_ids, 'train_count': train_count_V[order_V]}),
            'users': pl.DataFrame({'id': user_ids})}
  for name, table in tables.items():  # what is compressed could not be mapped
    table.write_ipc(os.path.join(directory, f'{name}.arrow'), compression='uncompressed')
  counts = {'users': len(user_ids), 'items': len(item_ids), 'interactions': len(items_N)}
  fingerprint = _fingerprint(arrays, user_ids, item_ids)
  write_meta(directory, {**meta, 'counts': counts, 'fingerprint': fingerprint})
  return Store.open(directory)


def write_meta(directory: str | os.PathLike[str], meta: Mapping[str, Any]) -> None:
  """Writes meta.json, with the size in bytes of every other file, so that `open` sees cuts."""
  names = sorted(name for name in os.listdir(directory) if name != 'meta.json')
  files = {name: os.path.getsize(os.path.join(directory, name)) for name in names}
  meta = {**meta, 'version': FORMAT_VERSION, 'files': files}
  with open(os.path.join(directory, 'meta.json'), 'w', encoding='utf-8') as file:
    json.dump(meta, file, indent=2, ensure_ascii=False)
    file.write('\n')


def is_prepared(directory: str | os.PathLike[str]) -> bool:
  """Whether `directory` holds a prepared data set, of this format version, as far as sizes tell."""
  try:
    return bool(_read_meta(os.fspath(directory)))
  except InputError:
    return False


def id_order(ids: pl.Series) -> np.ndarray:
  """The positions of `ids` in order: by value where all are integers of 64 bits, else
  by code point."""
  value = ids.cast(pl.Int64, strict=False)
  if value.null_count():
    return ids.arg_sort().to_numpy()
  table = pl.DataFrame({'value': value, 'id': ids})
  return table.select(pl.arg_sort_by('value', 'id')).to_series().to_numpy()


def _fingerprint(arrays: Mapping[str, np.ndarray], user_ids: pl.Series, item_ids: pl.Series) -> str:
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f'{name} {arrays[name].dtype.str} {arrays[name].shape}\n'.encode())
    digest.update(np.ascontiguousarray(arrays[name]).data)
  for ids in (user_ids, item_ids):
    for block in ids.to_frame().iter_slices(1 << 20):
      digest.update(json.dumps(block.to_series().to_list()).encode())
  return digest.hexdigest()


def _read(directory: str, name: str, reader: Callable[[str], Any]) -> Any:
  try:
    return reader(os.path.join(directory, name))
  except (OSError, ValueError, EOFError, pl.exceptions.PolarsError) as error:
    # No access, or too many open files: it may be whole. (Of polars an error has no number.)
    if isinstance(error, OSError) and (error.errno or isinstance(error, PermissionError)):
      said = error.strerror or str(error)
      raise InputError(f'{os.path.join(directory, name)}: {said}') from None
    raise _mend(directory, name, 'not readable') from None


def _mend(directory: str, name: str, fault: object) -> InputError:
  path = os.path.join(directory, name)
  return InputError(f'{path}: {fault}; delete {directory} and prepare the data set again '
                    '(python -m lares_jax.prepare)')


def _read_meta(directory: str) -> dict[str, Any]:
  if not os.path.isfile(os.path.join(directory, 'meta.json')):
    raise InputError(f'{directory}/meta.json: no such file, so this is no prepared data set; '
                     'prepare the data set again (python -m lares_jax.prepare)')
  try:
    with open(os.path.join(directory, 'meta.json'), encoding='utf-8') as file:
      meta = json.load(file)
    version, files, _ = meta['version'], meta['files'].items(), meta['fingerprint']
    _ = [meta['counts'][name] for name in ('users', 'items', 'interactions')]
  except (ValueError, KeyError, TypeError, AttributeError):
    raise _mend(directory, 'meta.json', 'damaged') from None
  if version != FORMAT_VERSION:
    raise _mend(directory, 'meta.json', f'format version {version}, not {FORMAT_VERSION}')
  for name, size in files:
    path = os.path.join(directory, name)
    found = os.path.getsize(path) if os.path.isfile(path) else None
    if found != size:
      fault = 'missing' if found is None else f'{found} bytes where {size} were written'
      raise _mend(directory, name, fault)
  return meta
