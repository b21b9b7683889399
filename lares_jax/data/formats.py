"""Readers: interaction logs as people have them, each file into one lazy table.

Text is read as text and every row keeps its number, so that a fault can be told by file and row.
Rows are counted as an editor counts lines, but that a line end within quotes does not count; a header
is the first that is not blank.
"""

import contextlib
import csv
import dataclasses
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping

import polars as pl

from lares_jax.data.faults import first_fault, typed
from lares_jax.data.store import PARTS
from lares_jax.errors import InputError

# What each format calls its columns; the user names those that it leaves open.
FORMATS: Mapping[str, Mapping[str, str]] = {
  's3rec': {},
  'recbole': dict(
    user='user_id', item='item_id', time='timestamp', rating='rating', history='item_id_list'),
  'amazon2023': dict(
    user='user_id', item='parent_asin', time='timestamp', rating='rating', history='history'),
  'movielens': dict(user='userId', item='movieId', time='timestamp', rating='rating'),
  'csv': {}, 'tsv': {}, 'jsonl': {}, 'parquet': {},
}

# Of a format's own columns, those that a log may lack.
_OPTIONAL = {'recbole': {'time', 'history'}, 'amazon2023': {'history'}}


@dataclasses.dataclass(frozen=True)
class Source:
  """One file of a log."""

  path: str
  format: str
  first_line: str  # that is not blank
  first_row: int  # its number
  part: str | None  # where the log comes split


def sources(inputs: str, format_name: str = 'auto') -> list[Source]:
  """The files that a comma-separated list of paths and globs stands for, in reading order.

  Raises:
    InputError: a file is missing or empty, the format cannot be told, or a log that comes split
      lacks one of its three parts.
  """
  found = []
  for pattern in [inputs] if os.path.isfile(inputs) else map(str.strip, inputs.split(',')):
    paths = [pattern] if os.path.isfile(pattern) else sorted(filter(os.path.isfile, glob.glob(pattern)))
    if not paths:
      what = 'a directory; name its files' if os.path.isdir(pattern) else 'no such file; check --input'
      raise InputError(f'{pattern!r}: {what}')
    for path in paths:
      first_row, first_line = _first_line(path)
      chosen = _guess(path, first_line) if format_name == 'auto' else format_name
      name = os.path.basename(path) if chosen in ('recbole', 'amazon2023') else ''
      part = re.search(rf'(?:^|[._-])({"|".join(PARTS)})[._-]', name)
      found.append(Source(path, chosen, first_line, first_row, part and part[1]))
  names = [_unpacked(os.path.realpath(source.path)) for source in found]
  for name in (name for n, name in enumerate(names) if name in names[:n]):
    raise InputError(f'{inputs}: {name} would be read twice, compressed or not; name it once')
  formats = {source.format for source in found}
  if len(formats) > 1:
    raise InputError(f'{inputs}: files of several formats ({", ".join(sorted(formats))})')
  parts = {source.part or 'a file of no part' for source in found}
  if parts & {*PARTS} and parts != {*PARTS}:
    raise InputError(f'{inputs}: a log that comes split needs train, valid and test; '
                     f'got {", ".join(sorted(parts))}; a file that is no part needs another name')
  return found


def _unpacked(path: str) -> str:
  return re.sub(r'\.(gz|zst)$', '', path)


def _guess(path: str, first_line: str) -> str:
  """The format that a file's name and first line speak for."""
  stem = _unpacked(path.lower())
  marks = {
    'parquet': stem.endswith(('.parquet', '.pq')),
    'jsonl': stem.endswith(('.jsonl', '.ndjson')) or first_line.startswith('{'),
    'recbole': stem.endswith('.inter') or ':token' in first_line,
    'amazon2023': first_line.startswith('user_id,parent_asin,'),
    'movielens': '::' in first_line or first_line.startswith('userId,movieId,')
                 or re.fullmatch(r'\d+\t\d+\t[1-5]\t\d+\r?', first_line),  # u.data
    'csv': stem.endswith('.csv'),
    'tsv': stem.endswith('.tsv'),
    's3rec': re.fullmatch(r'\d+( +\d+)*\s*', first_line),
  }
  for name, speaks in marks.items():
    if speaks:
      return name
  raise InputError(f'{path}: cannot tell its format; say --format={"|".join(FORMATS)}')


def scan(source: Source, names: Mapping[str, str]) -> pl.LazyFrame:
  """One file as a lazy table, in file order.

  Args:
    names: a role's column in the log, where it is not the format's own: user, item, time, rating
      (read only if it is here; '' for the format's own), tie_break (a column that orders equal times).

  Returns:
    user and item, strings; row, counted from 1; fault, what is wrong with it or null; and where the
    log has them: time (int64) with micros (int32, millionths of a fractional time; absent where
    times are integers by type), rating (float64), tie_break, history (text: the earlier items).

  Raises:
    InputError: the file cannot be opened, or lacks a column.
  """
  if source.format == 's3rec':
    if names:
      raise InputError(f'{source.path}: only users and items, without columns; leave out the '
                       f'options that ask for more ({", ".join(names)})')
    return _scan_s3rec(source.path)
  wanted = _roles(source, names)
  table, column, faults = _columns(source, list(wanted.values()))
  found = {role: column[name] for role, name in wanted.items() if name in column}
  optional = _OPTIONAL.get(source.format, set()) - names.keys()
  for role in sorted(wanted.keys() - found.keys() - optional):
    raise InputError(f'{source.path}: row {source.first_row}: no column {wanted[role]!r} among '
                     f'{", ".join([*column][:12])[:200]!r}; say --{role}=NAME'
                     + ('; is its delimiter the right one?' if len(column) == 1 else ''))
  if source.format != 'parquet':
    ids = pl.concat_str(found['user'], found['item'], ignore_nulls=True)
    faults = {**faults, 'encoding': ids.str.contains('\ufffd', literal=True)}
  with reading(source.path):
    return typed(source.path, table.select('row', fault=first_fault(faults), **found))


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """Turns what polars says about a file that it cannot read into one `InputError`."""
  try:
    yield
  except (OSError, pl.exceptions.PolarsError) as error:
    said = str(error).split('\n')[0]
    if said in ('unexpected end of file', 'incomplete frame'):
      said = 'the compressed data ends early; fetch the file again'
    elif said.startswith(('could not parse `"', 'CSV malformed')):
      line = pl.col('line')
      odd = line.str.count_matches('"', literal=True) % 2 == 1
      inside = line.str.contains(r'(^|[,;|\t])"[^"]*"[^",;|\t]')
      row = _lines(path).filter(odd | inside).select(pl.col('row').min()).collect().item()
      where = f'row {row}: ' if row else ''  # an even number of them may be wrong, too
      said = f'{where}quotes that do not pair up; write one in a text as "", within quotes'
    raise InputError(f'{path}: {said}') from None


def _first_line(path: str) -> tuple[int, str]:
  """The first row that is not blank, and what it says."""
  if path.lower().endswith(('.parquet', '.pq')):
    return 1, ''
  with reading(path):
    lines = _lines(path).head(1).collect(engine='streaming')
  if lines.is_empty():
    raise InputError(f'{path}: empty file')
  return lines.row(0)


def _fields(path: str, count: int, separator: str, quote: str | None, skip: int) -> pl.LazyFrame:
  """`row` and text columns '0' .. str(count), one more than there should be; no blank rows."""
  columns = [str(k) for k in range(count + 1)]
  table = pl.scan_csv(
    path, has_header=False, skip_lines=skip, schema=dict.fromkeys(columns, pl.String), glob=False,
    separator=separator, quote_char=quote, encoding='utf8-lossy', empty_string_is_null=False,
    missing_columns='insert', extra_columns='ignore', row_index_name='row', row_index_offset=skip + 1)
  return table.filter(pl.any_horizontal(pl.col(columns) != ''))


def _lines(path: str) -> pl.LazyFrame:
  """`row` and the whole `line` as text."""
  return _fields(path, 1, '\x00', None, 0).select('row', line=pl.col('0').str.strip_chars_end('\r'))


def _roles(source: Source, names: Mapping[str, str]) -> dict[str, str]:
  """The column of each role."""
  own = FORMATS[source.format]
  wanted = {'user': '', 'item': '', **{role: own[role] for role in own if role != 'rating'}}
  wanted |= {role: name or own.get(role, '') for role, name in names.items()}
  for role, name in wanted.items():
    if not name:
      line = f': {source.first_line[:200]!r}' if source.first_line else ''
      raise InputError(f'{source.path}: say --{role}=NAME, one of its columns{line}')
  return wanted


_Columns = tuple[pl.LazyFrame, Mapping[str, pl.Expr], Mapping[str, pl.Expr]]


def _columns(source: Source, wanted: list[str]) -> _Columns:
  """The table, an expression for each of its columns, and the faults of a row as a whole."""
  if source.format == 'parquet':
    with reading(source.path):
      table = pl.scan_parquet(source.path, glob=False)
      position = {name: str(k) for k, name in enumerate(table.collect_schema())}
    column = {name: pl.col(k) for name, k in position.items()}
    return table.rename(position).with_row_index('row', offset=1), column, {}
  if source.format == 'jsonl':
    match = pl.col('line').str.json_path_match
    column = {name: match(f'$[{json.dumps(name, ensure_ascii=False)}]') for name in wanted}
    # What is read as text may have been text: the line tells.
    bare = lambda name, value, first: column[name].str.contains(value) & pl.col('line').str.contains(
      rf'"{re.escape(name)}"\s*:\s*{first}')
    ids = wanted[:2]  # user and item; times and ratings may have fractions
    return _lines(source.path), column, {
      'json': match('$').is_null(),
      'nested': pl.any_horizontal(bare(name, r'^[\[{]', r'[\[{]') for name in wanted),
      'fraction': pl.any_horizontal(bare(name, r'^-?\d+[.e]', r'-?\d') for name in ids)}
  if source.format == 'movielens' and not source.first_line.startswith('userId'):
    cells = pl.col('line').str.split('::' if '::' in source.first_line else '\t')
    names = ('userId', 'movieId', 'rating', 'timestamp')
    column = {name: cells.list.get(k, null_on_oob=True) for k, name in enumerate(names)}
    return _lines(source.path), column, {'extra': cells.list.len() > len(names)}
  return _delimited(source, wanted)


def _delimited(source: Source, wanted: list[str]) -> _Columns:
  tabbed = source.format in ('recbole', 'tsv')
  separator = '\t' if tabbed else max(',;|\t', key=source.first_line.count)
  header = source.first_line.split(separator)
  if not tabbed:
    try:
      header = next(csv.reader([source.first_line], delimiter=separator))
    except csv.Error:
      raise InputError(
        f'{source.path}: row {source.first_row}: no header; lines must end in \\n or \\r\\n') from None
  if source.format == 'recbole':  # name:type
    header = [name.split(':')[0] for name in header]
  for name in wanted:
    if header.count(name) > 1:
      raise InputError(f'{source.path}: row {source.first_row}: two columns {name!r}; rename one')
  table = _fields(source.path, len(header), separator, None if tabbed else '"', source.first_row)
  column = {name: pl.col(str(k)) for k, name in enumerate(header)}
  return table, column, {'extra': pl.col(str(len(header))) != ''}


def _scan_s3rec(path: str) -> pl.LazyFrame:
  line = pl.col('line').str.strip_chars()
  ids = line.str.split(' ')
  fault = first_fault({
    'gap': line.str.contains('  ', literal=True),
    'integer': ~line.str.contains(r'^[0-9 ]+$'),
    'alone': ids.list.len() < 2,
    'again': ~ids.list.first().is_first_distinct(),
  })
  items = pl.when(fault.is_null()).then(ids.list.slice(1)).otherwise(pl.lit(['']))
  return _lines(path).select('row', fault=fault, user=ids.list.first(), item=items).explode('item')
