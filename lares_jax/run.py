"""A run: its phases in order, then phase and depth chosen on validation, then the test."""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from lares_jax import metrics, processes, report, selection
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.files import held, write_arrays, write_json
from lares_jax.training import loop
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.evaluation import History


def train(experiment: Experiment) -> dict:
  """Runs the phases that the config names, then evaluates what was trained; returns the result."""
  if (experiment.workdir / 'result.json').exists() and not any(
      _saved(experiment, phase) for phase in ('pretrain', 'posttrain')):
    raise InputError(f'{experiment.workdir} holds a finished run without its checkpoints, so it cannot '
                     'go on; choose another directory')
  c = experiment.config
  fit = lambda phase, start: loop.run(phase, start, experiment.abstract_params, experiment.workdir,
                                      dataclasses.asdict(c), experiment.mesh)
  with held(experiment.workdir):
    experiment.keep_items()
    if 'pretrain' in c.phase_list:
      fit(experiment.pretraining(), experiment.init_params)
    # A phase goes on with the prompts that it began with.
    if 'select' in c.phase_list and not _saved(experiment, 'posttrain'):
      selection.select(experiment)
    if 'posttrain' in c.phase_list:
      reference = experiment.reference()
      fit(experiment.posttraining(reference, selection.load(experiment)), lambda: reference)
    if c.phase_list == ['select'] and not _saved(experiment, 'pretrain'):  # of posttrain.start's
      print(f'wrote {experiment.workdir}/prompts.json, prompts.npz, items.arrow')
      return {}
    result = finish(experiment)
  print(f'wrote {experiment.workdir}/result.json, ranks.npz, items.arrow, metrics.jsonl, checkpoints/, '
        'tensorboard/')
  return result


def _saved(experiment: Experiment, phase: str) -> bool:
  with contextlib.closing(Checkpoints(experiment.workdir, phase, read_only=True)) as checkpoints:
    return checkpoints.best_step is not None


def finish(experiment: Experiment) -> dict:
  """Chooses phase and depth on validation, tests them, and writes ranks.npz and result.json.

  ranks.npz holds, for each phase with a checkpoint, the depth that validation chose for it
  (`pretrain_depth`), and at that depth the rank of every target of `store.targets(split)`, float32
  [M]: `pretrain_test_ranked`, `pretrain_test_removed` (history removed), and so on.
  """
  c = experiment.config
  # Phase one is the start of phase two; a phase two that is not asked for any more is left out.
  phases = [p for p in ('pretrain', 'posttrain')
            if (p == 'pretrain' or p in c.phase_list) and _saved(experiment, p)]
  best = {p: experiment.best(p) for p in phases}
  chosen = max(phases, key=lambda p: best[p][1]['ndcg@10'])
  outcomes = {p: _outcome(experiment, best[p][0]) for p in phases}
  depth, by_depth, _ = outcomes[chosen]
  ranks = {f'{p}_{key}': array for p in phases for key, array in outcomes[p][2].items()}
  write_arrays(experiment.workdir / 'ranks.npz', ranks)
  result = {
    'data': experiment.store.meta['sources'], 'fingerprint': experiment.store.fingerprint,
    'seed': c.seed, 'phase': chosen, 'step': best[chosen][2],
    'validation_by_phase': {p: best[p][1] for p in phases},
    'depth': depth, 'history': c.evaluate.history, 'validation': by_depth['valid'],
    'test': by_depth['test'], 'test_at_depth': by_depth['test'][depth],
    'settings': {'phases': c.phases, 'evaluate': dataclasses.asdict(c.evaluate)},
  }
  write_json(experiment.workdir / 'result.json', result)
  processes.wait('result')
  print(report.depth_table(by_depth['test'], depth, f'test, history {c.evaluate.history}'))
  if len(phases) > 1:
    print(f'phases on validation NDCG@10, history {c.evaluate.history}: ' + ', '.join(
      f'{p} {best[p][1]["ndcg@10"]:.4f}' for p in phases) + f'; the result is from {chosen}')
  return result


def _outcome(experiment: Experiment, params) -> tuple[int, dict[str, Any], dict[str, np.ndarray]]:
  """The depth chosen on validation, metrics by split and depth, and what ranks.npz gets of them."""
  evaluator, depths = experiment.evaluator, experiment.depths
  mine = experiment.config.evaluate.history
  other: History = 'ranked' if mine == 'removed' else 'removed'
  rank_TxM = {split: evaluator.ranks(params, split, depths) for split in ('valid', 'test')}
  by_depth = {split: {d: metrics.summary(r) for d, r in zip(depths, ranks)}
              for split, ranks in rank_TxM.items()}
  depth = max(depths, key=lambda d: by_depth['valid'][d]['ndcg@10'])
  ranks = {'depth': np.array(depth, np.int32)}
  for split in ('valid', 'test'):
    ranks[f'{split}_{mine}'] = rank_TxM[split][depths.index(depth)].astype(np.float32)
    of_other = evaluator.ranks(params, split, (depth,), history=other)
    ranks[f'{split}_{other}'] = of_other[0].astype(np.float32)
  return depth, by_depth, ranks
