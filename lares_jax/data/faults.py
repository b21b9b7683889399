"""What can be wrong with a row of a log, and how a row is read so that it shows."""

from collections.abc import Mapping

import polars as pl

from lares_jax.errors import InputError

_FAULTS = {  # of several, the first is told
  'extra': 'more fields than columns',
  'json': 'not a line of JSON',
  'nested': 'a list or an object where one value is due',
  'fraction': 'a number with a fraction or of more than 64 bits as an id; ids are text or integers',
  'encoding': 'not UTF-8 text',
  'user': 'no user',
  'item': 'no item',
  'gap': 'a gap in the item list (a space too many)',
  'integer': 'ids of this format are integers, one space between them; here is something else',
  'alone': 'a user without items',
  'again': 'its user has a row before; this format has one a user (is it a table without a header?)',
  'time': 'no time',
  'number': 'the time is neither a number nor a date such as 2024-05-31 12:00:00',
  'negative': 'the time is negative',
  'overflow': 'the time does not fit into 64 bits',
  'rating': 'the rating is not a number',
}


def first_fault(faults: Mapping[str, pl.Expr]) -> pl.Expr:
  """The first fault of a row, in words; null where it has none. `faults` flags some of those above."""
  said = [pl.when(faults[name]).then(pl.lit(_FAULTS[name])) for name in _FAULTS if name in faults]
  return pl.coalesce(*said, pl.lit(None, pl.String))


def typed(path: str, raw: pl.LazyFrame) -> pl.LazyFrame:
  """Ids to text, times and ratings to numbers; what cannot be is marked as the row's fault."""
  schema = raw.collect_schema()
  columns: dict[str, pl.Expr] = {}
  faults: dict[str, pl.Expr] = {}
  for role in ('user', 'item'):
    if not (schema[role].is_integer() or schema[role] in (pl.String, pl.Categorical, pl.Enum)):
      raise InputError(f'{path}: the {role} column is {schema[role]}; ids are text or integers')
    columns[role] = pl.col(role).cast(pl.String)
    faults[role] = columns[role].fill_null('') == ''
  if 'time' in schema:
    _type_time(schema['time'], columns, faults)
  if 'rating' in schema:
    columns['rating'] = pl.col('rating').cast(pl.Float64, strict=False)
    faults['rating'] = columns['rating'].fill_null(float('nan')).is_nan()
  if 'history' in schema:
    columns['history'] = pl.col('history').fill_null('')  # null says: a file without histories
    faults['gap'] = columns['history'].str.contains('^ |  | $')
  return raw.with_columns(fault=pl.coalesce('fault', first_fault(faults)), **columns)


def _type_time(kind: pl.DataType, columns: dict[str, pl.Expr], faults: dict[str, pl.Expr]) -> None:
  if kind in (pl.Date, pl.Datetime):  # of whatever unit: seconds, as dates in text
    moment = pl.col('time').dt.epoch('us')
    columns |= {'time': moment // 10**6, 'micros': (moment % 10**6).cast(pl.Int32)}
    faults |= {'time': moment.is_null(), 'negative': moment < 0}
    return
  time = pl.col('time').str.strip_chars().replace('', None) if kind == pl.String else pl.col('time')
  faults['time'] = time.is_null()
  columns['time'] = time.cast(pl.Int64, strict=False)
  second = columns['time']
  if not kind.is_integer():
    number = time.cast(pl.Float64, strict=False)
    second, micros = number.floor(), ((number - number.floor()) * 1e6).round()
    faults['number'] = number.is_null() | ~number.is_finite()
    if kind == pl.String:
      date = _date(time)
      faults['number'] &= date.is_null()
      second, micros = pl.coalesce(second, date // 10**6), pl.coalesce(micros, date % 10**6)
    columns['time'] = pl.coalesce(columns['time'], second.cast(pl.Int64, strict=False))
    columns['micros'] = micros.cast(pl.Int32, strict=False)
  faults['negative'] = second < 0
  faults['overflow'] = columns['time'].is_null()


def _date(text: pl.Expr) -> pl.Expr:
  """Microseconds since 1970 of ISO 8601 text, of UTC where no offset stands; null if it is none."""
  text = text.str.replace('T', ' ', literal=True).str.replace('Z$', '+00:00')
  text = pl.when(text.str.len_chars() == 10).then(text + ' 00:00:00').otherwise(text)
  text = pl.when(text.str.contains(r':.*[+-]\d\d:?\d\d$')).then(text).otherwise(text + '+00:00')
  kind = pl.Datetime('us', 'UTC')
  return text.str.strptime(kind, '%Y-%m-%d %H:%M:%S%.f%z', strict=False).dt.epoch('us')
