"""The whole job on the built-in data set: train the backbone and LARES, compare, recommend.

    bash launch/quickstart.sh [--workdir=runs/quickstart]

The data set is generated, so the best that any model could reach is known and stands in the table.
"""

import pathlib
import time

import numpy as np
from absl import flags
from ml_collections import config_flags

from lares_jax import config as config_lib
from lares_jax import metrics, report, run
from lares_jax.data import synthetic
from lares_jax.errors import InputError, front_door
from lares_jax.experiment import Experiment
from lares_jax.recommender import Recommender

_PLAIN = config_flags.DEFINE_config_file(
  'plain', 'configs/quickstart.py:plain', 'The backbone, at depth 0.')
_LARES = config_flags.DEFINE_config_file('lares', 'configs/quickstart.py:quick', 'LARES.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/quickstart', 'Where everything goes.')


def main() -> None:
  start = time.time()
  workdir = pathlib.Path(_WORKDIR.value)
  configs = [config_lib.typed(flag.value) for flag in (_PLAIN, _LARES)]
  if any(config.data.path or config.evaluate.history == 'removed' for config in configs):
    raise InputError('the quickstart is of the built-in data set, history ranked: what is best '
                     'possible is known there; use lares_jax.main for others')
  trained = []
  for config, name, what in zip(configs, ('depth_0', 'lares'), ('the depth-0 backbone', 'LARES')):
    print(f'training {what}: see {workdir / name}/metrics.jsonl')
    trained.append(Experiment.start(config, str(workdir / name)))
    run.train(trained[-1])
  plain, lares = trained

  store = plain.store
  _, index_M = store.targets('test')
  popular = metrics.ranks(store.train_count_V)[store.items_N[index_M]]
  lines = [('popularity', metrics.summary(popular)),
           ('depth 0 (the plain backbone)', plain.result()['test_at_depth'])]
  result = lares.result()
  for depth, values in result['test'].items():
    mark = ' (chosen on validation)' if int(depth) == result['depth'] else ''
    lines.append((f'LARES at depth {depth}{mark}', values))
  best = synthetic.best_metrics(synthetic.World())
  lines.append(('best possible (true probabilities)', best))
  print('\ntest, every item ranked, history included')
  print(report.table(['model', *report.SHORT, 'of best NDCG@10'], [
    [name, *(f'{values[c]:.4f}' for c in report.SHORT), f'{values["ndcg@10"] / best["ndcg@10"]:.0%}']
    for name, values in lines]))

  print('\nten recommendations each')
  users = np.arange(3)
  histories = store.raw_histories(users, store.offsets[users + 1])
  for user, out in zip(users.tolist(), Recommender.of(lares).recommend(histories, k=10)):
    print(f'  {store.user_ids[user]}: {", ".join(out.items)}')
  print(f'\n{time.time() - start:.0f} s; checkpoints, metrics.jsonl, TensorBoard logs and result.json '
        f'are in {plain.workdir} and {lares.workdir}')


if __name__ == '__main__':
  front_door(main)
