"""Does packing cost accuracy? LARES (:quick) on 4,000 users of Beauty, in packed and in prefix rows.

    python -m configs.compare_rows ../shared/data/beauty.txt runs/beauty4000.txt
    python -m lares_jax.compare --config=configs/compare_rows.py --workdir=runs/compare_rows \
        --config.data_path=runs/beauty4000.txt

Cut down to what a CPU can do three times over in both ways: prefix rows repeat a history for each of
its targets, 19 to 34 minutes a run on one core where packed rows take 5 to 8.
"""

import pathlib
import random
import sys

from configs import beauty, compare_beauty

USERS = 4000
SMALL = {
  'data.max_history': 10, 'model.positions': 10, 'depth.mean': 2, 'evaluate.depths': (2, 4),
  'pretrain.train.epochs': 50, 'pretrain.train.eval_every_epochs': 2.0, 'pretrain.train.patience': 3,
  'pretrain.train.ema': 0.0, **{f'model.{part}_dropout': 0.35 for part in ('embed', 'pre', 'core')}}


def get_config(variant: str = ''):
  if variant:
    raise ValueError(f'{variant}: this config has no variants')
  runs = {kind: compare_beauty.row(
    beauty.get_config, 'quick', {**SMALL, 'data.rows': kind, 'pretrain.train.batch_rows': batch})
          for kind, batch in (('prefix', 512), ('packed', 16))}
  return compare_beauty.plan(runs, 'prefix')


def sample(source: str, output: str) -> None:
  """Writes the lines of some users of a log in S3-Rec's format."""
  lines = pathlib.Path(source).read_text().splitlines()
  chosen = sorted(random.Random(0).sample(range(len(lines)), USERS))
  pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
  pathlib.Path(output).write_text('\n'.join(lines[n] for n in chosen) + '\n')


if __name__ == '__main__':
  sample(*sys.argv[1:])
