"""Tiny data sets, settings, and what is left of a run: shared by tests."""

import contextlib
import dataclasses
import os

import jax
import numpy as np
import orbax.checkpoint as ocp
import polars as pl

from lares_jax.catalogue import CatalogueConfig
from lares_jax.config import Config, SourceConfig, TrainConfig
from lares_jax.data import store
from lares_jax.model.backbone import BackboneConfig
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import ModelConfig
from lares_jax.training.evaluation import EvaluationConfig


def make_store(directory, users=40, items=30, longest=14, seed=0) -> store.Store:
  """A prepared data set: histories of 3 to `longest` items, leave-one-out."""
  rng = np.random.default_rng(seed)
  length_U = rng.integers(3, longest + 1, users)
  offsets = np.concatenate([[0], np.cumsum(length_U)])
  items_N = rng.integers(0, items, offsets[-1]).astype(np.int32)
  items_N[:items] = np.arange(items)  # every item occurs
  os.makedirs(directory, exist_ok=True)
  return store.write(
    str(directory), items_N=items_N, times_N=None, offsets=offsets, valid_start_U=offsets[1:] - 2,
    test_start_U=offsets[1:] - 1, user_ids=pl.Series([f'u{u}' for u in range(users)]),
    item_ids=pl.Series([f'i{i}' for i in range(items)]), meta={'sources': ['tiny']})


MODEL = ModelConfig(
  backbone=BackboneConfig(width=8, heads=2, inner=16), positions=8, pre_layers=1, core_layers=1,
  embed_dropout=0.2, pre_dropout=0.2, core_dropout=0.2)


def make_config(path, **changes) -> Config:
  """A run of a few seconds on the data set at `path`."""
  config = Config(
    data=SourceConfig(path=str(path), row_length=16, max_history=8),
    model=MODEL, depth=DepthConfig(mean=2), catalogue=CatalogueConfig(tile=16, block=16),
    evaluate=EvaluationConfig(batch_rows=4, depths=(1, 2, 4)))
  train = TrainConfig(epochs=3, batch_rows=4, pairs=6, log_every_steps=2, ema=0.9)
  config = dataclasses.replace(
    config, pretrain=dataclasses.replace(config.pretrain, train=train),
    posttrain=dataclasses.replace(config.posttrain, train=dataclasses.replace(train, epochs=2)))
  return dataclasses.replace(config, **changes)


def latest(workdir, phase):
  """All of a phase's last state, moments and average too, and its progress."""
  with contextlib.closing(ocp.CheckpointManager(workdir / 'checkpoints' / phase / 'latest')) as series:
    return series.restore(series.latest_step(), args=ocp.args.Composite(
      state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()))


def end(experiment, phase):
  """The arrays of that, and the best parameters."""
  last = latest(experiment.workdir, phase)
  everything = experiment.best(phase)[0], last.state, last.progress
  return [np.asarray(x) for x in jax.tree.leaves(everything)]
