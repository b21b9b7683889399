"""The recipe: what every data set's config points at, so that a better one is written once."""

from lares_jax import config as config_lib


def get_config():
  """Defaults of `lares_jax/config.py`, and what the searches of this project changed in them."""
  config = config_lib.defaults()
  config.phases = 'pretrain'
  config.model.embed_dropout = 0.35
  config.model.pre_dropout = 0.35
  config.model.core_dropout = 0.35
  config.pretrain.loss.alpha = 0.0
  config.pretrain.loss.gamma = 0.0
  return config


def plain(config):
  """The same backbone without reasoning, trained as carefully: transformer at depth 0 is SASRec."""
  config.depth.mean = 0
  config.model.core_layers = 0
  config.model.embed_dropout = config.model.pre_dropout = 0.5
  return config
