"""Ranks every user's target at a list of depths.

    python -m lares_jax.evaluate --workdir=DIR --split=test --depths=1,2,4,8,12,16 \\
        [--phase=pretrain|posttrain] [--exclude_history] [--draws=5]

Prints a table, and as its last line one JSON object. The depth marked is the one that validation
chose when the run ended. With --draws the spread over draws of the initial noise is added.
"""

import json

import numpy as np
from absl import flags

from lares_jax import metrics, processes, report
from lares_jax.errors import front_door, whole_numbers
from lares_jax.experiment import Experiment
from lares_jax.files import read_arrays

_WORKDIR = flags.DEFINE_string('workdir', None, 'A trained run.', required=True)
_SPLIT = flags.DEFINE_enum('split', 'test', ['valid', 'test'], 'Which targets.')
_DEPTHS = flags.DEFINE_list('depths', [], 'Depths; those of the config if empty.')
_PHASE = flags.DEFINE_enum('phase', None, ['pretrain', 'posttrain'], 'Else what the result chose.')
_EXCLUDE = flags.DEFINE_bool('exclude_history', None, "Leave a user's history out of the ranking; as "
                             'the config says (evaluate.history) if not given.')
_DRAWS = flags.DEFINE_integer('draws', 1, 'Draws of the initial noise, for its spread.',
                              lower_bound=1)


def main() -> None:
  with processes.joined():
    evaluate(Experiment.load(_WORKDIR.value))


def evaluate(experiment: Experiment) -> None:
  """Prints the table and the JSON object."""
  most = experiment.model.config.deepest
  depths = whole_numbers('depths', _DEPTHS.value, 0, most) if _DEPTHS.value else experiment.depths
  history = experiment.config.evaluate.history
  if _EXCLUDE.value is not None:
    history = 'removed' if _EXCLUDE.value else 'ranked'
  result = experiment.result()
  phase = _PHASE.value or result['phase']
  params, _, step = experiment.best(phase)
  ranks = read_arrays(experiment.workdir / 'ranks.npz')
  chosen = int(ranks.get(f'{phase}_depth', result['depth']))  # it lacks a phase still in training
  rank_SxTxM = np.stack([
    experiment.evaluator.ranks(params, _SPLIT.value, depths, history=history, draw=draw)
    for draw in range(_DRAWS.value)])
  by_draw = [{d: metrics.summary(r) for d, r in zip(depths, rank_TxM)} for rank_TxM in rank_SxTxM]
  print(report.depth_table(by_draw[0], chosen, f'{_SPLIT.value}, history {history}'))
  out = {'workdir': str(experiment.workdir), 'phase': phase, 'step': step, 'split': _SPLIT.value,
         'history': history, 'chosen_depth': chosen, 'metrics': by_draw[0]}
  if _DRAWS.value > 1:
    out['spread_over_draws'] = {
      d: {k: float(np.std([m[d][k] for m in by_draw], ddof=1)) for k in by_draw[0][d]}
      for d in depths}
  print(json.dumps(out))


if __name__ == '__main__':
  front_door(main)
