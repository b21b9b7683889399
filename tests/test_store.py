"""The prepared data set on disk: what goes in comes out, and damage is told."""

import errno
import hashlib
import os

import numpy as np
import polars as pl
import pytest

from lares_jax.aside import new_directory
from lares_jax.data import audit, store
from lares_jax.data.store import Store
from lares_jax.errors import InputError

# Two users: 'b' has train x y y, valid z, test x; 'a' is new in test with z, w.
SMALL = dict(
  items_N=np.array([0, 1, 1, 2, 0, 2, 3]),
  times_N=np.array([1, 2, 3, 4, 5, 4, 6]),
  offsets=np.array([0, 5, 7]),
  valid_start_U=np.array([3, 5]),
  test_start_U=np.array([4, 5]),
  user_ids=pl.Series(['b', 'a']),
  item_ids=pl.Series(['x', 'y', 'z', 'w']),
  meta={'sources': ['log']},
)


def write(directory, **changes) -> Store:
  directory.mkdir()
  return store.write(str(directory), **{**SMALL, **changes})


def test_round_trip_numbers_items_by_popularity_then_id(tmp_path):
  opened = write(tmp_path / 'set')
  assert (opened.num_users, opened.num_items, len(opened.items_N)) == (2, 4, 7)
  assert opened.item_ids.to_list() == ['y', 'x', 'w', 'z'], 'falling train_count, ties by raw id'
  assert opened.train_count_V.tolist() == [2, 1, 0, 0]
  assert opened.user_ids.to_list() == ['b', 'a']
  assert opened.item_ids[opened.items_N].to_list() == list('xyyzxzw')
  assert opened.items_N.dtype == np.int32 and opened.offsets.dtype == np.int64
  np.testing.assert_array_equal(opened.times_N, SMALL['times_N'])
  assert opened.meta['sources'] == ['log']


def test_targets_leave_out_what_has_no_history(tmp_path):
  opened = write(tmp_path / 'set')
  targets = {name: [part.tolist() for part in opened.targets(name)] for name in store.PARTS}
  assert targets == {'train': [[0, 0], [1, 2]], 'valid': [[0], [3]], 'test': [[0, 1], [4, 6]]}



@pytest.mark.parametrize(
  ('ids', 'ordered'),
  [(['10', '9', '-1'], ['-1', '9', '10']), (['10', '9', 'a'], ['10', '9', 'a']),
   (['7', '07', '6'], ['6', '07', '7'])])
def test_ids_are_in_order_of_value_where_all_are_integers(ids, ordered):
  assert pl.Series(ids)[store.id_order(pl.Series(ids))].to_list() == ordered


def test_fingerprint_follows_everything_that_training_sees(tmp_path):
  variants = [
    {},
    {'items_N': np.array([0, 1, 1, 2, 0, 2, 2])},
    {'times_N': None},
    {'times_N': SMALL['times_N'] + 1},
    {'valid_start_U': np.array([2, 5])},
    {'test_start_U': np.array([5, 5])},
    {'offsets': np.array([0, 5, 7]), 'user_ids': pl.Series(['b', 'c'])},
    {'item_ids': pl.Series(['x', 'y', 'z', 'v'])},
  ]
  prints = {write(tmp_path / str(k), **change).fingerprint for k, change in enumerate(variants)}
  assert len(prints) == len(variants), 'two different data sets share a fingerprint'
  again = write(tmp_path / 'again', meta={'sources': ['other name']})
  assert again.fingerprint == write(tmp_path / 'first').fingerprint


FILES = ['items.npy', 'times.npy', 'offsets.npy', 'valid_start.npy', 'test_start.npy',
         'users.arrow', 'items.arrow', 'meta.json']


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('damage', ['missing', 'cut', 'empty', 'zeros'])
def test_a_damaged_file_is_named(tmp_path, name, damage):
  write(tmp_path / 'set')
  path = tmp_path / 'set' / name
  content = path.read_bytes()
  if damage == 'missing':
    path.unlink()
  else:
    path.write_bytes({'cut': content[:-7], 'empty': b'', 'zeros': bytes(len(content))}[damage])
  with pytest.raises(InputError, match=rf'{name}: .*prepare the data set again'):
    opened = Store.open(tmp_path / 'set')
    _ = opened.items, opened.user_ids


def test_a_data_set_of_another_version_is_not_read(tmp_path):
  made = write(tmp_path / 'set')
  path = tmp_path / 'set' / 'meta.json'
  path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
  with pytest.raises(InputError, match=r'meta\.json: format version 2, not 1; delete'):
    Store.open(made.directory)
  assert store.is_prepared(tmp_path) is store.is_prepared(made.directory) is False


def test_a_file_that_may_not_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
  """Nobody should delete a data set because too many files are open."""
  write(tmp_path / 'set')

  def refused(*_, **__):
    raise OSError(errno.EMFILE, 'Too many open files')

  monkeypatch.setattr(np, 'load', refused)
  with pytest.raises(InputError, match=r'items\.npy: Too many open files$'):
    Store.open(tmp_path / 'set')


def test_nothing_appears_unless_the_block_succeeds(tmp_path):
  output = tmp_path / 'deep' / 'set'
  with pytest.raises(RuntimeError), new_directory(output) as fresh:
    store.write(str(fresh), **SMALL)
    raise RuntimeError
  assert os.listdir(output.parent) == [], 'a failed run must leave nothing behind'
  output.mkdir()
  with new_directory(output) as fresh:  # an empty directory is a free place
    store.write(str(fresh), **SMALL)
  assert os.listdir(output.parent) == ['set']
  assert Store.open(output).num_users == 2


def test_what_is_there_is_not_replaced(tmp_path):
  (tmp_path / 'thesis.txt').write_text('precious')
  for taken in (tmp_path, tmp_path / 'thesis.txt'):
    with pytest.raises(InputError, match='exists; choose another'), new_directory(taken):
      pytest.fail('something would be lost')
  with pytest.raises(InputError, match='exists; choose another'), new_directory(tmp_path / 'set'):
    (tmp_path / 'set').write_text('come meanwhile')
  assert sorted(os.listdir(tmp_path)) == ['set', 'thesis.txt']


def test_the_audit_says_which_rows_each_split_has(tmp_path, monkeypatch):
  """By a digest that others can make: user, item and time of each row, tabs between."""
  monkeypatch.setattr(audit, '_BLOCK', 2)  # rows turned into text at a time
  found = audit.audit(write(tmp_path / 'set'))
  for name, rows in (('train', 'b\tx\t1\nb\ty\t2\nb\ty\t3\n'), ('valid', 'b\tz\t4\n'),
                     ('test', 'b\tx\t5\na\tz\t4\na\tw\t6\n')):
    assert found['splits'][name]['sha256'] == hashlib.sha256(rows.encode()).hexdigest()
    assert found['splits'][name]['interactions'] == rows.count('\n')
  assert found['splits']['test']['without_history'] == 1, "a's first item"
  assert found['popularity'] == {'min': 1, 'median': 2, 'mean': 1.75, 'p90': 2, 'max': 2}
  said = dict(line.strip().split('  ', 1) for line in audit.table(found).splitlines())
  said = {name: text.strip() for name, text in said.items()}
  assert said['users, items, interactions'] == '2  4  7'
  assert said['same time as the one before'] == said['training after the first test'] == '0.00%'
  assert said['repeats of an earlier item'] == '28.57%'
  assert said['test'] == '3 interactions, 2 targets, 50.00% in their history, 1 unseen'
  bare = audit.audit(write(tmp_path / 'bare', times_N=None, test_start_U=SMALL['offsets'][1:]))
  assert bare['warnings'] == ['no targets in test'] and bare['tied_times'] is None
  rows = b'b\tx\nb\ty\nb\ty\n'
  assert bare['splits']['train']['sha256'] == hashlib.sha256(rows).hexdigest()
