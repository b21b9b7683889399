"""The same comparison on MovieLens 100K.

    python -m lares_jax.compare --config=configs/compare_ml100k.py --workdir=runs/compare_ml100k \
        --config.data_path=../shared/data/ml-100k.inter
"""

from configs import compare_beauty, lares


def get_config(variant: str = ''):
  if variant not in ('', 'main'):
    raise ValueError(f'{variant}: use no variant, or main')
  recipe = lambda kind: lares.plain(lares.get_config()) if kind == 'plain' else lares.get_config()
  return compare_beauty.table(recipe, ablations=not variant)
