"""LARES, its baselines and its ablations on Amazon 2014 Beauty, side by side.

    python -m lares_jax.compare --config=configs/compare_beauty.py --workdir=runs/compare_beauty \
        --config.data_path=../shared/data/beauty.txt
    python -m lares_jax.compare --config=configs/compare_beauty.py:main ...      # no ablations
"""

import ml_collections

from configs import beauty

ALL = 'pretrain,select,posttrain'
PREFIX = {'data.rows': 'prefix', 'pretrain.train.batch_rows': 1024}  # a row sees all of itself

# What each row changes in the recipe's depth-0 backbone, or in LARES.
BASELINES = {
  'sasrec': {},
  'sasrec_equal_parameters': {'model.pre_layers': 4},
  'sasrec_equal_compute': {'model.pre_layers': 10},  # as many layers as depth 4 applies, untied
  'hstu': {'model.backbone.name': 'hstu'},
  'gru4rec': {'model.backbone.name': 'gru'},
  'fmlp': {'model.backbone.name': 'fmlp', **PREFIX},
  'bsarec': {'model.backbone.name': 'bsarec', **PREFIX},
}
ABLATIONS = {
  'combine_concat': {'model.combine': 'concat'},
  'combine_gated': {'model.combine': 'gated'},
  'initial_zero': {'model.initial': 'zero'},
  'initial_normal_zero': {'model.initial': 'normal_zero'},
  'no_pre_block': {'model.pre_layers': 0},
  'depth_constant': {'depth.distribution': 'constant'},
  'depth_uniform': {'depth.distribution': 'uniform'},
  'depth_poisson': {'depth.distribution': 'poisson'},
}


def get_config(variant: str = ''):
  if variant not in ('', 'main'):
    raise ValueError(f'{variant}: use no variant, or main')
  return table(beauty.get_config, ablations=not variant)


def table(recipe, ablations: bool):
  """The comparison of whatever `recipe('')` and `recipe('plain')` give."""
  runs = {name: {'config': _changed(recipe('plain'), changes)} for name, changes in BASELINES.items()}
  runs['lares'] = {'config': _changed(recipe(''), {'phases': ALL})}
  runs['lares_phase_one'] = {'of': 'lares', 'phase': 'pretrain'}
  runs['lares_phase_two'] = {'of': 'lares', 'phase': 'posttrain', 'against': 'lares_phase_one'}
  for name, changes in ABLATIONS.items() if ablations else ():
    runs[name] = {'config': _changed(recipe(''), changes), 'against': 'lares_phase_one', 'seeds': (0,)}
  config = ml_collections.ConfigDict(
    {'reference': 'sasrec', 'seeds': (0, 1, 2), 'data_path': '', 'resamples': 1999})
  config.runs = ml_collections.ConfigDict(runs, sort_keys=False)  # the order of the table
  return config


def _changed(config, changes):
  config.update_from_flattened_dict(changes)
  return config
