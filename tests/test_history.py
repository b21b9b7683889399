"""The softmax that leaves the history out, against one that was written down item by item."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, make_config, make_store

from lares_jax import metrics, run
from lares_jax.catalogue import Catalogue
from lares_jax.config import Config, SourceConfig
from lares_jax.data.batches import DataConfig, TrainBatches
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares, ModelConfig
from lares_jax.model.recurrence import at_places
from lares_jax.objectives import history
from lares_jax.objectives.pretrain import Draw, Pretrain, PretrainConfig
from lares_jax.scoring import CatalogueConfig
from lares_jax.studies import quality


@pytest.mark.parametrize('rows, similarity', (
  ('packed', 'dot'), ('packed', 'cos'), ('packed', 'direction'), ('prefix', 'dot')))
def test_what_the_user_has_is_no_rival(tmp_path, rows, similarity):
  """Items repeat in these histories, some targets among them, and histories keep company in a row.

  Then the loss is of the same, at places that are scored.
  """
  store = make_store(tmp_path, items=12)
  config = DataConfig(rows=rows, row_length=24, max_history=8)
  batch = TrainBatches(store, config, batch_rows=24, pairs=0, seed=0).batch(0)
  catalogue = Catalogue(CatalogueConfig(similarity=similarity, tau=0.5, tile=16, block=5), 12)
  rng = np.random.default_rng(0)
  table_RxD = 0.3 * rng.normal(size=(12, 8)).astype(np.float32)
  query_BxAxD = rng.normal(size=(*batch.target_BxA.shape, 8)).astype(np.float32)

  def ours(query_BxAxD, table_RxD):
    found = catalogue.likelihood(query_BxAxD.reshape(-1, 8), batch.target_BxA.reshape(-1),
                                 batch.scored_BxA.reshape(-1), table_RxD)
    own_BxAxL, scored_BxA = history.owned(batch)
    logprob_BxA = history.without(found, query_BxAxD, own_BxAxL, batch.rows, table_RxD, catalogue)
    return jnp.where(scored_BxA, logprob_BxA, 0.0)

  hidden, scored = np.zeros((*batch.target_BxA.shape, 12), bool), batch.scored_BxA.copy()
  for b, a in zip(*np.nonzero(batch.scored_BxA)):
    last = a if batch.place_BxA is None else batch.place_BxA[b, a]
    first = last - batch.rows.position_BxL[b, last]
    own = set(batch.rows.item_BxL[b, first:last + 1].tolist())
    scored[b, a] = batch.target_BxA[b, a] not in own
    hidden[b, a, list(own)] = scored[b, a]
  assert 15 < scored.sum() < batch.scored_BxA.sum()

  def theirs(query_BxAxD, table_RxD):
    if similarity != 'dot':
      query_BxAxD = query_BxAxD / jnp.linalg.norm(query_BxAxD, axis=-1, keepdims=True)
    if similarity == 'cos':
      table_RxD = table_RxD / jnp.linalg.norm(table_RxD, axis=-1, keepdims=True)
    score_BxAxV = jnp.where(hidden, -jnp.inf, query_BxAxD @ table_RxD.T / 0.5)
    logprob = jnp.take_along_axis(
      jax.nn.log_softmax(score_BxAxV), batch.target_BxA[..., None], axis=-1)[..., 0]
    return jnp.where(scored, logprob, 0.0)

  args = query_BxAxD, table_RxD
  np.testing.assert_allclose(ours(*args), theirs(*args), rtol=1e-4, atol=1e-4)
  total = lambda function: jax.grad(lambda *args: function(*args).sum(), (0, 1))(*args)
  for mine, other in zip(total(ours), total(theirs)):
    np.testing.assert_allclose(mine, other, rtol=2e-3, atol=2e-4)

  model = Lares(dataclasses.replace(MODEL, embed_dropout=0.0, pre_dropout=0.0, core_layers=0), 12)
  params = model.init(jax.random.key(0), batch.rows, None, 1, cap=1)['params']
  config = PretrainConfig(alpha=0.0, gamma=0.0, history='removed')
  objective = Pretrain(model, catalogue, DepthConfig(0), config)
  loss, seen = objective(params, None, batch, Draw(0, 0), jax.random.key(0))
  state_BxLxD = model.apply({'params': params}, batch.rows, method='prelude')
  expected = -theirs(at_places(state_BxLxD, batch.place_BxA), params['item']).sum() / scored.sum()
  assert seen['targets'] == scored.sum() and loss == pytest.approx(float(expected), rel=1e-4)


def test_where_nearly_all_is_the_history_s_the_loss_stays_finite(tmp_path):
  store = make_store(tmp_path, items=12)
  batch = TrainBatches(store, DataConfig(row_length=24, max_history=8), 6, 0, seed=0).batch(0)
  catalogue = Catalogue(CatalogueConfig(tau=0.01, tile=16, block=5), 12)
  own_BxAxL, scored_BxA = history.owned(batch)
  table_RxD = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)

  def loss(query_BxAxD):  # the last item's own embedding: its score is far above all
    found = catalogue.likelihood(query_BxAxD.reshape(-1, 8), batch.target_BxA.reshape(-1),
                                 batch.scored_BxA.reshape(-1), table_RxD)
    logprob_BxA = history.without(found, query_BxAxD, own_BxAxL, batch.rows, table_RxD, catalogue)
    return jnp.where(scored_BxA, logprob_BxA, 0.0).sum()

  value, gradient = jax.value_and_grad(loss)(table_RxD[batch.rows.item_BxL])
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_run_that_removes_the_history_chooses_by_what_is_left(tmp_path):
  store = make_store(tmp_path / 'store')
  config = make_config(store.directory)
  loss = PretrainConfig(alpha=0.0, gamma=0.0, history='removed')
  config = dataclasses.replace(
    config, pretrain=dataclasses.replace(config.pretrain, loss=loss),
    evaluate=dataclasses.replace(config.evaluate, history='removed'))
  experiment = Experiment.start(config, str(tmp_path / 'run'))
  result = run.train(experiment)
  params, seen, _ = experiment.best('pretrain')
  by = {history: experiment.evaluator.ranks(params, 'valid', (2, result['depth']), history=history)
        for history in ('ranked', 'removed')}
  ranks = np.load(experiment.workdir / 'ranks.npz')
  for name, of_history in by.items():
    np.testing.assert_array_equal(ranks[f'pretrain_valid_{name}'], of_history[1].astype(np.float32))
  measured = quality.measure(experiment, params, 'valid', 2)
  np.testing.assert_array_equal(measured.rank_TxM[1], by['removed'][0], 'the study ranks as evaluate')
  mrr = {history: metrics.summary(rank_2xM[0])['mrr'] for history, rank_2xM in by.items()}
  assert result['history'] == 'removed' and seen['mrr'] == pytest.approx(mrr['removed'])
  assert abs(mrr['removed'] - mrr['ranked']) > 1e-3, 'these histories tell nothing'


@pytest.mark.parametrize('changes', (
  {'phases': 'pretrain,select,posttrain'},
  {'catalogue': CatalogueConfig(dtype='bfloat16')},
  {'catalogue': CatalogueConfig(loss='sampled')},
  {'model': ModelConfig(reasoner='erl'), 'depth': DepthConfig(2, 'constant')},
))
def test_what_cannot_leave_the_history_out_says_so(changes):
  loss = dataclasses.replace(Config().pretrain, loss=PretrainConfig(history='removed'))
  evaluate = dataclasses.replace(Config().evaluate, depths=(1, 2))
  with pytest.raises(InputError, match=r'history=removed: '):
    Config(data=SourceConfig(path='x'), pretrain=loss, evaluate=evaluate, **changes)
