"""Rows and batches: every target once, in its own context, the same whoever asks."""

import dataclasses
import pathlib

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_config, make_store

from lares_jax.data import batches as module
from lares_jax.data.batches import DataConfig, TrainBatches, Windows, eval_batches
from lares_jax.data.pairs import Partners
from lares_jax.data.rows import Segments, fill, pack
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('store'), users=60, longest=30)


PACKED = DataConfig(row_length=16, max_history=8)
PREFIX = DataConfig(rows='prefix', max_history=8)


@given(st.lists(st.integers(1, 16), max_size=60), st.sampled_from((None, 1, 3)))
@settings(max_examples=60, deadline=None)
def test_packed_segments_fit_and_do_not_overlap(lengths, most):
  length_S = np.array(lengths, np.int64)
  plan = pack(length_S, 16, most)
  taken = np.zeros((plan.rows, 16), int)
  for row, place, length in zip(plan.row_S, plan.place_S, length_S):
    assert place + length <= 16
    taken[row, place:place + length] += 1
  assert (taken <= 1).all() and taken.sum() == length_S.sum()
  if lengths:
    assert (taken.sum(1) > 0).all(), 'an empty row is a row too many'
    assert most is None or np.bincount(plan.row_S).max() <= most


def test_a_plan_stays_what_it_was():
  """Else a run that goes on would go on with other batches."""
  plan = pack(np.array([2, 5, 3, 3, 8, 2, 5, 3, 1]), 8)
  assert plan.row_S.tolist() == [3, 1, 1, 2, 0, 3, 2, 3, 3]
  assert plan.place_S.tolist() == [3, 0, 5, 5, 0, 5, 0, 0, 7]


def _targets(batches, store):
  """(context, target) of every scored token of an epoch."""
  out = []
  for step in range(batches.steps_per_epoch):
    b = batches.batch(step)
    place = b.place_BxA
    if place is None:
      place = np.broadcast_to(np.arange(b.target_BxA.shape[1]), b.target_BxA.shape)
    rows = b.scored_rows
    for row, a in zip(*np.nonzero(b.scored_BxA)):
      at = place[row, a]
      mine = rows.segment_BxL[row] == rows.segment_BxL[row, at]
      mine &= rows.real_BxL[row] & (np.arange(len(mine)) <= at)
      out.append((tuple(rows.item_BxL[row][mine]), int(b.target_BxA[row, a])))
  return out


@pytest.mark.parametrize('config', (PACKED, PREFIX), ids=('packed', 'prefix'))
def test_an_epoch_has_every_target_once_with_enough_of_its_own_history(tmp_path, config):
  store = make_store(tmp_path, users=60, items=900, longest=30)  # items that tell histories apart
  batches = TrainBatches(store, config, batch_rows=1, pairs=6, seed=0, copies=True)
  left = {}
  for user, end in zip(*store.targets('train')):
    history = tuple(store.items_N[store.offsets[user]:end])
    left.setdefault(int(store.items_N[end]), []).append(history)
  for context, target in _targets(batches, store):
    whole = [h for h in left[target] if h[-len(context):] == context
             and len(context) >= min(len(h), config.max_history) / 2]
    assert whole, f'target {target} came with the context {context}, which no user had'
    left[target].remove(whole[0])
  assert not any(left.values()), 'some targets never came'


def test_long_histories_are_windowed_with_at_least_half_of_the_context(store):
  windows = Windows.sliding(store, 8)
  assert (windows.length_S > windows.context_S).all()
  assert set(windows.context_S) == {0, 4}
  assert (windows.length_S - windows.context_S).sum() == len(store.targets('train')[1])


def _history(rows, flat):
  """The items up to a place of the flattened rows, of its segment."""
  row, at = divmod(int(flat), 16)
  return tuple(rows.item_BxL[row][
    (rows.segment_BxL[row] == rows.segment_BxL[row, at]) & (np.arange(16) <= at)])


def test_pairs_are_of_histories_with_the_same_target_and_others_where_there_are_any(store):
  batches = TrainBatches(store, PACKED, batch_rows=4, pairs=8, seed=0, copies=True)
  count = np.bincount(store.items_N[store.targets('train')[1]], minlength=store.num_items)
  shared, others = 0, 0
  for step in range(2 * batches.steps_per_epoch):
    b = batches.batch(step)
    pairs = b.pairs
    for p in np.flatnonzero(pairs.real_P):
      target, (anchor, partner, copy) = pairs.target_P[p], [x[p] for x in pairs[:3]]
      assert b.scored_BxA.flat[anchor] and b.target_BxA.flat[anchor] == target
      assert partner >= b.scored_BxA.size and copy >= b.scored_BxA.size
      own, other = _history(b.rows, anchor), _history(b.rows, partner)
      assert _history(b.rows, copy) == own and copy // 16 != anchor // 16, 'in another row'
      histories = [tuple(store.items_N[store.offsets[u]:e][-8:]) for u, e in
                   zip(*store.targets('train')) if store.items_N[e] == target]
      assert other in histories, 'a partner must be the history of another such target'
      shared += count[target] > 1
      others += count[target] > 1 and other[-4:] != own[-4:]
  assert shared > 50 and others > 0.9 * shared, 'partners must be drawn from the other occurrences'


def test_there_is_room_for_every_partner_and_not_much_more(store):
  """Rows too few would leave pairs out without a word; rows too many are passed through the model."""
  batches = TrainBatches(store, PACKED, batch_rows=16, pairs=24, seed=0)
  epoch = [batches.batch(step) for step in range(batches.steps_per_epoch)]
  assert np.mean([b.pairs.real_P for b in epoch]) > 0.95
  assert np.mean([b.rows.real_BxL[16:] for b in epoch]) > 0.6


def test_partners_that_find_no_room_are_of_all_lengths(store):
  batches = TrainBatches(store, PACKED, batch_rows=4, pairs=8, seed=0)
  batches._partner_rows = 1  # of the three that these take
  length_P, kept_P = np.array([8, 8, 7, 6, 3, 2, 1, 1]), np.zeros(8)
  for seed in range(99):
    segments, last_P, fits_P = batches._lay(np.arange(8), length_P, np.random.default_rng(seed))
    np.testing.assert_array_equal(segments.start_S, np.flatnonzero(fits_P))
    np.testing.assert_array_equal(last_P > 0, fits_P)
    kept_P += fits_P
  assert (kept_P > 15).all(), 'some lengths are favoured'


def test_anchors_and_partners_are_drawn_uniformly(store):
  """An anchor from the scored tokens of its segment, a partner from the other places of its target."""
  generator, end_M = np.random.default_rng(0), store.targets('train')[1]
  item_M = store.items_N[end_M]
  end = int(end_M[item_M == np.bincount(item_M).argmax()][1])
  others = [e for e in end_M[item_M == store.items_N[end]] if e != end]
  draws = 500 * len(others)
  start_P, length_P = Partners(store, 8).draw(np.full(draws, end), generator)
  drawn, count = np.unique(start_P + length_P, return_counts=True)
  np.testing.assert_array_equal(drawn, others)
  assert (abs(count - 500) < 5 * np.sqrt(500)).all()

  batches = TrainBatches(store, PACKED, batch_rows=4, pairs=64, seed=0)
  segments = Segments(np.zeros(64, int), np.full(64, 5), np.arange(64), np.zeros(64, int))
  anchors = [batches._pair_up(segments, np.full(64, 2), generator)[0].anchor_P for _ in range(200)]
  place, count = np.unique(np.concatenate(anchors) % 16, return_counts=True)
  np.testing.assert_array_equal(place, [2, 3, 4])  # two of the five are context
  assert count.sum() > 1000 and (abs(count - count.mean()) < 5 * np.sqrt(count.mean())).all()


@pytest.mark.parametrize('loss, partners, copies', (
  ({}, True, False), ({'alpha': 0.0}, False, False), ({'views': 'separate'}, True, True),
  ({'alpha': 0.0, 'gamma_view': 'dropout'}, False, True),
  ({'alpha': 0.0, 'gamma_view': 'partner'}, True, True)))
def test_a_batch_has_the_rows_that_its_loss_reads(store, loss, partners, copies):
  config = make_config(store.directory)
  loss = dataclasses.replace(config.pretrain.loss, **loss)
  config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, loss=loss))
  batch = Experiment(config, pathlib.Path()).pretraining().batches.batch(0)
  assert [x is not None for x in (batch.pairs.partner_P, batch.pairs.copy_P)] == [partners, copies]
  more = len(batch.rows.item_BxL) - len(batch.target_BxA) * (1 + copies)
  assert more > 0 if partners else not more


def test_kept_prompts_alone_are_scored(store):
  kept = np.zeros(len(store.items_N), bool)
  kept[store.targets('train')[1][::3]] = True
  batches = TrainBatches(store, PACKED, batch_rows=1, pairs=0, seed=0, kept_N=kept)
  scored = sum(int(batches.batch(s).scored_BxA.sum()) for s in range(batches.steps_per_epoch))
  assert scored == kept.sum()


def test_a_batch_is_a_function_of_seed_and_step_whatever_the_workers(store):
  make = lambda seed: TrainBatches(store, PACKED, batch_rows=4, pairs=4, seed=seed)
  steps = range(3, 3 + 2 * make(0).steps_per_epoch)
  want = [make(0).batch(step) for step in steps]
  for threads in (1, 4):
    batches = make(0)
    dataset = grain.MapDataset.range(3, steps.stop).map(lambda s, b=batches: b.batch(int(s)))
    got = list(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads)))
    assert len(got) == len(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  assert not np.array_equal(make(1).batch(3).rows.item_BxL, want[0].rows.item_BxL)
  assert not np.array_equal(want[0].rows.item_BxL, want[1].rows.item_BxL)


@pytest.mark.parametrize('config', (PACKED, PREFIX), ids=('packed', 'prefix'))
def test_evaluation_batches_hold_every_history_once(store, config, monkeypatch):
  user, index = store.targets('test')
  seen, longest = [], []
  monkeypatch.setattr(module, '_WIDTHS', np.array([4, 16]))
  for b in eval_batches(store, user, index, config, 4, hide=True):
    for row, a in zip(*np.nonzero(b.scored_BxA)):
      m, at = b.index_BxA[row, a], b.place_BxA[row, a]
      history = store.items_N[store.offsets[user[m]]:index[m]]
      mine = (b.rows.segment_BxL[row] == b.rows.segment_BxL[row, at]) & b.rows.real_BxL[row]
      np.testing.assert_array_equal(b.rows.item_BxL[row][mine], history[-8:])
      assert mine[at] and not mine[at + 1:].any(), 'the scored place is the last of the history'
      assert b.target_BxA[row, a] == store.items_N[index[m]]
      hidden = b.hidden_BxAxH[row, a]
      assert sorted(hidden[hidden >= 0]) == sorted(history)
      seen.append(m)
    m = b.index_BxA[b.scored_BxA]
    longest.append((index - store.offsets[user])[m].max())
    assert b.hidden_BxAxH.shape[-1] <= {0: 4, 1: 16, 2: 30}[np.searchsorted([4, 16], longest[-1])]
  assert min(longest) <= 4 and max(longest) > 16, 'short ones apart from long ones'
  assert sorted(seen) == list(range(len(user)))


def test_times_of_a_fine_unit_reach_rows_in_ticks(store):
  """As nanoseconds would: without ticks all gaps of more than two seconds would be alike."""
  gap = np.int64(10**10)
  timed = dataclasses.replace(store, times_N=gap * np.arange(len(store.items_N)))
  units = timed.clock[1]
  assert 1 < units < gap
  batches = [TrainBatches(timed, PACKED, batch_rows=4, pairs=0, seed=0).batch(0),
             next(eval_batches(timed, *timed.targets('test'), PACKED, 4))]
  for rows in (b.rows for b in batches):
    known = rows.real_BxL & (rows.time_BxL >= 0)
    np.testing.assert_array_equal(rows.time_BxL[known], (rows.position_BxL * gap // units)[known])
    assert known.any() and rows.time_BxL.max() > 3
  times_N = np.array([50, 69, 80, 30, 50 + 10 * 2**40])  # one earlier than the first, one too late
  rows = fill(np.arange(5), Segments(*np.array([[0], [5], [0], [0]])), (1, 5), times_N, 10)
  np.testing.assert_array_equal(rows.time_BxL, [[0, 1, 3, 0, 2**31 - 1]])


def test_a_row_of_the_shortest_makes_no_room_in_all(tmp_path):
  """One history of 2 items in ten is not worth eight places in every row."""
  store = make_store(tmp_path, users=100, longest=14)
  user, index = store.targets('test')
  length = np.minimum(index - store.offsets[user], 8)
  b = next(eval_batches(store, user, index, PACKED, 4))
  assert b.scored_BxA.shape[1] <= 2 * np.ceil(16 / length.mean()) < 8 == 16 // length.min()


def test_settings_that_cannot_be_are_named():
  with pytest.raises(InputError, match='row_length'):
    DataConfig(row_length=10, max_history=20)


def test_every_epoch_has_an_order_and_company_of_its_own(store):
  batches = TrainBatches(store, PACKED, batch_rows=1, pairs=0, seed=0)
  steps = batches.steps_per_epoch
  first, second = ([batches.batch(step).rows.item_BxL[0].tolist() for step in range(n, n + steps)]
                   for n in (0, steps))
  assert first != second, 'the order repeats'
  assert sorted(first) != sorted(second), 'the same histories share a row'
