"""A log in memory: one row an interaction, ids as numbers, in time order."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl

from lares_jax.data import formats
from lares_jax.data.faults import FAULTS
from lares_jax.data.store import id_order
from lares_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Log:
  """Interactions by user, then time; equal times by the tie-break, then file order.

  Attributes:
    rows: user and item (uint32, numbers into the ids), where known time (int64, in units of the
      log's own divided by `time_scale`), and part (uint8, 0 to 2) where the log came split.
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
  sources: Sequence[formats.Source],
  names: Mapping[str, str],
  *,
  min_rating: float | None = None,
  skip_bad_rows: bool = False,
  keep_parts: bool = True,
  done: Callable[[], object] = lambda: None,
) -> tuple[Log, Counter[str]]:
  """Reads a log from its files; `names` as for `formats.scan`, `done` is called after each file.

  Returns:
    The log, and how many rows were left out, by reason.

  Raises:
    InputError: a file cannot be read, or a row is faulty and is not to be skipped.
  """
  left_out: Counter[str] = Counter()
  kinds = {role: pl.Categorical(pl.Categories.random(role, pl.UInt32)) for role in ('user', 'item')}
  files = []
  for source in sources:
    files.append(_read_file(source, names, kinds, min_rating, skip_bad_rows, left_out))
    done()
  rows = pl.concat(files, how='diagonal')
  del files
  if rows.is_empty():
    raise InputError(f'{sources[0].path}: no interactions (left out: {dict(left_out)})')
  if 'history' in rows.columns:
    rows = unroll(rows, strict=not skip_bad_rows).with_columns(
      pl.col(role).cast(kind) for role, kind in kinds.items()
    )
  if not keep_parts:
    rows = rows.drop('part', strict=False)
  rows, time_scale = _whole_times(rows)
  user, user_ids = _numbered(rows['user'])
  item, item_ids = _numbered(rows['item'])
  rows = _in_order(rows.with_columns(user, item))
  return Log(rows, user_ids, item_ids, time_scale), left_out


def _read_file(
  source: formats.Source,
  names: Mapping[str, str],
  kinds: Mapping[str, pl.DataType],
  min_rating: float | None,
  skip_bad_rows: bool,
  left_out: Counter[str],
) -> pl.DataFrame:
  table = formats.scan(source, names)
  sound = table.filter(pl.col('fault') == 0).drop('fault')
  if 'history' not in sound.collect_schema():
    sound = sound.drop('row').with_columns(pl.col(role).cast(kinds[role]) for role in kinds)
  if min_rating is not None:
    sound = sound.filter(pl.col('rating') >= min_rating).drop('rating')
  if source.part is not None:
    sound = sound.with_columns(part=pl.lit(formats.PARTS.index(source.part), pl.UInt8))
  faulty = table.filter(pl.col('fault') > 0).group_by('fault').agg(pl.len(), pl.col('row').min())
  with formats.reading(source):
    rows, bad, total = pl.collect_all([sound, faulty, table.select(pl.len())], engine='streaming')
  messages = list(FAULTS.values())
  for fault, count, row in bad.sort('row').iter_rows():
    message = messages[fault - 1]
    if not skip_bad_rows:
      raise InputError(
        f'{source.path}: row {row}: {message}; mend it, or leave such rows out: --bad_rows=skip'
      )
    left_out[f'bad row: {message}'] += count
  if min_rating is not None:
    left_out['rating too low'] += total.item() - bad['len'].sum() - len(rows)
  return rows


def unroll(log: pl.DataFrame, strict: bool) -> pl.DataFrame:
  """Restores whole sequences from rows that each carry the `history` before their item.

  Every row is one interaction; what came before a user's first row is known from its history
  alone, counts as training and takes that row's time.

  Args:
    log: columns user, item, history, part, row, perhaps time; each part in file order.
    strict: whether each history must end with the item of the row before it.

  Returns:
    The same without history and row, with the interactions found in histories put first.

  Raises:
    InputError: a history does not end as it must: rows are missing or out of order.
  """
  keys = ['user', 'part', 'time'] if 'time' in log.columns else ['user', 'part']
  log = log.sort(keys, maintain_order=True).with_columns(pl.col('history').fill_null(''))
  follows = (pl.col('user') == pl.col('user').shift()).fill_null(False)
  earlier = pl.col('history').str.split(' ')
  astray = log.filter(follows & (earlier.list.last() != pl.col('item').shift()))
  if strict and len(astray):
    at = astray.row(0, named=True)
    raise InputError(
      f'row {at["row"]} of the {formats.PARTS[at["part"]]} part: the history of user {at["user"]!r} does '
      'not end with the item of the row before; put the missing rows back, in order'
    )
  first = log.filter(~follows & (pl.col('history') != ''))
  found = first.with_columns(item=earlier, part=pl.lit(0, pl.UInt8)).explode('item')
  return pl.concat([found, log]).drop('history', 'row')


def without_repeats(log: Log, keep: str) -> Log:
  """Keeps each user's 'first' or 'last' interaction with an item only."""
  return log.filter(~repeats(log.rows['item'].to_numpy(), log.offsets, keep))


def k_core(log: Log, k: int) -> Log:
  """Drops users and items with fewer than k interactions until none is left that has fewer."""
  while len(log.rows):
    user_N, item_N = log.rows['user'].to_numpy(), log.rows['item'].to_numpy()
    keep_N = (np.bincount(user_N) >= k)[user_N] & (np.bincount(item_N) >= k)[item_N]
    if keep_N.all():
      break
    log = log.filter(keep_N)
  return log


def without_short(log: Log, min_length: int) -> Log:
  """Drops users with fewer than `min_length` interactions."""
  user_N = log.rows['user'].to_numpy()
  return log.filter((np.bincount(user_N) >= min_length)[user_N])


def repeats(items_N: np.ndarray, offsets: np.ndarray, keep: str = 'first') -> np.ndarray:
  """Marks interactions with an item that the same user has before ('first') or after ('last')."""
  marks = [np.zeros(0, bool)]
  for user, rows in user_blocks(offsets):
    key = pl.Series(user.astype(np.uint64) << np.uint64(32) | items_N[rows].astype(np.uint64))
    once = key.is_first_distinct() if keep == 'first' else key.is_last_distinct()
    marks.append(~once.to_numpy())
  return np.concatenate(marks)


def user_blocks(offsets: np.ndarray, rows: int = 1 << 22) -> Iterator[tuple[np.ndarray, slice]]:
  """Whole users, about `rows` interactions at a time: the user of each, and their slice."""
  cuts = np.searchsorted(offsets, np.arange(0, offsets[-1], rows))
  edges = np.unique([*cuts, len(offsets) - 1])
  for first, last in itertools.pairwise(edges):
    user = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
    yield user, slice(int(offsets[first]), int(offsets[last]))


def compact(log: Log) -> Log:
  """The log without the ids that no longer occur."""
  rows, ids = log.rows, {'user': log.user_ids, 'item': log.item_ids}
  for role in ids:
    used = np.bincount(rows[role].to_numpy(), minlength=len(ids[role])) > 0
    number = (np.cumsum(used) - 1).astype(np.uint32)
    rows = rows.with_columns(pl.Series(role, number[rows[role].to_numpy()]))
    ids[role] = ids[role].filter(pl.Series(used))
  return Log(rows, ids['user'], ids['item'], log.time_scale)


def _whole_times(rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
  """Times as whole numbers: millionths of the log's unit if any time has a fraction."""
  if 'time' not in rows.columns:
    return rows, 1
  if rows['time'].null_count():
    raise InputError('some files of the log have times and some have none; leave out --time')
  if 'micros' not in rows.columns:
    return rows, 1
  micros, rows = rows['micros'].fill_null(0), rows.drop('micros')
  if not (micros > 0).any():
    return rows, 1
  if (rows['time'] > 9 * 10**12).any():
    raise InputError('times with fractions must stay below 9e12; drop the fractions')
  return rows.with_columns(pl.col('time') * 10**6 + micros), 10**6


def _numbered(raw: pl.Series) -> tuple[pl.Series, pl.Series]:
  """Numbers of a categorical column, in the order of its ids, and these ids."""
  seen = raw.unique()
  ids = seen.cast(pl.String)
  order = id_order(ids)
  code = seen.to_physical().to_numpy()[order]
  number = np.zeros(code.max() + 1, np.uint32)
  number[code] = np.arange(len(code), dtype=np.uint32)
  return pl.Series(raw.name, number[raw.to_physical().to_numpy()]), ids[order]


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
  """Sorts by user, part, time, tie-break and file order, one stable sort a key: least memory."""
  if 'tie' in rows.columns and rows['tie'].dtype == pl.String:
    number = rows['tie'].cast(pl.Float64, strict=False)
    rows = rows if number.null_count() else rows.with_columns(number)
  for key in ('tie', 'time', 'part', 'user'):
    if key in rows.columns:
      rows = rows.sort(key, maintain_order=True)
  return rows.drop('tie', strict=False)
