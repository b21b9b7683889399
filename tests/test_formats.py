"""Readers: every format gives the same rows, and every fault is told by file and row."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lares_jax.data import formats, log
from lares_jax.data.log import read
from lares_jax.errors import InputError

ROWS = [('u 1', 'a', 3), ('ü😀', 'b "q"', 1), ('u 1', 'c', 2), ('u 1', 'a', 2)]
NAMES = {'user': 'who', 'item': 'what', 'time': 'when'}


def write(path, content) -> str:
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


def load(inputs, names=None, format_name='auto', **options):
  """The rows of a log as (user, item, time), in the order of the log in memory."""
  read_log, left_out = read(formats.sources(inputs, format_name), names or {}, **options)
  rows = read_log.rows
  ids = [read_log.user_ids[rows['user']].to_list(), read_log.item_ids[rows['item']].to_list()]
  times = [rows['time'].to_list()] if 'time' in rows.columns else []
  return list(zip(*ids, *times)), left_out


def in_order(rows):
  users = sorted({user for user, *_ in rows})
  return sorted(rows, key=lambda row: (users.index(row[0]), row[2]))


def delimited(separator, quote):
  lines = [separator.join(['who', 'what', 'when', 'extra'])]
  for user, item, time in ROWS:
    item = '"' + item.replace('"', '""') + '"' if quote else item
    lines.append(separator.join([user, item, str(time), 'x']))
  return '\n'.join(lines) + '\n'


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('log.csv', delimited(',', True)),
    ('log.csv', delimited(';', True)),
    ('log.tsv', delimited('\t', False)),
    ('log.csv', '\ufeff' + delimited(',', True).replace('\n', '\r\n')),
    ('log.csv', delimited(',', True).replace('\n', '\r\n', 2).rstrip('\n')),  # mixed line ends
    ('log.csv', '\n\n' + delimited(',', True).replace('\n', '\n\n')),  # blank lines
    ('log.tsv', '\r\n' + delimited('\t', False)),
    ('log.jsonl', ''.join(json.dumps(dict(zip(NAMES.values(), row))) + '\n' for row in ROWS)),
    ('log.jsonl', ''.join(
      json.dumps(dict(zip(NAMES.values(), row)), ensure_ascii=False) + '\r\n' for row in ROWS)),
  ])
def test_text_with_named_columns(tmp_path, name, text):
  rows, _ = load(write(tmp_path / name, text), NAMES)
  assert rows == in_order(ROWS)


def test_parquet_with_any_type_of_id_and_time(tmp_path):
  path = str(tmp_path / 'log.parquet')
  table = pl.DataFrame(ROWS, schema=[*NAMES.values()], orient='row')
  for when in (pl.Int32, pl.UInt64, pl.Float64):
    table.with_columns(pl.col('when').cast(when), row=0, fault=1).write_parquet(path)
    assert load(path, NAMES)[0] == in_order(ROWS), f'times of type {when}'
  table.with_columns(pl.col('who', 'what').cast(pl.Categorical)).write_parquet(path)
  assert load(path, NAMES)[0] == in_order(ROWS)
  pl.DataFrame({'who': [10, 9], 'what': [2**63 - 1, 0], 'when': [1, 1]}).write_parquet(path)
  assert load(path, NAMES)[0] == [('9', '0', 1), ('10', str(2**63 - 1), 1)]


def test_parquet_times_of_several_units(tmp_path):
  table = pl.DataFrame(ROWS, schema=[*NAMES.values()], orient='row')
  halves = [table[:2], table[2:]]
  for name, half, unit, scale in (('a', halves[0], 'ms', 10**3), ('b', halves[1], 'ns', 10**9)):
    half.with_columns((pl.col('when') * scale).cast(pl.Datetime(unit))).write_parquet(
      tmp_path / f'{name}.parquet')
  assert load(str(tmp_path / '*.parquet'), NAMES)[0] == in_order(ROWS)
  days = table.with_columns(pl.col('when').cast(pl.Int32).cast(pl.Date))
  days.write_parquet(tmp_path / 'days.parquet')
  in_seconds = [(user, item, time * 86_400) for user, item, time in in_order(ROWS)]
  assert load(str(tmp_path / 'days.parquet'), NAMES)[0] == in_seconds


def test_parquet_dates_have_the_faults_of_times(tmp_path):
  path = str(tmp_path / 'log.parquet')
  for date, said in ((None, 'row 2: no time'), ('1969-12-31', 'row 2: the time is negative')):
    table = pl.DataFrame({'who': ['u', 'u'], 'what': ['a', 'b'], 'when': ['1970-01-02', date]})
    for kind in (pl.Date, pl.Datetime('ms')):
      table.with_columns(pl.col('when').str.to_date().cast(kind)).write_parquet(path)
      with pytest.raises(InputError, match=said):
        load(path, NAMES)
      assert load(path, NAMES, skip_bad_rows=True)[0] == [('u', 'a', 86_400)]


def test_the_formats_with_names_of_their_own(tmp_path):
  rows = [('1', '10', 5), ('1', '11', 6), ('2', '10', 7)]
  recbole = 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n'
  for name, header, line in [
    ('ml.inter', recbole, '{}\t{}\t3\t{}'),
    ('ratings.dat', '', '{}::{}::3::{}'),
    ('u.data', '', '{}\t{}\t3\t{}'),
    ('ratings.csv', 'userId,movieId,rating,timestamp\n', '{},{},3.5,{}'),
    ('Video_Games.csv', 'user_id,parent_asin,rating,timestamp\n', '{},{},5.0,{}'),
  ]:
    text = header + '\n'.join(line.format(*row) for row in rows) + '\n'
    assert load(write(tmp_path / name, text))[0] == rows, name
  text = 'user_id:token\titem_id:token\n1\t10\n1\t11\n2\t10\n'
  path = write(tmp_path / 'notime.inter', text)
  assert load(path)[0] == [row[:2] for row in rows]
  with pytest.raises(InputError, match=r"no column 'when'.*--time=NAME"):
    load(path, {'time': 'when'})  # it may have none, but for who names one
  for text in ('1 10 11\r\n2 10 \n', '\ufeff1 10 11\n2 10'):
    assert load(write(tmp_path / 'beauty.txt', text))[0] == [row[:2] for row in rows]


@pytest.mark.parametrize('kind', ['gzip', 'zstd'])
def test_compressed_text(tmp_path, kind):
  path = str(tmp_path / {'gzip': 'log.csv.gz', 'zstd': 'log.csv.zst'}[kind])
  table = pl.DataFrame(ROWS * 2000, schema=[*NAMES.values()], orient='row')
  table.write_csv(path, compression=kind)
  assert load(path, NAMES)[0] == in_order(ROWS * 2000)
  whole = Path(path).read_bytes()
  write(Path(path), whole[: len(whole) // 2])
  with pytest.raises(InputError, match=r'log\.csv\.\w+: the compressed data ends early'):
    load(path, NAMES)


def test_globs_and_lists_keep_the_declared_order(tmp_path):
  for k in range(3):
    write(tmp_path / f'part{k}.csv', f'who,what,when\nu,i{k},1\n')
  rows = [('u', f'i{k}', 1) for k in range(3)]
  assert load(str(tmp_path / 'part*.csv'), NAMES)[0] == rows
  backwards = ','.join(str(tmp_path / f'part{k}.csv') for k in (2, 1, 0))
  assert load(backwards, NAMES)[0] == rows[::-1], 'ties are broken by file order as declared'


def test_a_file_is_what_its_name_says_commas_and_brackets_too(tmp_path):
  path = write(tmp_path / 'log, [1].csv', 'who,what,when\nu,a,1\n')
  assert load(path, NAMES)[0] == [('u', 'a', 1)]
  path = str(tmp_path / 'log [1].parquet')
  pl.DataFrame({'who': ['u'], 'what': ['a'], 'when': [1]}).write_parquet(path)
  assert load(path, NAMES)[0] == [('u', 'a', 1)]


def test_no_file_is_read_twice(tmp_path):
  for name, kind in (('log.csv', 'uncompressed'), ('log.csv.gz', 'gzip')):
    pl.DataFrame(ROWS, schema=[*NAMES.values()], orient='row').write_csv(
      tmp_path / name, compression=kind)
  for inputs in ('log.csv,log.csv', 'log.csv*'):
    inputs = ','.join(str(tmp_path / name) for name in inputs.split(','))
    with pytest.raises(InputError, match=r'log\.csv would be read twice'):
      load(inputs, NAMES)


def test_times_with_fractions_become_millionths(tmp_path):
  path = write(tmp_path / 'log.csv', 'who,what,when\nu,a,2.5\nu,b,1\nu,c, 1.0000016e0\n')
  read_log, _ = read(formats.sources(path), NAMES)
  assert read_log.time_scale == 10**6
  assert read_log.rows['time'].to_list() == [1_000_000, 1_000_002, 2_500_000]
  path = write(tmp_path / 'log.csv', 'who,what,when\nu,a,2.0\nu,b,9223372036854775807\n')
  read_log, _ = read(formats.sources(path), NAMES)
  assert read_log.time_scale == 1 and read_log.rows['time'].to_list() == [2, 2**63 - 1]


def test_times_that_cannot_be_set_side_by_side_are_told(tmp_path):
  path = write(tmp_path / 'log.csv', 'who,what,when\nu,a,1717113600000000.5\nu,b,3\n')
  with pytest.raises(InputError, match=r'log\.csv: times with fractions must stay below 9e12'):
    load(path, NAMES)  # their millionths would not fit, and be anything
  header = 'user_id:token\titem_id:token'
  write(tmp_path / 'a.inter', f'{header}\ttimestamp:float\nu\ta\t1\n')
  write(tmp_path / 'b.inter', f'{header}\nu\tb\n')
  with pytest.raises(InputError, match=r'a\.inter: some files .* give it to all of them'):
    load(str(tmp_path / '*.inter'))


def test_dates_are_times(tmp_path):
  dates = ('2024-05-31', '2024-05-31T00:00:01Z', '2024-05-31 02:00:02+02:00', '2024-05-31 00:00:03.25',
           '1717113604.5')  # 5 seconds, each in a way of its own
  rows = ''.join(f'u,{k},{date}\n' for k, date in enumerate(dates))
  read_log, _ = read(formats.sources(write(tmp_path / 'log.csv', HEADER + rows)), NAMES)
  second = 1_717_113_600
  assert read_log.time_scale == 10**6 and read_log.rows['time'].to_list() == [
    (second + k) * 10**6 + (0, 0, 0, 250_000, 500_000)[k] for k in range(5)]
  path = write(tmp_path / 'log.jsonl', '{"who": "u", "wäs": "a", "when": "2024-05-31T00:00:00"}\n')
  assert load(path, {**NAMES, 'item': 'wäs'})[0] == [('u', 'a', second)]


def test_ids_of_any_length_and_kind_come_back(tmp_path):
  ids = ['x' * 10240, ' lead', "o'neil", 'a,b', 'é́', '0x1F', '00', '0', 'null', 'NaN', '-']
  table = pl.DataFrame({'who': ids, 'what': ids[::-1], 'when': range(len(ids))})
  table.write_csv(tmp_path / 'log.csv')
  table.write_ndjson(tmp_path / 'log.jsonl')
  expected = sorted(zip(ids, ids[::-1], range(len(ids))))
  for name in ('log.csv', 'log.jsonl'):
    assert load(str(tmp_path / name), NAMES)[0] == expected, name


HEADER = 'who,what,when\n'
FAULTS = [
  (HEADER + 'u,a,1\nu,b,2,3\n', 'row 3: more fields'),
  (HEADER + 'u,a,1\nu,b\n', 'row 3: no time'),
  (HEADER + '\n\n,a,1\n', 'row 4: no user'),
  (HEADER + 'u,,1\n', 'row 2: no item'),
  (HEADER + 'u,"",1\n', 'row 2: no item'),
  (HEADER + 'u,a,noon\n', 'row 2: the time is neither a number nor a date'),
  (HEADER + 'u,a,NaN\n', 'row 2: the time is neither a number nor a date'),
  (HEADER + 'u,a,inf\n', 'row 2: the time is neither a number nor a date'),
  (HEADER + 'u,a,-1\n', 'row 2: the time is negative'),
  (HEADER + 'u,a,-0.5\n', 'row 2: the time is negative'),
  (HEADER + 'u,a,9223372036854775808\n', 'row 2: the time does not fit'),
  (HEADER.encode() + b'u,a,1\nu,\xff\xfe,1\n', 'row 3: not UTF-8'),
]


@pytest.mark.parametrize(('text', 'said'), FAULTS)
def test_a_faulty_row_is_told_or_skipped(tmp_path, text, said):
  good = b'u,z,7\n'
  path = write(tmp_path / 'log.csv', (text if isinstance(text, bytes) else text.encode()) + good)
  with pytest.raises(InputError, match=rf'log\.csv: {said}') as caught:
    load(path, NAMES)
  assert '\n' not in str(caught.value)
  rows, left_out = load(path, NAMES, skip_bad_rows=True)
  assert ('u', 'z', 7) in rows and sum(left_out.values()) == 1


def test_of_several_faulty_rows_the_first_is_told_and_all_are_counted(tmp_path):
  path = write(tmp_path / 'log.csv', HEADER + 'u,a,1\nu,,1\nu,b,noon\nu,,2\n')
  with pytest.raises(InputError, match=r'log\.csv: row 3: no item'):
    load(path, NAMES)
  rows, left_out = load(path, NAMES, skip_bad_rows=True)
  assert rows == [('u', 'a', 1)] and sorted(left_out.values()) == [1, 2]


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    ('log.jsonl', '{"who": 1, "what": 2, "when": 3}\n{"who": 1, "wh', 'row 2: not a line of JSON'),
    ('log.jsonl', '{"who": 1, "what": null, "when": 3}\n', 'row 1: no item'),
    ('log.jsonl', '{"who": "[a]", "what": 2, "when": 3}\n{"who": 1, "what": ["2"], "when": 3}\n',
     'row 2: a list or an object where one value is due'),
    ('log.jsonl', '{"who": "5.0", "what": 7, "when": 3.5}\n{"who": 1, "what": 5.0, "when": 3}\n',
     'row 2: a number with a fraction or of more than 64 bits as an id'),
    ('log.jsonl', '{"who": "1e3", "what": 2, "when": 3}\n{"who": 18446744073709551616, "what": 2}\n',
     'row 2: a number with a fraction or of more than 64 bits as an id'),
    ('log.csv', 'who,what,when\nu,a,1\nu,"b,2\nu,c,3\n', 'row 3: quotes that do not pair up'),
    ('log.csv', 'who,thing,when\n', "row 1: no column 'what' among 'who, thing, when'"),
    ('log.csv', '\n\nwho,thing,when\n', "row 3: no column 'what' among 'who, thing, when'"),
    ('log.csv', 'who,what,when\nu,"a"b,1\n', 'row 2: quotes that do not pair up'),
    ('log.csv', 'who,what,when\nu,a"b,1\nu,c,2\n', 'row 2: quotes that do not pair up'),
    ('log.csv', 'who,what,when\nu"a,b,"\n', r'log\.csv: quotes that do not pair up'),
    ('log.csv', 'who,what,when,what\nu,a,1,b\n', "row 1: two columns 'what'; rename one"),
    ('log.csv', 'who,what,when\ru,a,1\r', r'row 1: no header; lines must end in'),
    ('log.tsv', 'who\twhat\twhen\nu\ta\t1\n'.encode('utf-16'), 'row 1: no column'),
    ('log.tsv', 'who,what,when\nu,a,1\n', 'is its delimiter the right one'),
    ('log.csv', '', 'empty file'),
    ('log.csv', 'who,what,when\n', 'no interactions'),
    ('log.parquet', b'PAR1 and then nothing', 'log.parquet'),
    ('log.what', 'hello world\n', 'cannot tell its format; say --format='),
  ])
def test_a_faulty_file_is_told(tmp_path, name, text, said):
  with pytest.raises(InputError, match=said) as caught:
    load(write(tmp_path / name, text), NAMES)
  assert name in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    ('beauty.txt', '1 2 3\n2\n', 'row 2: a user without items'),
    ('u.txt', '196 242 3 881250949\n186 302 3 891717742\n196 377 1 878887116\n',
     'row 3: its user has a row before'),
    ('beauty.txt', '1 2 3\n2 4  5\n', 'row 2: a gap in the item list'),
    ('beauty.txt', '1 2 3\n2 4 x5\n', 'row 2: ids of this format are integers'),
    ('beauty.txt', '1 2 3\n2,4,5\n', 'row 2: ids of this format are integers'),
    ('ratings.dat', '1::2::3::4\n1::2::3::4::5\n', 'row 2: more fields'),
    ('ratings.dat', '1::2::3::4\n1,2,3,4\n', 'row 2: no item'),
    ('ratings.csv', 'userId,movieId,rating\n1,2,3\n', "row 1: no column 'timestamp'"),
    ('x.inter', 'user_id:token,item_id:token\n', 'delimiter'),
    ('x.csv', 'user_id,parent_asin,rating\nu,a,1\n', "no column 'timestamp'"),
  ])
def test_faults_of_the_formats_with_names_of_their_own(tmp_path, name, text, said):
  with pytest.raises(InputError, match=said):
    load(write(tmp_path / name, text))


def test_what_can_be_wrong_with_the_request(tmp_path):
  csv = write(tmp_path / 'log.csv', HEADER + 'u,a,1\n')
  txt = write(tmp_path / 'log.txt', '1 2 3\n')
  for inputs, names, said in [
    (str(tmp_path / 'no*.csv'), NAMES, 'no such file'),
    (str(tmp_path), NAMES, 'a directory; name its files'),
    (f'{csv},{txt}', NAMES, 'several formats'),
    (csv, {}, r'say --user=NAME, one of its columns: .who,what,when.'),
    (csv, {'user': 'who'}, 'say --item=NAME'),
    (csv, {**NAMES, 'tie_break': 'rank'}, "no column 'rank'.*--tie_break=NAME"),
    (txt, NAMES, 'leave out the options that ask for more .user, item, time'),
  ]:
    with pytest.raises(InputError, match=said):
      load(inputs, names)
  pl.DataFrame({'who': [1.5], 'what': [2], 'when': [3]}).write_parquet(tmp_path / 'f.parquet')
  with pytest.raises(InputError, match='user column is Float64; ids are text or integers'):
    load(str(tmp_path / 'f.parquet'), NAMES)


def test_large_logs_are_worked_on_in_shares(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  rows = [(f'u{u}', f'i{i}', t) for u, i, t in rng.integers(0, 9, (200, 3)).tolist()]
  table = pl.DataFrame(rows, schema=[*NAMES.values()], orient='row')
  table.write_csv(tmp_path / 'log.csv')
  monkeypatch.setattr(log, '_SORTED_AT_ONCE', 30)
  assert load(str(tmp_path / 'log.csv'), NAMES)[0] == in_order(rows)


@pytest.mark.parametrize('rows', [1, 3, 5, 100])
def test_repeats_are_found_some_users_at_a_time(rows, monkeypatch):
  monkeypatch.setattr(log, '_COMPARED_AT_ONCE', rows)
  offsets = np.array([0, 4, 5, 6, 6, 12])
  items_N = np.array([7, 8, 7, 7, 7, 7, 8, 1, 8, 2, 1, 8])
  before, after = (np.flatnonzero(log.repeats(items_N, offsets, keep)) for keep in ('first', 'last'))
  assert before.tolist() == [2, 3, 8, 10, 11] and after.tolist() == [0, 2, 6, 7, 8]


def test_minimum_rating_and_tie_break(tmp_path):
  header = 'who,what,when,stars,rank\n'
  path = write(tmp_path / 'log.csv', header + 'u,z,7,5,1\nu,a,1,5,10\nu,b,1,2,1\nu,c,1,4,9\n')
  names = {**NAMES, 'rating': 'stars', 'tie_break': 'rank'}
  rows, left_out = load(path, names, min_rating=3)
  assert [row[1] for row in rows] == ['c', 'a', 'z'], 'by time, then by rank as a number'
  assert left_out == {'rows rated too low': 1}
  path = write(tmp_path / 'log.csv', header + 'u,a,1,good,1\n')
  with pytest.raises(InputError, match='row 2: the rating is not a number'):
    load(path, names, min_rating=3)
  for name, kind in (('a', pl.Int32), ('b', pl.String)):  # one file's ties are of another type
    pl.DataFrame([('u', name, 1, 5, '2'), ('u', f'{name}2', 1, 5, '10')], orient='row',
                 schema=header.strip().split(',')).cast({'rank': kind}).write_parquet(
                   tmp_path / f'{name}.parquet')
  rows, _ = load(str(tmp_path / '*.parquet'), names)
  assert [row[1] for row in rows] == ['a', 'b', 'a2', 'b2'], 'by rank as a number'
  path = write(tmp_path / 'log.csv', header + ''.join(
    f'u,{item},1,5,{2**62 + rank}\n' for item, rank in (('c', 2), ('b', 1), ('a', 0))))
  assert [row[1] for row in load(path, names)[0]] == ['a', 'b', 'c'], 'a float tells them not apart'
  path = write(tmp_path / 'log.csv', header + 'u,a,1,5,10\nu,b,1,5,9\nu,c,1,5,\n')
  assert [row[1] for row in load(path, names)[0]] == ['c', 'b', 'a'], 'one has no rank'


def test_formats_know_their_ratings_and_what_is_no_rating_is_told(tmp_path):
  for name, header, line in [
    ('ml.inter', 'user_id:token\titem_id:token\trating:float\ttimestamp:float\n', '1\t{}\t{}\t5\n'),
    ('ratings.dat', '', '1::{}::{}::5\n'),
    ('ratings.csv', 'userId,movieId,rating,timestamp\n', '1,{},{},5\n'),
    ('Video_Games.csv', 'user_id,parent_asin,rating,timestamp\n', '1,{},{},5\n'),
  ]:
    text = header + line.format(10, 2.5) + line.format(11, 3)
    rows, left_out = load(write(tmp_path / name, text), {'rating': ''}, min_rating=3)
    assert rows == [('1', '11', 5)] and left_out == {'rows rated too low': 1}, name
  path = write(tmp_path / 'log.csv', 'who,what,when,stars\nu,a,1,4\nu,b,1,nan\n')
  with pytest.raises(InputError, match='row 3: the rating is not a number'):
    load(path, {**NAMES, 'rating': 'stars'}, min_rating=3)


# A log that comes split, three ways: plain rows, rows with histories, RecBole's lists.
SPLIT = {
  'train': [('u', 'a', 1), ('u', 'b', 2), ('v', 'b', 1)],
  'valid': [('u', 'c', 3), ('v', 'c', 2)],
  'test': [('u', 'a', 4), ('v', 'd', 3)],
}


def write_split(directory, style) -> str:
  history = {}
  for part, rows in SPLIT.items():
    lines = []
    for user, item, time in rows:
      earlier = ' '.join(history.get(user, []))
      if style == 'recbole' and earlier:
        lines.append(f'{user}\t{earlier}\t{item}')
      elif style != 'recbole':
        lines.append(f'{user},{item},5.0,{time}' + (f',{earlier}' if style == 'history' else ''))
      history.setdefault(user, []).append(item)
    header = {
      'plain': 'user_id,parent_asin,rating,timestamp',
      'history': 'user_id,parent_asin,rating,timestamp,history',
      'recbole': 'user_id:token\titem_id_list:token_seq\titem_id:token',
    }[style]
    suffix = 'inter' if style == 'recbole' else 'csv'
    write(directory / f'{style}.{part}.{suffix}', '\n'.join([header, *lines]) + '\n')
  return str(directory / f'{style}.*.{suffix}')


@pytest.mark.parametrize('style', ['plain', 'history', 'recbole'])
def test_a_log_that_comes_split(tmp_path, style):
  split, _ = read(formats.sources(write_split(tmp_path, style)), {})
  found = list(zip(split.user_ids[split.rows['user']], split.item_ids[split.rows['item']],
                   split.rows['part']))
  expected = [(user, item, part) for part, rows in enumerate(SPLIT.values())
              for user, item, _ in rows]
  assert found == sorted(expected, key=lambda row: (row[0], row[2]))


def test_a_split_log_lacks_nothing(tmp_path):
  pattern = write_split(tmp_path, 'plain')
  (tmp_path / 'plain.valid.csv').unlink()
  with pytest.raises(InputError, match='needs train, valid and test; got test, train'):
    load(pattern)
  pattern = write_split(tmp_path, 'history')
  path = tmp_path / 'history.valid.csv'
  write(path, path.read_text().replace('a b', 'a x'))
  with pytest.raises(InputError, match="row 2 of the valid part: the history of user 'u'"):
    load(pattern)
  write(path, path.read_text().replace('a x', 'a  b'))
  with pytest.raises(InputError, match='row 2: a gap in the item list'):
    load(pattern)


def test_histories_in_some_files_only(tmp_path):
  header = 'user_id:token\titem_id:token'
  write(tmp_path / 'x.train.inter', header + '\nu\ta\nu\tb\nv\tb\n')
  for part, lines in (('valid', 'u\tc\ta b\nv\tc\tb\n'), ('test', 'u\td\ta b c\nv\ta\tb c\n')):
    write(tmp_path / f'x.{part}.inter', f'{header}\titem_id_list:token_seq\n{lines}')
  expected = [('u', item) for item in 'abcd'] + [('v', item) for item in 'bca']
  assert load(str(tmp_path / 'x.*.inter'))[0] == expected


def test_fractions_of_a_second_order_rows_with_histories(tmp_path):
  path = write(tmp_path / 'x.inter',
               'user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\n'
               'u\ta b\tc\t1.80\nu\ta\tb\t1.75\n')
  assert [row[:2] for row in load(path)[0]] == [('u', item) for item in 'abc']


def test_a_tie_break_orders_rows_with_histories(tmp_path):
  path = write(tmp_path / 'x.inter',
               'user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\trank:float\n'
               'u\ta b\tc\t1\t10\nu\ta\tb\t1\t9\n')
  assert [row[1] for row in load(path, {'tie_break': 'rank'})[0]] == ['a', 'b', 'c']


def test_histories_cannot_be_split_by_time(tmp_path):
  path = write(tmp_path / 'x.inter',
               'user_id:token\titem_id_list:token_seq\titem_id:token\ttimestamp:float\nu\ta b\tc\t5\n')
  with pytest.raises(InputError, match=r'x\.inter: .* no times of its own.* --split=global_time'):
    load(path, keep_parts=False)


def test_histories_cannot_be_rated(tmp_path):
  header = 'user_id:token\titem_id_list:token_seq\titem_id:token\trating:float\n'
  path = write(tmp_path / 'x.inter', header + 'u\ta b\tc\t5\n')
  with pytest.raises(InputError, match='histories hold items without ratings; leave out --min_rating'):
    load(path, {'rating': ''}, min_rating=3)


def test_histories_of_a_log_that_does_not_come_split(tmp_path):
  path = write(tmp_path / 'x.inter', 'user_id:token\titem_id_list:token_seq\titem_id:token\n'
               'u\ta b\tc\nu\ta b c\td\nv\tb\tc\n')
  assert load(path)[0] == [('u', item) for item in 'abcd'] + [('v', 'b'), ('v', 'c')]
  assert 'part' not in read(formats.sources(path), {})[0].rows.columns
