"""Amazon 2014 Beauty, history of 50.

    python -m lares_jax.main --config=configs/beauty.py --workdir=runs/beauty \
        --config.data.path=../shared/data/beauty.txt
    python -m lares_jax.main --config=configs/beauty.py:plain --workdir=runs/beauty_plain \
        --config.data.path=../shared/data/beauty.txt        # the depth-0 backbone: SASRec
    python -m lares_jax.main --config=configs/beauty.py:direction ...     # SASRec, by direction
    python -m lares_jax.main --config=configs/beauty.py:quick ...         # LARES without alignment

Expect test NDCG@10 of .047 (history removed .059) after 72 minutes on one CPU core, of .044 (.056)
after 18 without alignment, .045 (.059) after 13 at depth 0 by direction, and .041 (.055) after 10 at
depth 0: means of three seeds, README.
"""

from configs import lares


def get_config(variant: str = ''):
  config = lares.get_config(variant)
  config.data.path = 'data/beauty.txt'
  config.data.prepare.format = 's3rec'
  config.pretrain.train.epochs = 100
  return config
