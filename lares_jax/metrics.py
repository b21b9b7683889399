"""From ranks to Recall, NDCG and MRR; the reward of phase two is the same arithmetic."""

from typing import Literal, get_args

import numpy as np

Kind = Literal['recall', 'ndcg']


def gain(rank, k: int, kind: Kind, xp=np):
  """Of each rank (from 0): `recall` [rank < k], or `ndcg` [rank < k] / log2(rank + 2).

  `xp` is the array module, numpy or jax.numpy. A NaN rank gains nothing.
  """
  hit = (rank < k) * 1.0
  if kind == 'recall':
    return hit
  if kind != 'ndcg':
    raise ValueError(f'kind={kind!r}: use recall or ndcg')
  return hit / xp.log2(xp.where(rank < k, rank, 0) + 2)


def per_user(rank_M: np.ndarray, cutoffs=(5, 10, 20)) -> dict[str, np.ndarray]:
  """Every metric of every target, by name [M]; the mean over M is the published figure."""
  rank_M = np.asarray(rank_M, np.float64)
  columns = {f'{kind}@{k}': gain(rank_M, k, kind) for kind in get_args(Kind) for k in cutoffs}
  columns['mrr'] = np.nan_to_num(1 / (rank_M + 1))
  return columns


def summary(rank_M: np.ndarray) -> dict[str, float]:
  """Means over targets; an empty split has none, said as NaN."""
  return {k: float(v.mean()) if v.size else float('nan') for k, v in per_user(rank_M).items()}


def ranks(score_XxV: np.ndarray) -> np.ndarray:
  """Ranks from 0 of all items by their scores, the highest first, ties counting half."""
  from scipy import stats  # not at the top: every command would load it, for half a second
  return stats.rankdata(-score_XxV, axis=-1) - 1
