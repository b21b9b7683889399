"""Trains named configs with several seeds, and sets them side by side in one table.

    python -m lares_jax.compare --config=configs/compare_beauty.py --workdir=runs/compare_beauty \\
        --config.data_path=../shared/data/beauty.txt [--config.seeds=0,1,2]

Each run goes to WORKDIR/NAME/seed_SEED. What is finished is left alone; stopped by a signal or killed,
the same command goes on where it was. The table is printed and written to WORKDIR/compare.md, .csv
and .json: the test at the depth chosen on validation, what it costs, and the difference in NDCG@10
from the row it stands against, with interval and p-value (see significance.py). The last row is
popularity in training. --finished trains nothing: the table is of what is there, and the rest is
named; it needs config.json, metrics.jsonl, ranks.npz and result.json of each run. A config names

    runs        name -> config (of another config file), or of=NAME to look at that row's runs again;
                phase=pretrain or posttrain to test that phase, not the better one on validation;
                against=NAME and seeds=(..), where they differ from the table's
    reference   the row that all others stand against
    seeds, data_path, resamples
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import numpy as np
import polars as pl
import tqdm
from absl import flags
from ml_collections import config_flags

from lares_jax import comparison, files, metrics, processes, report, significance
from lares_jax import config as config_lib
from lares_jax.comparison import Plan
from lares_jax.data.rows import ranges
from lares_jax.errors import front_door
from lares_jax.experiment import Experiment
from lares_jax.model.lares import GIVEN
from lares_jax.studies.cost import flops_per_user
from lares_jax.training.evaluation import History
from lares_jax.training.log import training_seconds

_CONFIG = config_flags.DEFINE_config_file('config', help_string='A file configs/compare_*.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where runs and table go.', required=True)
flags.mark_flag_as_required('config')
_FINISHED = flags.DEFINE_bool('finished', False, 'Train nothing; show the runs that are finished.')

HISTORIES = get_args(History)
_USERS = 1 << 16  # whose histories are listed at once


def main() -> None:
  workdir = pathlib.Path(_WORKDIR.value)
  with processes.joined():
    plan = config_lib.typed(_CONFIG.value, Plan)
    experiments = comparison.start(plan, workdir, to_train=not _FINISHED.value)
    if _FINISHED.value:
      plan, experiments = comparison.finished_part(plan, experiments)
    else:
      comparison.train(experiments)
    write(plan, compare(plan, experiments), workdir)


def compare(plan: Plan, experiments: Mapping[str, Sequence[Experiment]]) -> list[dict[str, Any]]:
  """The lines of the table, one for each row and each way to treat the history, all numbers bare."""
  found = {name: [_shown(e, plan.runs[name].phase) for e in runs] for name, runs in experiments.items()}
  cost = {name: _cost(runs, found[name], plan.runs[name].phase) for name, runs in experiments.items()}
  user_M, _ = experiments[plan.reference][0].store.targets('test')
  lines = []
  for history in HISTORIES:
    scores = {name: _scores(shown, history) for name, shown in found.items()}
    # Rows that look at another's runs again add nothing.
    spread = significance.pooled(by_key['ndcg@10'].mean(1) for name, by_key in scores.items()
                                 if plan.source(name) == name)
    block = []
    for name, runs in tqdm.tqdm(experiments.items(), f'history {history}', unit='row', disable=None):
      line = {'run': name, 'history': history, 'seeds': len(runs)}
      for key, value_SxM in scores[name].items():
        mean_S = value_SxM.mean(1)
        line[key] = float(mean_S.mean())
        line[f'{key}_std'] = float(mean_S.std(ddof=1)) if len(runs) > 1 else None
      block.append({**line, **cost[name], **_difference(plan, name, scores, spread, user_M)})
    block.append(_popularity(experiments[plan.reference][0], history))
    tested = [line for line in block if 'p' in line]
    for line, p in zip(tested, significance.holm([line['p'] for line in tested])):
      line['p_holm'] = p
    lines += block
  return pl.DataFrame(lines, infer_schema_length=None).to_dicts()  # what a line lacks is None


def _popularity(experiment: Experiment, history: str) -> dict[str, Any]:
  """The line of ranking by occurrences in training, ties counting half."""
  store = experiment.store
  user_M, index_M = store.targets('test')
  count_V, target_M = store.train_count_V, store.items_N[index_M]
  rank_M = metrics.ranks(count_V)[target_M]
  for low in range(0, len(rank_M) if history == 'removed' else 0, _USERS):
    m = np.arange(low, min(low + _USERS, len(rank_M)))
    first_m = store.offsets[user_M[m]]
    length_m = index_M[m] - first_m
    own_N = np.repeat(m, length_m) * store.num_items + store.items_N[ranges(length_m, first_m)]
    own_N, hidden_N = np.divmod(np.unique(own_N), store.num_items)  # of several alike, one
    gap_N = count_V[hidden_N] - count_V[target_M[own_N]]
    rank_M[m] -= np.bincount(own_N - low, (1 + np.sign(gap_N)) / 2, len(m))
    rank_M[own_N[hidden_N == target_M[own_N]]] = store.num_items - 1
  value_M = metrics.per_user(rank_M, (10,))
  nothing = dict.fromkeys(('parameters', 'parameters_without_items', 'training_seconds',
                           'flops_per_user'), 0)
  return {'run': 'popularity', 'history': history, 'seeds': 1, 'depth': '', **nothing,
          **{key: float(value_M[key].mean()) for key in report.SHORT}}


def _shown(experiment: Experiment, phase: str) -> dict[str, Any]:
  """Of a phase, or of the chosen one if empty: NDCG@10 on validation, depth, ranks on test."""
  result, ranks = experiment.result(), files.read_arrays(experiment.workdir / 'ranks.npz')
  phase = phase or result['phase']
  return {'valid': result['validation_by_phase'][phase]['ndcg@10'],
          **{key: ranks[f'{phase}_{key}'] for key in ('depth', 'test_ranked', 'test_removed')}}


def _scores(shown: Sequence[Mapping[str, Any]], history: str) -> dict[str, np.ndarray]:
  """Each metric [seed, target] on test."""
  by_seed = [metrics.per_user(of_run[f'test_{history}'], (10,)) for of_run in shown]
  return {key: np.stack([values[key] for values in by_seed]) for key in report.SHORT}


def _difference(plan: Plan, name: str, scores, spread: significance.Spread,
                user_M: np.ndarray) -> dict[str, Any]:
  other = plan.against(name)
  if other == name:
    return {}
  mine, theirs = scores[name]['ndcg@10'], scores[other]['ndcg@10']
  found = significance.difference(
    mine, theirs, spread, user_M=user_M, same_runs=plan.source(name) == plan.source(other),
    resamples=plan.resamples)
  relative = found.value / theirs.mean() if theirs.any() else None
  return {'against': other, 'difference': found.value, 'relative': relative, 'low': found.low,
          'high': found.high, 'p': found.p}


def _cost(runs: Sequence[Experiment], shown: Sequence[Mapping[str, Any]], phase: str) -> dict[str, Any]:
  """What does not depend on the history: validation, own items above, parameters, seconds, FLOPs."""
  depths = [int(of_run['depth']) for of_run in shown]
  flops = {depth: flops_per_user(runs[0], depth) for depth in sorted(set(depths))}
  others = sum(x.size for key, tree in runs[0].abstract_params.items()
               if key not in GIVEN | {'item'} for x in jax.tree.leaves(tree))
  above = [_own_above(of_run['test_ranked'], of_run['test_removed']) for of_run in shown]
  phases = ('pretrain',) if phase == 'pretrain' else ('pretrain', 'posttrain')
  return {'depth': ', '.join(map(str, flops)),
          'validation_ndcg@10': float(np.mean([of_run['valid'] for of_run in shown])),
          'own_above': float(np.mean(above)),
          'parameters': others + runs[0].store.num_items * runs[0].config.model.backbone.width,
          'parameters_without_items': others,
          'training_seconds': float(np.mean([training_seconds(e.workdir, phases) for e in runs])),
          'flops_per_user': float(np.mean([flops[depth] for depth in depths]))}


def _own_above(ranked_M: np.ndarray, removed_M: np.ndarray) -> float:
  """The user's own items above a target that ranks within ten once they are out, on average."""
  near_M = removed_M < 10
  return float((ranked_M - removed_M)[near_M].mean()) if near_M.any() else 0.0


def write(plan: Plan, lines: list[dict[str, Any]], workdir: pathlib.Path) -> None:
  """Prints the table; writes compare.md, compare.csv and compare.json."""
  text = '\n\n'.join(_markdown([line for line in lines if line['history'] == h], h) for h in HISTORIES)
  print(f'\n{text}\n')
  files.write(workdir / 'compare.md', (text + '\n').encode())
  flat = pl.DataFrame(lines, infer_schema_length=None)
  files.write(workdir / 'compare.csv', flat.write_csv().encode())
  files.write_json(workdir / 'compare.json', {
    'reference': plan.reference, 'resamples': plan.resamples, 'rows': lines})
  print(f'wrote {workdir}/compare.md, compare.csv, compare.json')


def _markdown(lines: Sequence[Mapping[str, Any]], history: str) -> str:
  head = ['run', 'seeds', 'depth', 'validation NDCG@10', 'Recall@10', 'NDCG@10', 'MRR', 'own above',
          'parameters', 'without items', 'training s', 'MFLOPs/user',
          'NDCG@10 against', 'difference', '95% interval', 'p', 'p (Holm)']
  cells = []
  for line in lines:
    mean = [f'{line[key]:.4f}' + ('' if line[f'{key}_std'] is None else f' ± {line[f"{key}_std"]:.4f}')
            for key in report.SHORT]
    cost = [f'{line["parameters"]:,}', f'{line["parameters_without_items"]:,}',
            f'{line["training_seconds"]:,.0f}', f'{line["flops_per_user"] / 1e6:,.1f}']
    valid, above = line['validation_ndcg@10'], line['own_above']
    cells.append([line['run'], str(line['seeds']), line['depth'],
                  '' if valid is None else f'{valid:.4f}', *mean,
                  '' if above is None else f'{above:.2f}', *cost, *_tested(line)])
  return (f'Test, history {history}; mean ± standard deviation over seeds. Depth is chosen on '
          'validation, which is shown at depth.mean, as training watches it; both by the '
          'evaluate.history of each row. Own above: how many of the user\'s own items stand above the '
          'target, where it ranks within ten once they are out. The runs of a row are taken to '
          'vary by no less than those of all rows, pooled.\n\n'
          f'{report.table(head, cells)}')


def _tested(line: Mapping[str, Any]) -> list[str]:
  if line.get('p') is None:
    return [''] * 5
  relative = '' if line['relative'] is None else f' ({line["relative"]:+.1%})'
  return [line['against'], f'{line["difference"]:+.4f}{relative}',
          f'{line["low"]:+.4f} to {line["high"]:+.4f}', f'{line["p"]:.2g}', f'{line["p_holm"]:.2g}']


if __name__ == '__main__':
  front_door(main)
