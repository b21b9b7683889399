"""What depth buys: quality at each depth, of adaptive depth, and of the mean of several draws."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax import metrics, report
from lares_jax.adaptive import CRITERIA, Rule, changes, one_step
from lares_jax.data.batches import EvalBatch
from lares_jax.experiment import Experiment
from lares_jax.model.recurrence import at_places
from lares_jax.significance import by_user
from lares_jax.studies.cost import PerUser, catalogue_flops
from lares_jax.training.evaluation import Evaluator, begin, ranks_of_stack, user_vectors

KEPT = 0.995  # of the best depth's NDCG@10 on validation; the margin is for test to keep 99%
_LEVELS = np.linspace(0.05, 0.95, 10)  # quantiles of a step's changes that serve as thresholds


class Measured(NamedTuple):
  """Every step of every target of a split."""

  rank_TxM: np.ndarray
  settled_TxM: np.ndarray  # the ten best, in order, are those of the last step from here on
  change: dict[str, np.ndarray]  # by criterion [T, M]; see adaptive.changes
  user_M: np.ndarray | None = None  # whose target each is; None: each another user's


def measure(experiment: Experiment, params, split: str, most: int, users: int = 0) -> Measured:
  """One run to depth `most`, looked at after each step."""
  evaluator = experiment.evaluator
  step = functools.partial(_every_step, evaluator, most, params)
  rank, item, change = evaluator.over(step, split, users)
  same_TxM = (item == item[-1]).all(axis=-1)
  settled_TxM = np.logical_and.accumulate(same_TxM[::-1])[::-1]
  user_M = experiment.store.targets(split)[0][evaluator.chosen(split, users)]
  return Measured(rank, settled_TxM, change, user_M)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _every_step(evaluator: Evaluator, most: int, params, batch: EvalBatch):
  """Ranks, best items and changes after each step, all [T, B * A, ..]."""
  e, rows = evaluator, batch.rows
  real_M = batch.scored_BxA.reshape(-1)
  at_last = lambda z_BxLxD: at_places(z_BxLxD, batch.place_BxA).reshape(
    -1, z_BxLxD.shape[-1]).astype(jnp.float32)
  h_BxLxD, z_BxLxD = begin(e.model, params, rows, e.config.noise_seed)

  def step(z_BxLxD, _):
    new_BxLxD = one_step(e.model, params, h_BxLxD, rows, z_BxLxD)
    change, item_MxK = changes(
      e.catalogue, params['item'], at_last(z_BxLxD), at_last(new_BxLxD), real_M)
    rank_1xM = ranks_of_stack(e.catalogue, at_last(new_BxLxD)[None], batch, params['item'])
    return new_BxLxD, (rank_1xM[0], item_MxK, change)

  return jax.lax.scan(step, z_BxLxD, None, length=most)[1]


def interval(value_MxC: np.ndarray, user_M: np.ndarray | None = None,
             resamples: int = 1000) -> np.ndarray:
  """95% percentile bootstrap intervals over users of C means [2, C], from the same resamples."""
  if user_M is not None:
    value_MxC = by_user(value_MxC, user_M)
  generator, users = np.random.default_rng(0), len(value_MxC)
  share_M = np.full(users, 1 / users)
  mean_RxC = np.stack([generator.multinomial(users, share_M) @ value_MxC / users
                       for _ in range(resamples)])
  return np.quantile(mean_RxC, (0.025, 0.975), axis=0)


def by_depth(split: str, measured: Measured, depths: Sequence[int]) -> list[dict[str, Any]]:
  """A line for each depth, and one for the oracle that gives each user the best of them."""
  rank_DxM = measured.rank_TxM[np.array(depths) - 1]
  best_M = rank_DxM.argmin(axis=0)  # the shallowest of equals
  tables = [*map(metrics.per_user, rank_DxM), metrics.per_user(rank_DxM.min(axis=0))]
  names = list(tables[0])
  low, high = interval(np.concatenate([np.stack(list(t.values()), 1) for t in tables], axis=1),
                       measured.user_M).reshape(2, len(tables), -1)
  lines = []
  for n, depth in enumerate([*depths, None]):
    line: dict[str, Any] = {'split': split, 'depth': depth or 'oracle',
                            'mean_steps': depth or float(np.array(depths)[best_M].mean())}
    for c, name in enumerate(names):
      line |= {name: float(tables[n][name].mean()), f'{name}_low': float(low[n, c]),
               f'{name}_high': float(high[n, c])}
    if depth:
      line |= {'state_change': float(measured.change['state'][depth - 1].mean()),
               'settled': float(measured.settled_TxM[depth - 1].mean())}
    lines.append(line)
  return lines


def stops(measured: Measured, rule: Rule) -> np.ndarray:
  """The steps that the rule lets each target take [M]."""
  below_TxM = measured.change[rule.criterion][: rule.most] < rule.threshold
  return np.where(below_TxM.any(axis=0), below_TxM.argmax(axis=0) + 1, rule.most)


def adaptive_lines(experiment: Experiment, measured: Mapping[str, Measured], most: int,
                   cost: PerUser) -> tuple[Rule, list[dict[str, Any]]]:
  """Rules by criterion and threshold, and the one to take.

  That is the cheapest in FLOPs, its own criterion counted, of those that keep KEPT of what `most`
  fixed steps give on validation.
  """
  valid, test = measured['valid'], measured['test']
  ndcg = lambda m, step_M: float(metrics.gain(_at(m, step_M), 10, 'ndcg').mean())
  wanted = KEPT * ndcg(valid, np.full(valid.rank_TxM.shape[1], most))
  found = []
  for criterion in CRITERIA:
    for threshold in np.unique([0.0, *np.quantile(valid.change[criterion][:most], _LEVELS)]):
      rule = Rule(criterion, float(threshold), most)
      step_M = stops(test, rule)
      values = metrics.summary(_at(test, step_M))
      extra = catalogue_flops(experiment) if criterion != 'state' else 0.0
      of_steps = lambda steps, extra=extra: cost.at(steps)['mflops_per_user'] + steps * extra / 1e6
      valid_M = stops(valid, rule)
      found.append((rule, {
        'criterion': criterion, 'threshold': rule.threshold, 'mean_steps': float(step_M.mean()),
        **{name: values[name] for name in report.SHORT}, 'mflops_per_user': of_steps(step_M.mean()),
        'valid_mean_steps': float(valid_M.mean()), 'valid_ndcg@10': ndcg(valid, valid_M),
        'valid_mflops_per_user': of_steps(valid_M.mean())}))
  good = [(rule, line) for rule, line in found if line['valid_ndcg@10'] >= wanted]
  chosen = min(good, key=lambda pair: pair[1]['valid_mflops_per_user'])[0]
  return chosen, [{**line, 'chosen': rule == chosen} for rule, line in found]


def _at(measured: Measured, step_M: np.ndarray) -> np.ndarray:
  return np.take_along_axis(measured.rank_TxM, step_M[None] - 1, axis=0)[0]


def width_lines(experiment: Experiment, params, depths: Sequence[int], widths: Sequence[int],
                users: int, cost: PerUser) -> list[dict[str, Any]]:
  """Test quality of the mean user vector over n draws of the initial state, at each depth."""
  evaluator = experiment.evaluator
  step = functools.partial(_of_draws, evaluator, tuple(depths), tuple(widths), params)
  rank_XxM = evaluator.over(step, 'test', users)
  lines, start = [], cost.at(0)['mflops_per_user']
  for n, width in enumerate(widths):
    for d, depth in enumerate(depths):
      values = metrics.summary(rank_XxM[n * len(depths) + d])
      lines.append({'draws': width, 'depth': depth, **{name: values[name] for name in report.SHORT},
                    'mflops_per_user': start + width * (cost.at(depth)['mflops_per_user'] - start)})
  return lines


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_draws(evaluator: Evaluator, depths, widths, params, batch: EvalBatch):
  """Ranks [widths * depths, B * A]."""
  e = evaluator

  def more(total, draw):
    start = begin(e.model, params, batch.rows, e.config.noise_seed, draw)
    vector_TxBxAxD = user_vectors(e.model, params, batch.rows, batch.place_BxA, start, depths)
    total = total + vector_TxBxAxD.reshape(total.shape)
    return total, total

  shape = len(depths), batch.target_BxA.size, e.model.config.backbone.width
  _, total_NxTxMxD = jax.lax.scan(more, jnp.zeros(shape), jnp.arange(max(widths)))
  mean_XxMxD = jnp.concatenate([total_NxTxMxD[n - 1] / n for n in widths])
  return ranks_of_stack(e.catalogue, mean_XxMxD, batch, params['item'])
