"""How training shapes what depth buys: mean recurrence, its law, and where the layers are (Beauty).

    python -m lares_jax.compare --config=configs/depth_study.py --workdir=runs/depth_study \
        --config.data_path=../shared/data/beauty.txt [--config.seeds=0,1,2]

Each row is configs/beauty.py:quick with one thing changed, against that itself (r4). Depth is chosen on
validation for each row from what it can be expected to use: 1 to 8 steps, and up to 4 r. Thirteen runs
a seed, each as long as that one. One seed, the default, says nothing about seeds: see significance.py.
"""

from configs import beauty, compare_beauty

ROWS = {
  **{f'r{r}': {'depth.mean': r} for r in (4, 1, 2, 8)},
  **{f'pre{pre}_core{core}': {'model.pre_layers': pre, 'model.core_layers': core}
     for pre, core in ((0, 2), (1, 1), (1, 2), (2, 1), (3, 1))},
  **{f'law_{law}': {'depth.distribution': law}
     for law in ('constant', 'uniform', 'poisson', 'poisson_bounded')},
}


def get_config(variant: str = ''):
  if variant:
    raise ValueError(f'{variant}: this config has no variants')
  runs = {}
  for name, changes in ROWS.items():
    runs[name] = compare_beauty.row(beauty.get_config, 'quick', changes)
    config = runs[name]['config']
    r = config.depth.mean
    config.evaluate.depths = tuple(sorted({1, 2, 4, 8, r, 2 * r, 3 * r, 4 * r}))
  return compare_beauty.plan(runs, 'r4', (0,))
