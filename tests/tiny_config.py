"""A run of a few seconds, as a config file; --config.data.path names the data set (tiny.make_store)."""

import dataclasses
import os
import sys

import ml_collections

sys.path.insert(0, os.path.dirname(__file__))

import tiny


def get_config():
  """Phases one and two, over 20 steps each."""
  config = tiny.make_config('', phases='pretrain,select,posttrain')
  config = ml_collections.ConfigDict(dataclasses.asdict(config))
  config.depth.distribution = 'constant'
  config.pretrain.loss.alpha = config.pretrain.loss.gamma = 0.0
  config.pretrain.train.epochs = 6
  config.pretrain.train.eval_every_epochs = 2.0
  config.pretrain.train.patience = 0
  config.posttrain.train.epochs = 6
  config.posttrain.train.patience = 0
  config.select.top = 20
  config.evaluate.depths = (1, 2)
  return config
