"""Every backbone, baseline and ablation by configuration: it learns, and serves what it evaluates."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny import MODEL, make_config, make_store

from lares_jax import config as config_lib
from lares_jax import metrics, run
from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.config import Config
from lares_jax.data import synthetic, text
from lares_jax.data.batches import Batch, TrainBatches
from lares_jax.data.pairs import Pairs
from lares_jax.data.rows import Segments, fill
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.model.backbone import Context, Norm
from lares_jax.model.lares import Lares, initial_state
from lares_jax.model.rearec import ReaRec
from lares_jax.model.transformer import TransformerLayer
from lares_jax.objectives.pretrain import infonce
from lares_jax.objectives.rearec import Rearec, RearecConfig, divergence
from lares_jax.prepare import PrepareOptions, prepared
from lares_jax.recommender import Recommender, encode
from lares_jax.training import evaluation, sharding

STEPS = 60
PLAIN = {'depth.mean': 0}
WIDE = {'data.rows': 'prefix', 'pretrain.train.batch_rows': 96}  # backbones that see the whole row
TEXT = {'model.fusion.name': 'tedrec', 'model.fusion.text_width': 12, 'model.fusion.experts': 2,
        'model.fusion.dropout': 0.0}
REAREC = {'depth.mean': 2, 'evaluate.depths': (1, 2)}
BACKBONES = {
  'transformer': {},
  'hstu': {'model.backbone.name': 'hstu'},
  'gru': {'model.backbone.name': 'gru'},
  'fmlp': {'model.backbone.name': 'fmlp', **WIDE},
  'bsarec': {'model.backbone.name': 'bsarec', **WIDE},
  'tedrec': {**TEXT, 'catalogue.similarity': 'cos', 'catalogue.tau': 0.2, **WIDE},
}
CASES = {
  **{f'{name}_0': {**changes, **PLAIN} for name, changes in BACKBONES.items()},
  **{f'{name}_4': changes for name, changes in BACKBONES.items()},
  'duorec': {**PLAIN, 'model.pre_dropout': 0.2, 'pretrain.loss.gamma_view': 'partner',
             'pretrain.loss.gamma': 0.05},
  'erl': {'model.reasoner': 'erl', **REAREC},
  'prl': {'model.reasoner': 'prl', 'pretrain.rearec.contrast': 0.1, **REAREC},
  'untied': {'model.core_blocks': 2, 'model.initial': 'normal'},
}
TIMES = {**BACKBONES['hstu'], 'model.backbone.times': True}


@pytest.fixture(scope='module')
def built_in(tmp_path_factory):
  """The built-in process, made small; its log has times, and titles are made up."""
  directory = tmp_path_factory.mktemp('built_in')
  synthetic.generate(synthetic.World(
    num_users=150, num_items=60, num_interests=6, num_routes=2, route_length=6, min_length=6,
    max_length=16, noise=0.02)).write_csv(directory / 'log.csv')
  columns = PrepareOptions(format='csv', user='user_id', item='item_id', time='timestamp')
  store = prepared(str(directory / 'log.csv'), columns, str(directory / 'cache'))
  text.write(store, store.item_ids.to_list(), text.word_encoder(12))
  return store


def _config(store, changes: dict) -> Config:
  config = ml_collections.ConfigDict(dataclasses.asdict(make_config(store.directory)))
  config.update_from_flattened_dict({
    # Random numbers take longer to compile than the layers that draw them.
    **{f'model.{part}_dropout': 0.0 for part in ('embed', 'pre', 'core')}, 'model.initial': 'zero',
    'model.backbone.width': 16, 'model.backbone.inner': 32, 'model.remat': False,
    'depth.mean': 4, 'depth.distribution': 'constant', 'pretrain.loss.alpha': 0.0,
    'pretrain.loss.gamma': 0.0, 'pretrain.train.batch_rows': 24, 'pretrain.train.pairs': 24,
    'pretrain.train.optimizer.learning_rate': 1e-2, 'evaluate.batch_rows': 64,
    'catalogue.tile': 512, 'catalogue.block': 64, **changes})
  return config_lib.typed(config)


TERMS = {'duorec': ('partner_alignment',), 'erl': ('divergence',),
         'prl': ('early', 'contrast')}


def _trained(experiment: Experiment, terms):
  """Parameters after some steps, without a workdir; the loss must have the terms."""
  phase = experiment.pretraining()
  state = phase.fresh(experiment.init_params())
  step_of = jax.jit(lambda state, batch, draw: phase.update(state, None, batch, draw))
  for step in range(STEPS):
    draw = phase.objective.draw(np.random.default_rng(step))
    batch = sharding.put_batch(phase.batches.batch(step), experiment.mesh)
    state, seen = step_of(state, batch, draw)
  for term in ('loss', 'cross_entropy', *terms):
    assert 0 < float(seen[term]) < 100, f'{term}: {seen[term]}'
  return state.params


@pytest.mark.parametrize('case', CASES)
def test_it_beats_popularity_and_serves_the_vectors_of_evaluation(built_in, tmp_path, case):
  experiment = Experiment(_config(built_in, CASES[case]), tmp_path)
  params, depth = _trained(experiment, TERMS.get(case, ())), experiment.config.depth.mean
  rank_1xM = experiment.evaluator.ranks(params, 'valid', (depth,))
  user_M, index_M = built_in.targets('valid')
  ours, popularity = (metrics.summary(x)['ndcg@10'] for x in (
    rank_1xM[0], built_in.items_N[index_M].astype(float)))
  assert ours > 1.2 * popularity, f'NDCG@10 {ours:.3f} where popularity has {popularity:.3f}'
  if case not in ('fmlp_4', 'tedrec_4', 'erl', 'untied'):  # bsarec is in test_recommend.py
    return
  hit_M = rank_1xM[0] < 10
  raw_V = np.array(built_in.item_ids.to_list(), object)
  histories = built_in.raw_histories(user_M, index_M)
  recommender = Recommender(experiment, params, experiment.config.depth.mean)
  answers = recommender.recommend(histories, exclude_history=False)
  target_M = raw_V[built_in.items_N[index_M]]
  np.testing.assert_array_equal(hit_M, [t in a.items for t, a in zip(target_M, answers)])


def _bound(config, kind=Lares, seed=0):
  """A model over 20 items with parameters far from their start, and those."""
  model = kind(config, 20)
  init = lambda key: model.init(key, _alone(8), jnp.zeros((1, 8, 8)), 1, cap=1)
  shapes = jax.eval_shape(init, jax.random.key(0))['params']
  draw = np.random.default_rng(seed).normal
  params = jax.tree.map(lambda x: jnp.array(draw(size=x.shape) * 0.3, jnp.float32), shapes)
  return model.bind({'params': params}), params


def _rows(starts, lengths, rows, places, shape):
  return fill(np.arange(20, dtype=np.int32), Segments(*map(np.array, (starts, lengths, rows, places))),
              shape)


def _alone(length, start=0):
  return _rows([start], [length], [0], [0], (1, length))


def test_a_chain_of_thoughts_is_that_of_tokens_appended_to_the_history():
  config = dataclasses.replace(MODEL, reasoner='erl', pre_layers=2)
  model, _ = _bound(config, ReaRec)
  rows = _rows([4, 0], [5, 3], [0, 0], [0, 5], (1, 8))  # in company
  thought_TxLxD = model.thoughts(rows, False)[:, 0]
  for place, history in ((4, _alone(5, 4)), (2, _alone(3, 4)), (6, _alone(2, 0))):
    count = history.item_BxL.shape[1]
    tokens_1xLxD = jnp.pad(model.embedded(history, False), ((0, 0), (0, 8 - count), (0, 0)))
    for t in range(3):
      x_1xLxD = tokens_1xLxD
      for layer in model.pre:  # causal: what is appended later does not matter yet
        x_1xLxD = layer(x_1xLxD, Context.of(_alone(8)), False)
      last_D = x_1xLxD[0, count + t - 1]
      np.testing.assert_allclose(thought_TxLxD[t, place], last_D, rtol=1e-4, atol=1e-5)
      tokens_1xLxD = tokens_1xLxD.at[0, count + t].set(model.input_norm(last_D + model.thought_TxD[t]))
  ensemble = model.reason(None, rows, None, 2, 2, place_BxA=np.array([[4]]))
  np.testing.assert_allclose(ensemble.state_BxLxD[0], thought_TxLxD.mean(axis=0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(ensemble.states_TxBxAxD[0, 0, 0], thought_TxLxD[:2, 4].mean(axis=0),
                             rtol=1e-5, atol=1e-6)


def test_a_noisy_thought_starts_from_the_clean_one_before_it():
  config = dataclasses.replace(MODEL, reasoner='prl', pre_layers=2)
  model, _ = _bound(config, ReaRec)
  rows = _alone(5)
  clean_TxBxLxD = model.thoughts(rows, False)
  np.testing.assert_allclose(
    model.thoughts(rows, False, clean_TxBxLxD[:-1]), clean_TxBxLxD, rtol=1e-5, atol=1e-5)
  starts = []

  class Recorded:
    def __init__(self):
      self.config = config

    def apply(self, params, rows, train, start_TxBxLxD, **others):
      starts.append(start_TxBxLxD)
      return clean_TxBxLxD

  loss = Rearec(Recorded(), Catalogue(CatalogueConfig(), 20), RearecConfig(noise=0.01))
  one = np.zeros((1, 1), np.int32)
  pairs = Pairs(one[0] + 4, None, None, one[0] + 7, one[0] == 0)
  loss({'item': jnp.ones((20, 8))}, None, Batch(rows, one + 4, one + 7, one == 0, pairs), (),
       jax.random.key(0))
  first, second = starts
  assert first is None
  noise = np.asarray(second - clean_TxBxLxD[:-1])
  assert 0.007 < noise.std() < 0.013 and np.abs(noise).max() < 0.05


def test_the_rivals_of_duorec_s_term_are_of_both_views():
  view_PxD, other_PxD = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
  real_P = np.array([True, True, False, True])
  both = np.concatenate([view_PxD[real_P], other_PxD[real_P]]).astype(np.float64)
  logits = both @ both.T / 0.7
  np.fill_diagonal(logits, -np.inf)
  partner = np.roll(np.arange(6), 3)
  wanted = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(6), partner])
  found = infonce(view_PxD, other_PxD, 0.7, real_P[:, None] & real_P, within=True)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_rival_thinks_without_a_core_block():
  config = dataclasses.replace(MODEL, reasoner='erl', core_layers=0)
  _, params = _bound(config, ReaRec)
  model, rows, place_1x1 = ReaRec(config, 20), _alone(5), np.array([[4]])
  start = evaluation.begin(model, params, rows, 0)
  plain, thought = evaluation.user_vectors(model, params, rows, place_1x1, start, (0, 2))
  assert np.abs(plain - thought).max() > 1e-3
  served = encode(model, params, rows, 0, 2)[0, 4]
  np.testing.assert_allclose(served, thought[0, 0], rtol=1e-5, atol=1e-6)


def test_refining_the_last_token_leaves_the_others_as_the_pre_block_left_them():
  config = dataclasses.replace(MODEL, refine='last', core_layers=2)
  model, _ = _bound(config)
  rows = _rows([4, 0], [5, 3], [0, 0], [0, 5], (1, 8))
  z_BxLxD = initial_state(config, rows, jax.random.key(0), False)
  state = lambda h_BxLxD, z_BxLxD: model.reason(h_BxLxD, rows, z_BxLxD, 3, 3).state_BxLxD[0, 4].sum()
  h_BxLxD = model.prelude(rows)
  by_h, by_z = (np.abs(g[0]).max(axis=-1) > 0 for g in jax.grad(state, (0, 1))(h_BxLxD, z_BxLxD))
  np.testing.assert_array_equal(by_h, np.arange(8) <= 4, 'it must look at the H of its history, all')
  np.testing.assert_array_equal(by_z, np.arange(8) == 4, 'no other token may think')
  # A block of one layer, one step: the published layer over the others' H and one's own f(Z, H).
  one = dataclasses.replace(config, core_layers=1, combine='add')
  model, params = _bound(one)
  h_BxLxD = model.prelude(rows)
  plain = Lares(dataclasses.replace(one, refine='all'), 20).bind({'params': params})
  got = model.reason(h_BxLxD, rows, z_BxLxD, 1, 1).state_BxLxD[0, 4]
  step = params['scan']['step']
  own_D = Norm().apply({'params': step['step_norm']}, (z_BxLxD + h_BxLxD)[0, 4] / 2)
  mixed_1xLxD = h_BxLxD.at[0, 4].set(own_D)
  layer = TransformerLayer(one.backbone, 0.0)
  want = layer.apply({'params': step['core_0']}, mixed_1xLxD, Context.of(rows), False)[0, 4]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert np.abs(got - plain.reason(h_BxLxD, rows, z_BxLxD, 1, 1).state_BxLxD[0, 4]).max() > 1e-3


def test_untied_blocks_take_turns():
  config = dataclasses.replace(MODEL, core_blocks=3)
  _, params = _bound(config)
  blocks = params['scan']['step']
  assert set(blocks) == {'blocks_0', 'blocks_1', 'blocks_2'}
  rows = _alone(5)
  z_BxLxD = initial_state(config, rows, jax.random.key(0), False)
  tied = Lares(MODEL, 20)
  h_BxLxD = tied.apply({'params': params}, rows, method='prelude')
  run = lambda model, params, z, depth: model.apply(
    {'params': params}, h_BxLxD, rows, z, depth, 4, method='reason').state_BxLxD
  for i in range(4):
    own = {**params, 'scan': {'step': blocks[f'blocks_{i % 3}']}}
    z_BxLxD = run(tied, own, z_BxLxD, 1)
    got = run(Lares(config, 20), params, initial_state(config, rows, jax.random.key(0), False), i + 1)
    np.testing.assert_allclose(got, z_BxLxD, rtol=1e-4, atol=1e-5, err_msg=f'step {i}')
  assert not config.recurrent and MODEL.recurrent


def test_the_divergence_of_thoughts_is_that_of_their_softmax_over_all_items():
  rng = np.random.default_rng(0)
  query_TxMxD, item_VxD = rng.normal(size=(3, 5, 4)), rng.normal(size=(7, 4))
  catalogue = Catalogue(CatalogueConfig(tau=0.7, tile=4, block=4), 7)
  lse = lambda query_TxMxD: catalogue.likelihood(
    query_TxMxD, jnp.zeros((3, 5), int), jnp.ones((3, 5), bool), jnp.asarray(item_VxD)).lse_M
  def brute(query_TxMxD, fixed=None):
    log_TxMxV = jax.nn.log_softmax(query_TxMxD @ item_VxD.T / 0.7)
    held = log_TxMxV if fixed is None else jax.nn.log_softmax(fixed @ item_VxD.T / 0.7)
    kl = (jnp.exp(held)[:, None] * (held[:, None] - log_TxMxV[None])).sum(-1)
    return kl.mean(-1).sum() / 6
  ours = lambda query_TxMxD: divergence(lse, query_TxMxD, lambda x: x.mean(-1))
  query_TxMxD = jnp.asarray(query_TxMxD, jnp.float32)
  np.testing.assert_allclose(ours(query_TxMxD), brute(query_TxMxD), rtol=1e-4)
  want = jax.grad(lambda q: brute(q, query_TxMxD))(query_TxMxD)
  np.testing.assert_allclose(jax.grad(ours)(query_TxMxD), want, rtol=1e-3, atol=1e-5)


def test_text_is_given_to_both_phases_and_neither_trained_nor_averaged(built_in, tmp_path):
  config = _config(built_in, {
    **BACKBONES['tedrec'], 'depth.mean': 1, 'phases': 'pretrain,posttrain', 'evaluate.depths': (1,),
    'pretrain.train.epochs': 1, 'posttrain.train.epochs': 1, 'posttrain.train.batch_rows': 24,
    'posttrain.loss.rollouts': 2, 'pretrain.train.ema': 0.9})
  experiment = Experiment.start(config, str(tmp_path / 'run'))
  phase = experiment.posttraining(None, None)
  assert phase.objective.model.config.fusion.dropout == config.posttrain.outer_dropout
  run.train(experiment)
  table_VxW = text.opened(built_in, 12)
  for name in ('pretrain', 'posttrain'):
    params, _, _ = experiment.best(name)
    np.testing.assert_array_equal(params['text'], table_VxW)
  state = experiment.pretraining().fresh(experiment.init_params())
  assert 'text' not in {*state.opt_state[0].mu, *state.average} and 'text' in state.evaluated


def test_another_text_is_another_run_and_what_is_missing_is_named(tmp_path):
  store = make_store(tmp_path / 'data')
  config = _config(store, BACKBONES['tedrec'])
  start = lambda config: Experiment.start(config, str(tmp_path / 'run'))
  with pytest.raises(InputError, match=r'text\.npy: no such file'):
    start(config)
  text.write(store, store.item_ids.to_list(), text.word_encoder(9))
  with pytest.raises(InputError, match='text_width=9'):
    start(config)
  text.write(store, store.item_ids.to_list(), text.word_encoder(12))
  start(config)
  (tmp_path / 'run' / 'checkpoints' / 'pretrain' / 'latest' / '1').mkdir(parents=True)
  text.write(store, ['another', *store.item_ids.to_list()[1:]], text.word_encoder(12))
  with pytest.raises(InputError, match='text embeddings'):
    start(config)
  with pytest.raises(InputError, match=r'has no times; set model\.backbone\.times=False'):
    start(_config(store, TIMES))


def test_times_reach_training_and_evaluation_and_some_are_hidden(built_in, tmp_path):
  experiment = Experiment(_config(built_in, TIMES), tmp_path)
  batches = TrainBatches(experiment.store, experiment.config.data, 24, 24, 0, copies=True)
  share = []
  for step in range(4):
    time_BxL = batches.batch(step).rows.time_BxL
    hidden_B = (time_BxL < 0).all(axis=1)
    assert (time_BxL[~hidden_B] >= 0).all() and time_BxL.max() > 0
    np.testing.assert_array_equal(time_BxL[:24], time_BxL[24:48], 'a copy is as its row')
    share += [*hidden_B[24:]]
  assert 0.02 < np.mean(share) < 0.25
  params = jax.tree.map(lambda x: x * 3, experiment.init_params())
  timed = experiment.evaluator.ranks(params, 'valid', (4,))
  timeless = dataclasses.replace(experiment.store, times_N=None)
  bare = dataclasses.replace(experiment.evaluator, store=timeless)
  untimed = bare.ranks(params, 'valid', (4,))
  assert (timed != untimed).any(), 'evaluation does not see the times'
  # A raw history has none: it is read as training's hidden ones were.
  user_M, index_M = built_in.targets('valid')
  raw_V = np.array(built_in.item_ids.to_list(), object)
  histories = built_in.raw_histories(user_M[:20], index_M[:20])
  recommender = Recommender(experiment, params, experiment.config.depth.mean)
  answers = recommender.recommend(histories, exclude_history=False)
  target_M = raw_V[built_in.items_N[index_M]]
  np.testing.assert_array_equal(
    untimed[0, :20] < 10, [t in a.items for t, a in zip(target_M, answers)])


@pytest.mark.parametrize('changes, said', (
  ({'model.refine': 'last', **BACKBONES['gru']}, 'only backbone.name=transformer'),
  ({'model.backbone.times': True}, 'only backbone.name=hstu'),
  ({'model.core_blocks': 0}, 'core_blocks=0'),
  ({'model.reasoner': 'erl'}, r'set depth\.mean to this'),
  ({'model.reasoner': 'erl', **REAREC, 'catalogue.similarity': 'cos'}, 'needs catalogue.similarity'),
  ({'pretrain.loss.gamma_view': 'rows'}, 'use one of step, dropout, partner'),
  ({'pretrain.loss.alpha': 0.1, 'pretrain.train.pairs': 0}, r'train\.pairs=0'),
  ({'pretrain.loss.alpha': 0.1, 'pretrain.loss.gamma_view': 'partner'}, r'set pretrain\.loss\.alpha=0'),
  ({'depth.mean': 0, 'phases': 'pretrain,posttrain'}, 'posttrain needs a model that reasons'),
  ({'posttrain.dropout': 0.97}, r'posttrain\.dropout=0.97'),
  ({'evaluate.depths': (4, 65)}, 'goes from 0 to 64'),
))
def test_settings_that_do_not_go_together_are_named(tmp_path, changes, said):
  with pytest.raises(InputError, match=said):
    _config(make_store(tmp_path), changes)


@pytest.mark.parametrize('reasoner', ('erl', 'prl'))
def test_a_rival_s_loss_and_user_vector_by_hand(reasoner):
  config = dataclasses.replace(MODEL, reasoner=reasoner, embed_dropout=0.0, pre_dropout=0.0)
  (model, params), rows, one = _bound(config, ReaRec), _alone(5), np.zeros((1, 1), np.int32)
  loss = Rearec(ReaRec(config, 20), Catalogue(CatalogueConfig(), 20), RearecConfig(kl=0.5, early=0.3))
  batch = Batch(rows, one + 4, one + 7, one == 0, None)
  found, seen = jax.jit(lambda key: loss(params, None, batch, (), key))(jax.random.key(0))
  thought_TxD = model.thoughts(rows, False)[:, 0, 4]
  user_D = thought_TxD.mean(axis=0) if reasoner == 'erl' else thought_TxD[2]
  np.testing.assert_allclose(model.reason(None, rows, None, 2, 2).state_BxLxD[0, 4], user_D, rtol=1e-4)
  entropy = lambda query_XxD: -jax.nn.log_softmax(query_XxD @ params['item'].T)[..., 7]
  early = entropy(thought_TxD[:2] / np.array([[25.0], [5.0]])).mean()  # the earlier, the hotter
  more = 0.3 * early if reasoner == 'prl' else -0.5 * seen['divergence']  # to differ is rewarded
  np.testing.assert_allclose(found, entropy(user_D) + more, rtol=1e-4)
