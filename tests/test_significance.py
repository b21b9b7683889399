"""Significance of a difference: known cases, and scipy's own tests where they ask the same."""

import functools

import numpy as np
import pytest
from scipy import stats

from lares_jax import significance

# Nothing known of other runs.
difference = functools.partial(significance.difference, spread=significance.UNKNOWN)


def _worlds(shift=0.0, runs=3, users=800, noise=0.0, seed=0):
  """Two sides of runs on the same users: what users differ in is common, runs and chance are not."""
  rng = np.random.default_rng(seed)
  common_M = rng.random(users)
  side = lambda shift: (common_M + shift + noise * rng.standard_normal((runs, 1))
                        + 0.1 * rng.standard_normal((runs, users)))
  return side(shift), side(0.0)


def test_no_difference_is_not_significant_and_a_clear_one_is():
  none, clear = (difference(*_worlds(shift), resamples=999) for shift in (0.0, 0.05))
  assert none.p > 0.1 and none.low < 0 < none.high
  assert clear.p < 0.001
  assert 0 < clear.low < clear.value < clear.high
  mine, other = _worlds(0.05)
  assert clear.value == pytest.approx(mine.mean() - other.mean())
  back = difference(other, mine, resamples=999)
  assert back.value == pytest.approx(-clear.value) and back.p == clear.p


def test_the_very_same_runs_have_p_1():
  mine, _ = _worlds()
  assert difference(mine, mine, same_runs=True, resamples=99).p == 1.0
  nothing = np.zeros((2, 5))
  assert difference(nothing, nothing, resamples=99).p == 1.0


def test_one_run_agrees_with_scipys_paired_tests():
  mine, other = _worlds(0.008, runs=1, seed=3)
  found = difference(mine, other)
  paired = stats.ttest_rel(mine[0], other[0])
  assert 0.005 < paired.pvalue < 0.4, 'the case must be one in doubt'
  assert found.p == pytest.approx(paired.pvalue, rel=0.1)
  interval = paired.confidence_interval()
  assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=4e-4)


@pytest.mark.parametrize('runs', (2, 3, 5))
def test_chance_of_seeds_is_students(runs):
  """Where each run's gain is the same for all users, it is the one-sample t-test of these gains."""
  rng = np.random.default_rng(1)
  mine = np.repeat(0.6 + rng.standard_normal((runs, 1)), 20, axis=1)
  found = difference(mine, np.zeros_like(mine), same_runs=True, resamples=99)
  exact = stats.ttest_1samp(mine[:, 0], 0)
  interval = exact.confidence_interval()
  assert found.p == pytest.approx(exact.pvalue, rel=1e-6)
  assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)


@pytest.mark.parametrize('runs', (2, 3, 5))
def test_a_difference_that_seeds_explain_is_not_claimed(runs):
  """Enough users make any two runs differ; the seeds say that it means nothing."""
  many = [_worlds(runs=runs, users=400, noise=0.05, seed=s) for s in range(100)]
  found = [difference(*pair, resamples=199).p for pair in many]
  naive = [difference(*(side.mean(0)[None] for side in pair), resamples=199).p
           for pair in many]
  assert np.mean(np.less(naive, 0.05)) > 0.5, 'the case must be one where users alone mislead'
  assert np.mean(np.less(found, 0.05)) <= 0.11, 'more than 5% and three standard errors of it'


def test_targets_of_one_user_are_not_independent():
  """Twenty targets of a user that all gain alike say no more than one of them."""
  rng = np.random.default_rng(5)
  gain_U, count_U = rng.standard_normal(60), rng.integers(1, 20, 60)
  user_M = np.repeat(np.arange(60), count_U)
  alike = gain_U[user_M][None]
  found = difference(alike, np.zeros_like(alike), user_M=user_M, resamples=4999)
  drawn = rng.integers(60, size=(4999, 60))
  means = (gain_U * count_U)[drawn].sum(1) / count_U[drawn].sum(1)
  assert found.high - found.low == pytest.approx(2 * 1.96 * means.std(), rel=0.1)
  naive = difference(alike, np.zeros_like(alike), resamples=999)
  assert naive.value == pytest.approx(found.value)
  assert naive.high - naive.low < 0.5 * (found.high - found.low)
  one = rng.permutation(len(user_M))  # each another user's, in any order
  assert difference(alike, alike * 0, user_M=one) == difference(alike, alike * 0)


def test_runs_vary_by_no_less_than_those_of_all_rows():
  """Two that lie close together by luck make nothing sure; two far apart are no less so for others."""
  rng = np.random.default_rng(4)
  rows = [rng.standard_normal(3) + n for n in range(5)]
  spread = significance.pooled([*rows, np.ones(1)])
  one_way = stats.f_oneway(*rows)  # its error term is the pooled variance
  between = sum(3 * (row.mean() - np.mean(rows)) ** 2 for row in rows) / 4
  assert spread.freedom == 10 and between / spread.variance == pytest.approx(one_way.statistic)
  close = np.repeat([[0.0], [1e-6]], 20, axis=1)
  mine = np.full((1, 20), 1.0)
  p = lambda *sides: significance.difference(*sides, spread=spread, resamples=99).p
  exact = lambda runs: 2 * stats.t.sf(1 / np.sqrt(spread.variance * runs), 10)
  assert difference(mine, close, resamples=99).p < 1e-3
  assert p(mine, close) == pytest.approx(exact(1 + 1 / 2), rel=1e-3) and p(mine, close) > 0.1
  assert p(mine.repeat(2, axis=0), close) == pytest.approx(exact(1 / 2 + 1 / 2), rel=1e-3)
  far = np.repeat([[-20.0], [22.0]], 20, axis=1)
  assert p(far, close) > difference(far, close, resamples=99).p > 0.9
  assert p(mine, close[:1]) == pytest.approx(exact(2), rel=1e-6)
  assert significance.pooled([np.ones(1)]) == significance.UNKNOWN


def test_runs_that_share_their_training_are_drawn_together():
  rng = np.random.default_rng(0)
  start = np.repeat(rng.standard_normal((3, 1)), 200, axis=1) + 0.01 * rng.standard_normal((3, 200))
  after = start + 0.05
  assert difference(after, start, same_runs=True, resamples=499).p < 0.01
  assert difference(after, start, resamples=499).p > 0.1


def test_the_same_runs_give_the_same_figures_and_other_users_are_refused():
  mine, other = _worlds(0.01)
  once, again = (difference(mine, other, resamples=199) for _ in range(2))
  assert once == again
  with pytest.raises(ValueError, match='same targets'):
    difference(mine, other[:, 1:])
  with pytest.raises(ValueError, match='runs'):
    difference(mine, other[:2], same_runs=True)


def test_holm_by_hand():
  # Rising: .01 * 4 = .04, .02 * 3 = .06, .03 * 2 = .06, .9 * 1.
  assert significance.holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
  # .02 * 2 = .04; then .03 * 1 = .03 would fall below it.
  assert significance.holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])
  assert significance.holm([0.8, 0.7]) == [1.0, 1.0]
  assert significance.holm([]) == []
