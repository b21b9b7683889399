"""Is a difference between two recommenders more than chance of users and seeds?

A figure in a table is uncertain for two reasons: other users might have been sampled, and training
might have been started from other seeds. The factors are crossed, for every run ranks for the same
users, and their variances add up, less a share that both hold (Cameron, Gelbach and Miller, "Robust
Inference With Multiway Clustering", Journal of Business & Economic Statistics 29(2), 2011). So two
bootstraps are added up:

- over users, of the gain of each, averaged over runs: the paired bootstrap of information retrieval
  (Sakai, "Evaluating Evaluation Metrics based on the Bootstrap", SIGIR 2006);
- over runs, of their means, each side for itself. Of S runs S - 1 are drawn: drawing S would put the
  variance of the mean at (S - 1) / S of its value (Rao and Wu, "Resampling Inference With Complex
  Survey Data", JASA 83, 1988), too little for 2 or 3 seeds.

The share that both hold (how a user's gain depends on the run) is not taken off again: this errs on
the safe side, which so few seeds need. One run says nothing about seeds: then the interval speaks of
users alone, and is too short for a claim about a method.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

_BATCH = 64  # resamples at once: this many copies of the users are held


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
  the interval leaves zero out, and never below 2 / (resamples + 1).

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
  rng = np.random.default_rng(seed)
  gain_M = mine_SxM.mean(0) - other_RxM.mean(0)
  drawn = stats.bootstrap((gain_M,), np.mean, n_resamples=resamples, batch=_BATCH, rng=rng,
                          method='percentile').bootstrap_distribution
  if same_runs:
    drawn = drawn + _chance(mine_SxM.mean(1) - other_RxM.mean(1), resamples, rng)
  else:
    for side_S in (mine_SxM.mean(1), other_RxM.mean(1)):
      drawn = drawn + _chance(side_S, resamples, rng)
  tail = (1 - confidence) / 2
  low, high = np.quantile(drawn, (tail, 1 - tail))
  beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
  p = min(2 * (1 + beyond) / (resamples + 1), 1.0)
  return Difference(float(mine_SxM.mean() - other_RxM.mean()), float(low), float(high), float(p))


def _chance(mean_S: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
  """What the mean over runs is off by, in resamples of the runs; nothing for a single one."""
  drawn = rng.choice(mean_S, size=(resamples, max(len(mean_S) - 1, 1)))
  return drawn.mean(1) - mean_S.mean()


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
