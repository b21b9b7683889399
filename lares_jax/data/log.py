"""A log in memory: one row an interaction, ids as numbers, in time order."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from lares_jax.data import formats
from lares_jax.data.store import PARTS, id_order
from lares_jax.errors import InputError

_SORTED_AT_ONCE = 1 << 24  # rows
_COMPARED_AT_ONCE = 1 << 22  # rows, about


@dataclasses.dataclass(frozen=True)
class Log:
  """Interactions by user, part and time; equal times by the tie-break, then file order.

  Attributes:
    rows: user and item (uint32, numbers into the ids), where known time (int64, of which `time_scale`
      make one unit of the log's own), and part (uint8, 0 to 2) where the log came split.
    user_ids, item_ids: raw ids, in order of id; some may no longer occur in `rows`.
  """

  rows: pl.DataFrame
  user_ids: pl.Series
  item_ids: pl.Series
  time_scale: int = 1

  @property
  def offsets(self) -> np.ndarray:
    """int64 [U+1]: user u owns rows offsets[u] .. offsets[u+1]."""
    length_U = np.bincount(self.rows['user'].to_numpy(), minlength=len(self.user_ids))
    return np.concatenate([[0], np.cumsum(length_U)])

  def filter(self, keep_N: np.ndarray) -> 'Log':
    """The log with only the marked rows."""
    return dataclasses.replace(self, rows=self.rows.filter(pl.Series(keep_N)))


def read(
  sources: Sequence[formats.Source], names: Mapping[str, str], *, min_rating: float | None = None,
  skip_bad_rows: bool = False, keep_parts: bool = True, done: Callable[[], object] = lambda: None,
) -> tuple[Log, Counter[str]]:
  """Reads a log from its files: the log, and how many rows were left out, by reason.

  `names` are as for `formats.scan`. Rows rated below `min_rating` are left out. With `keep_parts` a
  log that comes split stays so. `done` is called after each file.

  Raises:
    InputError: a file cannot be read, or a row is faulty and is not to be skipped.
  """
  kinds = {role: pl.Categorical(pl.Categories.random(role, pl.UInt32)) for role in ('user', 'item')}
  number = lambda rows: rows.with_columns(pl.col(role).cast(kind) for role, kind in kinds.items())
  tables = [formats.scan(source, names) for source in sources]
  histories = any('history' in table.collect_schema() for table in tables)
  if histories and min_rating is not None:
    raise InputError(f'{sources[0].path}: its histories hold items without ratings; leave out '
                     '--min_rating')
  files, left_out = [], Counter[str]()
  for source, table in zip(sources, tables):
    table = table if histories else number(table)  # with histories, once they are unrolled
    rows, reasons = _sound_rows(source, table, min_rating, skip_bad_rows)
    files.append(rows)
    left_out += reasons
    done()
  rows = pl.concat(files, how='diagonal_relaxed')
  del files
  if rows.is_empty():
    raise InputError(f'{sources[0].path}: no interactions (left out: {left_out.total():,} rows); is it '
                     'the right file?')
  rows, time_scale = _whole_times(sources[0].path, rows)
  rows = _numeric_ties(rows)
  if histories:
    unrolled = _unroll(rows, strict=not skip_bad_rows)
    if not keep_parts and len(unrolled) > len(rows):
      raise InputError(f'{sources[0].path}: what its histories hold has no times of its own, so it '
                       'cannot be split by time; leave out --split=global_time')
    rows = number(unrolled)
  if not keep_parts or sources[0].part is None:
    rows = rows.drop('part', strict=False)
  user, user_ids = _numbered(rows['user'])
  item, item_ids = _numbered(rows['item'])
  return Log(_in_order(rows.with_columns(user, item)), user_ids, item_ids, time_scale), left_out


def _sound_rows(
  source: formats.Source, table: pl.LazyFrame, min_rating: float | None, skip_bad_rows: bool
) -> tuple[pl.DataFrame, Counter[str]]:
  """The rows of a file to keep, and how many were not kept, by reason."""
  fault = pl.col('fault')
  sound = table.filter(fault.is_null()).drop('fault')
  if 'history' not in sound.collect_schema():  # which alone need to be told by row later
    sound = sound.drop('row')
  faulty = table.filter(fault.is_not_null()).group_by('fault').agg(pl.len(), pl.col('row').min())
  if min_rating is not None:
    sound = sound.filter(pl.col('rating') >= min_rating).drop('rating')
  if source.part is not None:
    sound = sound.with_columns(part=pl.lit(PARTS.index(source.part), pl.UInt8))
  with formats.reading(source.path):
    rows, bad, total = pl.collect_all([sound, faulty, table.select(pl.len())], engine='streaming')
  left_out = Counter[str]()
  for said, count, row in bad.sort('row').iter_rows():
    if not skip_bad_rows:
      raise InputError(f'{source.path}: row {row}: {said}; mend it, or leave such rows out: '
                       '--bad_rows=skip')
    left_out[f'faulty rows ({said})'] = count
  left_out['rows rated too low'] = total.item() - int(bad['len'].sum()) - len(rows)
  return rows, left_out


def _unroll(log: pl.DataFrame, strict: bool) -> pl.DataFrame:
  """Restores whole sequences from rows that each carry the `history` before their item.

  `log` has the columns user, item, history (null in files without), row, where known part and time;
  each part in file order. Every row is one interaction. What came before a user's first row is known
  from its history alone: it counts as training, takes that row's time and comes first. The columns
  history and row are not returned.

  Raises:
    InputError: `strict`, and a history does not end with the item of the row before it: rows are
      missing or out of order.
  """
  if 'part' not in log.columns:
    log = log.with_columns(part=pl.lit(0, pl.UInt8))
  keys = [key for key in ('user', 'part', 'time', 'tie_break') if key in log.columns]
  log = log.sort(keys, maintain_order=True)
  follows = (pl.col('user') == pl.col('user').shift()).fill_null(False)
  earlier = pl.col('history').str.split(' ')
  astray = log.filter(follows & (earlier.list.last() != pl.col('item').shift()))
  if strict and len(astray):
    at = astray.row(0, named=True)
    raise InputError(
      f'row {at["row"]} of the {PARTS[at["part"]]} part: the history of user {at["user"]!r} does '
      'not end with the item of the row before; put the missing rows back, in order')
  first = log.filter(~follows & (pl.col('history') != ''))
  found = first.with_columns(item=earlier, part=pl.lit(0, pl.UInt8)).explode('item')
  return pl.concat([found, log]).drop('history', 'row')


def core(log: Log, user_least: int, item_least: int) -> Log:
  """Drops users and items with fewer interactions, until none is left that has fewer."""
  while len(log.rows):
    user_N, item_N = log.rows['user'].to_numpy(), log.rows['item'].to_numpy()
    keep_N = (np.bincount(user_N) >= user_least)[user_N] & (np.bincount(item_N) >= item_least)[item_N]
    if keep_N.all():
      break
    log = log.filter(keep_N)
  return log


def repeats(items_N: np.ndarray, offsets: np.ndarray, keep: str = 'first') -> np.ndarray:
  """Marks interactions with an item that the same user has before ('first') or after ('last')."""
  cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], _COMPARED_AT_ONCE))
  marks = []
  for first, last in itertools.pairwise(np.unique([*cuts, len(offsets) - 1])):  # whole users
    user = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1])).astype(np.uint64)
    item = items_N[offsets[first] : offsets[last]].astype(np.uint64)
    key = pl.Series(user << np.uint64(32) | item)
    once = key.is_first_distinct() if keep == 'first' else key.is_last_distinct()
    marks.append(~once.to_numpy())
  return np.concatenate(marks)


def compact(log: Log) -> Log:
  """The log without the ids that no longer occur."""
  rows, ids = log.rows, {'user': log.user_ids, 'item': log.item_ids}
  for role in ids:
    used = np.bincount(rows[role].to_numpy(), minlength=len(ids[role])) > 0
    number = (np.cumsum(used) - 1).astype(np.uint32)
    rows = rows.with_columns(pl.Series(role, number[rows[role].to_numpy()]))
    ids[role] = ids[role].filter(pl.Series(used))
  return Log(rows, ids['user'], ids['item'], log.time_scale)


def _whole_times(path: str, rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
  """Times as whole numbers: millionths of the log's unit if any time has a fraction."""
  if 'time' in rows.columns and rows['time'].null_count():
    raise InputError(f'{path}: some files of this log have a column of times and some have none; give '
                     'it to all of them, or take it out of all')
  if 'micros' not in rows.columns:
    return rows, 1
  micros, rows = rows['micros'].fill_null(0), rows.drop('micros')
  if not (micros > 0).any():
    return rows, 1
  if (rows['time'] > 9 * 10**12).any():
    raise InputError(f'{path}: times with fractions must stay below 9e12; drop the fractions')
  return rows.with_columns(pl.col('time') * 10**6 + micros), 10**6


def _numeric_ties(rows: pl.DataFrame) -> pl.DataFrame:
  """The tie-break as numbers, where all text in it is numbers; rows without one come first."""
  if 'tie_break' in rows.columns and rows['tie_break'].dtype == pl.String:
    text = rows['tie_break'].replace('', None)
    for kind in (pl.Int64, pl.Float64):  # in this order: a float tells long whole numbers not apart
      number = text.cast(kind, strict=False)
      if number.null_count() == text.null_count():
        return rows.with_columns(number)
  return rows


def _numbered(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
  """Numbers of a categorical column, in the order of its ids, and these ids."""
  seen = raw.unique(maintain_order=True)  # else it varies from run to run how the ids lie in memory
  ids = seen.cast(pl.String)
  order = id_order(ids)
  code = seen.to_physical().to_numpy()[order]
  number = np.zeros(code.max() + 1, np.uint32)
  number[code] = np.arange(len(code), dtype=np.uint32)
  return pl.Series(raw.name, number[raw.to_physical().to_numpy()]), ids[order]


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
  """Sorts by user, part, time, tie-break and file order.

  One stable sort a key, some users at a time: this needs the least memory.
  """
  keys = [key for key in ('tie_break', 'time', 'part', 'user') if key in rows.columns]
  shares = len(rows) // _SORTED_AT_ONCE + 1
  edges = np.linspace(0, 1 + int(rows['user'].to_numpy().max()), shares + 1).astype(int)
  ordered = []
  for first, last in itertools.pairwise(edges):
    share = rows.filter(pl.col('user').is_between(first, last, closed='left'))
    for key in keys:
      share = share.sort(key, maintain_order=True)
    ordered.append(share.drop('tie_break', strict=False))
  return pl.concat(ordered)
