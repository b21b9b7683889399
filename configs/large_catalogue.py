"""Catalogues too large to score at once: 10^7 items on one machine's CPU, 10^8 on a slice of TPUs.

    python -m configs.large_catalogue runs/large.parquet [items]      # makes up a log, one minute
    python -m lares_jax.main --config=configs/large_catalogue.py --workdir=runs/large \
        --config.data.path=runs/large.parquet                         # nine steps, two evaluations
    python -m lares_jax.study compile --config=configs/large_catalogue.py:slice --items=100000000 \
        --topology=v5p:2x2x4                                          # what each of 16 chips holds
"""

import pathlib
import sys

import numpy as np
import polars as pl

from configs import lares


def get_config(variant: str = ''):
  config = lares.get_config('quick')
  config.data.prepare.user, config.data.prepare.item, config.data.prepare.time = 'user', 'item', 'time'
  config.pretrain.train.patience = 0
  config.pretrain.train.ema = 0.0  # another table
  config.evaluate.depths = (4,)
  if variant == 'slice':
    config.mesh.catalogue = 16
    config.pretrain.train.batch_rows = 256
    config.catalogue.dtype = 'bfloat16'
  elif variant:
    raise ValueError(f'large_catalogue.py:{variant}: the one variant is large_catalogue.py:slice')
  else:
    config.pretrain.train.epochs = 1e-4  # of an epoch
    config.pretrain.train.batch_rows = 4
    config.pretrain.train.log_every_steps = 1
    config.evaluate.batch_rows = 8
  return config


def write_log(path: str, items: int = 10_000_000, users: int = 500) -> None:
  """Every item once, in the histories of a few users, so that there is little to evaluate."""
  item_N = np.random.default_rng(0).permutation(items)
  place_N = np.arange(items)
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  pl.DataFrame({'user': place_N % users, 'item': item_N, 'time': place_N}).write_parquet(path)
  print(f'wrote {path}: {items:,} interactions of {users:,} users with {items:,} items')


if __name__ == '__main__':
  if not (sys.argv[1:2] and all(map(str.isdigit, sys.argv[2:]))):
    sys.exit('error: python -m configs.large_catalogue FILE.parquet [items]')
  write_log(sys.argv[1], *map(int, sys.argv[2:3]))
