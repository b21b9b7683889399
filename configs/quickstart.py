"""The built-in data set: 2,000 users, 1,000 items, known true probabilities.

    bash launch/quickstart.sh      # :quick, for 14 epochs are too few for alignment, and :plain
"""

from configs import lares


def get_config(variant: str = ''):
  config = lares.get_config(variant)
  config.model.embed_dropout = config.model.pre_dropout = config.model.core_dropout = 0.2
  config.pretrain.train.epochs = 14
  config.pretrain.train.patience = 3
  config.evaluate.depths = (1, 2, 4, 8)
  return config
