"""When does depth pay? The recipe beside depth 0 on made-up logs of any size, whose best is known.

    python -m configs.compare_worlds 16000 runs/world_16000.csv      # users, file; prints the best
    python -m lares_jax.compare --config=configs/compare_worlds.py --workdir=runs/worlds_16000 \
        --config.data_path=runs/world_16000.csv [--config.seeds=0,1,2]

The process is that of the built-in data set (lares_jax/data/synthetic.py): what comes next depends on
a hidden route, so the last items alone do not tell. With 2,000 users the log is as scarce as real ones
are; with more, what limits a model is what it can compute.
"""

import pathlib
import sys

from configs import compare_beauty, quickstart
from lares_jax.data import synthetic


def get_config():
  config = compare_beauty.depth(_recipe, seeds_of_long=())  # none is: the table's
  for row in config.runs.values():
    row.config.data.prepare.update(format='csv', user='user_id', item='item_id', time='timestamp')
  return config


def _recipe(variant: str):
  config = quickstart.get_config(variant)
  config.pretrain.train.epochs = 40
  config.pretrain.train.eval_every_epochs = 1.0
  return config


def world(users: int, output: str) -> None:
  """Writes the log, and prints the best that any model could reach on it."""
  made = synthetic.World(num_users=users)
  pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
  synthetic.write(made, output)
  best = synthetic.best_metrics(made, realised=True)
  print(f'wrote {output}; ranking its test targets by the true probabilities: '
        + ', '.join(f'{name} {value:.4f}' for name, value in best.items()))


if __name__ == '__main__':
  world(int(sys.argv[1]), sys.argv[2])
