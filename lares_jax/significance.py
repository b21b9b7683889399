"""Is a difference between two recommenders more than chance of users and seeds?

A figure in a table is uncertain for two reasons: other users might have been sampled, and training
might have been started from other seeds. The factors are crossed, for every run ranks for the same
users, and their variances add up, less a share that both hold (Cameron, Gelbach and Miller, "Robust
Inference With Multiway Clustering", Journal of Business & Economic Statistics 29(2), 2011). So the
variances of two kinds of error are added up:

- over users, of the gain of each, averaged over runs: the paired bootstrap of information retrieval
  (Sakai, "Evaluating Evaluation Metrics based on the Bootstrap", SIGIR 2006); a user with several
  targets is drawn with all of them;
- over runs, of each side's mean: s^2 / S. Few runs know s^2 badly, so the sum is held against Student's
  t with the degrees of freedom of Satterthwaite (Biometrics Bulletin 2(6), 1946). To resample 3 runs is
  not enough: where seeds matter most it finds p < .01 in every tenth case of no difference at all.

The share that both hold (how a user's gain depends on the run) is not taken off again, which errs on
the safe side. So does `spread`, the variance of the runs of all rows of a table, pooled: a side is
taken to vary by no less, for two or three runs may lie close together by luck, and one says nothing.
Where no row has two runs, the interval speaks of users alone, too short for a claim about a method.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_BATCH = 64  # resamples at once, each a copy of the users
_ROOM = 2**25  # users in all copies


class Spread(NamedTuple):
  """How runs that differ in their seed alone vary."""

  variance: float
  freedom: int  # degrees of freedom that it is known with


UNKNOWN = Spread(0.0, 1)  # runs are not known to vary


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean of one side less the mean of the other, its 95% interval and two-sided p-value."""

  value: float
  low: float
  high: float
  p: float


def difference(mine_SxM: np.ndarray, other_RxM: np.ndarray, spread: Spread, *,
               user_M: np.ndarray | None = None, same_runs: bool = False,
               resamples: int = 1999) -> Difference:
  """Compares a metric of S runs with that of R other runs on the same M targets.

  Args:
    mine_SxM: the metric of each run (seed) for each target, such as NDCG@10.
    other_RxM: the same of the other side, targets in the same order.
    spread: what the runs of a side vary by at least; see `pooled`.
    user_M: whose target each is, those of a user side by side; None: each another user's.
    same_runs: run s of both sides shares its training (S = R), so that only their gap has an error.
    resamples: of the bootstrap.
  """
  if mine_SxM.shape[1] != other_RxM.shape[1] or (same_runs and mine_SxM.shape != other_RxM.shape):
    raise ValueError(f'{mine_SxM.shape} and {other_RxM.shape} are not of the same targets and runs')
  gain_M = mine_SxM.mean(0) - other_RxM.mean(0)
  gain_U = gain_M if user_M is None else by_user(gain_M, user_M)
  users = stats.bootstrap((gain_U,), np.mean, n_resamples=resamples, method='percentile',
                          batch=min(_BATCH, max(_ROOM // len(gain_U), 1)), rng=np.random.default_rng(0))
  sides = [mine_SxM - other_RxM] if same_runs else [mine_SxM, other_RxM]
  runs = _over_runs([side.mean(1) for side in sides], UNKNOWN if same_runs else spread)
  variance = users.standard_error**2 + sum(v for v, _ in runs)
  doubt = sum(v**2 / freedom for v, freedom in runs)
  freedom = variance**2 / doubt if doubt else np.inf
  value, error = float(gain_M.mean()), float(np.sqrt(variance))
  if not error:  # the same for every user and run
    return Difference(value, value, value, float(value == 0))
  reach = error * stats.t.ppf(0.975, freedom)
  p = 2 * stats.t.sf(abs(value) / error, freedom)
  return Difference(value, float(value - reach), float(value + reach), float(p))


def by_user(value_MxC: np.ndarray, user_M: np.ndarray) -> np.ndarray:
  """One value for each user [U, ..], of the same mean, whose error is that of the mean over targets.

  The mean over targets is a ratio, of the users' sums to their numbers of targets, and this is what
  each user adds to it (linearised), so that the targets of one user are not taken to be independent.
  Those of one user stand together, as in `Store.targets`; further axes are kept.
  """
  first_U = np.flatnonzero(np.diff(user_M, prepend=-1))
  if len(first_U) in (1, len(user_M)):  # a single user could not be drawn
    return value_MxC
  mean_C = value_MxC.mean(axis=0)
  return mean_C + np.add.reduceat(value_MxC - mean_C, first_U) * (len(first_U) / len(user_M))


def pooled(means: Iterable[np.ndarray]) -> Spread:
  """The spread that the runs of several rows, each about its own mean, show."""
  squares, freedom = 0.0, 0
  for mean_S in means:
    squares += float(((mean_S - mean_S.mean()) ** 2).sum())
    freedom += len(mean_S) - 1
  return Spread(squares / freedom, freedom) if freedom else UNKNOWN


def _over_runs(means: Sequence[np.ndarray], spread: Spread) -> list[Spread]:
  """Variances that add up to that of the sides' means."""
  sides = [(len(mean_S), float(mean_S.var(ddof=1)) if len(mean_S) > 1 else 0.0) for mean_S in means]
  narrow = sum(1 / runs for runs, variance in sides if variance <= spread.variance)
  wide = [Spread(variance / runs, runs - 1) for runs, variance in sides if variance > spread.variance]
  return [*wide, Spread(narrow * spread.variance, spread.freedom)]


def holm(p_values: Sequence[float]) -> list[float]:
  """P-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

  The smallest of n is multiplied by n, the next by n - 1, and so on; none falls below one before it.
  """
  p_N = np.asarray(p_values, np.float64)
  order_N = np.argsort(p_N, kind='stable')
  raised_N = p_N[order_N] * np.arange(len(p_N), 0, -1)
  out_N = np.empty_like(p_N)
  out_N[order_N] = np.minimum(np.maximum.accumulate(raised_N), 1.0)
  return out_N.tolist()
