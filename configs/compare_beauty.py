"""LARES, its baselines and its ablations on Amazon 2014 Beauty, side by side.

    python -m lares_jax.compare --config=configs/compare_beauty.py --workdir=runs/compare_beauty \
        --config.data_path=../shared/data/beauty.txt
    python -m lares_jax.compare --config=configs/compare_beauty.py:main ...      # no ablations
    python -m lares_jax.compare --config=configs/compare_beauty.py:depth ...     # does depth pay?
    python -m lares_jax.compare --config=configs/compare_beauty.py:tune ...      # dropouts, LARES's too

configs/results/beauty holds what is trained: copied to the workdir, the command trains only the rest,
or with --finished nothing. A run takes 10 minutes to 2.5 hours on one CPU core; FMLP-Rec and
BSARec, with a row for every target, take far longer there and 1 to 6 minutes on a GPU.

Not here: TedRec and HSTU with times, for this log has neither titles nor times (rows of
compare_ml100k.py); BERT4Rec, which needs masked rows, a mask item and bidirectional attention of its
own, and with an exact softmax is a SASRec that takes many times as long to train.
"""

import functools

import ml_collections

from configs import beauty, lares

PREFIX = {'data.rows': 'prefix', 'pretrain.train.batch_rows': 1024}  # a row sees all of itself

BACKBONES: dict[str, dict] = {
  'hstu': {'model.backbone.name': 'hstu'},
  'gru4rec': {'model.backbone.name': 'gru'},
  'fmlp': {'model.backbone.name': 'fmlp', **PREFIX},
  'bsarec': {'model.backbone.name': 'bsarec', **PREFIX},
}
DROPOUT = {rate: {'model.embed_dropout': rate, 'model.pre_dropout': rate} for rate in (0.2, 0.35, 0.5)}
# What validation chose of these for each rival, at seed 0 (variant tune; searches.md); its other
# rows, whose names begin alike, share it.
TUNED = {'hstu': 0.5, 'gru4rec': 0.5, 'fmlp': 0.2, 'bsarec': 0.5}
ONE_SEED = 'sasrec_equal_parameters', 'sasrec_equal_compute', 'duorec_equal_compute'
DUOREC = {**lares.ALIGNED, 'pretrain.loss.gamma_view': 'dropout'}
DIRECTION = lares.DIRECTION
EQUAL_COMPUTE = {'model.pre_layers': 10}  # as many layers as depth 4 applies, untied
REAREC = {'model.core_layers': 1, 'model.thoughts': 2, 'depth.mean': 2,  # 2 steps, as published
          'depth.distribution': 'constant', 'evaluate.depths': (1, 2),
          'pretrain.train.pairs': lares.ALIGNED['pretrain.train.pairs']}
# What each row changes in the recipe's depth-0 backbone, or in LARES.
BASELINES: dict[str, dict] = {
  'sasrec': {},
  'sasrec_direction': DIRECTION,
  'sasrec_equal_parameters': {'model.pre_layers': 4},
  'sasrec_equal_compute': EQUAL_COMPUTE,
  **BACKBONES,
  'duorec': DUOREC,
  'duorec_equal_compute': {**DUOREC, **EQUAL_COMPUTE},
  'rearec_erl': {'model.reasoner': 'erl', **REAREC},
  # Their dropouts, and the better of two temperatures and of two decays (searches.md).
  'rearec_prl': {'model.reasoner': 'prl', **REAREC, 'catalogue.tau': 0.5,
                 'pretrain.rearec.heat': 1.5, 'model.embed_dropout': 0.2, 'model.pre_dropout': 0.5},
}
for _name in (*BACKBONES, 'duorec'):  # scored as sasrec_direction is, too, with their own dropout
  BASELINES[f'{_name}_direction'] = {**BASELINES[_name], **DIRECTION}
# Rivals nearer to what their authors do beyond the layer (results/README.md): DuoRec's loss, HSTU's
# scores and size, and the settings of BSARec's own log of this data set. As OF_DEPTH below.
NEARER = {
  'duorec_one_term': ('plain', {
    **DUOREC, 'pretrain.loss.alpha': 0.0, 'pretrain.loss.gamma_view': 'partner'}, 'sasrec', (0,)),
  'hstu_cosines': ('plain', {
    **BACKBONES['hstu'], **DROPOUT[0.5], 'model.pre_layers': 4, 'model.backbone.heads': 4,
    'catalogue.similarity': 'cos', 'catalogue.tau': 0.05}, 'sasrec', (0,)),
  'bsarec_own_log': ('plain', {
    **BACKBONES['bsarec'], **DROPOUT[0.5], 'model.backbone.low_band': 5, 'model.backbone.heads': 1,
    'pretrain.train.batch_rows': 256, 'pretrain.train.optimizer.learning_rate': 5e-4,
    'pretrain.train.ema': 0.0, 'pretrain.train.epochs': 200.0, 'pretrain.train.eval_every_epochs': 1.0,
    'pretrain.train.patience': 10, 'evaluate.history': 'removed'}, 'sasrec', (0,)),
}
# LARES tuned by no more than its rivals are: the weights of its losses as published, and one dropout
# for all its parts. Of .35 and .5 validation chose .5 (searches.md).
AS_RIVALS = {rate: {**changes, 'model.core_dropout': rate, 'pretrain.loss.gamma': 0.5}
             for rate, changes in DROPOUT.items()}
# LARES over HSTU without its depth.
BASELINES['hstu_aligned_direction'] = {**BASELINES['hstu_direction'], **DUOREC}
CONSTANT = {'depth.distribution': 'constant'}
ABLATIONS = {
  'no_trajectory_alignment': {'pretrain.loss.alpha': 0.0},
  'no_step_alignment': {'pretrain.loss.gamma': 0.0},
  'no_pre_block': {'model.pre_layers': 0},
  **{f'combine_{name}': {'model.combine': name} for name in ('concat', 'gated')},
  **{f'initial_{name}': {'model.initial': name} for name in ('zero', 'normal_zero')},
  **{f'depth_{law}': {'depth.distribution': law}
     for law in ('poisson', 'poisson_bounded', 'uniform', 'constant')},
  'last_token_only': {'model.refine': 'last'},
  # Weights of their own for each step; at depth 4 every block is used once. Beside depth_constant.
  'untied_equal_compute': {'model.core_blocks': 4, **CONSTANT, 'depth.mean': 4,
                           'evaluate.depths': (4,)},
  'untied_equal_parameters': {'model.core_blocks': 2, 'model.core_layers': 1, **CONSTANT,
                              'depth.mean': 2, 'evaluate.depths': (2,)},
}
REMOVED = {'pretrain.loss.history': 'removed', 'evaluate.history': 'removed'}
# More rows of the variant depth: variant of the recipe, changes, against, seeds.
OF_DEPTH = {
  # The depth 0 of an earlier search: validation hardly tells it from the recipe's.
  'sasrec_dropout_50': ('plain', {
    **DROPOUT[0.5], 'pretrain.train.batch_rows': 32, 'pretrain.train.ema': 0.0,
    'pretrain.train.eval_every_epochs': 1.0, 'pretrain.train.patience': 10}, 'sasrec', (0,)),
  # What a user has is out of the ranking, in training, too; there validation prefers this dropout.
  'sasrec_removed': ('plain', {**DROPOUT[0.5], **REMOVED}, 'sasrec', (0, 1)),
  'lares_removed': ('quick', REMOVED, 'sasrec_removed', (0, 1)),
}
# What an ablation changes and stands against, where it is not the quick recipe.
AGAINST = {'no_trajectory_alignment': 'lares', 'no_step_alignment': 'lares',
           'untied_equal_compute': 'depth_constant', 'untied_equal_parameters': 'depth_constant'}


def get_config(variant: str = ''):
  if variant not in ('', 'main', 'depth', 'tune'):
    raise ValueError(f'{variant}: use no variant, main, depth or tune')
  if variant == 'tune':
    return tuning(beauty.get_config)
  if variant != 'depth':
    rows = table(beauty.get_config, ablations=not variant, more={})
    # With the tau that validation prefers for SASRec: 1/5 of 1/10, 1/7 and 1/5 (searches.md).
    soft = {**DIRECTION, 'catalogue.tau': 1 / 5}
    rows['sasrec_direction_soft'] = row(beauty.get_config, 'plain', soft, seeds=(0,))
    rows['lares_as_rivals'] = row(beauty.get_config, '', AS_RIVALS[0.5])
    for of, against in (('lares', 'sasrec_direction_soft'), ('lares_as_rivals', 'sasrec_direction'),
                        ('lares_as_rivals', 'sasrec_direction_soft'), ('lares_as_rivals', 'duorec')):
      rows[f'{of}_to_{against}'] = {'of': of, 'against': against}
    return plan({**rows, **_more(NEARER)})
  runs = {**depth(beauty.get_config), **_more(OF_DEPTH)}
  for other in ('equal_compute', 'dropout_50'):
    for name in ('lares_quick', 'lares'):
      runs[f'{name}_to_{other}'] = {'of': name, 'against': f'sasrec_{other}'}
  return plan(runs)


def _more(rows):
  return {name: row(beauty.get_config, kind, changes, against=against, seeds=seeds)
          for name, (kind, changes, against, seeds) in rows.items()}


def depth(recipe):
  """Rows: the recipe's phase one beside depth 0, the same, its parameters, its compute."""
  runs = table(recipe, ablations=False, more={})
  return {name: runs[name] for name in (
    'sasrec', 'sasrec_equal_parameters', 'sasrec_equal_compute', 'lares_quick', 'lares')}


def tuning(recipe):
  """Each rival at each dropout, seed 0; and LARES, its losses weighed as published, likewise."""
  runs = {f'{name}_{rate * 100:.0f}': row(recipe, 'plain', {**BASELINES[name], **changes})
          for name in (*BACKBONES, 'duorec', 'rearec_erl', 'rearec_prl')
          for rate, changes in DROPOUT.items()}
  runs |= {f'lares_{rate * 100:.0f}': row(recipe, '', changes) for rate, changes in AS_RIVALS.items()}
  return plan(runs, reference=next(iter(runs)), seeds=(0,))


def table(recipe, ablations: bool, more):
  """Rows of what `recipe` gives of '', 'quick' and 'plain'; `more` are backbones.

  Ablations are of the quick recipe, but for those of the alignments.
  """
  trained = functools.partial(row, recipe)
  runs = {}
  for name, changes in {**BASELINES, **more}.items():
    rival = name.split('_')[0]
    runs[name] = trained('plain', {**changes, **(DROPOUT[TUNED[rival]] if rival in TUNED else {})})
  runs['lares_quick'] = trained('quick', {})
  runs['lares_quick_direction'] = trained('quick', DIRECTION, against='sasrec_direction')
  runs['lares'] = trained('', {})
  runs['lares_direction'] = trained('', DIRECTION, against='sasrec_direction')
  for name in ONE_SEED:
    runs[name]['seeds'] = (0,)
  for other in ('lares_quick', 'sasrec_direction', 'duorec', 'duorec_equal_compute', 'bsarec',
                'bsarec_direction'):
    runs[f'lares_to_{other}'] = {'of': 'lares', 'against': other}
  for other in ('bsarec_direction', 'duorec_direction'):
    runs[f'lares_direction_to_{other}'] = {'of': 'lares_direction', 'against': other}
  if ablations:
    runs['lares_phase_two'] = trained('', {'phases': 'pretrain,select,posttrain'}, phase='posttrain',
                                      against='lares_phase_one', seeds=(1, 2))
    runs['lares_phase_two_all_prompts'] = trained(
      '', {'phases': 'pretrain,posttrain'}, phase='posttrain', against='lares_phase_two', seeds=(1,))
    runs['lares_phase_one'] = {'of': 'lares_phase_two', 'phase': 'pretrain',
                               'against': 'lares_phase_one'}  # just these seeds; nothing is tested
    for name, changes in {**BACKBONES, **more}.items():  # the plug-in: each backbone under LARES
      for kind, variant in (('quick', 'quick'), ('lares', '')):
        runs[f'{kind}_{name}'] = trained(
          variant, {**changes, **_as_scores(changes)}, against=name, seeds=(0,))
    runs['lares_hstu']['seeds'] = (0, 1, 2)  # the plug-in with alignments that a CPU can afford
    for name, seeds in (('hstu', (0, 1, 2)), ('fmlp', (0,)), ('bsarec', (0,))):
      runs[f'lares_{name}_direction'] = trained(
        '', {**BACKBONES[name], **DIRECTION}, against=f'{name}_direction', seeds=seeds)
    runs['lares_hstu_direction_to_hstu_aligned_direction'] = {
      'of': 'lares_hstu_direction', 'against': 'hstu_aligned_direction'}
    for name, changes in ABLATIONS.items():
      against = AGAINST.get(name, 'lares_quick')
      runs[name] = trained('' if against == 'lares' else 'quick', changes, against=against, seeds=(0,))
    runs['combine_concat']['seeds'] = (0, 1)  # what it shows is worth a second
  return runs


def plan(runs, reference: str = 'sasrec', seeds=(0, 1, 2)):
  """The config of a comparison of these rows."""
  config = ml_collections.ConfigDict(
    {'reference': reference, 'seeds': seeds, 'data_path': '', 'resamples': 1999})
  config.runs = ml_collections.ConfigDict(runs, sort_keys=False)  # the order of the table
  return config


def row(recipe, kind: str, changes, **fields):
  """A row of a plan: what `recipe` gives of `kind`, changed; `fields` as in comparison.Row."""
  config = recipe(kind)
  config.update_from_flattened_dict(changes)
  return {'config': config, **fields}


def _as_scores(changes):
  """Alignment of states as they score items, where the scores are cosines."""
  if changes.get('catalogue.similarity') != 'cos':
    return {}
  return {'pretrain.loss.similarity': 'cos', 'pretrain.loss.tau': changes['catalogue.tau']}
