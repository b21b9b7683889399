"""Is a difference between two recommenders more than chance of users and seeds? Numpy alone.

Two rows of a table differ by chance for two reasons: other users might have been sampled, and
training might have been started from other seeds. The factors are crossed, not nested: every run
ranks for the same users. So a resample draws users and, independently, runs (Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1(2), 2007), which errs on the safe side where a user's gain
depends on the run. Users are drawn in common for both sides, which is the paired bootstrap of
information retrieval (Sakai, "Evaluating evaluation metrics based on the bootstrap", SIGIR 2006).

Of S runs S - 1 are drawn: drawing S would put the variance of their mean at (S - 1) / S of its value
(Rao and Wu, "Resampling inference with complex survey data", JASA 83, 1988), much for 2 or 3 seeds.
One run can say nothing about seeds: it is held fixed, and the interval speaks of users alone.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
  """Mean of one side less the mean of the other, its percentile interval and two-sided p-value."""

  value: float
  low: float
  high: float
  p: float


def difference(mine_SxM: np.ndarray, other_RxM: np.ndarray, *, same_runs: bool = False, seed: int = 0,
               resamples: int = 9999, confidence: float = 0.95) -> Difference:
  """Compares a metric of S runs with that of R other runs on the same M targets.

  The p-value is twice the share of resamples on the far side of zero, itself counted in (Davison and
  Hinkley, "Bootstrap Methods and their Application", 1997, section 4.4): below 1 - confidence where
  the interval leaves zero out, and at least 2 / (resamples + 1).

  Args:
    mine_SxM: the metric of each run (seed) for each target, such as NDCG@10.
    other_RxM: the same of the other side, targets in the same order.
    same_runs: run s of both sides shares its training (S = R), so that they are drawn together.
    seed: of the resampling.
    resamples: how many.
    confidence: of the interval.
  """
  if mine_SxM.shape[1] != other_RxM.shape[1] or (same_runs and mine_SxM.shape != other_RxM.shape):
    raise ValueError(f'{mine_SxM.shape} and {other_RxM.shape} are not of the same targets and runs')
  drawn = _resampled(mine_SxM, other_RxM, same_runs, np.random.default_rng(seed), resamples)
  tail = (1 - confidence) / 2
  low, high = np.quantile(drawn, (tail, 1 - tail))
  beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
  p = min(2 * (1 + beyond) / (resamples + 1), 1.0)
  return Difference(float(mine_SxM.mean() - other_RxM.mean()), float(low), float(high), float(p))


def _resampled(mine_SxM, other_RxM, same_runs: bool, rng: np.random.Generator, resamples: int):
  """The difference in each resample of runs and users."""
  users = mine_SxM.shape[1]
  # Most users gain nothing from any run. Of them only the number in a resample matters, not who.
  some_M = (mine_SxM != 0).any(0) | (other_RxM != 0).any(0)
  mine_SxK, other_RxK = mine_SxM[:, some_M], other_RxM[:, some_M]
  gaining = mine_SxK.shape[1]
  runs = lambda side: rng.integers(len(side), size=(resamples, max(len(side) - 1, 1)))
  mine = runs(mine_SxK)
  other = mine if same_runs else runs(other_RxK)
  out = np.zeros(resamples)
  for i, count in enumerate(rng.binomial(users, gaining / users, resamples)):
    gap_K = mine_SxK[mine[i]].mean(0) - other_RxK[other[i]].mean(0)
    out[i] = gap_K[rng.integers(max(gaining, 1), size=count)].sum() / users
  return out


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
