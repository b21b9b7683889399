"""A run: its phases in order, then phase and depth chosen on validation, then the test."""

import dataclasses
import time

from lares_jax import metrics, report, selection
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment, write_json
from lares_jax.training import loop
from lares_jax.training.checkpoint import Checkpoints


def train(experiment: Experiment) -> dict:
  """Runs the phases that the config names, then evaluates; returns the result that was written."""
  c = experiment.config
  start = time.time()
  as_dict = dataclasses.asdict(c)
  fit = lambda phase, params: loop.run(phase, params, experiment.workdir, as_dict, experiment.mesh)
  if 'pretrain' in c.phase_list:
    fit(experiment.pretraining(), experiment.init_params())
  if 'select' in c.phase_list:
    selection.select(experiment)
  if 'posttrain' in c.phase_list:
    reference = experiment.reference()
    fit(experiment.posttraining(reference, selection.load(experiment)), reference)
  result = finish(experiment, time.time() - start)
  print(f'wrote {experiment.workdir}/result.json, metrics.jsonl, checkpoints/, tensorboard/')
  return result


def finish(experiment: Experiment, seconds: float) -> dict:
  """Chooses phase and depth on validation, tests them, and writes result.json."""
  c, evaluator = experiment.config, experiment.evaluator
  phases = [p for p in ('pretrain', 'posttrain')
            if Checkpoints(experiment.workdir, p).best_step is not None]
  if not phases:
    raise InputError(f'{experiment.workdir}: nothing is trained yet; run the phase pretrain first')
  best = {p: experiment.best(p) for p in phases}
  chosen = max(phases, key=lambda p: best[p][1]['ndcg@10'])
  params, _, step = best[chosen]
  depths = experiment.depths
  by_depth = {}
  for split in ('valid', 'test'):
    rank_TxM = evaluator.ranks(params, split, depths)
    by_depth[split] = {d: metrics.summary(r) for d, r in zip(depths, rank_TxM)}
  depth = max(depths, key=lambda d: by_depth['valid'][d]['ndcg@10'])
  result = {
    'data': experiment.store.meta['sources'], 'fingerprint': experiment.store.fingerprint,
    'seed': c.seed, 'phase': chosen, 'step': step,
    'validation_by_phase': {p: best[p][1] for p in phases},
    'depth': depth, 'history': 'ranked', 'validation': by_depth['valid'],
    'test': by_depth['test'], 'test_at_depth': by_depth['test'][depth],
    'seconds_this_start': seconds,
  }
  write_json(experiment.workdir / 'result.json', result)
  print(report.depth_table(by_depth['test'], depth, 'test, history ranked'))
  if len(phases) > 1:
    print('phases on validation NDCG@10: ' + ', '.join(
      f'{p} {best[p][1]["ndcg@10"]:.4f}' for p in phases) + f'; the result is from {chosen}')
  return result
