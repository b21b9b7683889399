"""Preparation from end to end: an independent reading in plain Python says what must come out."""

import collections
import dataclasses
import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import amazon
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lares_jax.data.store import PARTS, Store, write_meta
from lares_jax.errors import InputError
from lares_jax.prepare import PrepareOptions, prepare, prepared

NAMED = dict(user='user', item='item', time='time')
EXAMPLES = settings(
  max_examples=10_000 if os.environ.get('LARES_SLOW') == '1' else 300,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def write_csv(path, rows) -> str:
  table = pl.DataFrame(rows, schema={'user': pl.String, 'item': pl.String, 'time': pl.Int64},
                       orient='row')
  table.write_csv(path, quote_style='always')
  return str(path)


def contents(store: Store) -> dict[str, tuple[list, list, list]]:
  """What a data set says of every user, in raw ids: train, valid and test, as (item, time)."""
  item = store.item_ids[store.items_N].to_list()
  time = [None] * len(item) if store.times_N is None else store.times_N.tolist()
  rows = list(zip(item, time))
  edges = [store.offsets[:-1], store.valid_start_U, store.test_start_U, store.offsets[1:]]
  spans = zip(store.user_ids.to_list(), *(edge.tolist() for edge in edges))
  return {user: (rows[a:b], rows[b:c], rows[c:d]) for user, a, b, c, d in spans}


def expected(rows, min_length=3) -> dict[str, tuple[list, list, list]]:
  """Leave-one-out by the book: group, sort (stable), cut."""
  histories = collections.defaultdict(list)
  for user, item, time in sorted(rows, key=lambda row: row[2]):
    histories[user].append((item, time))
  return {user: (history[:-2], history[-2:-1], history[-1:])
          for user, history in histories.items() if len(history) >= min_length}


IDS = st.one_of(
  st.integers(0, 12).map(str),
  st.text(st.characters(codec='utf-8', exclude_characters='\r\n\ufffd\ufeff\0'),
          min_size=1, max_size=6),
  st.sampled_from(['7', '07', ' 7', 'a b', '"', "'", '😀', 'null', 'x' * 10240]),
)
LOGS = st.integers(1, 6).flatmap(lambda users: st.lists(
  st.tuples(st.sampled_from([f'u{k}' for k in range(users)]) | IDS, IDS,
            st.integers(0, 5) | st.integers(0, 2**63 - 1)),
  min_size=1, max_size=30))


def write_as(kind: str, directory: Path, rows) -> str:
  """The log in one of the formats that can carry any id."""
  path = directory / f'log.{kind}'
  table = pl.DataFrame(rows, schema=['user', 'item', 'time'], orient='row')
  if kind == 'jsonl':
    table.write_ndjson(path)
  elif kind == 'parquet':
    table.write_parquet(path)
  else:
    compression = {'csv': 'uncompressed', 'csv.gz': 'gzip', 'csv.zst': 'zstd'}[kind]
    table.write_csv(path, quote_style='non_numeric', compression=compression)
  return str(path)


@EXAMPLES
@given(rows=LOGS, kind=st.sampled_from(['csv', 'csv.gz', 'csv.zst', 'jsonl', 'parquet']))
def test_what_is_written_reads_back_equal(tmp_path, rows, kind):
  wanted = expected(rows)
  shutil.rmtree(tmp_path / 'set', ignore_errors=True)
  path = write_as(kind, tmp_path, rows)
  if not wanted:
    with pytest.raises(InputError, match='0 users left'):
      prepare(path, tmp_path / 'set', PrepareOptions(**NAMED))
    return
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED))
  assert contents(store) == wanted
  count = collections.Counter(item for train, *_ in wanted.values() for item, _ in train)
  assert store.train_count_V.tolist() == [count[item] for item in store.item_ids]
  assert sorted(count.values(), reverse=True) == [n for n in store.train_count_V if n]
  found = store.meta['audit']
  assert found['interactions'] == sum(map(len, sum(wanted.values(), ())))
  assert found['splits']['train']['targets'] == sum(len(train) - 1 for train, *_ in wanted.values())


HEADS = st.sampled_from([
  'user,item,time\n', 'user_id:token\titem_id:token\ttimestamp:float\n', '1 2 3 4\n',
  '1::2::3::4\n', '{"user": 1, "item": 2, "time": 3}\n',
  'user_id,parent_asin,rating,timestamp\n'])
LINES = st.one_of(
  st.sampled_from([
    'u,a,1', 'u,b,2', 'u,c,3', '1 2 3 4', '2 3 5', 'u\ta\t1', 'u\tb\t2', 'u\tc\t2.5', '1::2::3::4',
    '1::3::3::5', '{"user": "u", "item": [1], "time": 1e3}', 'u,a,5,1']),
  st.text('u1,:\t "{}-.\r\ufeff\0é', max_size=8))
KINDS = st.sampled_from(
  ['auto', 's3rec', 'recbole', 'amazon2023', 'movielens', 'csv', 'jsonl', 'parquet'])


@EXAMPLES
@given(
  head=HEADS.map(str.encode) | st.binary(max_size=8),
  lines=st.lists(LINES.map(str.encode) | st.binary(max_size=6), max_size=10),
  kind=KINDS,
  bad_rows=st.sampled_from(['stop', 'skip']),
  named=st.booleans(),
)
def test_any_bytes_end_well(tmp_path, head, lines, kind, bad_rows, named):
  """In a valid data set, or in one clear line and nothing written."""
  path = tmp_path / 'log.txt'
  path.write_bytes(head + b'\n'.join(lines))
  options = PrepareOptions(format=kind, bad_rows=bad_rows, **(NAMED if named else {}))
  output = tmp_path / 'out' / 'set'
  try:
    shutil.rmtree(output, ignore_errors=True)
    store = prepare(str(path), output, options)
  except InputError as error:
    assert str(error).strip() and '\n' not in str(error), f'not one line: {error!r}'
    assert not output.parent.exists() or not os.listdir(output.parent)
  else:
    assert all(len(valid) == len(test) == 1 and train for train, valid, test
               in contents(store).values())


def core_by_hand(rows, k):
  while True:
    users, items = (collections.Counter(row[at] for row in rows) for at in (0, 1))
    kept = [row for row in rows if users[row[0]] >= k and items[row[1]] >= k]
    if len(kept) == len(rows):
      return kept
    rows = kept


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  user, item, time = rng.zipf(1.3, 600) % 40, rng.zipf(1.2, 600) % 50, rng.integers(0, 99, 600)
  return [(f'u{u}', f'i{i}', int(t)) for u, i, t in zip(user, item, time)]


def test_k_core_is_iterated(tmp_path, rows):
  path = write_csv(tmp_path / 'log.csv', rows)
  once = [row for row in rows if sum(other[0] == row[0] for other in rows) >= 4]
  kept = core_by_hand(rows, 4)
  assert 0 < len(kept) < len(core_by_hand(once, 1)), 'this log must need several rounds'
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED, k_core=4))
  assert contents(store) == expected(kept)
  assert store.meta['left_out']['rows outside the 4-core'] == len(rows) - len(kept)
  with pytest.raises(InputError, match=r'0 users left \(.*600 rows outside the 400-core'):
    prepare(path, tmp_path / 'none', PrepareOptions(**NAMED, k_core=400))
  assert not (tmp_path / 'none').exists()


def test_users_that_leave_one_out_drops_do_not_break_the_core(tmp_path):
  rows = [(user, item, 1) for user in 'ab' for item in 'xyz'] + [('c', 'v', 1), ('c', 'x', 2)] * 2
  rows += [('d', 'w', 1), ('d', 'v', 2)] + [('a', 'w', 3)]  # d is short, and half of what w has
  store = prepare(write_csv(tmp_path / 'log.csv', rows), tmp_path / 'set',
                  PrepareOptions(**NAMED, k_core=2))
  assert np.bincount(store.items_N).min() >= 2 and {*store.user_ids} == {'a', 'b', 'c'}


@pytest.mark.parametrize('keep', ['first', 'last'])
def test_duplicates(tmp_path, rows, keep):
  path = write_csv(tmp_path / 'log.csv', rows)
  step = 1 if keep == 'first' else -1
  kept = {}
  for row in sorted(rows, key=lambda row: row[2])[::step]:
    kept.setdefault(row[:2], row)
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED, duplicates=keep))
  assert contents(store) == expected(list(kept.values())[::step])
  assert store.meta['audit']['duplicates'] == 0
  assert store.meta['left_out']['rows that repeat an item'] == len(rows) - len(kept)


def test_repeats_go_before_the_core_is_sought(tmp_path):
  """An item that one user had twice has one interaction then, and is outside the 2-core."""
  rows = [(user, item, 1) for user in 'ab' for item in 'xyz'] + [('a', 'w', 2), ('a', 'w', 3)]
  store = prepare(write_csv(tmp_path / 'log.csv', rows), tmp_path / 'set',
                  PrepareOptions(**NAMED, duplicates='first', k_core=2))
  assert {*store.item_ids} == {*'xyz'}
  assert store.meta['left_out']['rows that repeat an item'] == 1
  assert store.meta['left_out']['rows outside the 2-core'] == 1


def test_maximum_history_keeps_the_latest_of_training(tmp_path, rows):
  path = write_csv(tmp_path / 'log.csv', rows)
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED, max_history=2))
  wanted = {user: (train[-2:], *rest) for user, (train, *rest) in expected(rows).items()}
  assert contents(store) == wanted
  cut = sum(max(len(train) - 2, 0) for train, *_ in expected(rows).values())
  assert store.meta['left_out']['training rows before the latest 2'] == cut > 0
  items = {item for parts in wanted.values() for part in parts for item, _ in part}
  assert store.num_items == len(items), 'items that nobody is left with must go'


def test_short_users_are_dropped_and_counted(tmp_path):
  path = write_csv(tmp_path / 'log.csv', [('a', 'x', 1)] * 2 + [('b', 'y', 1)] * 3)
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED))
  assert store.user_ids.to_list() == ['b'] and store.item_ids.to_list() == ['y']
  assert store.meta['left_out'] == {'rows of users with fewer than 3': 2, 'users': 1}


@pytest.mark.parametrize('chosen', [dict(cuts=(60, 80)), dict(fractions=(0.2, 0.1))])
def test_global_time(tmp_path, rows, chosen):
  path = write_csv(tmp_path / 'log.csv', rows)
  store = prepare(path, tmp_path / 'set', PrepareOptions(**NAMED, split='global_time', **chosen))
  times = {name: [time for parts in contents(store).values() for _, time in parts[k]]
           for k, name in enumerate(PARTS)}
  assert sum(map(len, times.values())) == len(rows), 'nobody is dropped for being short'
  assert max(times['train']) < min(times['valid']) and max(times['valid']) < min(times['test'])
  if 'cuts' in chosen:
    assert min(times['valid']) >= 60 > max(times['train']) and max(times['valid']) < 80
  else:
    assert len(times['train']) == pytest.approx(0.7 * 600, abs=20)
    assert len(times['test']) == pytest.approx(0.1 * 600, abs=20)
  found = store.meta['audit']
  in_train = {item for train, *_ in contents(store).values() for item, _ in train}
  assert found['items_not_in_training'] == store.num_items - len(in_train)
  assert found['users_not_in_training'] == sum(not train for train, *_ in contents(store).values())
  assert found['training_after_first_test'] == 0
  tests = [(user, row) for user, (train, valid, test) in contents(store).items()
           for k, row in enumerate(test) if train or valid or k]
  assert found['splits']['test']['targets'] == len(tests)
  assert found['splits']['test']['not_in_training'] == sum(r[0] not in in_train for _, r in tests)


def test_the_audit_counts(tmp_path):
  rows = [('a', 'x', 1), ('a', 'y', 2), ('a', 'x', 2), ('a', 'x', 9),
          ('b', 'x', 9), ('b', 'z', 10), ('b', 'w', 12)]
  found = prepare(write_csv(tmp_path / 'log.csv', rows), tmp_path / 'set',
                  PrepareOptions(**NAMED)).meta['audit']
  assert found['density'] == 7 / (2 * 4)
  assert found['length'] == pytest.approx(
    {'min': 3, 'median': 3.5, 'mean': 3.5, 'p90': 3.9, 'max': 4})
  assert found['duplicates'] == 2 / 7 and found['tied_times'] == 1 / 7
  assert found['items_not_in_training'] == 2, 'z and w occur only in validation and test'
  splits = found['splits']
  assert splits['test']['in_history'] == 0.5, "a's test item x is in its history, b's w is not"
  assert splits['valid']['in_history'] == 0.5 and splits['valid']['not_in_training'] == 1
  assert found['training_after_first_test'] == 0 and found['warnings'][0].startswith('14.3%')
  later = prepare(write_csv(tmp_path / 'log.csv', rows + [('c', 'x', t) for t in (8, 10, 11, 12)]),
                  tmp_path / 'later', PrepareOptions(**NAMED)).meta['audit']
  assert later['training_after_first_test'] == 1 / 5
  assert later['splits']['test']['sha256'] != splits['test']['sha256']


def test_the_same_input_gives_the_same_bytes(tmp_path, rows):
  path = write_csv(tmp_path / 'log.csv', rows)
  names = None
  for name in ('one', 'two'):
    prepare(path, tmp_path / name, PrepareOptions(**NAMED))
    names = os.listdir(tmp_path / name)
  same = filecmp.cmpfiles(tmp_path / 'one', tmp_path / 'two', names, shallow=False)
  assert sorted(same[0]) == sorted(names), f'files differ between two runs: {same[1]}'
  write_csv(tmp_path / 'log.csv', [*rows[:-1], ('u1', 'new', 0)])
  other = prepare(path, tmp_path / 'three', PrepareOptions(**NAMED))
  assert other.fingerprint != Store.open(tmp_path / 'one').fingerprint


def test_long_ids_lie_in_the_files_in_one_order(tmp_path):
  """Those of over 12 bytes lie outside arrow's views, and may do so in any order."""
  paths = amazon.write(tmp_path / 'log', amazon.log())
  files = set()
  for k in range(40):
    made = prepare(paths, tmp_path / str(k))
    files.add(Path(made.directory, 'users.arrow').read_bytes())
  assert len(files) == 1, 'the same input and options must give the same bytes'


def test_prepared_takes_a_directory_or_a_log(tmp_path, rows, capsys):
  options = PrepareOptions(**NAMED)
  path = write_csv(tmp_path / 'log.csv', rows)
  capsys.readouterr()
  first = prepared(path, options, tmp_path / 'cache')
  said = capsys.readouterr()
  assert said.err.startswith(f'prepared {path} into {first.directory}\nformat: csv; left out: ')
  assert 'repeats' in said.err and not said.out
  mark = Path(first.directory, 'mark')
  mark.write_text('kept')
  assert prepared(path, options, tmp_path / 'cache').directory == first.directory
  assert mark.exists(), 'an unchanged log must not be prepared again'
  assert prepared(first.directory, options, tmp_path / 'none').fingerprint == first.fingerprint
  other = prepared(path, dataclasses.replace(options, k_core=4), tmp_path / 'cache')
  write_csv(tmp_path / 'log.csv', rows[:-1])
  fresh = prepared(path, options, tmp_path / 'cache')
  assert len({first.directory, other.directory, fresh.directory}) == 3
  Path(fresh.directory, 'items.npy').write_bytes(b'')
  with pytest.raises(InputError, match=r'items\.npy: 0 bytes where .* delete'):
    prepared(path, options, tmp_path / 'cache')
  with pytest.raises(InputError, match='so this is no prepared data set'):
    prepared(str(tmp_path), options, tmp_path / 'cache')


def test_amazon_reviews_2023(tmp_path):
  rows = amazon.log()
  header = 'user_id,parent_asin,rating,timestamp\n'
  shuffled = [rows[k] for k in np.random.default_rng(2).permutation(len(rows))]
  raw = tmp_path / 'Musical_Instruments.csv'
  raw.write_text(header + ''.join(','.join(map(str, row)) + '\n' for row in shuffled))
  ways = {
    'last_out': amazon.write(tmp_path / 'last_out', rows, with_history=False),
    'last_out_w_his': amazon.write(tmp_path / 'last_out_w_his', rows, with_history=True),
    'raw': str(raw),
  }
  stores = {way: prepare(path, tmp_path / f'{way}_set') for way, path in ways.items()}
  assert {store.meta['format'] for store in stores.values()} == {'amazon2023'}
  wanted = expected([(user, item, time) for user, item, _, time in rows])
  for way, store in stores.items():
    assert contents(store) == wanted, way
    found = store.meta['audit']
    assert (found['users'], found['items'], found['interactions']) == (200, 60, len(rows)), way
    assert [found['splits'][part]['targets'] for part in ('valid', 'test')] == [200, 200]
  assert len({store.fingerprint for store in stores.values()}) == 1
  by_time = prepare(ways['last_out'], tmp_path / 'time', PrepareOptions(split='global_time'))
  assert by_time.meta['audit']['training_after_first_test'] == 0


DATA = Path(__file__).parents[1].parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(
  not DATA.is_dir(), reason='the real logs are not here: ../shared/data from the project root')


@needs_data
def test_facts_of_beauty(tmp_path):
  found = prepare(str(DATA / 'beauty.txt'), tmp_path / 'set').meta['audit']
  assert (found['users'], found['items'], found['interactions']) == (22_363, 12_101, 198_502)
  length = found['length']
  assert round(length['mean'], 2) == 8.88
  assert (length['median'], length['p90'], length['max']) == (6, 14, 204)
  assert found['duplicates'] == 0 and found['tied_times'] is None
  assert found['splits']['train']['targets'] == 131_413


@needs_data
def test_facts_of_ml_100k(tmp_path):
  store = prepare(str(DATA / 'ml-100k.inter'), tmp_path / 'set')
  found = store.meta['audit']
  assert (found['users'], found['items'], found['interactions']) == (943, 1_682, 100_000)
  assert round(found['tied_times'], 3) == 0.506
  assert store.user_ids.to_list() == [str(user) for user in range(1, 944)]
  assert len(found['warnings']) == 2, 'ML-100K leaks under leave-one-out and has tied times'


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [({'format': 'xlsx'}, 'choose one of auto, s3rec'), ({'split': 'random'}, 'leave_one_out'),
   ({'cuts': (5,)}, 'two times'), ({'cuts': (5, 4)}, 'two times'),
   ({'cuts': ('5', 'six')}, '--cuts=5,six: numbers, please'), ({'max_history': -1}, 'use 0 or more'),
   ({'fractions': (0.5, 0.5)}, 'two shares'), ({'min_length': 2}, 'needs 3'),
   ({'fractions': ('nan', 0.1)}, 'two shares'), ({'cuts': ('nan', 1)}, 'two times'),
   ({'rating': 'stars'}, 'ratings are read for --min_rating alone'),
   ({'cuts': (4, 5)}, 'only --split=global_time has cuts')])
def test_options_are_checked(wrong, said):
  with pytest.raises(InputError, match=said):
    PrepareOptions(**wrong)


def test_splits_that_cannot_be(tmp_path):
  path = write_csv(tmp_path / 'log.csv', [('a', 'x', 1), ('a', 'y', 1), ('b', 'x', 1)])
  with pytest.raises(InputError, match='the train split is empty'):
    prepare(path, tmp_path / 'set', PrepareOptions(**NAMED, split='global_time'))
  with pytest.raises(InputError, match='the log has no times'):
    prepare(path, tmp_path / 'set', PrepareOptions(user='user', item='item', split='global_time'))
  assert os.listdir(tmp_path) == ['log.csv']


def command(*arguments):
  return subprocess.run([sys.executable, '-m', 'lares_jax.prepare', *arguments],
                        capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_a_data_set_of_other_options_than_there_are_is_read(tmp_path, rows):
  """As after an update; what is set now must still be what it was prepared with."""
  made = prepare(write_csv(tmp_path / 'log.csv', rows), tmp_path / 'set',
                 PrepareOptions(**NAMED, split='global_time', cuts=(60, 80)))
  meta = {**made.meta, 'options': {**made.meta['options'], 'since_removed': 1}}
  write_meta(made.directory, {**meta, 'options': {
    k: v for k, v in meta['options'].items() if k != 'max_history'}})
  again = lambda **options: prepared(made.directory, PrepareOptions(**options), tmp_path)
  assert again(split='global_time', cuts=(60, 80)).fingerprint == made.fingerprint
  with pytest.raises(InputError, match='was prepared with max_history=0, not 3'):
    again(max_history=3)


def test_whoever_asks_by_a_config_is_told_its_keys(tmp_path):
  path = write_csv(tmp_path / 'log.csv', [('a', 'x', 1)])
  history = tmp_path / 'x.inter'
  history.write_text('user_id:token\titem_id_list:token_seq\titem_id:token\trating:float\n'
                     'u\ta b\tc\t5\n')
  for log, options, said in (
      (path, {}, r'say --config\.data\.prepare\.user=NAME'),
      (f'{path}.gz', {}, r'no such file; check --config\.data\.path$'),
      (path, dict(user='user', item='item', split='global_time'),
       r'^--config\.data\.prepare\.split=global_time: .* column with --config\.data\.prepare\.time$'),
      (str(history), dict(min_rating=3.0), r'leave out --config\.data\.prepare\.min_rating$')):
    with pytest.raises(InputError, match=said):
      prepared(log, PrepareOptions(**options), tmp_path / 'cache')


def test_the_command(tmp_path, rows):
  path = write_csv(tmp_path / 'log.csv', rows)
  named = [f'--{role}={name}' for role, name in NAMED.items()]
  done = command(f'--input={path}', f'--output={tmp_path / "set"}', *named)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].endswith(f'to {tmp_path / "set"}')
  assert done.stdout.startswith('format: csv; left out: '), 'what was read, and what was not'
  assert 'training after the first test' in done.stdout, 'the audit is to be read'
  assert json.loads((tmp_path / 'set' / 'meta.json').read_text())['audit']['users'] > 0
  Path(path).write_text('user,item,time\nu,a,-1\n')
  done = command(f'--input={path}', f'--output={tmp_path / "other"}', *named)
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr == (f'error: {path}: row 2: the time is negative; '
                         'mend it, or leave such rows out: --bad_rows=skip\n')
  assert not (tmp_path / 'other').exists()
  Path(path).write_text('user,item,time\ru,a,1\r')
  done = command(f'--input={path}', f'--output={tmp_path / "other"}', *named)
  assert done.stderr == f'error: {path}: row 1: no header; lines must end in \\n or \\r\\n\n'


def test_options_that_a_prepared_directory_cannot_follow_are_refused(tmp_path):
  log = tmp_path / 'log.txt'
  items = lambda user: ' '.join(str(user * k % 9 + 1) for k in range(1, 7))
  log.write_text(''.join(f'{user} {items(user)}\n' for user in range(1, 9)))
  made = str(tmp_path / 'made')
  prepare(str(log), made, PrepareOptions(min_length=4))
  for options in (PrepareOptions(), PrepareOptions(min_length=4, format='s3rec')):
    assert prepared(made, options, tmp_path).num_users == 8
  with pytest.raises(InputError, match='was prepared with k_core=0, not 5'):
    prepared(made, PrepareOptions(k_core=5), tmp_path)
  with pytest.raises(InputError, match='made: exists; choose another'):
    prepare(str(log), made)


def test_what_is_asked_of_the_reading_reaches_it(tmp_path):
  """A minimum rating, what orders ties, faulty rows left out, and users of fewer than four."""
  rows = ['u,a,1,5,10', 'u,b,1,5,9', 'u,c,2,2,1', 'u,d,3,3,1', 'u,e,soon,5,1', 'u,f,4,4,1',
          *(f'v,{item},1,5,1' for item in 'abd')]
  path = tmp_path / 'log.csv'
  path.write_text('\n'.join(['who,what,when,stars,rank', *rows]))
  store = prepare(str(path), tmp_path / 'set', PrepareOptions(
    user='who', item='what', time='when', rating='stars', min_rating=3, tie_break='rank',
    bad_rows='skip', min_length=4))
  assert contents(store) == {'u': ([('b', 1), ('a', 1)], [('d', 3)], [('f', 4)])}
  assert sum(store.meta['left_out'].values()) == 1 + 1 + 3 + 1  # rated low, faulty, short, and a user


def test_cuts_are_in_seconds_where_times_have_fractions(tmp_path):
  path = tmp_path / 'log.csv'
  path.write_text('user,item,time\nu,a,1.25\nu,b,2.5\nu,c,3.5\nu,d,4\n')
  store = prepare(str(path), tmp_path / 'set', PrepareOptions(
    **NAMED, split='global_time', cuts=(2.5, 4)))
  assert [[item for item, _ in part] for part in contents(store)['u']] == [['a'], ['b', 'c'], ['d']]
