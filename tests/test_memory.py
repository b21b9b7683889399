"""No step builds an array with an axis of items and another of rows, positions or steps.

Where scores are kept for the gradient, such an array holds one tile of queries, whatever the batch.
"""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from tiny import make_config, make_store

from lares_jax.catalogue import CatalogueConfig
from lares_jax.experiment import Experiment
from lares_jax.scoring import FEW

ITEMS, BLOCK = 1009, 64  # a prime, so that no other axis is as long by chance


def _shapes(jaxpr):
  """Shapes of every intermediate, inside loops, branches and calls too."""
  for equation in jaxpr.eqns:
    for variable in equation.outvars:
      if hasattr(variable.aval, 'shape'):
        yield tuple(variable.aval.shape), equation.primitive.name
    for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner):
        yield from _shapes(getattr(inner, 'jaxpr', inner))


def _is_jaxpr(x) -> bool:
  return hasattr(x, 'eqns') or hasattr(x, 'jaxpr')


def _check(function, args, width: int = 8):
  shapes = list(_shapes(jax.make_jaxpr(function)(*args).jaxpr))
  assert len(shapes) > 300, 'the walk saw too little: it no longer enters the inner jaxprs'
  for shape, name in shapes:
    others = list(shape)
    if ITEMS in others:
      others.remove(ITEMS)
      assert np.prod(others, dtype=int) <= width, f'{name} builds {shape}: items times something'
    assert np.prod(shape, dtype=int) <= 4 * ITEMS * width, f'{name} builds {shape}'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('memory') / 'store', users=120, items=ITEMS, longest=30)


def _experiment(store, tile: int) -> Experiment:
  config = make_config(store.directory, catalogue=CatalogueConfig(tile=tile, block=BLOCK))
  twice = lambda phase: dataclasses.replace(phase, train=dataclasses.replace(
    phase.train, batch_rows=2 * phase.train.batch_rows))
  config = dataclasses.replace(
    config, pretrain=twice(config.pretrain), posttrain=twice(config.posttrain))
  return Experiment(config, pathlib.Path())


def test_the_walk_would_see_a_full_score_matrix():
  with pytest.raises(AssertionError, match='items times something'):
    many = lambda x: jax.lax.fori_loop(0, 400, lambda i, x: x, x)
    scores = lambda q, e: sum(many(q + i).sum() for i in range(300)) + jax.nn.relu(q @ e.T).sum()
    _check(scores, (np.zeros((64, 8), np.float32), np.zeros((ITEMS, 8), np.float32)), 8)


@pytest.mark.parametrize('phase', ('pretrain', 'removed', 'posttrain'))
@pytest.mark.parametrize('tile, kept', ((32, 0), (FEW, FEW)))
def test_train_step(store, phase, tile, kept):
  experiment = _experiment(store, tile)
  assert experiment.catalogue.config.kept(ITEMS) == kept
  params = experiment.init_params()
  if phase == 'removed':
    loss = dataclasses.replace(experiment.config.pretrain.loss, history='removed')
    pretrain = dataclasses.replace(experiment.config.pretrain, loss=loss)
    experiment = dataclasses.replace(
      experiment, config=dataclasses.replace(experiment.config, pretrain=pretrain))
  phase = experiment.posttraining(params, None) if phase == 'posttrain' else experiment.pretraining()
  state = phase.fresh(params)
  batch, draw = phase.batches.batch(0), phase.objective.draw(np.random.default_rng(0))
  assert batch.scored_BxA.size > FEW
  args = state, phase.reference, jax.tree.map(np.asarray, batch), draw
  _check(phase.update, args, kept or 8)


@pytest.mark.parametrize('history', ('ranked', 'removed'))
def test_evaluation(store, monkeypatch, history):
  experiment = _experiment(store, 32)
  params, evaluator = experiment.init_params(), experiment.evaluator
  inner = type(evaluator).batch_ranks.__wrapped__

  def walked(params, batch, draw, depths):
    _check(lambda params, batch: inner(evaluator, params, batch, draw, depths), (params, batch))
    return np.zeros((len(depths), batch.target_BxA.size))

  monkeypatch.setattr(type(evaluator), 'batch_ranks', staticmethod(walked))
  evaluator = dataclasses.replace(evaluator)
  evaluator.ranks(params, 'test', (1, 2, 4), history=history)
