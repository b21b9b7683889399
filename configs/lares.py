"""The recipe: what every data set's config points at, so that a better one is written once."""

from lares_jax import config as config_lib

# A user vector may not grow: |u| is 7, as it stays under the alignments; see searches.md.
DIRECTION = {'catalogue.similarity': 'direction', 'catalogue.tau': 1 / 7}
ALIGNED = {'pretrain.loss.alpha': 0.1, 'pretrain.loss.gamma': 0.1, 'pretrain.train.pairs': 512}


def get_config(variant: str = ''):
  """Defaults of `lares_jax/config.py`, and what the searches of this project changed in them."""
  if variant not in ('', 'quick', 'plain', 'direction'):
    raise ValueError(f'{variant}: use no variant, quick, plain or direction')
  config = config_lib.defaults()
  config.model.embed_dropout = config.model.pre_dropout = 0.5
  config.model.core_dropout = 0.2  # its steps add up
  if variant:  # a quarter of the training, ahead for the first half of it, behind at its end
    config.pretrain.loss.alpha = config.pretrain.loss.gamma = 0.0
  else:
    config.update_from_flattened_dict(ALIGNED)
  config.pretrain.train.batch_rows = 16  # about 1,000 targets of Beauty, as published; 490 of ML-100K
  config.pretrain.train.ema = 0.999
  config.pretrain.train.eval_every_epochs = 2.0
  config.pretrain.train.patience = 5
  # Of all that was tried in phase two, what harms least; nothing has helped (searches.md).
  config.posttrain.loss.reward = 'ndcg'
  config.posttrain.train.batch_rows = 16
  config.posttrain.train.epochs = 2.0
  config.posttrain.train.eval_every_epochs = 0.25
  config.posttrain.train.patience = 5
  config.posttrain.train.optimizer.learning_rate = 1e-5
  # The same backbone without reasoning, trained as carefully: transformer at depth 0 is SASRec.
  if variant in ('plain', 'direction'):
    config.depth.mean = 0
    config.model.embed_dropout = config.model.pre_dropout = 0.35
  if variant == 'direction':  # scored by the direction of its user vectors
    config.update_from_flattened_dict(DIRECTION)
  return config
