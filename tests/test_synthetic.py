"""The built-in data set: its process, its exact probabilities, and what they promise."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from lares_jax.data import synthetic
from lares_jax.data.synthetic import World
from lares_jax.prepare import PrepareOptions, prepare

TINY = World(
  num_users=4, num_items=6, seed=3, num_interests=4, num_routes=4, route_length=3, min_length=3,
  max_length=4, offset=1.0, drift=0.1, noise=0.15)
SMALL = dataclasses.replace(TINY, num_users=3000, num_items=120, num_interests=6, num_routes=4,
                            route_length=3, min_length=5, max_length=20)


def enumerated(world, items):
  """p(items) by summing over every path of states, straight from the equations."""
  routes_RxJ, emission_KxV = synthetic.tables(world)
  states = [(r, j) for r in range(world.num_routes) for j in range(world.route_length)]

  def moves(old, new):
    next_stage = (old[0], (old[1] + 1) % world.route_length)
    kept = world.stay * (new == old) + (1 - world.stay) * (new == next_stage)
    return (1 - world.drift) * kept + world.drift / len(states)

  def emits(t, state):
    weight_V = emission_KxV[routes_RxJ[state]] * [
      1 + world.habit * items[:t].count(v) for v in range(world.num_items)]
    return float(weight_V[items[t]] / weight_V.sum())

  emitted = [{state: emits(t, state) for state in states} for t in range(len(items))]

  def onward(t, state):
    last = t + 1 == len(items)
    after = 1.0 if last else sum(moves(state, new) * onward(t + 1, new) for new in states)
    return emitted[t][state] * after

  return sum(onward(0, state) for state in states) / len(states)


@pytest.mark.parametrize('items', [[], [2], [2, 2], [5, 0, 5]])
def test_predictive_equals_enumeration_of_all_paths(items):
  row_1xT = np.array([items + [0] * (4 - len(items))])
  got_V = synthetic.predictive(TINY, row_1xT, np.array([len(items)]))[0]
  before = enumerated(TINY, items) if items else 1.0
  want_V = [enumerated(TINY, [*items, v]) / before for v in range(TINY.num_items)]
  np.testing.assert_allclose(got_V, want_V, rtol=1e-12)


def test_users_are_drawn_from_the_predictive_distribution():
  """Of many users, the share that takes each item next is the probability, at every step."""
  world = dataclasses.replace(TINY, num_users=60_000, max_length=3)
  items_UxT, _ = synthetic.histories(world)
  for step in range(3):
    seen_PxT, path_U = np.unique(items_UxT[:, :step], axis=0, return_inverse=True)
    cell_U = path_U.reshape(-1) * world.num_items + items_UxT[:, step]
    taken_PxV = np.bincount(cell_U, minlength=len(seen_PxT) * world.num_items)
    taken_PxV = taken_PxV.reshape(len(seen_PxT), world.num_items)
    users_Px1 = taken_PxV.sum(1, keepdims=True)
    prob_PxV = synthetic.predictive(world, seen_PxT, np.full(len(seen_PxT), step))
    std_PxV = np.sqrt(users_Px1 * prob_PxV * (1 - prob_PxV)) + 1
    worst = np.abs((taken_PxV - users_Px1 * prob_PxV) / std_PxV).max()
    assert worst < 4.5, f'step {step}: {worst:.1f} standard errors; generator and oracle differ'


def test_probabilities_sum_to_one_and_leave_nothing_impossible():
  prob_UxV = synthetic.oracle(World())
  assert prob_UxV.shape == (2000, 1000)
  np.testing.assert_allclose(prob_UxV.sum(1), 1, rtol=1e-9)
  assert prob_UxV.min() > 0


def test_predictive_looks_at_nothing_later():
  items_UxT, length_U = synthetic.histories(SMALL)
  other_UxT = np.where(np.arange(SMALL.max_length) < length_U[:, None] - 1, items_UxT, 0)
  np.testing.assert_array_equal(synthetic.oracle(SMALL),
                                synthetic.predictive(SMALL, other_UxT, length_U - 1))


def test_the_log_is_a_function_of_the_seed(tmp_path):
  for name, seed in (('a', 3), ('b', 3), ('c', 4)):
    synthetic.generate(dataclasses.replace(TINY, seed=seed)).write_csv(tmp_path / name)
  a, b, c = ((tmp_path / name).read_bytes() for name in 'abc')
  assert a == b
  assert a != c


def test_the_log_passes_through_prepare_unchanged(tmp_path):
  path = tmp_path / 'log.csv'
  synthetic.generate(SMALL).write_csv(path)
  options = PrepareOptions(user='user_id', item='item_id', time='timestamp')
  store = prepare(str(path), tmp_path / 'prepared', options)
  items_UxT, length_U = synthetic.histories(SMALL)
  np.testing.assert_array_equal(np.diff(store.offsets), length_U)
  assert store.user_ids.to_list() == [f'user-{u:04}' for u in range(SMALL.num_users)]
  number_V = np.array([int(name.removeprefix('item-')) for name in store.item_ids.to_list()])
  np.testing.assert_array_equal(number_V[store.items_N], items_UxT[items_UxT >= 0])


def test_lengths_are_uniform_and_times_rise():
  _, length_U = synthetic.histories(SMALL)
  assert set(length_U) == set(range(SMALL.min_length, SMALL.max_length + 1))
  log = synthetic.generate(SMALL)
  gaps = log.select(pl.col('timestamp').diff().over('user_id')).to_series().drop_nulls()
  assert gaps.min() > 0, 'a user has two items at one time'
  assert log['timestamp'].is_sorted(), 'the log is not in order of time'


def _targets(world):
  """One where a user's target is, [U, V]."""
  items_UxT, length_U = synthetic.histories(world)
  target_U = items_UxT[np.arange(world.num_users), length_U - 1]
  return (target_U[:, None] == np.arange(world.num_items)).astype(float)


def test_realised_metrics_are_close_to_the_expected_ones():
  expected = synthetic.best_metrics(SMALL)
  realised = synthetic.ranking_metrics(synthetic.oracle(SMALL), _targets(SMALL))
  assert expected.keys() == realised.keys() == {'recall@10', 'ndcg@10', 'mrr'}
  for name, value in expected.items():
    assert abs(realised[name] - value) < 4 * 0.5 / np.sqrt(SMALL.num_users), name


def test_metrics_of_a_known_ranking():
  target_UxV = _targets(SMALL)
  scores_UxV = target_UxV.copy()
  scores_UxV[:, :2] = 2  # two items tie above the target, unless it is one of them
  got = synthetic.ranking_metrics(scores_UxV, target_UxV)
  rank_U = np.where(target_UxV[:, :2].any(axis=1), 0.5, 2)
  assert got['recall@10'] == 1
  assert got['mrr'] == pytest.approx((1 / (rank_U + 1)).mean())
  assert got['ndcg@10'] == pytest.approx((1 / np.log2(rank_U + 2)).mean())
  alike = synthetic.ranking_metrics(np.zeros_like(scores_UxV), target_UxV)
  assert alike['recall@10'] == 0, 'a model that scores all alike must not look good'


def test_the_whole_history_matters_and_popularity_is_skewed_but_not_enough():
  world = World(num_users=500)
  best, prob_UxV = synthetic.best_metrics(world)['ndcg@10'], synthetic.oracle(world)
  items_UxT, length_U = synthetic.histories(world)
  before_U = length_U - 1
  count_V = np.bincount(items_UxT[items_UxT >= 0], minlength=world.num_items)
  assert np.sort(count_V)[-world.num_items // 10:].sum() > 0.5 * count_V.sum()

  def reached(scores_UxV):
    return synthetic.ranking_metrics(scores_UxV, prob_UxV)['ndcg@10'] / best

  def remembering(items):
    start_U = np.maximum(before_U - items, 0)
    index_UxT = np.minimum(start_U[:, None] + np.arange(items), world.max_length - 1)
    recent_UxT = np.take_along_axis(items_UxT, index_UxT, 1)
    return reached(synthetic.predictive(world, recent_UxT, before_U - start_U))

  assert reached(np.tile(count_V, (world.num_users, 1))) < 0.25
  assert remembering(1) < 0.75
  assert remembering(1) < remembering(3) < remembering(10) < 0.97
